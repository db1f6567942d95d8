//! Fetches the commit of a push: `git fetch` of one reference with depth one, from the URL in the
//! settings. Nothing of a payload becomes part of the URL. The copy is in a folder of its own that
//! is removed with the value.
//!
//! git may connect only to the addresses that were checked, follows no redirects, asks for no
//! passwords and fetches no submodules. A token is passed in its environment, never in its
//! arguments, and is used only for this URL.

mod error;

pub(crate) use error::FetchError;

use super::{config::Limits, event::Push, project::Hook};
use crate::source::git::command::{Git, Limits as Run, Run as Command};
use crate::source::git::{archive, unsupported};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::{
    body::{self, CallBody},
    redacted::Secret,
    units,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// The fetched reference in our copy.
const FETCHED: &str = "refs/epsilon/pushed";
/// Longest output of a query for an id.
const MAX_OUTPUT: units::Bytes = units::Bytes(4 << 10);
/// Interval at which the size of a running fetch is checked.
const SIZE_CHECK_EVERY: Duration = Duration::from_millis(100);

/// A fetched commit. Its folder is removed on drop.
#[derive(Debug)]
pub(crate) struct Source {
    folder: Folder,
    /// The commit, also if a tag was pushed.
    pub(crate) commit: String,
}

impl Source {
    /// Fetches the pushed commit, if the reference still points to it.
    pub(crate) async fn fetch(
        git: &Git,
        hook: &Hook,
        push: &Push,
        folder: PathBuf,
        limits: &Limits,
    ) -> Result<Self, FetchError> {
        git.ready().await.map_err(FetchError::of)?;
        let token = hook.token().await?;
        let addresses = hook.source.addresses(limits.connect).await?;
        let folder = Folder::make(folder).map_err(FetchError::Folder)?;
        let run_limits = Run { time: limits.fetch, output: MAX_OUTPUT };
        let init = git.run(["init", "--quiet", "--bare", "--template="]).within(&folder.0);
        init.output(run_limits).await.map_err(FetchError::of)?;

        let refspec = format!("+{}:{FETCHED}", push.reference);
        let fetch = git.run([
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
            "--",
            hook.source.url(),
            &refspec,
        ]);
        let fetch = guarded(fetch.within(&folder.0), hook, &addresses, token.as_ref());
        let fetched = tokio::select! {
            biased; // a completed fetch is checked below
            done = fetch.output(run_limits) => done,
            () = exceeds(&folder.0, limits.max_fetch) => return Err(FetchError::TooLarge(limits.max_fetch)),
        };
        fetched.map_err(FetchError::of_fetch)?;
        if size(&folder.0) > limits.max_fetch.get() {
            return Err(FetchError::TooLarge(limits.max_fetch));
        }

        let id = async |what: &str| {
            let run =
                git.run(["rev-parse", "--verify", "--end-of-options", what]).within(&folder.0);
            let output = run.output(run_limits).await.map_err(FetchError::of)?;
            Ok::<_, FetchError>(String::from_utf8_lossy(&output).trim().to_owned())
        };
        if id(FETCHED).await? != push.after {
            return Err(FetchError::Moved(push.name().to_owned()));
        }
        let commit = id(&format!("{FETCHED}^{{commit}}")).await?;
        let contents = unsupported::check(git, &folder.0, &commit, &[], limits.fetch).await;
        contents.map_err(FetchError::of)?.map_err(FetchError::Unsupported)?;
        Ok(Self { folder, commit })
    }

    /// The archive for a deployment. The folder is needed until the archive was read.
    pub(crate) fn archive(
        &self,
        git: &Git,
        limits: archive::Limits,
    ) -> Result<CallBody, FetchError> {
        archive::of_commit(git, &self.folder.0, &self.commit, &[], limits)
            .map(body::boxed)
            .map_err(FetchError::of)
    }
}

/// Adds the settings that restrict git to this URL.
fn guarded(
    run: Command,
    hook: &Hook,
    addresses: &[SocketAddr],
    token: Option<&Secret<String>>,
) -> Command {
    let (host, port) = (hook.source.host(), hook.source.port());
    let address = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let addresses: Vec<String> = addresses.iter().map(address).collect();
    let protocol = hook.source.url().split_once(':').map_or("https", |(scheme, _)| scheme);
    let run = run
        .setting("protocol.allow=never")
        .setting(format!("protocol.{protocol}.allow=always"))
        .setting("http.followRedirects=false")
        .setting("credential.helper=")
        .setting("submodule.recurse=false")
        // One pack of any size, because the size of packs is checked.
        .setting("fetch.unpackLimit=1")
        .setting("pack.threads=1")
        // Larger files are not held in memory.
        .setting("core.bigFileThreshold=8m");
    let run = match host.parse::<IpAddr>() {
        Ok(_) => run,
        // Known since git 2.37; an older one resolves the name again.
        Err(_) => run.setting(format!("http.curloptResolve={host}:{port}:{}", addresses.join(","))),
    };
    let Some(token) = token else { return run };
    // GitHub's user name for tokens of all kinds.
    let basic = BASE64_STANDARD.encode(format!("x-access-token:{}", token.reveal()));
    run.env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", format!("http.{}.extraHeader", hook.source.url()))
        .env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {basic}"))
}

/// Resolves when a fetch exceeds this size. A fetch writes few files, so a check costs little.
async fn exceeds(repository: &Path, limit: units::Bytes) {
    while size(repository) <= limit.get() {
        tokio::time::sleep(SIZE_CHECK_EVERY).await;
    }
}

/// Bytes of packs, including those being received.
fn size(repository: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(repository.join("objects/pack")) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len()).sum()
}

/// A private folder, removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make(path: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
