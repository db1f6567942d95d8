//! Shows the making of the runtime base: the first start takes minutes, and nobody likes a silent
//! program. A spinner on a terminal, log lines elsewhere.

use console::Term;
use epsilon_api::build::{BuildEvent, BuildLog};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use tracing::info;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// Where the builder tells what it does before the platform is ready.
#[derive(Debug)]
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Looks at standard error to see who reads.
    pub(super) fn new() -> Self {
        Self(Term::stderr().is_term().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("  {spinner:.cyan} {prefix}  {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        }))
    }
}

impl BuildLog for Progress {
    fn tell(&self, event: BuildEvent) {
        match (event, &self.0) {
            (BuildEvent::StepStarted { detail, .. }, Some(bar)) => {
                bar.enable_steady_tick(TICK);
                bar.set_prefix(detail);
            }
            (BuildEvent::StepDone { step, detail, took }, Some(bar)) => {
                bar.println(format!("  ✔ {step}: {detail} ({})", crate::output::took(took)));
            }
            (BuildEvent::Line(line), Some(bar)) => bar.set_message(line),
            (BuildEvent::StepStarted { step, detail }, None) => info!(%step, detail, "Step began."),
            (BuildEvent::StepDone { step, detail, took }, None) => {
                info!(%step, detail, took_ms = took.as_secs_f64() * 1e3, "Step done.");
            }
            (BuildEvent::Line(line), None) => info!(line, "Tool output."),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
