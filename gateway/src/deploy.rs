//! A deployment from its archive to serving versions: build, start, activate. Either all functions
//! of a project are activated, or none.
//!
//! ```text
//! queue by folder → build → queue by project → prepare → start new versions → activate → retire old ones
//!            images built elsewhere ─▶┘
//! ```
//! `prebuilt` checks images that were not built here; `builders` (with `remote` and `archive`)
//! chooses a builder; `start` decides which VMs get images and instances before calls arrive;
//! `error` is why one failed; `failure_retry` retries to record that in the store.
//!
//! Up to `activate`, a deployment can be dropped at any point (the client hung up, the time limit
//! is over, the gateway stops), and the old versions serve on. From `activate` on, nothing is
//! dropped.

mod archive;
pub(crate) mod builders;
mod error;
mod failure_retry;
pub(crate) mod prebuilt;
pub(crate) mod progress;
mod project_lock;
pub(crate) mod queue;
mod remote;
pub(crate) mod start;

use crate::{
    fleet::Fleet, functions::actor::Actor, observe::metrics::Metrics, routes::Routes, urls::Urls,
};
use builders::Builders;
use epsilon_api::{
    admin::{DeployEvent, DeploymentInfo, DeploymentState, Step},
    body::CallBody,
    build::{BuildJob, Builder, Built},
    chain::Chain,
    function::Version,
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName},
};
use epsilon_store::{Deployment, Prepared, Store};
use error::DeployError;
use futures_util::{FutureExt, TryStreamExt, stream};
use jiff::Timestamp;
use progress::Progress;
use project_lock::ProjectLock;
use queue::Queue;
use start::{NotReady, Starter};
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Printed in a fleet whose builder has no registry.
const IN_ONE_ENGINE: &str = "note: without a registry, images are stored only in the engine of the builder's machine; VMs on other \
                             machines cannot pull them (`epsilon-builder --registry REF`)";

/// New versions that one deployment fetches and starts concurrently, per VM: enough that a slow
/// image or a long start does not block the others, and few enough that one project does not fill
/// the VM's queue.
const STARTS_PER_VM: usize = 4;

/// A pushed project.
pub(crate) struct Push {
    pub(crate) archive: CallBody,
    pub(crate) folder: Option<String>,
    pub(crate) only: Vec<FunctionName>,
    /// The project as which it was pushed; a source of another project is refused.
    pub(crate) project: Option<ProjectName>,
}

/// Where a deployment's images come from.
pub(crate) enum Work {
    /// Built from the pushed source.
    Push(Push),
    /// Built elsewhere; the document was checked.
    Built(Built),
}

impl From<Push> for Work {
    fn from(push: Push) -> Self {
        Self::Push(push)
    }
}

impl From<Built> for Work {
    fn from(built: Built) -> Self {
        Self::Built(built)
    }
}

/// Runs deployments.
#[derive(Debug)]
pub(crate) struct Deploys {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) gateway: GatewayId,
    pub(crate) builders: Arc<Builders>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) urls: Urls,
    pub(crate) queue: Queue,
    /// Time limit of a deployment.
    pub(crate) limit: Duration,
    /// Longest that one VM may take to pull an image.
    pub(crate) fetch_limit: Duration,
    /// Limits for images that were built elsewhere.
    pub(crate) ceilings: prebuilt::Ceilings,
}

