//! The folder through which the agent and one instance meet: made before the container, mounted into it,
//! removed after it. Only the container's user and root may enter.
//!
//! ```text
//! DATA/vm/sockets/ID/        the agent's
//!     run/                   the container's /run/epsilon: a tmpfs of its own, where this machine lets the agent mount
//!         calls.sock, control.sock
//!     passwd                 the container's /etc/passwd, where its user is its own
//! ```
//!
//! The wrapper makes its sockets in it; once it has loaded the code, the folder is root's and closed: nothing is added.
//!
//! What lies in it is the code's to change, and the agent may be root: it connects to sockets of this folder and to
//! nothing that a symbolic link there leads to (the engine's own socket, say). So a socket is opened first, looked at, and
//! reached through its descriptor under `/proc/self/fd`; which also bears paths beyond the 107 bytes of an AF_UNIX address.

use super::user_ids::CodeUser;
use crate::cell::mounts;
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};

/// Where calls go.
pub(crate) const CALLS: &str = "calls.sock";
/// Where the agent's own questions go.
pub(crate) const CONTROL: &str = "control.sock";

/// Longest that a full queue is waited for; then the call is refused, and another may do better.
const QUEUE_IS_FULL: Duration = Duration::from_secs(5);
/// First pause between two tries; doubled up to [`SLOW_AGAIN`].
const FIRST_AGAIN: Duration = Duration::from_millis(1);
const SLOW_AGAIN: Duration = Duration::from_millis(20);

/// What the container sees of an instance's folder.
const RUN: &str = "run";
const PASSWD: &str = "passwd";
/// Modes of `run`: only its user, until it is closed; then everybody may pass and nobody write.
const OPEN: u32 = 0o700;
const CLOSED: u32 = 0o555;

#[derive(Debug)]
pub(crate) struct SocketFolder {
    run: PathBuf,
    passwd: Option<PathBuf>,
    folder: OwnedFd,
    /// The folder that the tmpfs lies on. An engine that does not see this agent's mounts gives it to the container.
    below: Option<OwnedFd>,
    is_below_told: AtomicBool,
}

/// How the folder of an instance is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) user: CodeUser,
    /// The user needs a name of its own in the container.
    pub(crate) has_passwd: bool,
    /// The container's part is a tmpfs of its own, with a limit.
    pub(crate) is_bounded: bool,
}

impl SocketFolder {
    /// Makes the folder for an instance that is about to start.
    pub(crate) fn create(path: &Path, layout: Layout) -> io::Result<Self> {
        let Layout { user, has_passwd, is_bounded } = layout;
        let run = path.join(RUN);
        fs::DirBuilder::new().recursive(true).mode(OPEN).create(&run)?;
        // Whatever the umask is.
        fs::set_permissions(path, fs::Permissions::from_mode(OPEN))?;
        fs::set_permissions(&run, fs::Permissions::from_mode(OPEN))?;
        if rustix::process::geteuid().is_root() {
            chown(&run, Some(user.uid), Some(user.gid))?;
        }
        if has_passwd {
            let file = path.join(PASSWD);
            fs::write(&file, user.passwd())?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
        }
        let below = is_bounded.then(|| folder(&run)).transpose()?;
        if is_bounded {
            mounts::tmpfs(&run, user.uid, user.gid)?;
        }
        Ok(Self { below, ..Self::open(path)? })
    }

    /// Takes the folder of an instance that runs already.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (run, passwd) = (path.join(RUN), path.join(PASSWD));
        // One of an earlier release is the container's as it is.
        let run = if run.try_exists()? { run } else { path.to_owned() };
        Ok(Self {
            folder: folder(&run)?,
            run,
            passwd: passwd.try_exists()?.then_some(passwd),
            below: None,
            is_below_told: AtomicBool::new(false),
        })
    }

    /// The container's part.
    pub(crate) fn path(&self) -> &Path {
        &self.run
    }

    /// The container's `/etc/passwd`.
    pub(crate) fn passwd(&self) -> Option<&Path> {
        self.passwd.as_deref()
    }

    /// From now on, nobody but root adds anything to the container's part. What listens there goes on listening.
    pub(crate) fn close(&self) {
        if !rustix::process::geteuid().is_root() {
            return; // it is the agent's user that code runs as
        }
        for opened in std::iter::once(&self.folder).chain(&self.below) {
            let path = by_descriptor(opened);
            // The owner first: who owns it may change its mode.
            let closed = chown(&path, Some(0), Some(0))
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(CLOSED)));
            if let Err(err) = closed {
                tracing::warn!(%err, folder = %self.run.display(), "Socket directory could not be closed.");
            }
        }
    }

    /// A socket of this very folder.
    fn socket(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT) if let Some(below) = &self.below => {
                let opened = rustix::fs::openat(below, name, flags, Mode::empty())?;
                if !self.is_below_told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        folder = %self.run.display(),
                        "The engine does not see what this agent mounts: the socket directory of an instance has no limit."
                    );
                }
                opened
            }
            opened => opened?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
        match kind.is_socket() {
            true => Ok(opened),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket")),
        }
    }

    /// Connects. A listener whose queue is full is busy (a burst, or code that computes): it is tried again.
    pub(crate) async fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        let give_up = Instant::now() + QUEUE_IS_FULL;
        let mut pause = FIRST_AGAIN;
        loop {
            let opened = self.socket(socket)?;
            match UnixStream::connect(by_descriptor(&opened)).await {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => {
                    sleep(pause).await;
                    pause = (pause * 2).min(SLOW_AGAIN);
                }
                outcome => return outcome,
            }
        }
    }
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Takes away what [`SocketFolder::create`] mounted in this folder, if anything.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    mounts::detach(&path.join(RUN))
}

