//! Bare repositories under `DATA/git`, one for each project that was ever pushed, and queries of
//! them. Only git itself changes them.
//!
//! ```text
//! DATA/git/PROJECT.git   the repository
//!         /.hook/        the hook that all of them share, see `hook`
//!         /.pushes/N/    the pipes of a running push; emptied at each start
//!         /.new-N/       a repository that is being created
//! ```
//! Names of projects begin with a letter or digit, so they do not clash with these names.

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

/// Longest list of all references, a hundred bytes each.
const MAX_REFS: Bytes = Bytes::mib(16);

/// Why a repository cannot be used.
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
pub(crate) struct Repositories {
    root: PathBuf,
    git: Arc<Git>,
    branch: String,
    limits: Limits,
    count: AtomicU64,
}

impl Repositories {
    /// Creates no repository before the first push.
    pub(crate) fn new(data: &Path, git: Arc<Git>, branch: &str, lookup: Duration) -> Self {
        let root = data.join("git");
        // Left by a gateway that was killed. No other process uses this folder.
        hook::remove_left(&root.join(".pushes"));
        remove_quarantines(&root);
        let limits = Limits { time: lookup, output: MAX_REFS };
        Self { root, git, branch: branch.to_owned(), limits, count: AtomicU64::default() }
    }

    /// The repository of a project that was pushed before.
    pub(crate) fn get(&self, project: &ProjectName) -> Option<Repository> {
        let path = self.root.join(format!("{project}.git"));
        path.join("HEAD").is_file().then(|| Repository {
            path,
            git: Arc::clone(&self.git),
            limits: self.limits,
        })
    }

    /// The repository of a project, created if it is missing.
    pub(crate) async fn ensure(
        &self,
        project: &ProjectName,
    ) -> Result<Repository, RepositoryError> {
        if let Some(repository) = self.get(project) {
            return Ok(repository);
        }
        fs::create_dir_all(&self.root)?;
        let new = self.root.join(format!(".new-{}", self.count.fetch_add(1, Relaxed)));
        let _ = fs::remove_dir_all(&new); // left by a gateway that was killed
        let head = format!("--initial-branch={}", self.branch);
        let init = self.git.run(["init", "--quiet", "--bare", "--template=", &head]);
        init.within(&new).output(self.limits).await?;
        match fs::rename(&new, self.root.join(format!("{project}.git"))) {
            Ok(()) => {}
            // Another push has created it in the meantime.
            Err(_) if self.get(project).is_some() => drop(fs::remove_dir_all(&new)),
            Err(err) => return Err(err.into()),
        }
        let there = || io::Error::other("a repository that was just created is missing");
        Ok(self.get(project).ok_or_else(there)?)
    }

    /// The folder of the hook, and a new one for the pipes of one push.
    pub(crate) fn push_folders(&self) -> Result<(PathBuf, hook::Folder), RepositoryError> {
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
pub(crate) struct Repository {
    path: PathBuf,
    git: Arc<Git>,
    limits: Limits,
}

/// The objects of a push that is not accepted yet, as environment variables for git.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quarantine(Vec<(OsString, OsString)>);

impl Quarantine {
    /// From the folder that the hook reports; empty if the push brought no objects.
    pub(crate) fn new(folder: &str, repository: &Repository) -> Self {
        if folder.is_empty() {
            return Self::default();
        }
        let objects = repository.path.join("objects");
        Self(vec![
            ("GIT_OBJECT_DIRECTORY".into(), folder.into()),
            ("GIT_ALTERNATE_OBJECT_DIRECTORIES".into(), objects.into()),
        ])
    }

    /// Environment for a git that has to see these objects.
    pub(crate) fn env(&self) -> &[(OsString, OsString)] {
        &self.0
    }
}

impl Repository {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    /// A git command that sees the pushed objects.
    pub(crate) fn ask(&self, args: &[&str], quarantine: &Quarantine) -> Run {
        let run = self.git.run(args).within(&self.path);
        quarantine.0.iter().fold(run, |run, (name, value)| run.env(name, value))
    }

    /// Runs it and returns its output.
    pub(crate) async fn answer(&self, run: Run) -> Result<Vec<u8>, GitError> {
        run.output(self.limits).await
    }

    /// The current id of a branch or tag.
    pub(crate) async fn at(&self, name: &str) -> Result<Option<ObjectId>, GitError> {
        let list = ["for-each-ref", "--format=%(objectname) %(refname)", name];
        let said = self.answer(self.ask(&list, &Quarantine::default())).await?;
        // Names that begin with this one and a slash are listed, too.
        let found = std::str::from_utf8(&said).ok().and_then(|said| {
            said.lines().filter_map(|line| line.split_once(' ')).find(|(_, one)| *one == name)
        });
        Ok(found.and_then(|(id, _)| ObjectId::parse(id)))
    }

    /// Checks whether these changes could be made now: takes all locks and releases them. A failure
    /// here refuses the push before anything is deployed.
    pub(crate) async fn try_updates(
        &self,
        updates: &[Update],
        quarantine: &Quarantine,
    ) -> Result<(), GitError> {
        let mut script = String::from("start\n");
        for Update { old, new, name } in updates {
            let line = if new.is_null() {
                format!("delete {name} {}\n", old.as_str())
            } else {
                format!("update {name} {} {}\n", new.as_str(), old.as_str())
            };
            script.push_str(&line);
        }
        script.push_str("prepare\nabort\n");
        self.answer(self.ask(&["update-ref", "--stdin"], quarantine).input(script)).await.map(drop)
    }

    /// Moves a branch or tag.
    pub(crate) async fn update(&self, update: &Update) -> Result<(), GitError> {
        let Update { old, new, name } = update;
        let args = ["update-ref", name, new.as_str(), old.as_str()];
        self.answer(self.ask(&args, &Quarantine::default())).await.map(drop)
    }

    /// The commit of a branch or tag; none if a tag points to something else.
    pub(crate) async fn commit(
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

    /// Packs the objects of many small pushes, if it is worthwhile.
    pub(crate) async fn tidy(&self, time: Duration) -> Result<(), GitError> {
        let gc = self.git.run(["gc", "--auto", "--quiet"]).within(&self.path);
        // git's own default for that.
        let gc = gc.setting("gc.auto=6700").setting("gc.autoDetach=false");
        gc.output(Limits { time, output: MAX_REFS }).await.map(drop)
    }
}

/// Removes objects of pushes that were interrupted by a kill: git keeps them apart until it accepts
/// them, and normally removes them by itself.
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
