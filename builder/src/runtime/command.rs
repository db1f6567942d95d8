//! The three commands of this machine that make a base without a registry: `apt-get` (for
//! debootstrap where it is missing), `debootstrap`, `tar`. Dropping a command's future kills the
//! command and its children.

use super::{mirror::Repository, step::LastLine};
use crate::{
    cache::WorkDir,
    error::{self, Hint},
};
use bytes::Bytes;
use epsilon_api::build::BuildError;
use futures_util::Stream;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{future::Future, io, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::process::{Child, Command};
use tokio_util::io::ReaderStream;

/// Lines of a command's output that an error shows.
const TAIL: usize = 20;
/// Interval of reading what a command has printed.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the commands for one base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commands<'a> {
    pub(super) work: &'a Arc<WorkDir>,
    /// The last line that a running command printed, for progress.
    pub(super) last_line: &'a LastLine,
}

/// A command and its children, in a process group of their own. All are killed when this is dropped
/// before the command's end.
#[derive(Debug)]
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // The id cannot be reused before it was waited for; after that there is none.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = id {
            // Fails only if all of its processes are gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Commands<'_> {
    /// Installs debootstrap if it is missing.
    pub(super) async fn ensure_debootstrap(self) -> Result<(), BuildError> {
        if Path::new("/usr/sbin/debootstrap").exists() {
            return Ok(());
        }
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(arguments);
            command
        };
        let install = ["install", "--no-install-recommends", "debootstrap"];
        // A new machine has no package lists yet.
        if self.run(apt(&install)).await.is_err() {
            self.run(apt(&["update"])).await?;
            self.run(apt(&install)).await.map_err(|err| {
                err.hint("install the package `debootstrap`, or set `builder.runtime_image`")
            })?;
        }
        Ok(())
    }

    /// Makes the root file system of `release` in `root`.
    pub(super) async fn debootstrap(
        self,
        release: &str,
        mirror: &Repository,
        root: &Path,
    ) -> Result<(), BuildError> {
        // Its own namespaces for mounts and processes: however this ends, `/proc` in the new root
        // is unmounted and no child survives.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["debootstrap", "--variant=minbase", "--include=ca-certificates"])
            .arg(format!("--components={}", mirror.components()));
        if let Some(keyring) = &mirror.keyring {
            command.arg("--keyring").arg(keyring);
        }
        if mirror.trusted {
            command.arg("--no-check-gpg");
        }
        command.arg(release).arg(root).arg(&mirror.uri);
        if let Some(proxy) = self.apt_proxy().await {
            command.env("http_proxy", proxy);
        }
        self.run(command).await.map_err(|err| {
            err.hint(
                "the mirror in apt's settings must be reachable; debootstrap needs a machine (or a \
                      privileged container) that lets it mount and make devices",
            )
        })
    }

    /// The root file system as a tar, and a future with its outcome.
    pub(super) fn tar(
        self,
        root: &Path,
    ) -> Result<
        (
            impl Stream<Item = io::Result<Bytes>> + Send + use<>,
            impl Future<Output = Result<(), BuildError>> + Send + use<>,
        ),
        BuildError,
    > {
        let broken = |err: &io::Error| error::broken("packing the root file system", err);
        let mut command = Command::new("tar");
        command.args(["--numeric-owner", "--exclude=./proc/*", "--exclude=./dev/*", "-C"]);
        command.arg(root).args(["-c", "."]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(|err| broken(&err))?;
        let output =
            child.stdout.take().ok_or_else(|| broken(&io::ErrorKind::BrokenPipe.into()))?;
        let done = async move {
            match child.wait().await {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(broken(&io::Error::other(format!("tar: {status}")))),
                Err(err) => Err(broken(&err)),
            }
        };
        Ok((ReaderStream::with_capacity(output, 256 << 10), done))
    }

    /// apt may have a proxy that no variable names.
    async fn apt_proxy(self) -> Option<String> {
        if std::env::var_os("http_proxy").is_some() {
            return None;
        }
        let mut command = Command::new("apt-config");
        command.args(["shell", "PROXY", "Acquire::http::Proxy"]).kill_on_drop(true);
        let output = command.output().await.ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let proxy = text.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?;
        (!proxy.is_empty() && proxy != "DIRECT").then(|| proxy.to_owned())
    }

    /// Runs a command to its end. Its output goes to a file: a pipe would have to be drained, and
    /// only the end is ever shown.
    async fn run(self, mut command: Command) -> Result<(), BuildError> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let broken = |err: &io::Error| error::broken("running a command for the base", err);
        let log = self.work.path().join("command.log");
        let file = std::fs::File::create(&log).map_err(|err| broken(&err))?;
        let both = file.try_clone().map_err(|err| broken(&err))?;
        command.stdin(Stdio::null()).stdout(file).stderr(both).process_group(0);
        let mut group = match command.spawn() {
            Ok(child) => Group(child),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(error::runtime_failed(format!(
                    "`{name}` is not installed on this machine"
                )));
            }
            Err(err) => return Err(broken(&err)),
        };
        let ended = group.0.wait();
        tokio::pin!(ended);
        let status = loop {
            tokio::select! {
                status = &mut ended => break status.map_err(|err| broken(&err))?,
                () = tokio::time::sleep(READ_INTERVAL) => {
                    let lines = printed(&log).await;
                    self.last_line.set(lines.last().map_or("", String::as_str));
                }
            }
        };
        if status.success() {
            return Ok(());
        }
        let lines = printed(&log).await;
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        Err(error::runtime_failed(format!("`{name}` ended with {status}:\n{tail}")))
    }
}

