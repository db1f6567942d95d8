//! Bare repositories under `DATA/git`, one for each project that was ever pushed, and the questions that are asked of
//! them. Who moves what in them is git itself.
//!
//! ```text
//! DATA/git/PROJECT.git   the repository
//!         /.hook/        the one hook of all of them, see `hook`
//!         /.pushes/N/    the pipes of a push that is at work; emptied at each start
//!         /.new-N/       a repository in the making
//! ```
//! Names of projects begin with a letter or digit, so none of them is ours.

use super::{
    command::{Git, GitError, Limits, Run},
    hook,
    refs::{ObjectId, Update},
};
use epsilon_api::{ids::ProjectName, units::Bytes};
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What a list of all references may take: a hundred bytes each.
const LIST: Bytes = Bytes::mib(16);

/// Why a repository cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepositoryError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("the gateway's folder for repositories cannot be used")]
    Folder(#[from] io::Error),
    #[error("a hook in `{}` cannot be run: is its file system mounted with `noexec`?", .0.display())]
    NoExec(PathBuf),
}

/// All repositories of a gateway.
#[derive(Debug)]
pub(super) struct Repositories {
    root: PathBuf,
    git: Arc<Git>,
    branch: String,
    limits: Limits,
    count: AtomicU64,
}

impl Repositories {
    /// Nothing is made before the first push.
    pub(super) fn new(data: &Path, git: Arc<Git>, branch: &str, lookup: Duration) -> Self {
        let root = data.join("git");
        // Of a gateway that was killed. Nobody else uses this folder.
        hook::remove_left(&root.join(".pushes"));
        remove_quarantines(&root);
        let limits = Limits { time: lookup, output: LIST };
        Self { root, git, branch: branch.to_owned(), limits, count: AtomicU64::default() }
    }

    /// The repository of a project that was pushed before.
    pub(super) fn get(&self, project: &ProjectName) -> Option<Repository> {
        let path = self.root.join(format!("{project}.git"));
        path.join("HEAD").is_file().then(|| Repository {
            path,
            git: Arc::clone(&self.git),
            limits: self.limits,
        })
    }

    /// The repository of a project, made where it is missing.
    pub(super) async fn ensure(
        &self,
        project: &ProjectName,
    ) -> Result<Repository, RepositoryError> {
        if let Some(repository) = self.get(project) {
            return Ok(repository);
        }
        fs::create_dir_all(&self.root)?;
        let new = self.root.join(format!(".new-{}", self.count.fetch_add(1, Relaxed)));
        let _ = fs::remove_dir_all(&new); // of a gateway that was killed
        let head = format!("--initial-branch={}", self.branch);
        let init = self.git.run(["init", "--quiet", "--bare", "--template=", &head]);
        init.within(&new).output(self.limits).await?;
        match fs::rename(&new, self.root.join(format!("{project}.git"))) {
            Ok(()) => {}
            // Somebody was faster.
            Err(_) if self.get(project).is_some() => drop(fs::remove_dir_all(&new)),
            Err(err) => return Err(err.into()),
        }
        let there = || io::Error::other("a repository that was made is not there");
        Ok(self.get(project).ok_or_else(there)?)
    }

    /// The folder of the hook, and a fresh one for the pipes of one push.
    pub(super) fn push_folders(&self) -> Result<(PathBuf, hook::Folder), RepositoryError> {
        let number = self.count.fetch_add(1, Relaxed).to_string();
        let hooks = self.root.join(".hook");
        if !hook::install(&hooks, &format!(".new-{number}"))? {
            return Err(RepositoryError::NoExec(hooks));
        }
        Ok((hooks, hook::Folder::make(self.root.join(".pushes").join(number))?))
    }
}

/// One bare repository. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    path: PathBuf,
    git: Arc<Git>,
    limits: Limits,
}

/// Where the objects of a push lie that was not accepted yet, as variables for git.
#[derive(Clone, Debug, Default)]
pub(super) struct Quarantine(Vec<(OsString, OsString)>);

