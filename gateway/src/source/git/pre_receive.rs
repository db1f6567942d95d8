//! Runs while the hook waits, before anything of the push is stored: decides what the push means,
//! and if it is a deployment, runs that to its end. Only then may git move the branch.
//!
//! ```text
//! plan → wait for the project's turn → have the branches moved? can they be moved? → commit → deploy → accept | refuse
//! ```

use super::archive::Limits;
use super::hook::{Hook, PushRequest};
use super::refs::{ObjectId, Plan, Update};
use super::repository::{Quarantine, Repository};
use super::{GitHost, archive, progress, refs, unsupported};
use crate::deploy::progress::Progress;
use crate::deploy::queue::Turn;
use crate::deploy::{Push, builders};
use crate::functions::actor::Actor;
use epsilon_api::{
    admin::{DeployEvent, DeploymentState},
    chain::Chain,
    ids::{DeploymentId, ProjectName},
};
use std::{io, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Decides about one push.
pub(crate) struct PreReceive<'a> {
    pub(crate) host: &'a Arc<GitHost>,
    /// Who pushed.
    pub(crate) by: &'a Actor,
    pub(crate) project: &'a ProjectName,
    pub(crate) repository: &'a Repository,
    /// Cancelled when the pusher hangs up or the gateway stops.
    pub(crate) cancel: &'a CancellationToken,
}

/// The decision about a push.
#[derive(Debug)]
pub(crate) enum Verdict {
    Refused,
    /// Stored; nothing was deployed.
    Stored,
    /// Deployed; this update serves.
    Deployed(Update),
}

impl Verdict {
    pub(crate) fn is_accepted(&self) -> bool {
        match self {
            Self::Refused => false,
            Self::Stored | Self::Deployed(_) => true,
        }
    }

    /// Called when git has ended: the branch must point to the commit that serves. git may have
    /// failed to move it, for example because its disk is full.
    pub(crate) async fn settle(self, repository: &Repository) {
        let Self::Deployed(update) = self else { return };
        match repository.at(&update.name).await {
            Ok(Some(now)) if now == update.new => return,
            Ok(_) | Err(_) => {}
        }
        let name = &update.name;
        let commit = update.new.as_str();
        match repository.update(&update).await {
            Ok(()) => tracing::warn!(
                name,
                commit,
                "git did not move the branch of a deployed commit; moved now."
            ),
            Err(err) => tracing::error!(
                name, commit, error = %Chain(&err),
                "Branch of a deployed commit could not be moved; push again."
            ),
        }
    }
}

/// Why nothing is changed, for the pusher.
type Refusal = String;

/// The next step after the checks.
enum Next {
    Keep,
    Deploy(Update, DeploymentId),
}

