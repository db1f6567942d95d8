//! The progress of a deployment: bars and spinners on a terminal, plain lines in a pipe, the events
//! themselves with `--json`. All but the events goes to standard error; standard output is for the
//! result.

use crate::{failure::Failure, output};
use console::{Term, style};
use epsilon_api::{
    admin::{DeployEvent, Step},
    error::ErrorBody,
    units::Bytes,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Lines of a tool's output that are shown after a failure: npm's report of one error.
const FAILURE_LINES: usize = 40;
/// Prefix of notes to the developer, as opposed to a tool's output: they stay on the screen, also
/// after a success.
const NOTE: &str = "note: ";
/// Spinner interval.
const TICK: Duration = Duration::from_millis(100);

/// Shows the progress of one deployment.
#[derive(Debug)]
pub(in crate::commands) struct DeployProgress {
    look: OutputStyle,
    verbose: bool,
    lines: VecDeque<String>,
    upload: Option<Upload>,
    steps: Vec<(Step, ProgressBar)>,
}

#[derive(Debug)]
enum OutputStyle {
    /// The events, one per line.
    Json,
    /// A line for each finished step.
    Plain,
    /// Bars and spinners.
    Terminal(MultiProgress),
}

/// Shows how much of the project was packed and sent.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Upload {
    bar: ProgressBar,
    what: String,
    since: Instant,
}

impl Upload {
    /// Adds bytes.
    pub(in crate::commands) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl DeployProgress {
    /// Chooses the style for standard error.
    pub(in crate::commands) fn new(json: bool, verbose: bool) -> Self {
        let look = match (json, Term::stderr().is_term()) {
            (true, _) => OutputStyle::Json,
            (false, false) => OutputStyle::Plain,
            (false, true) => {
                OutputStyle::Terminal(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
            }
        };
        Self { look, verbose, lines: VecDeque::new(), upload: None, steps: Vec::new() }
    }

    /// Starts the upload's bar.
    pub(in crate::commands) fn upload(&mut self, files: usize, bytes: Bytes) -> Upload {
        let what = format!("{}, {bytes}", output::count(files, "file"));
        let bar = match &self.look {
            OutputStyle::Json | OutputStyle::Plain => ProgressBar::hidden(),
            OutputStyle::Terminal(multi) => {
                let bar = multi.add(ProgressBar::new(bytes.get()));
                bar.set_style(template("  {spinner:.cyan} upload        {wide_bar} {msg}"));
                bar.set_message(what.clone());
                bar.enable_steady_tick(TICK);
                bar
            }
        };
        let upload = Upload { bar, what, since: Instant::now() };
        self.upload = Some(upload.clone());
        upload
    }

    /// The gateway has received the whole project.
    pub(in crate::commands) fn uploaded(&mut self) {
        if let Some(Upload { bar, what, since }) = self.upload.take() {
            bar.finish_and_clear();
            self.done("upload", since.elapsed(), &what);
        }
    }

    /// Shows one event.
    pub(in crate::commands) fn show(&mut self, event: &DeployEvent) -> Result<(), Failure> {
        if let OutputStyle::Json = self.look {
            return output::json_line(event);
        }
        match event {
            DeployEvent::StepStarted { step, detail } => self.begin(*step, detail),
            DeployEvent::StepDone { step, detail, took_ms } => {
                self.clear(*step);
                self.done(&step.to_string(), Duration::from_millis(*took_ms), detail);
            }
            DeployEvent::Log { line } => self.log(line),
            DeployEvent::Accepted { .. }
            | DeployEvent::Done { .. }
            | DeployEvent::Failed { .. } => {}
        }
        Ok(())
    }

    /// The deployment failed: shows the last lines of the tools.
    pub(in crate::commands) fn failed(&mut self, error: ErrorBody) -> Failure {
        if let Some((step, bar)) = self.steps.pop() {
            bar.finish_and_clear();
            self.say(&format!("  {} {step}", style("✘").for_stderr().red()));
        }
        if !self.verbose {
            // The error itself usually quotes the relevant lines.
            let is_quoted = |line: &str| error.message.lines().any(|quoted| quoted == line);
            for line in std::mem::take(&mut self.lines).into_iter().filter(|line| !is_quoted(line))
            {
                self.say(&format!("    {}", style(line).for_stderr().dim()));
            }
        }
        error.into()
    }

    /// Stops all animation.
    pub(in crate::commands) fn end(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.bar.finish_and_clear();
        }
        for (_, bar) in self.steps.drain(..) {
            bar.finish_and_clear();
        }
    }

    fn begin(&mut self, step: Step, detail: &str) {
        if let OutputStyle::Terminal(multi) = &self.look {
            let bar = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
            let bar = multi.add(bar);
            bar.set_style(template("  {spinner:.cyan} {prefix:13} {elapsed:>7.dim}  {wide_msg}"));
            bar.set_prefix(step.to_string());
            bar.set_message(detail.to_owned());
            bar.enable_steady_tick(TICK);
            self.steps.push((step, bar));
        }
    }

    fn clear(&mut self, step: Step) {
        if let Some(index) = self.steps.iter().position(|(running, _)| *running == step) {
            self.steps.remove(index).1.finish_and_clear();
        }
    }

    fn done(&self, what: &str, took: Duration, detail: &str) {
        let mark = style("✔").for_stderr().green();
        let took = style(format!("{:>7}", output::took(took))).for_stderr().dim();
        self.say(format!("  {mark} {what:13} {took}  {detail}").trim_end());
    }

    fn log(&mut self, line: &str) {
        let line = output::visible(&console::strip_ansi_codes(line));
        if let Some(note) = line.strip_prefix(NOTE) {
            let mark = style("·").for_stderr().cyan();
            return self.say(&format!("  {mark} {note}"));
        }
        if self.verbose {
            self.say(&format!("    {}", style(line).for_stderr().dim()));
            return;
        }
        if let Some((step, bar)) = self.steps.last() {
            bar.set_message(format!("{line} ({step})"));
        }
        if self.lines.len() == FAILURE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Prints a line that stays.
    fn say(&self, line: &str) {
        match &self.look {
            OutputStyle::Json => {}
            OutputStyle::Plain => eprintln!("{line}"),
            // Fails only when standard error is closed.
            OutputStyle::Terminal(multi) => drop(multi.println(line)),
        }
    }
}

fn template(text: &str) -> ProgressStyle {
    ProgressStyle::with_template(text)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("━╸ ")
}