impl Quarantine {
    /// As the hook tells it; empty when the push brought no objects.
    pub(super) fn new(folder: &str, repository: &Repository) -> Self {
        if folder.is_empty() {
            return Self::default();
        }
        let objects = repository.path.join("objects");
        Self(vec![
            ("GIT_OBJECT_DIRECTORY".into(), folder.into()),
            ("GIT_ALTERNATE_OBJECT_DIRECTORIES".into(), objects.into()),
        ])
    }

    /// For a git that is to see them.
    pub(super) fn env(&self) -> &[(OsString, OsString)] {
        &self.0
    }
}

impl Repository {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn git(&self) -> &Git {
        &self.git
    }

    /// A question to git that sees what was pushed.
    pub(super) fn ask(&self, args: &[&str], quarantine: &Quarantine) -> Run {
        let run = self.git.run(args).within(&self.path);
        quarantine.0.iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// The answer to it.
    pub(super) async fn answer(&self, run: Run) -> Result<Vec<u8>, GitError> {
        run.output(self.limits).await
    }

    /// Where a branch or tag stands.
    pub(super) async fn at(&self, name: &str) -> Result<Option<ObjectId>, GitError> {
        let list = ["for-each-ref", "--format=%(objectname) %(refname)", name];
        let said = self.answer(self.ask(&list, &Quarantine::default())).await?;
        // Names that begin with this one and a slash are listed, too.
        let found = std::str::from_utf8(&said).ok().and_then(|said| {
            said.lines().filter_map(|line| line.split_once(' ')).find(|(_, one)| *one == name)
        });
        Ok(found.and_then(|(id, _)| ObjectId::parse(id)))
    }

    /// Whether these changes could be made now: all locks are taken and given back. What is found out here fails the push
    /// before anything is deployed.
    pub(super) async fn try_updates(
        &self,
        updates: &[Update],
        quarantine: &Quarantine,
    ) -> Result<(), GitError> {
        let mut script = String::from("start\n");
        for Update { old, new, name } in updates {
            let line = match new.is_null() {
                true => format!("delete {name} {}\n", old.as_str()),
                false => format!("update {name} {} {}\n", new.as_str(), old.as_str()),
            };
            script.push_str(&line);
        }
        script.push_str("prepare\nabort\n");
        self.answer(self.ask(&["update-ref", "--stdin"], quarantine).input(script)).await.map(drop)
    }

    /// Moves a branch or tag.
    pub(super) async fn update(&self, update: &Update) -> Result<(), GitError> {
        let Update { old, new, name } = update;
        let args = ["update-ref", name, new.as_str(), old.as_str()];
        self.answer(self.ask(&args, &Quarantine::default())).await.map(drop)
    }

    /// The commit that a branch or tag means; none for a tag on something else.
    pub(super) async fn commit(
        &self,
        id: &ObjectId,
        quarantine: &Quarantine,
    ) -> Result<Option<ObjectId>, GitError> {
        let commit = format!("{}^{{commit}}", id.as_str());
        let ask = self.ask(&["rev-parse", "--quiet", "--verify", &commit], quarantine);
        match self.answer(ask).await {
            Ok(said) => {
                Ok(std::str::from_utf8(&said).ok().and_then(|id| ObjectId::parse(id.trim())))
            }
            Err(GitError::Failed { .. }) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Packs what many small pushes left, when it is worth it.
    pub(super) async fn tidy(&self, time: Duration) -> Result<(), GitError> {
        let gc = self.git.run(["gc", "--auto", "--quiet"]).within(&self.path);
        // git's own default for what is worth it.
        let gc = gc.setting("gc.auto=6700").setting("gc.autoDetach=false");
        gc.output(Limits { time, output: LIST }).await.map(drop)
    }
}

/// Objects of pushes that were cut by a kill: git keeps them apart until it accepts them, and removes them by itself where it can.
fn remove_quarantines(root: &Path) {
    let inside = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    for repository in inside(root) {
        for entry in inside(&repository.path().join("objects")) {
            if entry.file_name().as_encoded_bytes().starts_with(b"tmp_objdir-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