/// Where a descriptor of this process can be reached by path.
fn by_descriptor(opened: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

/// Whether an error of a connect says that nobody listens, as against a listener that is busy or a limit of
/// this process or machine.
pub(crate) fn is_nobody_there(err: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL];
    let is_ours = ours.iter().any(|errno| err.raw_os_error() == Some(errno.raw_os_error()));
    !is_ours && !matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn layout() -> Layout {
        Layout { user: CodeUser::shared(), has_passwd: false, is_bounded: false }
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// An instance's folder whose mount goes with it.
    struct Bounded(tempfile::TempDir);

    impl Bounded {
        fn create(&self) -> SocketFolder {
            SocketFolder::create(self.0.path(), Layout { is_bounded: true, ..layout() }).unwrap()
        }
    }

    impl Drop for Bounded {
        fn drop(&mut self) {
            drop(unmount(self.0.path()));
        }
    }

    #[test]
    fn what_the_container_gets_has_a_limit_and_is_closed_in_the_end() {
        if !is_root() {
            return;
        }
        let root = Bounded(tempfile::tempdir().unwrap());
        let folder = root.create();
        let run = folder.path();
        let too_much = fs::write(run.join("big"), vec![0; 2 << 20]).unwrap_err();
        assert_eq!(too_much.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(run.join("big")).unwrap();
        let made = (0..1000).take_while(|n| fs::write(run.join(n.to_string()), "").is_ok()).count();
        assert!((2..64).contains(&made), "{made}");
        let found = fs::metadata(run).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (OPEN, CodeUser::shared().uid));
        folder.close();
        let found = fs::metadata(run).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid()), (CLOSED, 0));
        unmount(root.0.path()).unwrap();
        unmount(root.0.path()).unwrap();
        assert_eq!(fs::read_dir(run).unwrap().count(), 0);
    }

    /// The container of such an engine has the folder below the tmpfs.
    #[tokio::test]
    async fn an_engine_that_does_not_see_mounts_serves_all_the_same() {
        if !is_root() {
            return;
        }
        let root = Bounded(tempfile::tempdir().unwrap());
        let folder = root.create();
        assert!(is_nobody_there(&folder.connect(CALLS).await.unwrap_err()));
        let inside = by_descriptor(folder.below.as_ref().unwrap());
        let _listener = tokio::net::UnixListener::bind(inside.join(CALLS)).unwrap();
        folder.connect(CALLS).await.unwrap();
    }

    #[test]
    fn the_user_has_a_name_where_it_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let folder = SocketFolder::create(root.path(), layout()).unwrap();
        assert_eq!(folder.passwd(), None);
        let named = Layout { has_passwd: true, ..layout() };
        let folder = SocketFolder::create(root.path(), named).unwrap();
        let text = fs::read_to_string(folder.passwd().unwrap()).unwrap();
        assert_eq!(text, CodeUser::shared().passwd());
        assert!(SocketFolder::open(root.path()).unwrap().passwd().is_some());
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_a_closed_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = SocketFolder::open(root.path()).unwrap();
        let path = root.path().join(CALLS);
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(err) => break err,
            }
        };
        assert!(!is_nobody_there(&full), "{full}");
        let (late, accepted) = tokio::join!(folder.connect(CALLS), listener.accept());
        assert!(late.is_ok() && accepted.is_ok(), "{late:?}");
        drop(listener);
        let closed = folder.connect(CALLS).await.unwrap_err();
        assert!(is_nobody_there(&closed), "{closed}");
        assert!(is_nobody_there(&folder.connect(CONTROL).await.unwrap_err()));
        assert!(!is_nobody_there(&io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())));
    }

    #[tokio::test]
    async fn only_a_socket_of_the_folder_itself_is_connected_to() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("engine.sock");
        let _engine = tokio::net::UnixListener::bind(&outside).unwrap();
        let folder = SocketFolder::create(&root.path().join("own"), layout()).unwrap();
        let own = folder.path().to_owned();
        std::os::unix::fs::symlink(&outside, own.join(CALLS)).unwrap();
        std::os::unix::fs::symlink("../../engine.sock", own.join(CONTROL)).unwrap();
        fs::write(own.join("file"), "").unwrap();
        for name in [CALLS, CONTROL, "file"] {
            let refused = folder.connect(name).await.unwrap_err();
            assert!(is_nobody_there(&refused), "{name}: {refused}");
        }
        let _own = tokio::net::UnixListener::bind(own.join("own.sock")).unwrap();
        folder.connect("own.sock").await.unwrap();
    }

    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x".repeat(120));
        let folder = SocketFolder::create(&path, layout()).unwrap();
        // The listener binds from inside the folder, as a container does.
        let inside = by_descriptor(&folder.folder);
        let _listener = tokio::net::UnixListener::bind(inside.join(CALLS)).unwrap();
        folder.connect(CALLS).await.unwrap();
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
