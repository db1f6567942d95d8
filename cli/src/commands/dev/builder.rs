//! A builder without images: reads the archive and the manifest exactly as a deployment does, looks at what the
//! code exports (in a process of its own, in the project's folder, with its `node_modules`), and says which
//! functions there are. Their "image" is the name of their content: the same content is the same version.

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

/// Longest that one entry may take to load.
const LOADS_WITHIN: Duration = Duration::from_secs(20);
/// What Node's own start and the answer may take on top.
const MARGIN: Duration = Duration::from_secs(10);
/// How long the last lines of a process that has ended may take to arrive.
const LAST_LINES: Duration = Duration::from_millis(200);
/// What `timeout` is while a debugger may hold a call: nobody thinks longer.
const DEBUGGING: Duration = Duration::from_secs(24 * 60 * 60);

/// See the module.
#[derive(Debug)]
pub(super) struct DevBuilder {
    processes: Arc<Processes>,
    /// A folder for what is unpacked and what inspections say.
    work: PathBuf,
    /// A debugger is wanted.
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
            job.log.tell(error::note(note));
        }
        let manifest = Manifest::read(&source, job.folder.as_deref(), &Ceilings::default())?;
        if manifest.runtime == Runtime::Container {
            return Err(error::manifest_invalid(
                "`runtime: container` runs in Docker, not in `epsilon dev`",
            )
            .hint("`epsilon up` in one terminal, `epsilon deploy` in another"));
        }
        let inspection = self.look(&manifest, &*job.log).await?;
        let plan = plan::plan(&manifest, &source, &inspection, &job.only)?;
        for note in &plan.notes {
            job.log.tell(error::note(note));
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
        let spec = if self.inspect { held_by_a_debugger(spec) } else { spec };
        BuiltFunction { name, spec, image, parts: None }
    }

    /// What the entries export.
    async fn look(
        &self,
        manifest: &Manifest,
        log: &dyn BuildLog,
    ) -> Result<Inspection, BuildError> {
        let begun = Instant::now();
        let entries = manifest.entries();
        let started = BuildEvent::StepStarted { step: Step::Inspect, detail: entries.join(", ") };
        log.tell(started);
        let number = self.inspections.fetch_add(1, Ordering::Relaxed);
        let out = self.work.join(format!("inspection-{number}.json"));
        let mut env = manifest.environment();
        env.insert("EPSILON_INSPECT_OUT".into(), out.display().to_string());
        let limit = LOADS_WITHIN.as_millis().to_string();
        env.insert("EPSILON_INSPECT_TIMEOUT_MS".into(), limit);
        let order = Order { run: "./inspect.js", arguments: &entries, env, inspect: None };
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let limit = LOADS_WITHIN.saturating_mul(count).saturating_add(MARGIN);
        let ended = timeout(limit, self.run(&order, log)).await;
        let inspection = match ended {
            Ok(Ok(())) => Inspection::load(&out),
            Ok(Err(err)) => Err(error::broken("looking at what the code exports", &err)),
            Err(_) => Err(error::load_failed("the code did not finish loading")),
        };
        drop(tokio::fs::remove_file(&out).await); // it goes with the folder at the latest
        let done = BuildEvent::StepDone {
            step: Step::Inspect,
            detail: String::new(),
            took: begun.elapsed(),
        };
        log.tell(done);
        inspection
    }

    async fn run(&self, order: &Order<'_>, log: &dyn BuildLog) -> std::io::Result<()> {
        let mut process = self.processes.take()?;
        process.order(order).await?;
        let (stdout, stderr) = (process.child.stdout.take(), process.child.stderr.take());
        // Both end with the process, unless what it started holds them open.
        let mut telling = pin!(async { tokio::join!(tell(stdout, log), tell(stderr, log)) });
        tokio::select! {
            status = process.child.wait() => {
                status?;
                drop(timeout(LAST_LINES, telling).await);
            }
            _ = &mut telling => drop(process.child.wait().await?),
        }
        Ok(())
    }
}

impl Builder for DevBuilder {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        Box::pin(self.work(job))
    }
}

async fn tell(stream: Option<impl AsyncRead + Unpin>, log: &dyn BuildLog) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.tell(BuildEvent::Line(line));
    }
}

/// One process, which stays, and whose calls may stand still at a breakpoint.
fn held_by_a_debugger(spec: FunctionSpec) -> FunctionSpec {
    let one = NonZeroU32::MIN;
    FunctionSpec { timeout: DEBUGGING, min_instances: 1, max_instances: one, ..spec }
}
