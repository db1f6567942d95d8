//! `git push` as a deployment: repositories that the machine's git serves, and a hook in which the pushed commit is
//! deployed before any branch has moved. `control/git` is its door; nothing of git's protocol is spoken here.
//!
//! | file | what it does |
//! |---|---|
//! | `config.rs` | settings |
//! | `command.rs` | runs the machine's git, with limits |
//! | `repository.rs` | the repositories on disk, and questions to them |
//! | `service.rs` | git's answers to clone and fetch, and what a push begins with |
//! | `receive.rs` | one push, from its first byte to its last |
//! | `hook.rs` | the moment between: everything is there, nothing is changed |
//! | `judge.rs` | what is done in that moment: check, deploy, say yes or no |
//! | `refs.rs` | what of a push is deployed |
//! | `contents.rs` | commits that cannot be deployed |
//! | `archive.rs` | a commit as a deployment's archive |
//! | `remote.rs` | what the pusher reads |

pub(crate) mod archive;
pub(crate) mod command;
pub(crate) mod config;
pub(crate) mod contents;
mod gzip;
mod hook;
mod judge;
mod receive;
pub(crate) mod refs;
mod remote;
mod repository;
pub(crate) mod service;

pub(crate) use receive::Received;

use crate::deploy::{
    Deploys,
    queue::{Queue, Turn},
    story::Story,
};
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

/// All that `git push` needs.
#[derive(Debug)]
pub(crate) struct GitHost {
    config: Config,
    git: Arc<Git>,
    repositories: Repositories,
    /// Pushes of one project go one after another.
    turns: Queue,
    /// Where a push left each project, and when.
    before: Mutex<HashMap<ProjectName, (Instant, String)>>,
    places: Arc<Semaphore>,
    deploys: Arc<Deploys>,
    max_source: Bytes,
    /// The gateway has stopped: pushes that do not serve yet are cancelled.
    cancel: CancellationToken,
    /// Pushes go on when nobody waits for their answer.
    background: TaskTracker,
}

/// Why a request of a git client is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("`git push` is switched off on this gateway (`gateway.git.enabled`)")]
    Off,
    #[error(
        "{0} git requests are at work, which is all that may be at once; try again in a moment"
    )]
    Busy(usize),
    #[error("nothing was pushed to the project `{0}` on this gateway")]
    Unknown(ProjectName),
    #[error("the push is larger than {0}; the operator's setting is `gateway.git.max_push`")]
    TooLarge(Bytes),
    #[error("the request's body is not packed as it says")]
    NotGzip,
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl GitHost {
    /// Runs and makes nothing yet. What runs when the gateway stops is in `background` and ends by `cancel`.
    pub(crate) fn new(
        config: Config,
        data: &Path,
        max_source: Bytes,
        deploys: Arc<Deploys>,
        (cancel, background): (CancellationToken, TaskTracker),
    ) -> Self {
        let git = Arc::new(Git::new(config.program.clone()));
        let (branch, lookup) = (&config.branch, config.lookup_timeout);
        let repositories = Repositories::new(data, Arc::clone(&git), branch, lookup);
        let places = Arc::new(Semaphore::new(config.max_requests));
        let turns = Queue::default();
        Self {
            config,
            git,
            repositories,
            turns,
            before: Mutex::default(),
            places,
            deploys,
            max_source,
            cancel,
            background,
        }
    }

    /// The right to run one git; given back when it ended.
    async fn place(&self) -> Result<OwnedSemaphorePermit, Refused> {
        if !self.config.enabled {
            return Err(Refused::Off);
        }
        self.git.ready().await?;
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| Refused::Busy(self.config.max_requests))
    }

    /// The right of one push to change what serves and where branches stand. Waits no longer than a deployment may take.
    async fn turn(&self, project: &ProjectName, story: &Story) -> Option<Turn> {
        let turn = self.turns.wait(format!("{project} (git push)"), story);
        tokio::time::timeout(self.deploys.limit, turn).await.ok()
    }

    /// Waits for a push that is at work: who reads the branches then, reads what it leaves. Who waited in vain is told in
    /// its own turn that they have moved.
    async fn settled(&self, project: &ProjectName) {
        let (story, _) = Story::new(Arc::clone(&self.deploys.metrics));
        drop(self.turn(project, &story).await);
    }

    /// A push left the project at this commit.
    fn left(&self, project: &ProjectName, commit: &str) {
        let mut before = self.before.lock();
        before.retain(|_, (when, _)| when.elapsed() < LATELY);
        before.insert(project.clone(), (Instant::now(), commit.to_owned()));
    }

    /// For the next pusher: who was a moment ago, if anybody. git has waited without a word until that push had ended.
    fn lately(&self, project: &ProjectName) -> Option<String> {
        let before = self.before.lock();
        let (when, commit) = before.get(project).filter(|(when, _)| when.elapsed() < LATELY)?;
        let seconds = when.elapsed().as_secs();
        Some(format!("this push comes after another one, of {commit}, that ended {seconds} s ago"))
    }

    fn known(&self, project: &ProjectName) -> Result<Repository, Refused> {
        self.repositories.get(project).ok_or_else(|| Refused::Unknown(project.clone()))
    }
}

/// How long a pusher is told of the one before.
const LATELY: Duration = Duration::from_secs(60);
/// What git may take to end once all was said.
const ENDING: Duration = Duration::from_secs(60);