impl Deploys {
    /// Runs one deployment and reports its progress to the end. Run it in a task of its own;
    /// `cancel` ends it as long as the new versions do not serve.
    pub(crate) async fn run(
        &self,
        by: &Actor,
        id: DeploymentId,
        work: impl Into<Work>,
        progress: Progress,
        cancel: CancellationToken,
    ) {
        let work = work.into();
        progress.send(DeployEvent::Accepted { deployment: id.clone() });
        let outcome = async {
            self.store
                .begin_deployment(&id, &self.gateway, Timestamp::now())
                .await
                .map_err(DeployError::Store)?;
            // Cancelling drops the preparation at any point; `activate` is not part of it.
            let prepared = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(DeployError::Cancelled),
                done = tokio::time::timeout(self.limit, self.prepare(&id, work, &progress)) => {
                    done.unwrap_or(Err(DeployError::TookTooLong(self.limit)))
                }
            }?;
            self.activate(&id, prepared, &progress).await
        };
        let outcome = AssertUnwindSafe(outcome).catch_unwind().await;
        let last = match outcome.unwrap_or(Err(DeployError::Panicked)) {
            Ok(deployment) => {
                tracing::info!(deployment = %id, %by, "Deployment done.");
                self.count(DeploymentState::Done);
                DeployEvent::Done { deployment: self.info(deployment) }
            }
            Err(err) => {
                // Only the first line is logged: the developer reads all of it, and npm's output
                // alone may fill a screen.
                let text = Chain(&err).to_string();
                let error = text.lines().next().unwrap_or_default();
                tracing::info!(deployment = %id, error, %by, "Deployment failed.");
                self.count(DeploymentState::Failed);
                let error = err.body(&id);
                if let Err(err) = self.store.fail_deployment(&id, &error, Timestamp::now()).await {
                    tracing::error!(deployment = %id, error = %Chain(&err), "Failed deployment could not be recorded in the store; retrying.");
                    failure_retry::retry_recording(self.store.clone(), id, error.clone());
                }
                DeployEvent::Failed { error }
            }
        };
        progress.end(last).await;
    }

    /// Everything before the first visible change. New versions that were started are retired again
    /// if this fails or is dropped.
    async fn prepare(
        &self,
        id: &DeploymentId,
        work: Work,
        progress: &Progress,
    ) -> Result<Ready, DeployError> {
        let is_ours = matches!(work, Work::Push(_));
        // A document may contain only some of a project's functions, without saying so.
        let is_whole = matches!(&work, Work::Push(push) if push.only.is_empty());
        let (built, by_folder) = match work {
            Work::Push(push) => self.build(id, push, progress).await?,
            Work::Built(built) => (built, None),
        };
        let by_project = self.queue.wait(format!("project {}", built.project), progress).await;
        let project_lock =
            ProjectLock::take(self.store.clone(), &self.gateway, &built.project, progress).await;
        let project_lock = project_lock.map_err(DeployError::Store)?;
        let prepared = self.number(id, &built, is_ours).await?;
        let started = self.start(prepared, is_ours, progress).await?;
        Ok(Ready { started, is_whole, _lock: project_lock, _turns: (by_folder, by_project) })
    }

    async fn build(
        &self,
        id: &DeploymentId,
        push: Push,
        progress: &Progress,
    ) -> Result<(Built, Option<queue::Turn>), DeployError> {
        let by_folder = match &push.folder {
            Some(folder) => Some(self.queue.wait(format!("folder {folder}"), progress).await),
            None => None,
        };
        let job = BuildJob {
            deployment: id.clone(),
            archive: push.archive,
            folder: push.folder,
            only: push.only,
            log: progress.as_build_log(),
        };
        let built = self.builders.build(job).await.map_err(DeployError::Build)?;
        if let Some(pushed) = push.project.filter(|pushed| *pushed != built.project) {
            return Err(DeployError::OtherProject { named: built.project, pushed });
        }
        Ok((built, by_folder))
    }

    /// Assigns version numbers to what changed. If that fails, the new images are marked for
    /// removal.
    async fn number(
        &self,
        id: &DeploymentId,
        built: &Built,
        is_ours: bool,
    ) -> Result<Vec<Prepared>, DeployError> {
        let err = match self.store.prepare(id, built, Timestamp::now()).await {
            Ok(prepared) => return Ok(prepared),
            Err(err) => err,
        };
        if is_ours {
            let images: Vec<_> = built.functions.iter().map(|one| one.image.clone()).collect();
            if let Err(err) = self.store.record_unneeded_images(&images, Timestamp::now()).await {
                tracing::warn!(deployment = %id, error = %Chain(&err), "Unused images could not be marked for removal; they stay stored.");
            }
        }
        Err(DeployError::Store(err))
    }

    async fn start(
        &self,
        prepared: Vec<Prepared>,
        is_ours: bool,
        progress: &Progress,
    ) -> Result<Started, DeployError> {
        let started = Started::new(prepared, Arc::clone(&self.fleet));
        let changed = started.changed();
        let new = changed.len();
        let began = progress.begin(Step::Start, count(new, "new version"));
        let is_one_machine = self.builders.is_local() && self.fleet.members().len() == 1;
        if is_ours
            && !is_one_machine
            && changed.iter().any(|new| !start::is_in_a_registry(&new.image))
        {
            progress.line(IN_ONE_ENGINE.into());
        }
        let starter = Starter {
            fleet: &self.fleet,
            progress,
            is_local_image: is_ours && is_one_machine,
            pull_timeout: self.fetch_limit,
        };
        let at_once = STARTS_PER_VM * self.fleet.members().len().max(1);
        let changed = stream::iter(changed.into_iter().map(Ok));
        let ready = changed.try_for_each_concurrent(at_once, |one| starter.ensure_ready(one));
        ready.await.map_err(|not_ready| match not_ready {
            NotReady::ImageUnreachable { function, cause } if !is_ours => {
                DeployError::ImageNotLoaded { function, cause }
            }
            other => DeployError::NotReady(other),
        })?;
        let healthy = if new == 0 { "nothing to start".into() } else { count(new, "instance") };
        progress.done(Step::Start, healthy, began);
        Ok(started)
    }

    async fn activate(
        &self,
        id: &DeploymentId,
        ready: Ready,
        progress: &Progress,
    ) -> Result<Deployment, DeployError> {
        let began = progress.begin(Step::Activate, String::new());
        let deployment = {
            let change = self.routes.change().await;
            let deployment = match self.store.activate(id, Timestamp::now()).await {
                Ok(deployment) => deployment,
                Err(err) => self.done(id).await.ok_or(DeployError::Store(err))?,
            };
            for line in change.serve(ready.started.serve(), &self.fleet) {
                progress.line(line);
            }
            deployment
        };
        if ready.is_whole
            && let Some(line) = self.still_served(&deployment)
        {
            progress.line(line);
        }
        let changed = deployment.functions.iter().filter(|function| function.changed).count();
        let detail = match changed {
            0 => "nothing changed".into(),
            some => count(some, "function") + " changed",
        };
        progress.done(Step::Activate, detail, began);
        Ok(deployment)
    }

    /// A line that lists functions of the project that still serve but are not part of the
    /// deployment.
    fn still_served(&self, deployment: &Deployment) -> Option<String> {
        /// Most names that are listed.
        const LISTED: usize = 20;
        let table = self.routes.table();
        let versions = table.routes().map(|route| &route.version);
        let own = versions.filter(|version| deployment.project.as_ref() == Some(&version.project));
        let is_there =
            |name: &FunctionName| deployment.functions.iter().any(|one| one.name == *name);
        let mut left: Vec<_> =
            own.map(|version| &version.function).filter(|name| !is_there(name)).collect();
        left.sort();
        let first = left.first()?;
        let named: Vec<_> = left.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
        let more = match left.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "note: still served, not in this source: {}{more}; `epsilon delete {first}` ends it",
            named.join(", ")
        ))
    }

    /// The deployment, if it was activated after all: the store's answer may have been lost.
    async fn done(&self, id: &DeploymentId) -> Option<Deployment> {
        let deployment = self.store.deployment(id).await.ok()?;
        (deployment.state == DeploymentState::Done).then_some(deployment)
    }

    /// The deployment for the control API.
    pub(crate) fn info(&self, deployment: Deployment) -> DeploymentInfo {
        let function = |one: epsilon_store::Deployed| epsilon_api::admin::DeployedFunction {
            url: self.urls.of(&one.name),
            name: one.name,
            version: one.version,
            changed: one.changed,
        };
        DeploymentInfo {
            id: deployment.id,
            project: deployment.project,
            state: deployment.state,
            created_at: deployment.created_at,
            ended_at: deployment.ended_at,
            error: deployment.error,
            source: deployment.source,
            functions: deployment.functions.into_iter().map(function).collect(),
        }
    }

    fn count(&self, state: DeploymentState) {
        self.metrics.deployments.with_label_values(&[state.to_string().as_str()]).inc();
    }
}

