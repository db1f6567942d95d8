//! The three commands of this machine that make a base without a registry: `apt-get` (for
//! debootstrap, if missing), `debootstrap`, `tar`. Each has a time limit and is killed with its
//! children.

use super::mirror::Repository;
use crate::{
    cache::WorkDir,
    error::{self, Hint},
};
use bytes::Bytes;
use epsilon_api::build::BuildError;
use futures_util::Stream;
use std::{future::Future, io, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::process::Command;
use tokio_util::io::ReaderStream;

/// Lines of a command's output that an error shows.
const TAIL: usize = 20;

/// Runs the commands for one base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commands<'a> {
    pub(super) work: &'a Arc<WorkDir>,
    pub(super) limit: Duration,
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
        let output = tokio::time::timeout(self.limit, command.output()).await.ok()?.ok()?;
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
        command.stdin(Stdio::null()).stdout(file).stderr(both).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(error::runtime_failed(format!(
                    "`{name}` is not installed on this machine"
                )));
            }
            Err(err) => return Err(broken(&err)),
        };
        let status = match tokio::time::timeout(self.limit, child.wait()).await {
            Ok(status) => status.map_err(|err| broken(&err))?,
            Err(_) => {
                let limit = self.limit;
                return Err(error::runtime_failed(format!("`{name}` took longer than {limit:?}"))
                    .hint("the limit is `builder.runtime_timeout`"));
            }
        };
        if status.success() {
            return Ok(());
        }
        let output = tokio::fs::read(&log).await.unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        Err(error::runtime_failed(format!("`{name}` ended with {status}:\n{tail}")))
    }
}
