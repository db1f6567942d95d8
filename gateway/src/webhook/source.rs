//! The commit of a push, brought here: `git fetch` of one reference, one commit deep, from the address that stands in
//! the settings. Nothing of a payload is part of the address. The copy lives in a folder of its own and goes with the
//! value.
//!
//! git is told to speak only to the addresses that were looked at, to follow no redirect, to ask for no password and to
//! fetch no submodule. A token is in its environment, never among its arguments, and it is only for this address.

use super::{
    config::Limits,
    event::Push,
    host::Unreachable,
    project::{Hook, SecretError},
};
use crate::git::{
    archive,
    command::{Git, GitError, Limits as Run, Run as Command},
    contents::{self, Unsupported},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::{
    body::{self, CallBody},
    chain::Chain,
    error::ErrorBody,
    redacted::Secret,
    units,
};
use http::StatusCode;
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

/// Why a commit is not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFetched {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("a token cannot be used")]
    Token(#[from] SecretError),
    #[error("the folder for it cannot be made")]
    Folder(#[source] io::Error),
    #[error("git cannot be used")]
    Git(#[source] GitError),
    #[error("the hub did not let it be fetched")]
    Refused { kind: Refusal, source: GitError },
    #[error("it is larger than {0}")]
    TooLarge(units::Bytes),
    #[error("it did not come within {}", humantime::format_duration(*.0))]
    TookTooLong(Duration),
    #[error("`{0}` points elsewhere by now")]
    Moved(String),
    #[error("it holds what cannot be deployed")]
    Unsupported(#[source] Unsupported),
}

/// What git's words mean, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Credentials,
    Absent,
    Reference,
    Redirect,
    Other,
}

impl Refusal {
    fn of(words: &str) -> Self {
        let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        if says(&[
            "could not read Username",
            "could not read Password",
            "Authentication failed",
            "askpass",
        ]) {
            Self::Credentials
        } else if says(&["couldn't find remote ref"]) {
            Self::Reference
        } else if says(&["not found", "returned error: 404"]) {
            Self::Absent
        } else if says(&[
            "returned error: 301",
            "returned error: 302",
            "returned error: 303",
            "returned error: 307",
            "returned error: 308",
            "redirect",
        ]) {
            Self::Redirect
        } else if says(&["returned error: 401", "returned error: 403"]) {
            Self::Credentials
        } else {
            Self::Other
        }
    }
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
        git.ready().await.map_err(NotFetched::Git)?;
        let token = hook.token().await?;
        let addresses = hook.source.addresses(limits.connect).await?;
        let folder = Folder::make(folder).map_err(NotFetched::Folder)?;
        let asked = Run { time: limits.fetch, output: LINE };
        let init = git.run(["init", "--quiet", "--bare", "--template="]).within(&folder.0);
        init.output(asked).await.map_err(NotFetched::Git)?;

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
        fetched.map_err(|err| not_fetched(err, limits))?;
        if size(&folder.0) > limits.max_fetch.get() {
            return Err(NotFetched::TooLarge(limits.max_fetch));
        }

        let id = async |what: &str| {
            let run =
                git.run(["rev-parse", "--verify", "--end-of-options", what]).within(&folder.0);
            let said = run.output(asked).await.map_err(NotFetched::Git)?;
            Ok::<_, NotFetched>(String::from_utf8_lossy(&said).trim().to_owned())
        };
        if id(FETCHED).await? != push.after {
            return Err(NotFetched::Moved(push.name().to_owned()));
        }
        let commit = id(&format!("{FETCHED}^{{commit}}")).await?;
        let contents = contents::check(git, &folder.0, &commit, &[], limits.fetch).await;
        contents.map_err(NotFetched::Git)?.map_err(NotFetched::Unsupported)?;
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
            .map_err(NotFetched::Git)
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

fn not_fetched(err: GitError, limits: &Limits) -> NotFetched {
    match err {
        GitError::TookTooLong { .. } => NotFetched::TookTooLong(limits.fetch),
        GitError::Failed { ref words, .. } => {
            NotFetched::Refused { kind: Refusal::of(words), source: err }
        }
        GitError::Missing
        | GitError::TooOld { .. }
        | GitError::Run { .. }
        | GitError::TooMuch { .. } => NotFetched::Git(err),
    }
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

impl NotFetched {
    /// For the developer, without addresses and git's own words.
    pub(crate) fn body(&self) -> ErrorBody {
        let (status, code, hint) = self.verdict();
        let message = match self {
            Self::Unsupported(what) => what.to_string(),
            Self::Refused { kind, .. } => match kind {
                Refusal::Credentials => {
                    "the hub wants credentials: the repository is private, or there is none".into()
                }
                Refusal::Absent => "the hub knows no such repository, or does not show it".into(),
                Refusal::Reference => "what was pushed is not there any more".into(),
                Refusal::Redirect => {
                    "the hub answered with a redirect, which is not followed".into()
                }
                Refusal::Other => {
                    "the hub did not let the commit be fetched; the gateway's log says more".into()
                }
            },
            Self::Git(err @ (GitError::Missing | GitError::TooOld { .. })) => err.to_string(),
            Self::Unreachable(_) | Self::Token(_) | Self::Folder(_) | Self::Git(_) => {
                "the commit cannot be fetched; the gateway's log says why".into()
            }
            Self::TooLarge(_) | Self::TookTooLong(_) | Self::Moved(_) => {
                format!("the commit was not fetched: {self}")
            }
        };
        ErrorBody::new(status, code, message, hint.map(str::to_owned))
    }

    fn verdict(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const NOT_FETCHED: &str = "SOURCE_NOT_FETCHED";
        match self {
            Self::Moved(_) | Self::Refused { kind: Refusal::Reference, .. } => (
                StatusCode::CONFLICT,
                "SUPERSEDED",
                Some("what it points at now is deployed by its own delivery"),
            ),
            Self::Unsupported(what) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "SOURCE_UNSUPPORTED", Some(what.hint()))
            }
            Self::TooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "SOURCE_TOO_LARGE",
                Some("the operator's setting is `gateway.hooks.max_fetch`"),
            ),
            Self::TookTooLong(_) => (
                StatusCode::GATEWAY_TIMEOUT,
                NOT_FETCHED,
                Some("the operator's setting is `gateway.hooks.fetch_timeout`"),
            ),
            Self::Refused { kind: Refusal::Credentials | Refusal::Absent, .. } => (
                StatusCode::BAD_GATEWAY,
                NOT_FETCHED,
                Some("check `repository`, and for a private one `token_file`, of `gateway.github`"),
            ),
            Self::Refused { kind: Refusal::Redirect, .. } => (
                StatusCode::BAD_GATEWAY,
                NOT_FETCHED,
                Some("was the repository renamed? set its new name in `gateway.github`"),
            ),
            Self::Refused { kind: Refusal::Other, .. } | Self::Unreachable(_) => {
                (StatusCode::BAD_GATEWAY, NOT_FETCHED, None)
            }
            Self::Token(_) | Self::Folder(_) | Self::Git(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, NOT_FETCHED, None)
            }
        }
    }

    /// For the operator's log.
    pub(crate) fn told(&self) -> String {
        Chain(self).to_string()
    }
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