impl PreReceive<'_> {
    /// Decides, and sends the progress to the pusher; the caller sends the final decision. The turn
    /// must be held until git has ended.
    pub(crate) async fn decide_push(
        &self,
        request: PushRequest,
        hook: &mut Hook,
    ) -> io::Result<(Verdict, Option<Turn>)> {
        let (progress, reader) = Progress::new(Arc::clone(&self.host.deploys.metrics));
        let ((turn, next), succeeded) =
            tokio::join!(self.plan_push(request, progress), forward_events(reader, hook));
        let succeeded = succeeded?;
        let verdict = match next {
            Err(why) => {
                for line in progress::refused(&why) {
                    hook.print(&line).await?;
                }
                Verdict::Refused
            }
            Ok(Next::Keep) => Verdict::Stored,
            Ok(Next::Deploy(update, id)) => {
                if self.ended_well(succeeded, &id).await {
                    Verdict::Deployed(update)
                } else {
                    Verdict::Refused
                }
            }
        };
        Ok((verdict, turn))
    }

    /// The last event contains the result, unless the pusher's terminal was too slow for it.
    async fn ended_well(&self, succeeded: Option<bool>, id: &DeploymentId) -> bool {
        match succeeded {
            Some(succeeded) => succeeded,
            None => {
                let found = self.host.deploys.store.deployment(id).await;
                found.is_ok_and(|one| one.state == DeploymentState::Done)
            }
        }
    }

    async fn plan_push(
        &self,
        request: PushRequest,
        progress: Progress,
    ) -> (Option<Turn>, Result<Next, Refusal>) {
        let Some(turn) = self.host.turn(self.project, &progress).await else {
            return (None, Err("earlier pushes took too long; push again".into()));
        };
        let quarantine = Quarantine::new(&request.quarantine, self.repository);
        let next = self.check_and_deploy(&request.updates, &quarantine, progress).await;
        (Some(turn), next)
    }

    async fn check_and_deploy(
        &self,
        updates: &[Update],
        quarantine: &Quarantine,
        progress: Progress,
    ) -> Result<Next, Refusal> {
        if self.cancel.is_cancelled() {
            return Err("the gateway stops, or the client hung up".into());
        }
        let (update, notes) = match refs::plan(updates, &self.host.config) {
            Plan::Refuse(why) => return Err(why),
            Plan::Keep(notes) => (None, notes),
            Plan::Deploy(update, notes) => (Some(update), notes),
        };
        self.can_move(updates, quarantine).await?;
        self.host
            .recent_push(self.project)
            .into_iter()
            .chain(notes)
            .for_each(|note| progress.line(note));
        let Some(update) = update else { return Ok(Next::Keep) };
        let commit = self.repository.commit(&update.new, quarantine).await.map_err(as_refusal)?;
        let commit = commit.ok_or_else(|| format!("{} is not a commit", update.shown()))?;
        let git = self.repository.git();
        let path = self.repository.path();
        let time = self.host.config.limits.lookup_timeout;
        let contents = unsupported::check(git, path, commit.as_str(), quarantine.env(), time).await;
        contents.map_err(as_refusal)?.map_err(|what| format!("{what}: {}", what.hint()))?;
        if self.host.deploys.builders.is_empty() {
            let none = builders::no_builder();
            return Err(none.message);
        }
        let id = self.deploy(&update, &commit, quarantine, progress)?;
        Ok(Next::Deploy(update, id))
    }

    /// Whether the branches are still where the pusher saw them, and git can move them.
    async fn can_move(&self, updates: &[Update], quarantine: &Quarantine) -> Result<(), Refusal> {
        for update in updates {
            let now = self.repository.at(&update.name).await.map_err(as_refusal)?;
            let shown = update.shown();
            match &now {
                Some(now) if *now == update.old => {}
                None if update.old.is_null() => {}
                Some(now) if *now == update.new => {
                    return Err(format!(
                        "{shown} is already at {}: another push was first",
                        now.short()
                    ));
                }
                Some(now) => {
                    let now = now.short();
                    return Err(format!(
                        "{shown} was moved to {now} by another push; `git pull`, then push again"
                    ));
                }
                None => return Err(format!("{shown} was deleted by another push; push again")),
            }
        }
        self.repository.try_updates(updates, quarantine).await.map_err(as_refusal)
    }

    /// Starts the deployment, which reports its progress after this returns.
    fn deploy(
        &self,
        update: &Update,
        commit: &ObjectId,
        quarantine: &Quarantine,
        progress: Progress,
    ) -> Result<DeploymentId, Refusal> {
        let deploys = Arc::clone(&self.host.deploys);
        let limits = Limits { size: self.host.max_source, time: deploys.limit };
        let git = self.repository.git();
        let path = self.repository.path();
        let archive = archive::of_commit(git, path, commit.as_str(), quarantine.env(), limits);
        let archive = archive.map_err(as_refusal)?;
        progress.line(format!(
            "{}: deploying {} of {}",
            self.project,
            commit.short(),
            update.shown()
        ));
        let project = self.project.clone();
        let folder = Some(project.to_string());
        let push = Push { archive, folder, only: Vec::new(), project: Some(project) };
        let id = DeploymentId::random();
        let cancel = self.cancel.clone();
        let (by, deployment) = (self.by.clone(), id.clone());
        self.host
            .background
            .spawn(async move { deploys.run(&by, deployment, push, progress, cancel).await });
        Ok(id)
    }
}

fn as_refusal(err: super::GitError) -> Refusal {
    err.to_string()
}

/// Sends all events to the pusher. Returns the result of the deployment, if it was among them.
async fn forward_events(
    mut reader: mpsc::Receiver<DeployEvent>,
    hook: &mut Hook,
) -> io::Result<Option<bool>> {
    let mut ended = None;
    while let Some(event) = reader.recv().await {
        match &event {
            DeployEvent::Done { .. } => ended = Some(true),
            DeployEvent::Failed { .. } => ended = Some(false),
            DeployEvent::Accepted { .. }
            | DeployEvent::StepStarted { .. }
            | DeployEvent::StepDone { .. }
            | DeployEvent::Log { .. } => {}
        }
        for line in progress::lines(&event) {
            hook.print(&line).await?;
        }
    }
    Ok(ended)
}
