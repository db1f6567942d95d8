//! One deployment triggered by a webhook, from its turn to its end: the commit is fetched and
//! deployed by `deploy::Deploys` like any other push, and GitHub gets the result as a commit
//! status.

use super::Hooks;
use super::event::Push;
use super::fetch::{FetchError, Source};
use super::project::Hook;
use super::status::{State, Status, Statuses};
use crate::deploy;
use crate::deploy::progress::Progress;
use crate::functions::actor::Actor;
use crate::source::git::archive;
use epsilon_api::{admin::DeployEvent, chain::Chain, error::ErrorBody, ids::DeploymentId};
use http::StatusCode;
use jiff::Timestamp;
use std::sync::Arc;

/// An accepted push: recorded in the store, and its id was returned to GitHub.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) by: Actor,
    pub(crate) id: DeploymentId,
    pub(crate) hook: Arc<Hook>,
    pub(crate) push: Push,
    pub(crate) statuses: Statuses,
}

impl Job {
    /// Reports that it is pending.
    pub(crate) fn accepted(&self) {
        self.report(State::Pending, format!("{} is being deployed", self.push.name()), None);
    }

    /// Runs it to its end. A gateway that stops starts no job, and cancels one that does not serve
    /// when the drain grace is over.
    pub(crate) async fn run(self, hooks: &Hooks) {
        let fetched = tokio::select! {
            biased; // a gateway that stops starts no job
            () = hooks.close.cancelled() => return self.fail(hooks, stopped()).await,
            fetched = self.fetch(hooks) => fetched,
        };
        let project = &self.hook.project;
        let deployment = &self.id;
        let (source, push) = match fetched {
            Ok(fetched) => fetched,
            Err(err) => {
                let error = err.log_text();
                tracing::warn!(%project, %deployment, error, "Webhook's commit could not be fetched; the deployment fails.");
                return self.fail(hooks, err.body()).await;
            }
        };
        let (progress, mut events) = Progress::new(Arc::clone(&hooks.deploys.metrics));
        let cancel = hooks.cancel.child_token();
        let work = hooks.deploys.run(&self.by, self.id.clone(), push, progress, cancel);
        let read = async {
            let mut last = None;
            while let Some(event) = events.recv().await {
                if let DeployEvent::Log { line } = &event {
                    tracing::debug!(%project, %deployment, line, "Output of a webhook's deployment.");
                }
                last = Some(event);
            }
            last
        };
        let ((), last) = tokio::join!(work, read);
        drop(source); // its folder is needed until here
        match last {
            Some(DeployEvent::Done { deployment }) => {
                let changed = deployment.functions.iter().filter(|one| one.changed).count();
                let target = deployment.functions.first().map(|one| one.url.clone());
                let described = match (changed, deployment.functions.len()) {
                    (0, _) => "deployed; nothing changed".into(),
                    (changed, all) => format!("deployed; {changed} of {all} functions changed"),
                };
                self.report(State::Success, described, target);
            }
            Some(DeployEvent::Failed { error }) => self.report_failed(&error),
            // The event queue always ends with one of these.
            Some(_) | None => {
                self.report(State::Error, "the deployment has no result".into(), None);
            }
        }
    }

    async fn fetch(&self, hooks: &Hooks) -> Result<(Source, deploy::Push), FetchError> {
        let folder = hooks.folder.join(self.id.as_str());
        let limits = &hooks.limits;
        let source = Source::fetch(&hooks.git, &self.hook, &self.push, folder, limits).await?;
        let size = archive::Limits { size: hooks.max_source, time: hooks.deploys.limit };
        let push = deploy::Push {
            archive: source.archive(&hooks.git, size)?,
            folder: Some(self.hook.project.to_string()),
            // Permission to push to one repository is no permission to deploy another project.
            project: Some(self.hook.project.clone()),
            only: Vec::new(),
        };
        Ok((source, push))
    }

    /// A newer push replaced it before its turn.
    pub(crate) async fn superseded(self, hooks: &Hooks) {
        let project = &self.hook.project;
        let deployment = &self.id;
        tracing::info!(%project, %deployment, "Waiting webhook deployment was replaced by a newer push.");
        let message = "a newer push replaced it before its turn";
        let error = ErrorBody::new(StatusCode::CONFLICT, "SUPERSEDED", message, None);
        self.fail(hooks, error).await;
    }

    /// Fails it before there was anything to deploy.
    pub(crate) async fn fail(self, hooks: &Hooks, error: ErrorBody) {
        let recorded = hooks.store.fail_deployment(&self.id, &error, Timestamp::now()).await;
        if let Err(err) = recorded {
            // The next start of a gateway records the failure.
            tracing::error!(deployment = %self.id, error = %Chain(&err), "Failed deployment could not be recorded in the store.");
        }
        self.report_failed(&error);
    }

    fn report_failed(&self, error: &ErrorBody) {
        let state = match error.code.as_str() {
            "SUPERSEDED" | "DEPLOYMENT_CANCELLED" => State::Error,
            _ => State::Failure,
        };
        self.report(state, error.message.clone(), None);
    }

    fn report(&self, state: State, description: String, target: Option<String>) {
        let commit = self.push.commit.clone();
        self.statuses.send(Status { commit, state, description, target });
    }
}

fn stopped() -> ErrorBody {
    let message = "the gateway stopped before the commit was deployed";
    let hint = Some("redeliver the webhook on GitHub".to_owned());
    ErrorBody::new(StatusCode::CONFLICT, "DEPLOYMENT_CANCELLED", message, hint)
}
