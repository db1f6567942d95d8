//! The commit of a push, brought here: `git fetch` of one reference, one commit deep, from the address that stands in
//! the settings. Nothing of a payload is part of the address. The copy lives in a folder of its own and goes with the
//! value.
//!
//! git is told to speak only to the addresses that were looked at, to follow no redirect, to ask for no password and to
//! fetch no submodule. A token is in its environment, never among its arguments, and it is only for this address.

mod not_fetched;

pub(crate) use not_fetched::NotFetched;

use super::{config::Limits, event::Push, project::Hook};
use crate::git::{
    archive,
    command::{Git, Limits as Run, Run as Command},
    contents,
};
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

/// Where the fetched reference lies in our copy.
const FETCHED: &str = "refs/epsilon/pushed";
/// What git prints when it is asked for an id.
const LINE: units::Bytes = units::Bytes(4 << 10);
/// How often the size of a running fetch is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A commit that is here. Its folder goes with it.
#[derive(Debug)]
pub(crate) struct Source {
    folder: Folder,
    /// The commit, also where a tag was pushed.
    pub(crate) commit: String,
}

impl Source {
    /// Fetches what was pushed, if the reference still points there.
    pub(crate) async fn fetch(
        git: &Git,
        hook: &Hook,
        push: &Push,
        folder: PathBuf,
        limits: &Limits,
    ) -> Result<Self, NotFetched> {
        git.ready().await.map_err(NotFetched::of)?;
        let token = hook.token().await?;
        let addresses = hook.source.addresses(limits.connect).await?;
        let folder = Folder::make(folder).map_err(NotFetched::Folder)?;
        let asked = Run { time: limits.fetch, output: LINE };
        let init = git.run(["init", "--quiet", "--bare", "--template="]).within(&folder.0);
        init.output(asked).await.map_err(NotFetched::of)?;

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
            biased; // what is done is not too large any more
            done = fetch.output(asked) => done,
            () = grown(&folder.0, limits.max_fetch) => return Err(NotFetched::TooLarge(limits.max_fetch)),
        };
        fetched.map_err(NotFetched::of_fetch)?;
        if size(&folder.0) > limits.max_fetch.get() {
            return Err(NotFetched::TooLarge(limits.max_fetch));
        }

        let id = async |what: &str| {
            let run =
                git.run(["rev-parse", "--verify", "--end-of-options", what]).within(&folder.0);
            let said = run.output(asked).await.map_err(NotFetched::of)?;
            Ok::<_, NotFetched>(String::from_utf8_lossy(&said).trim().to_owned())
        };
        if id(FETCHED).await? != push.after {
            return Err(NotFetched::Moved(push.name().to_owned()));
        }
        let commit = id(&format!("{FETCHED}^{{commit}}")).await?;
        let contents = contents::check(git, &folder.0, &commit, &[], limits.fetch).await;
        contents.map_err(NotFetched::of)?.map_err(NotFetched::Unsupported)?;
        Ok(Self { folder, commit })
    }

    /// As a deployment wants it. The folder is needed until the archive was read.
    pub(crate) fn archive(
        &self,
        git: &Git,
        limits: archive::Limits,
    ) -> Result<CallBody, NotFetched> {
        archive::of_commit(git, &self.folder.0, &self.commit, &[], limits)
            .map(body::boxed)
            .map_err(NotFetched::of)
    }
}

/// With all that keeps git to this place.
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
        // One pack, whatever its size: that is what is measured.
        .setting("fetch.unpackLimit=1")
        .setting("pack.threads=1")
        // Larger files are not held in memory.
        .setting("core.bigFileThreshold=8m");
    let run = match host.parse::<IpAddr>() {
        Ok(_) => run,
        // Known since git 2.37; an older one asks for the name again by itself.
        Err(_) => run.setting(format!("http.curloptResolve={host}:{port}:{}", addresses.join(","))),
    };
    let Some(token) = token else { return run };
    // The name is the hub's own for tokens of all kinds.
    let basic = BASE64_STANDARD.encode(format!("x-access-token:{}", token.reveal()));
    run.env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", format!("http.{}.extraHeader", hook.source.url()))
        .env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {basic}"))
}

/// Ends when a fetch has brought more than this. A pack grows file by file, so that a look costs next to nothing.
async fn grown(repository: &Path, limit: units::Bytes) {
    while size(repository) <= limit.get() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Bytes of packs, those that are on their way included.
fn size(repository: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(repository.join("objects/pack")) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len()).sum()
}

/// A folder that nobody else reads, removed with the value.
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
        // What stays is removed at the next start.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
#[path = "source/tests.rs"]
mod tests;
