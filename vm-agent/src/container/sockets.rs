//! The directory of the unix sockets between the agent and one instance: made before the container,
//! mounted into it, removed after it. Only the container's user and root may enter.
//!
//! ```text
//! DATA/vm/sockets/ID/        owned by the agent
//!     run/                   the container's /run/epsilon: a tmpfs of its own, if this machine lets the agent mount
//!         calls.sock, control.sock
//!     passwd                 the container's /etc/passwd, if its user is not shared
//! ```
//!
//! The wrapper makes its sockets in it; once it has loaded the code, root owns the directory and
//! nothing can be added.
//!
//! The function's code can change what is in it, and the agent may be root: it connects to sockets
//! of this directory only, never through a symbolic link (to the engine's own socket, say). So a
//! socket is opened first, checked, and reached through its descriptor under `/proc/self/fd`; that
//! also allows paths beyond the 107 bytes of an AF_UNIX address.

use super::mounts;
use super::user_ids::CodeUser;
use epsilon_api::chain::Chain;
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

/// The listener for calls.
pub(crate) const CALLS: &str = "calls.sock";
/// The listener for the agent's own requests.
pub(crate) const CONTROL: &str = "control.sock";

/// Longest wait for a listener whose queue is full; then the call is refused, and another instance
/// may serve it.
const FULL_QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause between two attempts; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The part of an instance's directory that is mounted into the container.
const RUN: &str = "run";
const PASSWD: &str = "passwd";
/// Modes of `run`: only its user, until it is closed; then read-only for all.
const OPEN: u32 = 0o700;
const CLOSED: u32 = 0o555;

#[derive(Debug)]
pub(crate) struct SocketDir {
    run: PathBuf,
    passwd: Option<PathBuf>,
    folder: OwnedFd,
    /// The directory beneath the tmpfs. An engine that does not see this agent's mounts gives it to
    /// the container.
    underlay: Option<OwnedFd>,
    is_underlay_reported: AtomicBool,
}

/// How the socket directory of an instance is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) user: CodeUser,
    /// The container gets an `/etc/passwd` in which its user has a name.
    pub(crate) has_passwd: bool,
    /// The container's part is a tmpfs of its own, with a size limit.
    pub(crate) is_bounded: bool,
}

impl SocketDir {
    /// Makes the directory for an instance that is about to start.
    pub(crate) fn create(path: &Path, layout: Layout) -> io::Result<Self> {
        let Layout { user, has_passwd, is_bounded } = layout;
        let run = path.join(RUN);
        fs::DirBuilder::new().recursive(true).mode(OPEN).create(&run)?;
        // Independent of the umask.
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
        let underlay = is_bounded.then(|| folder(&run)).transpose()?;
        if is_bounded {
            mounts::tmpfs(&run, user.uid, user.gid)?;
        }
        Ok(Self { underlay, ..Self::open(path)? })
    }

    /// Opens the directory of an instance that runs already.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (run, passwd) = (path.join(RUN), path.join(PASSWD));
        // A directory of an earlier release is mounted whole.
        let run = if run.try_exists()? { run } else { path.to_owned() };
        Ok(Self {
            folder: folder(&run)?,
            run,
            passwd: passwd.try_exists()?.then_some(passwd),
            underlay: None,
            is_underlay_reported: AtomicBool::new(false),
        })
    }

    /// The part that is mounted into the container.
    pub(crate) fn path(&self) -> &Path {
        &self.run
    }

    /// The container's `/etc/passwd`.
    pub(crate) fn passwd(&self) -> Option<&Path> {
        self.passwd.as_deref()
    }

    /// From now on, only root can add to the container's part. Existing listeners stay.
    pub(crate) fn close(&self) {
        if !rustix::process::geteuid().is_root() {
            return; // code runs as the agent's own user
        }
        for opened in std::iter::once(&self.folder).chain(&self.underlay) {
            let path = descriptor_path(opened);
            // The owner first: an owner may change the mode.
            let closed = chown(&path, Some(0), Some(0))
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(CLOSED)));
            if let Err(err) = closed {
                tracing::warn!(error = %Chain(&err), folder = %self.run.display(), "Socket directory could not be closed.");
            }
        }
    }

    /// Opens a socket of this very directory.
    fn socket(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT) if let Some(underlay) = &self.underlay => {
                let opened = rustix::fs::openat(underlay, name, flags, Mode::empty())?;
                if !self.is_underlay_reported.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        folder = %self.run.display(),
                        "The engine does not see this agent's mounts: the socket directory of an instance has no size limit."
                    );
                }
                opened
            }
            opened => opened?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
        if kind.is_socket() {
            Ok(opened)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"))
        }
    }

    /// Connects. A listener whose queue is full is busy (a burst, or code that computes): the
    /// attempt is repeated.
    pub(crate) async fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        let give_up = Instant::now() + FULL_QUEUE_TIMEOUT;
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = self.socket(socket)?;
            match UnixStream::connect(descriptor_path(&opened)).await {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
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

/// Unmounts what [`SocketDir::create`] mounted in this directory, if anything.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    mounts::detach(&path.join(RUN))
}

