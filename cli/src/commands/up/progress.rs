//! Shows the progress of making the runtime base: the first start takes minutes. A spinner on a
//! terminal, log lines elsewhere.

use crate::output;
use console::Term;
use epsilon_api::build::{BuildEvent, BuildLog};
use epsilon_gateway::app::Startup;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;
use tracing::info;

/// Spinner interval.
const TICK: Duration = Duration::from_millis(100);

/// Characters of a tool's line in the control API's health report.
const LINE: usize = 160;

/// Reports the builder's progress before the platform is ready: to the terminal, and to clients of
/// the control API.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    startup: Startup,
}

impl Progress {
    /// Chooses the style for standard error.
    pub(super) fn new(startup: Startup) -> Self {
        let bar = Term::stderr().is_term().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("  {spinner:.cyan} {prefix}  {wide_msg:.dim}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self { bar, startup }
    }
}

impl BuildLog for Progress {
    fn report(&self, event: BuildEvent) {
        match &event {
            BuildEvent::StepStarted { detail, .. } => {
                self.startup.step(&format!("making the runtime base, {detail}"));
            }
            BuildEvent::Line(line) => {
                let line: String = output::visible(line).chars().take(LINE).collect();
                self.startup.step(&format!("making the runtime base: {line}"));
            }
            BuildEvent::StepDone { .. } => {}
        }
        match (event, &self.bar) {
            (BuildEvent::StepStarted { detail, .. }, Some(bar)) => {
                bar.enable_steady_tick(TICK);
                bar.set_prefix(detail);
            }
            (BuildEvent::StepDone { step, detail, took }, Some(bar)) => {
                bar.println(format!("  ✔ {step}: {detail} ({})", output::took(took)));
            }
            (BuildEvent::Line(line), Some(bar)) => bar.set_message(line),
            (BuildEvent::StepStarted { step, detail }, None) => {
                info!(%step, detail, "Build step started.");
            }
            (BuildEvent::StepDone { step, detail, took }, None) => {
                info!(%step, detail, took_ms = took.as_secs_f64() * 1e3, "Build step done.");
            }
            (BuildEvent::Line(line), None) => info!(line, "Tool output."),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