/// The lines that a command has printed so far.
async fn printed(log: &Path) -> Vec<String> {
    let output = tokio::fs::read(log).await.unwrap_or_default();
    let output = String::from_utf8_lossy(&output);
    output.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::Cache,
        runtime::step::{Allowed, Needs, Step},
    };
    use epsilon_api::build::{BuildEvent, BuildLog};
    use tokio_util::task::TaskTracker;

    struct Silent;

    impl BuildLog for Silent {
        fn report(&self, _: BuildEvent) {}
    }

    /// Whether the process runs; a zombie, which was not waited for yet, does not.
    fn lives(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 0, TaskTracker::new()).unwrap().cache;
        let work = cache.work().unwrap();
        let last_line = LastLine::default();
        let commands = Commands { work: &work, last_line: &last_line };
        let pids = dir.path().join("pids");
        let mut fake = Command::new("sh");
        fake.args(["-c", "sleep 1000 & echo $$ $! > $0; echo I: Retrieving bash; wait"]).arg(&pids);
        let step = Step { doing: "a root file system".into(), needs: Needs::Mirror };
        // This step has half of it.
        let allowed = Allowed::new(Duration::from_secs(4));
        let err = step.run(allowed, &Silent, &last_line, commands.run(fake)).await.unwrap_err();
        assert_eq!(err.code, "RUNTIME_FAILED");
        assert_eq!(
            err.message,
            "a root file system: not done within 2s and given up (last line: I: Retrieving bash)"
        );
        assert!(err.hint.unwrap().contains("the mirror in apt's settings did not answer"));
        let pids = std::fs::read_to_string(&pids).unwrap();
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        let all_gone = async {
            while pids.split_whitespace().any(lives) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(10), all_gone).await;
        assert!(gone.is_ok(), "one of {pids} is still there");
    }

    #[tokio::test]
    async fn a_failed_command_shows_the_end_of_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 0, TaskTracker::new()).unwrap().cache;
        let work = cache.work().unwrap();
        let last_line = LastLine::default();
        let commands = Commands { work: &work, last_line: &last_line };
        let mut fake = Command::new("sh");
        fake.args(["-c", "for n in $(seq 30); do echo line $n; done; echo; exit 3"]);
        let err = commands.run(fake).await.unwrap_err();
        assert!(
            err.message.starts_with("`sh` ended with exit status: 3:\nline 11\n"),
            "{}",
            err.message
        );
        assert!(err.message.ends_with("line 30"), "{}", err.message);
        let err = commands.run(Command::new("epsilon-has-no-such-command")).await.unwrap_err();
        assert!(err.message.contains("is not installed on this machine"), "{}", err.message);
    }
}
