//! Deployments triggered by GitHub: a push to a repository there sends a webhook to the control
//! listener.
//!
//! ```text
//! delivery → project → signature over the raw body → event → seen before? → 202
//!                                                                              ╰▶ queue → fetch → deploy → status
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `config`, `project` | the settings of all webhooks, and of one |
//! | `payload` | reads an unauthenticated body, within limits |
//! | `signature` | whether GitHub sent it |
//! | `event` | what the event asks for |
//! | `queue` | one job running, one waiting; the newest replaces the waiting one |
//! | `job` | one deployment, from its turn to its end |
//! | `fetch` | fetches the commit |
//! | `allowed_hosts` | which hosts may be connected to (SSRF guard) |
//! | `status` | commit statuses on GitHub |
//! | `error` | why a delivery is refused |
//!
//! GitHub waits ten seconds for an answer, so everything slow is done in the background. An
//! accepted delivery is written to the store before it is answered: all gateways know it, also
//! after a restart.

mod allowed_hosts;
pub(crate) mod config;
mod error;
mod event;
mod fetch;
mod job;
mod metrics;
mod payload;
pub(crate) mod project;
mod queue;
mod signature;
mod status;

pub(crate) use error::DeliveryError;
pub(crate) use payload::PayloadError;

#[cfg(test)]
#[path = "../../tests/support/fake_github.rs"]
mod fake_github;

use super::git::command::Git;
use crate::deploy::Deploys;
use crate::functions::actor::Actor;
use axum::body::Body;
use config::{Config, Limits};
use epsilon_api::{
    chain::Chain,
    hook::{HookAnswer, HookResult},
    ids::{DeploymentId, ProjectName},
    units::Bytes,
};
use epsilon_store::{Delivery, Store};
use event::{Event, Push};
use futures_util::FutureExt;
use http::{HeaderMap, header::CONTENT_TYPE};
use jiff::Timestamp;
use job::Job;
use metrics::{HookMetrics, Outcome};
use payload::Payloads;
use project::Hook;
use prometheus::Registry;
use queue::{Enqueued, ProjectQueues};
use sha2::{Digest, Sha256};
use signature::Signature;
use status::Statuses;
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const EVENT: &str = "x-github-event";
const DELIVERY: &str = "x-github-delivery";
/// Longest delivery id; GitHub's are UUIDs.
const MAX_ID: usize = 64;

/// Handles the deliveries of all projects.
#[derive(Debug)]
pub(crate) struct Hooks {
    hooks: BTreeMap<ProjectName, Arc<Hook>>,
    limits: Limits,
    payloads: Payloads,
    queues: ProjectQueues<Job>,
    /// Limits the running jobs.
    slots: Semaphore,
    git: Git,
    /// Folder of the fetched commits.
    folder: PathBuf,
    max_source: Bytes,
    store: Arc<dyn Store>,
    deploys: Arc<Deploys>,
    metrics: HookMetrics,
    close: CancellationToken,
    cancel: CancellationToken,
    background: TaskTracker,
}

/// The parts of the gateway that webhooks use.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) deploys: Arc<Deploys>,
    pub(crate) max_source: Bytes,
    /// Fetches commits.
    pub(crate) git: Git,
    /// Cancelled when the gateway stops: no new jobs.
    pub(crate) close: CancellationToken,
    /// Cancelled when the drain time is over: jobs that do not serve yet are cancelled.
    pub(crate) cancel: CancellationToken,
    /// Tracks the work that continues after GitHub got its answer.
    pub(crate) background: TaskTracker,
}

impl Hooks {
    /// Empties the folder for commits: those of a gateway that was killed are useless.
    pub(crate) fn new(
        config: Config,
        data: &Path,
        parts: Parts,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let folder = data.join("hooks");
        // Usually there is no folder; one that cannot be removed shows when a commit is fetched.
        let _ = std::fs::remove_dir_all(&folder);
        let Config { hooks, limits } = config;
        let Parts { store, deploys, max_source, git, close, cancel, background } = parts;
        Ok(Self {
            hooks: hooks.into_iter().map(|(project, hook)| (project, Arc::new(hook))).collect(),
            payloads: Payloads::new(
                limits.max_payload,
                limits.payload_timeout,
                limits.payload_memory,
            ),
            limits,
            queues: ProjectQueues::new(),
            slots: Semaphore::new(limits.at_once),
            git,
            folder,
            max_source,
            store,
            deploys,
            metrics: HookMetrics::new(registry)?,
            close,
            cancel,
            background,
        })
    }

    /// Checks secrets and tokens at the start, and logs those that cannot be used.
    pub(crate) async fn check_secrets(&self) {
        for (project, hook) in &self.hooks {
            let usable = match hook.secret().await {
                Ok(_) => hook.token().await.map(drop),
                Err(err) => Err(err),
            };
            match usable {
                Ok(()) => {
                    tracing::info!(%project, repository = hook.repository, branch = hook.branch, "Webhook is configured.");
                }
                Err(err) => {
                    tracing::error!(%project, error = %Chain(&err), "Webhook cannot work: its secret or token cannot be used.");
                }
            }
        }
    }

