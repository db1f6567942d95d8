//! The folder through which the agent and one instance meet: made before the container, mounted into it,
//! removed after it. Only the container's user and root may enter.
//!
//! What lies in it is the code's to change, and the agent may be root: it connects to sockets of this folder and to
//! nothing that a symbolic link there leads to (the engine's own socket, say). So a socket is opened first, looked at, and
//! reached through its descriptor under `/proc/self/fd`; which also bears paths beyond the 107 bytes of an AF_UNIX address.

use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
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

#[derive(Debug)]
pub(crate) struct SocketFolder {
    path: PathBuf,
    folder: OwnedFd,
}

/// The user that code runs as: nobody's in particular when the agent may choose, else the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl CodeUser {
    /// What distroless images call `nonroot`.
    const NONROOT: Self = Self { uid: 65_532, gid: 65_532 };

    pub(crate) fn of_this_process() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() { Self::NONROOT } else { Self { uid: uid.as_raw(), gid: gid.as_raw() } }
    }
}

impl std::fmt::Display for CodeUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl SocketFolder {
    /// Makes the folder for an instance that is about to start.
    pub(crate) fn create(path: PathBuf, user: CodeUser) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Self::open(path)
    }

    /// Takes the folder of an instance that runs already.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { path, folder })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A socket of this very folder.
    fn socket(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
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

    #[tokio::test]
    async fn a_full_queue_is_waited_for_and_a_closed_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = SocketFolder::open(root.path().to_owned()).unwrap();
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
        let own = root.path().join("own");
        let folder = SocketFolder::create(own.clone(), CodeUser::of_this_process()).unwrap();
        std::os::unix::fs::symlink(&outside, own.join(CALLS)).unwrap();
        std::os::unix::fs::symlink("../engine.sock", own.join(CONTROL)).unwrap();
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
        let folder = SocketFolder::create(path.clone(), CodeUser::of_this_process()).unwrap();
        // The listener binds from inside the folder, as a container does.
        let inside = by_descriptor(&folder.folder);
        let _listener = tokio::net::UnixListener::bind(inside.join(CALLS)).unwrap();
        folder.connect(CALLS).await.unwrap();
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