/// The path by which a descriptor of this process can be reached.
fn descriptor_path(opened: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

/// Whether a connect failed because there is no listener, as against a busy listener or a limit of
/// this process or machine.
pub(crate) fn is_not_listening(err: &io::Error) -> bool {
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

    /// An instance's directory that is unmounted on drop.
    struct Bounded(tempfile::TempDir);

    impl Bounded {
        fn create(&self) -> SocketDir {
            SocketDir::create(self.0.path(), Layout { is_bounded: true, ..layout() }).unwrap()
        }
    }

    impl Drop for Bounded {
        fn drop(&mut self) {
            drop(unmount(self.0.path()));
        }
    }

    #[test]
    fn socket_directory_is_bounded_and_closed_after_load() {
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

    /// The container of such an engine has the directory beneath the tmpfs.
    #[tokio::test]
    async fn engine_that_does_not_see_mounts_still_serves() {
        if !is_root() {
            return;
        }
        let root = Bounded(tempfile::tempdir().unwrap());
        let folder = root.create();
        assert!(is_not_listening(&folder.connect(CALLS).await.unwrap_err()));
        let inside = descriptor_path(folder.underlay.as_ref().unwrap());
        let _listener = tokio::net::UnixListener::bind(inside.join(CALLS)).unwrap();
        folder.connect(CALLS).await.unwrap();
    }

    #[test]
    fn own_user_has_a_name() {
        let root = tempfile::tempdir().unwrap();
        let folder = SocketDir::create(root.path(), layout()).unwrap();
        assert_eq!(folder.passwd(), None);
        let named = Layout { has_passwd: true, ..layout() };
        let folder = SocketDir::create(root.path(), named).unwrap();
        let text = fs::read_to_string(folder.passwd().unwrap()).unwrap();
        assert_eq!(text, CodeUser::shared().passwd());
        assert!(SocketDir::open(root.path()).unwrap().passwd().is_some());
    }

    #[tokio::test]
    async fn full_queue_is_waited_for_closed_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = SocketDir::open(root.path()).unwrap();
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
        assert!(!is_not_listening(&full), "{full}");
        let (late, accepted) = tokio::join!(folder.connect(CALLS), listener.accept());
        assert!(late.is_ok() && accepted.is_ok(), "{late:?}");
        drop(listener);
        let closed = folder.connect(CALLS).await.unwrap_err();
        assert!(is_not_listening(&closed), "{closed}");
        assert!(is_not_listening(&folder.connect(CONTROL).await.unwrap_err()));
        assert!(!is_not_listening(&io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())));
    }

    #[tokio::test]
    async fn only_sockets_of_the_directory_are_connected_to() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("engine.sock");
        let _engine = tokio::net::UnixListener::bind(&outside).unwrap();
        let folder = SocketDir::create(&root.path().join("own"), layout()).unwrap();
        let own = folder.path().to_owned();
        std::os::unix::fs::symlink(&outside, own.join(CALLS)).unwrap();
        std::os::unix::fs::symlink("../../engine.sock", own.join(CONTROL)).unwrap();
        fs::write(own.join("file"), "").unwrap();
        for name in [CALLS, CONTROL, "file"] {
            let refused = folder.connect(name).await.unwrap_err();
            assert!(is_not_listening(&refused), "{name}: {refused}");
        }
        let _own = tokio::net::UnixListener::bind(own.join("own.sock")).unwrap();
        folder.connect("own.sock").await.unwrap();
    }

    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x".repeat(120));
        let folder = SocketDir::create(&path, layout()).unwrap();
        // The listener binds from inside the directory, as a container does.
        let inside = descriptor_path(&folder.folder);
        let _listener = tokio::net::UnixListener::bind(inside.join(CALLS)).unwrap();
        folder.connect(CALLS).await.unwrap();
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
