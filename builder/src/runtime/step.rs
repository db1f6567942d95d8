//! One step of making the runtime base: what it does, what it needs for that, how long it may take.
//! While it runs, it reports what it waits for; when its time is over it is cancelled, with the
//! commands and containers that it runs.
//!
//! Called by `runtime`, `packages` and the recipes, through `RuntimeContext::step`.

use crate::error::{self, Hint};
use epsilon_api::build::{BuildError, BuildEvent, BuildLog};
use parking_lot::Mutex;
use std::{future::Future, pin::pin, time::Duration};
use tokio::time::{Instant, interval_at, sleep_until};

/// Interval of the progress lines of a step.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
/// Most characters of a program's line that are shown.
const LINE_MAX: usize = 200;

/// What a step depends on, and so most likely waits for when it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A registry of images. Pulls have limits of their own, in `config/limits.rs`.
    Registry,
    /// The distribution's mirror: about 50 MB.
    Mirror,
    /// The mirror and Python's package index: about 120 MB.
    PackageIndex,
    /// npm's registry: a few MB.
    NpmRegistry,
    /// Another process that does the same.
    AnotherProcess,
    /// The engine and the disk of this machine.
    Machine,
}

impl Needs {
    /// The step's share of the time for all steps together: more time for all is more time for
    /// each.
    fn limit(self, whole: Duration) -> Duration {
        match self {
            Self::Registry | Self::AnotherProcess => whole,
            Self::Mirror | Self::PackageIndex => whole / 2,
            Self::Machine => whole / 4,
            Self::NpmRegistry => whole / 10,
        }
    }

    /// Why the step most likely hangs, and what to do.
    fn hint(self) -> String {
        let peer = match self {
            Self::Registry => "the registry of that image",
            Self::Mirror => "the mirror in apt's settings",
            Self::PackageIndex => "the mirror in apt's settings or Python's package index",
            Self::NpmRegistry => "npm's registry",
            Self::AnotherProcess => {
                return "look what the other process waits for, end it, and try again".into();
            }
            Self::Machine => {
                return "the engine or the disk of this machine is slow or stuck: see the engine's log, then try again; \
                        a slow machine needs more `builder.runtime_timeout`, of which each step has a share"
                    .into();
            }
        };
        format!(
            "{peer} did not answer, most likely: check this machine's network, its name servers and its proxy \
             (`HTTPS_PROXY`), then try again; a slow line needs more `builder.runtime_timeout`, of which each step has a share"
        )
    }
}

/// One step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// What it makes, for people: `the wrapper's packages`.
    pub(crate) doing: String,
    pub(crate) needs: Needs,
}

/// The time limit of all steps of one base.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    whole: Duration,
    ends: Instant,
}

/// The last line that the program of a step printed.
#[derive(Debug, Default)]
pub(crate) struct LastLine(Mutex<String>);

impl Allowed {
    /// From now on.
    pub(crate) fn new(whole: Duration) -> Self {
        Self { whole, ends: Instant::now() + whole }
    }

    fn limit(self, needs: Needs) -> Duration {
        needs.limit(self.whole).min(self.ends.saturating_duration_since(Instant::now()))
    }
}

impl LastLine {
    pub(crate) fn set(&self, line: &str) {
        let line: String = line.trim().chars().filter(|c| !c.is_control()).take(LINE_MAX).collect();
        if !line.is_empty() {
            *self.0.lock() = line;
        }
    }

    fn clear(&self) {
        self.0.lock().clear();
    }

    /// ` (last line: …)`; empty before the first line.
    fn in_brackets(&self) -> String {
        match self.0.lock().as_str() {
            "" => String::new(),
            line => format!(" (last line: {line})"),
        }
    }
}