/// Input of `activate`, made by `prepare`.
struct Ready {
    started: Started,
    /// The deployment contains all functions of the project.
    is_whole: bool,
    /// Makes deployments of this project on other gateways wait.
    _lock: ProjectLock,
    /// Makes deployments of this project on this gateway wait until they are dropped.
    _turns: (Option<queue::Turn>, queue::Turn),
}

/// New versions that were started and do not serve yet. If dropped before [`Started::serve`], they
/// are retired.
struct Started {
    versions: Vec<(Arc<Version>, bool)>,
    fleet: Arc<Fleet>,
}

impl Started {
    fn new(prepared: Vec<Prepared>, fleet: Arc<Fleet>) -> Self {
        let versions =
            prepared.into_iter().map(|one| (Arc::new(one.version), one.changed)).collect();
        Self { versions, fleet }
    }

    fn changed(&self) -> Vec<Arc<Version>> {
        self.versions.iter().filter(|one| one.1).map(|one| Arc::clone(&one.0)).collect()
    }

    /// The new versions; unchanged ones serve already.
    fn serve(mut self) -> Vec<Arc<Version>> {
        let changed = self.changed();
        self.versions.clear();
        changed
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for version in self.changed() {
            self.fleet.retire(&version);
        }
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Start time of a step.
pub(crate) type Began = Instant;