    /// Handles a delivery. Answers within seconds, whatever the result.
    pub(crate) async fn receive(
        self: &Arc<Self>,
        project: &ProjectName,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<HookAnswer, DeliveryError> {
        let answer = self.take(project, headers, body).await;
        let outcome = answer.as_ref().map_or_else(DeliveryError::outcome, Outcome::of);
        self.metrics.delivered(outcome);
        let event = text(headers, EVENT).unwrap_or_default();
        let delivery = text(headers, DELIVERY).unwrap_or_default();
        let outcome = outcome.as_str();
        match &answer {
            Ok(HookAnswer { message, deployment, .. }) => {
                let deployment = deployment.as_ref().map(tracing::field::display);
                tracing::info!(%project, event, delivery, outcome, deployment, message, "Webhook delivery was handled.");
            }
            // Anyone can send these in any number, so they are only counted, and logged at debug
            // level.
            Err(error) => {
                tracing::debug!(%project, event, delivery, outcome, message = %error, "Webhook delivery was refused.");
            }
        }
        answer
    }

    async fn take(
        self: &Arc<Self>,
        project: &ProjectName,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<HookAnswer, DeliveryError> {
        let hook = self.hooks.get(project).ok_or_else(|| DeliveryError::NoHook(project.clone()))?;
        let signature = Signature::of(headers).ok_or(DeliveryError::Unsigned)?;
        let secret = hook.secret().await.map_err(|err| {
            tracing::error!(%project, error = %Chain(&err), "Webhook's secret cannot be used; the delivery is refused.");
            DeliveryError::SecretUnusable
        })?;
        let payload = self.payloads.read(body).await?;
        if !signature.is_of(&payload.bytes, &secret) {
            return Err(DeliveryError::Unsigned);
        }
        // From here on, the sender is authenticated as GitHub.
        let name = text(headers, EVENT).ok_or(DeliveryError::Header(EVENT))?;
        let delivery = text(headers, DELIVERY).filter(|id| is_id(id));
        let delivery = delivery.ok_or(DeliveryError::Header(DELIVERY))?;
        if !is_json(headers) {
            return Err(DeliveryError::NotJson);
        }
        let now = Timestamp::now();
        match event::read(name, &payload.bytes, hook, self.limits.remember, now)? {
            Event::Ping => {
                Ok(answer(HookResult::Pong, "pushes to this repository will be deployed".into()))
            }
            Event::Ignored(why) => Ok(answer(HookResult::Ignored, why.to_string())),
            Event::Push(push) => {
                let digest = hex(&Sha256::digest(&payload.bytes));
                drop(payload);
                let (hooks, hook, delivery) =
                    (Arc::clone(self), Arc::clone(hook), delivery.to_owned());
                // Runs to its end even if GitHub hangs up: a recorded delivery is carried out.
                let accepted = self
                    .background
                    .spawn(async move { hooks.accept(&hook, push, delivery, digest, now).await });
                accepted.await.map_err(DeliveryError::Panicked)?
            }
        }
    }

    /// Records the delivery and its deployment, and starts it or puts it into its lane.
    async fn accept(
        self: &Arc<Self>,
        hook: &Arc<Hook>,
        push: Push,
        delivery: String,
        digest: String,
        now: Timestamp,
    ) -> Result<HookAnswer, DeliveryError> {
        if self.close.is_cancelled() {
            return Err(DeliveryError::Stopping);
        }
        if self.deploys.builders.is_empty() {
            return Err(DeliveryError::NoBuilder);
        }
        let id = DeploymentId::random();
        let by = Actor::Webhook { project: hook.project.clone(), delivery: delivery.clone() };
        let source = format!("github {} {} {}", hook.repository, push.name(), push.short());
        let delivery = Delivery {
            project: hook.project.clone(),
            id: delivery,
            digest,
            deployment: id.clone(),
            source,
            seen_at: now,
        };
        let recorded =
            self.store.begin_delivery(&delivery, &self.deploys.gateway, self.limits.remember);
        if let Some(earlier) = recorded.await? {
            return Err(DeliveryError::Replayed(earlier));
        }
        let what = format!("{} at {}", push.name(), push.short());
        let statuses = Statuses::of(hook, &id, self.limits, &self.metrics, &self.background);
        let job = Job { by, id: id.clone(), hook: Arc::clone(hook), push, statuses };
        job.accepted();
        let message = match self.queues.enqueue(&hook.project, job) {
            Enqueued::Begin(job) => {
                self.background.spawn(Arc::clone(self).work(job));
                format!("{what} is being deployed")
            }
            Enqueued::Waits(replaced) => {
                if let Some(replaced) = replaced {
                    let hooks = Arc::clone(self);
                    self.background.spawn(async move { replaced.superseded(&hooks).await });
                }
                format!("{what} is deployed after the previous push")
            }
        };
        Ok(HookAnswer { deployment: Some(id), ..answer(HookResult::Accepted, message) })
    }

    /// Runs this job and those that are queued in the meantime.
    async fn work(self: Arc<Self>, first: Job) {
        let project = first.hook.project.clone();
        let mut next = Some(first);
        while let Some(job) = next {
            let _slot = tokio::select! {
                biased; // a gateway that stops ends the job, with a slot or without
                () = self.close.cancelled() => None,
                slot = self.slots.acquire() => slot.ok(),
            };
            let deployment = job.id.clone();
            // A bug in one job must not block the following pushes.
            if AssertUnwindSafe(job.run(&self)).catch_unwind().await.is_err() {
                tracing::error!(%project, %deployment, "Deployment of a webhook panicked (a bug; see the line before).");
            }
            next = self.queues.next(&project);
        }
    }
}

impl Outcome {
    fn of(answer: &HookAnswer) -> Self {
        match answer.result {
            HookResult::Pong => Self::Pong,
            HookResult::Ignored => Self::Ignored,
            HookResult::Accepted => Self::Accepted,
        }
    }
}

fn answer(result: HookResult, message: String) -> HookAnswer {
    HookAnswer { result, message, deployment: None }
}

/// A header that occurs once and is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = text(headers, CONTENT_TYPE.as_str()).and_then(|kind| kind.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
