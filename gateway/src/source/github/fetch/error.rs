//! Why a commit could not be fetched: the developer gets the reason, the operator's log also
//! contains git's output and addresses.

use crate::source::git::command::GitError;
use crate::source::git::unsupported::Unsupported;
use crate::source::github::allowed_hosts::Unreachable;
use crate::source::github::project::SecretError;
use epsilon_api::{chain::Chain, error::ErrorBody, units};
use http::StatusCode;
use std::{io, time::Duration};

/// Why a commit could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("the token cannot be used")]
    Token(#[from] SecretError),
    #[error("the folder for the commit cannot be created")]
    Folder(#[source] io::Error),
    #[error("git failed")]
    Git(#[source] GitError),
    #[error("git could not fetch the commit")]
    Refused { kind: Refusal, source: GitError },
    #[error("the commit is larger than {0}")]
    TooLarge(units::Bytes),
    #[error("the fetch took longer than {}", humantime::format_duration(*.0))]
    TookTooLong(Duration),
    #[error("`{0}` points to another commit by now")]
    Moved(String),
    #[error("the commit contains files that cannot be deployed")]
    Unsupported(#[source] Unsupported),
}

/// The cause of a failed fetch, as far as git's output shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Credentials,
    Absent,
    Reference,
    Redirect,
    DiskFull,
    Other,
}

impl Refusal {
    pub(crate) fn of(stderr: &str) -> Self {
        let contains_any = |parts: &[&str]| parts.iter().any(|part| stderr.contains(part));
        if contains_any(&["No space left on device", "Disk quota exceeded"]) {
            Self::DiskFull
        } else if contains_any(&[
            "could not read Username",
            "could not read Password",
            "Authentication failed",
            "askpass",
        ]) {
            Self::Credentials
        } else if contains_any(&["couldn't find remote ref"]) {
            Self::Reference
        } else if contains_any(&["not found", "returned error: 404"]) {
            Self::Absent
        } else if contains_any(&[
            "returned error: 301",
            "returned error: 302",
            "returned error: 303",
            "returned error: 307",
            "returned error: 308",
            "redirect",
        ]) {
            Self::Redirect
        } else if contains_any(&["returned error: 401", "returned error: 403"]) {
            Self::Credentials
        } else {
            Self::Other
        }
    }
}

impl FetchError {
    /// The error of a git run that is not a fetch.
    pub(crate) fn of(err: GitError) -> Self {
        match err {
            GitError::TookTooLong { limit, .. } => Self::TookTooLong(limit),
            GitError::Failed { ref stderr, .. } => match Refusal::of(stderr) {
                kind @ Refusal::DiskFull => Self::Refused { kind, source: err },
                Refusal::Credentials
                | Refusal::Absent
                | Refusal::Reference
                | Refusal::Redirect
                | Refusal::Other => Self::Git(err),
            },
            GitError::Missing
            | GitError::TooOld { .. }
            | GitError::Run { .. }
            | GitError::TooMuch { .. } => Self::Git(err),
        }
    }

    /// The error of a fetch, which GitHub may have refused.
    pub(crate) fn of_fetch(err: GitError) -> Self {
        match err {
            GitError::Failed { ref stderr, .. } => {
                Self::Refused { kind: Refusal::of(stderr), source: err }
            }
            other => Self::of(other),
        }
    }

    /// The error for the developer, without addresses and git's output.
    pub(crate) fn body(&self) -> ErrorBody {
        let (status, code, hint) = self.verdict();
        let message = match self {
            Self::Unsupported(what) => what.to_string(),
            Self::Refused { kind, .. } => match kind {
                Refusal::Credentials => {
                    "GitHub requires credentials: the repository is private or does not exist"
                        .into()
                }
                Refusal::Absent => {
                    "GitHub does not know this repository, or does not show it".into()
                }
                Refusal::Reference => "the pushed branch or tag does not exist any more".into(),
                Refusal::Redirect => {
                    "GitHub answered with a redirect, which is not followed".into()
                }
                Refusal::DiskFull => "the gateway's disk is full".into(),
                Refusal::Other => {
                    "GitHub refused to send the commit; the gateway's log has the details".into()
                }
            },
            Self::Git(err @ (GitError::Missing | GitError::TooOld { .. })) => err.to_string(),
            Self::Unreachable(_) | Self::Token(_) | Self::Folder(_) | Self::Git(_) => {
                "the commit cannot be fetched; the gateway's log has the cause".into()
            }
            Self::TooLarge(_) | Self::TookTooLong(_) | Self::Moved(_) => {
                format!("the commit could not be fetched: {self}")
            }
        };
        ErrorBody::new(status, code, message, hint.map(str::to_owned))
    }

    fn verdict(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const CODE: &str = "SOURCE_NOT_FETCHED";
        match self {
            Self::Moved(_) | Self::Refused { kind: Refusal::Reference, .. } => (
                StatusCode::CONFLICT,
                "SUPERSEDED",
                Some("its current commit is deployed by its own delivery"),
            ),
            Self::Unsupported(what) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "SOURCE_UNSUPPORTED", Some(what.hint()))
            }
            Self::TooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "SOURCE_TOO_LARGE",
                Some("deploy a project of this size with `epsilon deploy` instead"),
            ),
            Self::TookTooLong(_) => (
                StatusCode::GATEWAY_TIMEOUT,
                CODE,
                Some("push again, or deploy with `epsilon deploy` if the line is slow"),
            ),
            Self::Refused { kind: Refusal::Credentials | Refusal::Absent, .. } => (
                StatusCode::BAD_GATEWAY,
                CODE,
                Some("check `repository`, and for a private one `token_file`, of `gateway.github`"),
            ),
            Self::Refused { kind: Refusal::Redirect, .. } => (
                StatusCode::BAD_GATEWAY,
                CODE,
                Some("if the repository was renamed, set its new name in `gateway.github`"),
            ),
            Self::Refused { kind: Refusal::DiskFull, .. } => (
                StatusCode::INSUFFICIENT_STORAGE,
                CODE,
                Some(
                    "free disk space in the gateway's data folder, then redeliver the webhook on GitHub",
                ),
            ),
            Self::Refused { kind: Refusal::Other, .. } | Self::Unreachable(_) => {
                (StatusCode::BAD_GATEWAY, CODE, None)
            }
            Self::Token(_) | Self::Folder(_) | Self::Git(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, CODE, None)
            }
        }
    }

    /// The error for the operator's log.
    pub(crate) fn log_text(&self) -> String {
        Chain(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gits_words_are_understood() {
        for (stderr, want) in [
            (
                "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
                Refusal::Credentials,
            ),
            (
                "fatal: Authentication failed for 'https://github.com/o/s.git/'",
                Refusal::Credentials,
            ),
            (
                "remote: Repository not found.\nfatal: repository 'https://github.com/o/s.git/' not found",
                Refusal::Absent,
            ),
            ("fatal: couldn't find remote ref refs/heads/main", Refusal::Reference),
            (
                "fatal: unable to access 'http://h/': The requested URL returned error: 301",
                Refusal::Redirect,
            ),
            (
                "fatal: unable to access 'http://h/': The requested URL returned error: 403",
                Refusal::Credentials,
            ),
            (
                "fatal: write error: No space left on device\nfatal: index-pack failed",
                Refusal::DiskFull,
            ),
            ("fatal: unable to access 'https://h/': SSL certificate problem", Refusal::Other),
        ] {
            assert_eq!(Refusal::of(stderr), want, "{stderr}");
        }
    }
}
