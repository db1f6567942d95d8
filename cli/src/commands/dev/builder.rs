//! A builder without images: reads archive and manifest exactly as a deployment does, inspects the
//! code's exports (in a process of its own, in the project's folder, with its `node_modules`), and
//! returns the functions. Their "image" is the digest of their content: the same content is the
//! same version.

use super::processes::{Order, Processes};
use epsilon_api::{
    admin::Step,
    build::{BuildError, BuildEvent, BuildJob, BuildLog, Builder, Built, BuiltFunction},
    function::{FunctionSpec, ImageRef, Runtime},
};
use epsilon_builder::{
    error::{self, Hint as _},
    inspection::Inspection,
    manifest::{Ceilings, Manifest},
    plan::{self, FunctionPlan},
    source::{self, SourceLimits},
};
use futures_util::future::BoxFuture;
use std::{
    num::NonZeroU32,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    time::timeout,
};

/// Longest time for loading one entry.
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for Node's own start and the output, on top of that.
const MARGIN: Duration = Duration::from_secs(10);
/// How long the last lines of an ended process may take to arrive.
const LAST_LINES: Duration = Duration::from_millis(200);
/// `timeout` of functions while a debugger may hold a call.
const DEBUGGING: Duration = Duration::from_secs(24 * 60 * 60);

/// The builder of `epsilon dev`.
#[derive(Debug)]
pub(super) struct DevBuilder {
    processes: Arc<Processes>,
    /// Folder for unpacked archives and inspection reports.
    work: PathBuf,
    /// A debugger may attach.
    inspect: bool,
    inspections: AtomicU64,
}

impl DevBuilder {
    pub(super) fn new(processes: Arc<Processes>, work: PathBuf, inspect: bool) -> Self {
        Self { processes, work, inspect, inspections: AtomicU64::new(0) }
    }

    async fn work(&self, job: BuildJob) -> Result<Built, BuildError> {
        let source = source::receive(job.archive, &SourceLimits::default(), &self.work).await?;
        for note in &source.notes {
            job.log.report(error::note(note));
        }
        let manifest = Manifest::read(&source, job.folder.as_deref(), &Ceilings::default())?;
        if manifest.runtime == Runtime::Container {
            return Err(error::manifest_invalid(
                "`runtime: container` runs in Docker, not in `epsilon dev`",
            )
            .hint("`epsilon up` in one terminal, `epsilon deploy` in another"));
        }
        let inspection = self.inspect(&manifest, &*job.log).await?;
        let plan = plan::plan(&manifest, &source, &inspection, &job.only)?;
        for note in &plan.notes {
            job.log.report(error::note(note));
        }
        let functions =
            plan.functions.into_iter().map(|plan| self.built(&manifest, plan)).collect();
        Ok(Built { project: manifest.project, functions })
    }

    fn built(&self, manifest: &Manifest, plan: FunctionPlan) -> BuiltFunction {
        let FunctionPlan { name, spec, content, .. } = plan;
        let image = ImageRef {
            reference: format!("dev/{}/{name}:{content}", manifest.project),
            digest: format!("sha256:{content}"),
        };
        let spec = if self.inspect { for_debugger(spec) } else { spec };
        BuiltFunction { name, spec, image, parts: None }
    }

    /// Inspects the exports of the entries.
    async fn inspect(
        &self,
        manifest: &Manifest,
        log: &dyn BuildLog,
    ) -> Result<Inspection, BuildError> {
        let begun = Instant::now();
        let entries = manifest.entries();
        let started = BuildEvent::StepStarted { step: Step::Inspect, detail: entries.join(", ") };
        log.report(started);
        let number = self.inspections.fetch_add(1, Ordering::Relaxed);
        let out = self.work.join(format!("inspection-{number}.json"));
        let mut env = manifest.environment();
        env.insert("EPSILON_INSPECT_OUT".into(), out.display().to_string());
        let limit = LOAD_TIMEOUT.as_millis().to_string();
        env.insert("EPSILON_INSPECT_TIMEOUT_MS".into(), limit);
        let order = Order { run: "./inspect.js", arguments: &entries, env, inspect: None };
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let limit = LOAD_TIMEOUT.saturating_mul(count).saturating_add(MARGIN);
        let ended = timeout(limit, self.run(&order, log)).await;
        let inspection = match ended {
            Ok(Ok(())) => Inspection::load(&out),
            Ok(Err(err)) => Err(error::broken("inspecting what the code exports", &err)),
            Err(_) => Err(error::load_failed("the code did not finish loading")),
        };
        drop(tokio::fs::remove_file(&out).await); // the folder's removal deletes it at the latest
        let done = BuildEvent::StepDone {
            step: Step::Inspect,
            detail: String::new(),
            took: begun.elapsed(),
        };
        log.report(done);
        inspection
    }

    async fn run(&self, order: &Order<'_>, log: &dyn BuildLog) -> std::io::Result<()> {
        let mut process = self.processes.take()?;
        process.order(order).await?;
        let stdout = process.child.stdout.take();
        let stderr = process.child.stderr.take();
        // Both end with the process, unless its children hold them open.
        let mut reporting =
            pin!(async { tokio::join!(report_lines(stdout, log), report_lines(stderr, log)) });
        tokio::select! {
            status = process.child.wait() => {
                status?;
                drop(timeout(LAST_LINES, reporting).await);
            }
            _ = &mut reporting => drop(process.child.wait().await?),
        }
        Ok(())
    }
}

impl Builder for DevBuilder {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        Box::pin(self.work(job))
    }
}

async fn report_lines(stream: Option<impl AsyncRead + Unpin>, log: &dyn BuildLog) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.report(BuildEvent::Line(line));
    }
}

/// Settings for a debugger: one process, which stays, and calls that may pause at a breakpoint.
fn for_debugger(spec: FunctionSpec) -> FunctionSpec {
    let one = NonZeroU32::MIN;
    FunctionSpec { timeout: DEBUGGING, min_instances: 1, max_instances: one, ..spec }
}
