//! `git push` as a deployment: repositories served by the machine's git, and a hook in which the
//! pushed commit is deployed before any branch moves. `control/git` is its HTTP interface; git's
//! protocol is not implemented here.
//!
//! | file | what it does |
//! |---|---|
//! | `config.rs` | settings |
//! | `command.rs` | runs the machine's git, with limits |
//! | `repository.rs` | the repositories on disk, and queries of them |
//! | `service.rs` | clone, fetch, and the first request of a push |
//! | `receive.rs` | one push, from its first byte to its last |
//! | `hook.rs` | pre-receive hook: all objects received, no branch moved |
//! | `pre_receive.rs` | in the hook: check, deploy, accept or refuse |
//! | `refs.rs` | which part of a push is deployed |
//! | `unsupported.rs` | commits that cannot be deployed |
//! | `archive.rs` | a commit as a deployment's archive |
//! | `progress.rs` | progress output for the pusher |

pub(crate) mod archive;
pub(crate) mod command;
pub(crate) mod config;
mod gzip;
mod hook;
mod pre_receive;
mod progress;
mod receive;
pub(crate) mod ref_name;
pub(crate) mod refs;
mod repository;
pub(crate) mod service;
pub(crate) mod unsupported;

pub(crate) use receive::Received;

use crate::deploy::Deploys;
use crate::deploy::progress::Progress;
use crate::deploy::queue::{Queue, Turn};
use command::{Git, GitError};
use config::Config;
use epsilon_api::{ids::ProjectName, units::Bytes};
use parking_lot::Mutex;
use repository::{Repositories, Repository, RepositoryError};
use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// State of the git host.
#[derive(Debug)]
pub(crate) struct GitHost {
    config: Config,
    git: Arc<Git>,
    repositories: Repositories,
    /// Makes pushes of one project run one after another.
    turns: Queue,
    /// The last pushed commit of each project, and when.
    last_pushes: Mutex<HashMap<ProjectName, (Instant, String)>>,
    slots: Arc<Semaphore>,
    deploys: Arc<Deploys>,
    max_source: Bytes,
    /// Cancels pushes that do not serve yet when the gateway has stopped.
    cancel: CancellationToken,
    /// Pushes run to their end even if the client hung up.
    background: TaskTracker,
}

/// Why a request of a git client is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("`git push` is switched off on this gateway (`gateway.git.enabled`)")]
    Off,
    #[error("{0} git requests are running, which is the limit; try again in a moment")]
    Busy(usize),
    #[error("nothing was pushed to the project `{0}` on this gateway")]
    Unknown(ProjectName),
    #[error("the push is larger than {0}; the operator's setting is `gateway.git.max_push`")]
    TooLarge(Bytes),
    #[error("the request's body is not valid gzip")]
    NotGzip,
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl GitHost {
    /// Starts nothing yet. Pushes that run when the gateway stops are tracked by `background` and
    /// ended by `cancel`.
    pub(crate) fn new(
        config: Config,
        data: &Path,
        max_source: Bytes,
        deploys: Arc<Deploys>,
        (cancel, background): (CancellationToken, TaskTracker),
    ) -> Self {
        let git = Arc::new(Git::new(config.limits.program.clone()));
        let branch = &config.branch;
        let lookup = config.limits.lookup_timeout;
        let repositories = Repositories::new(data, Arc::clone(&git), branch, lookup);
        let slots = Arc::new(Semaphore::new(config.limits.max_requests));
        let turns = Queue::default();
        Self {
            config,
            git,
            repositories,
            turns,
            last_pushes: Mutex::default(),
            slots,
            deploys,
            max_source,
            cancel,
            background,
        }
    }

    /// The right to run one git process; released when it has ended.
    async fn take_slot(&self) -> Result<OwnedSemaphorePermit, Refused> {
        if !self.config.enabled {
            return Err(Refused::Off);
        }
        self.git.ready().await?;
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map_err(|_| Refused::Busy(self.config.limits.max_requests))
    }

    /// The right of one push to change branches and deploy. Waits at most for the time limit of a
    /// deployment.
    async fn turn(&self, project: &ProjectName, progress: &Progress) -> Option<Turn> {
        let turn = self.turns.wait(format!("{project} (git push)"), progress);
        tokio::time::timeout(self.deploys.limit, turn).await.ok()
    }

    /// Waits for a running push, so that a client that reads the branches sees its result. If the
    /// wait is too long, the push is refused later because the branches have moved.
    async fn wait_for_push(&self, project: &ProjectName) {
        let (progress, _) = Progress::new(Arc::clone(&self.deploys.metrics));
        drop(self.turn(project, &progress).await);
    }

    /// Records the commit that a push left the project at.
    fn record_push(&self, project: &ProjectName, commit: &str) {
        let mut last_pushes = self.last_pushes.lock();
        last_pushes.retain(|_, (when, _)| when.elapsed() < RECENT);
        last_pushes.insert(project.clone(), (Instant::now(), commit.to_owned()));
    }

    /// A note for the next pusher about a recent push: git waited silently until that one had
    /// ended.
    fn recent_push(&self, project: &ProjectName) -> Option<String> {
        let last_pushes = self.last_pushes.lock();
        let (when, commit) =
            last_pushes.get(project).filter(|(when, _)| when.elapsed() < RECENT)?;
        let seconds = when.elapsed().as_secs();
        Some(format!("this push waited for another one, of {commit}, that ended {seconds} s ago"))
    }

    fn known(&self, project: &ProjectName) -> Result<Repository, Refused> {
        self.repositories.get(project).ok_or_else(|| Refused::Unknown(project.clone()))
    }
}

/// How long a push is mentioned to the next pusher.
const RECENT: Duration = Duration::from_secs(60);
/// Longest time for git to exit after its output was read.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);
