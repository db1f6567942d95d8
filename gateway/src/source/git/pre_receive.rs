//! Runs while the hook waits, before anything of the push is stored: decides what the push means,
//! and if it is a deployment, runs that to its end. Only then may git move the branch.
//!
//! ```text
//! plan → wait for the project's turn → have the branches moved? can they be moved? → commit → deploy → accept | refuse
//! ```

use super::archive::Limits;
use super::hook::{Asked, Hook};
use super::refs::{ObjectId, Plan, Update};
use super::repository::{Quarantine, Repository};
use super::{GitHost, archive, progress, refs, unsupported};
use crate::deploy::progress::Story;
use crate::deploy::queue::Turn;
use crate::deploy::{Push, builders};
use epsilon_api::{
    admin::{DeployEvent, DeploymentState},
    chain::Chain,
    ids::{DeploymentId, ProjectName},
};
use std::{io, sync::Arc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Decides about one push.
pub(crate) struct Judge<'a> {
    pub(crate) host: &'a Arc<GitHost>,
    pub(crate) project: &'a ProjectName,
    pub(crate) repository: &'a Repository,
    /// Cancelled when the pusher hangs up or the gateway stops.
    pub(crate) cancel: &'a CancellationToken,
}

/// The decision about a push.
#[derive(Debug)]
pub(crate) enum Judged {
    Refused,
    /// Stored; nothing was deployed.
    Kept,
    /// Deployed; this update serves.
    Deployed(Update),
}

impl Judged {
    pub(crate) fn is_accepted(&self) -> bool {
        match self {
            Self::Refused => false,
            Self::Kept | Self::Deployed(_) => true,
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

impl Judge<'_> {
    /// Decides, and sends the progress to the pusher; the caller sends the final decision. The turn
    /// must be held until git has ended.
    pub(crate) async fn judge(
        &self,
        asked: Asked,
        hook: &mut Hook,
    ) -> io::Result<(Judged, Option<Turn>)> {
        let (story, reader) = Story::new(Arc::clone(&self.host.deploys.metrics));
        let ((turn, next), told) = tokio::join!(self.decide(asked, story), tell(reader, hook));
        let told = told?;
        let judged = match next {
            Err(why) => {
                for line in progress::refused(&why) {
                    hook.say(&line).await?;
                }
                Judged::Refused
            }
            Ok(Next::Keep) => Judged::Kept,
            Ok(Next::Deploy(update, id)) => {
                if self.ended_well(told, &id).await {
                    Judged::Deployed(update)
                } else {
                    Judged::Refused
                }
            }
        };
        Ok((judged, turn))
    }

    /// The last event contains the result, unless the pusher's terminal was too slow for it.
    async fn ended_well(&self, told: Option<bool>, id: &DeploymentId) -> bool {
        match told {
            Some(told) => told,
            None => {
                let found = self.host.deploys.store.deployment(id).await;
                found.is_ok_and(|one| one.state == DeploymentState::Done)
            }
        }
    }

    async fn decide(&self, asked: Asked, story: Story) -> (Option<Turn>, Result<Next, Refusal>) {
        let Some(turn) = self.host.turn(self.project, &story).await else {
            return (None, Err("earlier pushes took too long; push again".into()));
        };
        let quarantine = Quarantine::new(&asked.quarantine, self.repository);
        let next = self.look(&asked.updates, &quarantine, story).await;
        (Some(turn), next)
    }

    async fn look(
        &self,
        updates: &[Update],
        quarantine: &Quarantine,
        story: Story,
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
        self.host.lately(self.project).into_iter().chain(notes).for_each(|note| story.line(note));
        let Some(update) = update else { return Ok(Next::Keep) };
        let commit = self.repository.commit(&update.new, quarantine).await.map_err(told)?;
        let commit = commit.ok_or_else(|| format!("{} is not a commit", update.shown()))?;
        let git = self.repository.git();
        let path = self.repository.path();
        let time = self.host.config.lookup_timeout;
        let contents = unsupported::check(git, path, commit.as_str(), quarantine.env(), time).await;
        contents.map_err(told)?.map_err(|what| format!("{what}: {}", what.hint()))?;
        if self.host.deploys.builders.is_empty() {
            let none = builders::no_builder();
            return Err(none.message);
        }
        let id = self.deploy(&update, &commit, quarantine, story)?;
        Ok(Next::Deploy(update, id))
    }

    /// Whether the branches are still where the pusher saw them, and git can move them.
    async fn can_move(&self, updates: &[Update], quarantine: &Quarantine) -> Result<(), Refusal> {
        for update in updates {
            let now = self.repository.at(&update.name).await.map_err(told)?;
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
        self.repository.try_updates(updates, quarantine).await.map_err(told)
    }

    /// Starts the deployment, which reports its progress after this returns.
    fn deploy(
        &self,
        update: &Update,
        commit: &ObjectId,
        quarantine: &Quarantine,
        story: Story,
    ) -> Result<DeploymentId, Refusal> {
        let deploys = Arc::clone(&self.host.deploys);
        let limits = Limits { size: self.host.max_source, time: deploys.limit };
        let git = self.repository.git();
        let path = self.repository.path();
        let archive = archive::of_commit(git, path, commit.as_str(), quarantine.env(), limits);
        let archive = archive.map_err(told)?;
        story.line(format!("{}: deploying {} of {}", self.project, commit.short(), update.shown()));
        let project = self.project.clone();
        let folder = Some(project.to_string());
        let push = Push { archive, folder, only: Vec::new(), project: Some(project) };
        let id = DeploymentId::random();
        let cancel = self.cancel.clone();
        let deployment = id.clone();
        self.host
            .background
            .spawn(async move { deploys.run(deployment, push, story, cancel).await });
        Ok(id)
    }
}

fn told(err: super::GitError) -> Refusal {
    err.to_string()
}

/// Sends all events to the pusher. Returns the result of the deployment, if it was among them.
async fn tell(
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
            hook.say(&line).await?;
        }
    }
    Ok(ended)
}