impl Step {
    /// Runs the work and reports how long it took.
    ///
    /// # Errors
    /// The work's own, or `RUNTIME_FAILED` when its time is over; the work is dropped then.
    pub(crate) async fn run<T>(
        &self,
        allowed: Allowed,
        log: &dyn BuildLog,
        last_line: &LastLine,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        let doing = &self.doing;
        let limit = allowed.limit(self.needs);
        let begun = Instant::now();
        let report = |text: String| log.report(BuildEvent::Line(text));
        last_line.clear();
        report(format!("{doing} …"));
        let mut work = pin!(work);
        let mut end = pin!(sleep_until(begun + limit));
        let mut look = interval_at(begun + REPORT_INTERVAL, REPORT_INTERVAL);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    let done = done?;
                    report(format!("{doing}: {:.1} s", begun.elapsed().as_secs_f64()));
                    return Ok(done);
                }
                () = &mut end => {
                    let at = last_line.in_brackets();
                    let text = format!("{doing}: not done within {} and given up{at}", rounded(limit));
                    return Err(error::runtime_failed(text).hint(self.needs.hint()));
                }
                _ = look.tick() => {
                    let so_far = rounded(begun.elapsed());
                    let at = last_line.in_brackets();
                    report(format!("{doing}: {so_far} of at most {} so far{at}", rounded(limit)));
                }
            }
        }
    }
}

fn rounded(time: Duration) -> String {
    let whole = Duration::from_secs(time.as_secs());
    humantime::format_duration(if whole.is_zero() { time } else { whole }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl BuildLog for Lines {
        fn report(&self, event: BuildEvent) {
            if let BuildEvent::Line(line) = event {
                self.0.lock().push(line);
            }
        }
    }

    fn step(needs: Needs) -> Step {
        Step { doing: "the wrapper's packages".into(), needs }
    }

    const WHOLE: Duration = Duration::from_secs(20 * 60);

    #[tokio::test(start_paused = true)]
    async fn a_hanging_step_reports_its_wait_and_is_cancelled() {
        let lines = Lines::default();
        let last_line = LastLine::default();
        let begun = Instant::now();
        let hangs = async {
            last_line.set("npm http fetch GET \u{1b}[31mexpress\n");
            last_line.set("  ");
            pending::<Result<(), BuildError>>().await
        };
        let ended =
            step(Needs::NpmRegistry).run(Allowed::new(WHOLE), &lines, &last_line, hangs).await;
        let err = ended.unwrap_err();
        assert_eq!(begun.elapsed(), Duration::from_secs(120));
        assert_eq!(err.code, "RUNTIME_FAILED");
        assert_eq!(
            err.message,
            "the wrapper's packages: not done within 2m and given up (last line: npm http fetch GET [31mexpress)"
        );
        let hint = err.hint.unwrap();
        for word in ["npm's registry", "network", "proxy", "try again", "builder.runtime_timeout"] {
            assert!(hint.contains(word), "{word}: {hint}");
        }
        let lines = lines.0.into_inner();
        assert_eq!(lines.len(), 12, "{lines:?}");
        assert_eq!(lines[0], "the wrapper's packages …");
        assert!(
            lines[11].starts_with("the wrapper's packages: 1m 50s of at most 2m so far"),
            "{}",
            lines[11]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_step_outlives_the_time_for_all() {
        let allowed = Allowed::new(WHOLE);
        tokio::time::sleep(WHOLE - Duration::from_secs(30)).await;
        let lines = Lines::default();
        let last_line = LastLine::default();
        let hangs = pending::<Result<(), BuildError>>();
        let err = step(Needs::Mirror).run(allowed, &lines, &last_line, hangs).await.unwrap_err();
        assert!(err.message.contains("within 30s"), "{}", err.message);
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_step_reports_how_long_it_took() {
        let lines = Lines::default();
        let last_line = LastLine::default();
        let works = async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Ok(7)
        };
        let done = step(Needs::Machine).run(Allowed::new(WHOLE), &lines, &last_line, works).await;
        assert_eq!(done.unwrap(), 7);
        let lines = lines.0.into_inner();
        assert_eq!(lines, ["the wrapper's packages …", "the wrapper's packages: 1.5 s"]);
    }
}
