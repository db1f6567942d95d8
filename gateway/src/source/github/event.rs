//! The event of a delivery: `ping` and `push` are handled, others are ignored with a message. Pure;
//! called with a body whose signature is valid.

use super::project::Hook;
use crate::source::git::ref_name::is_ref_name;
use crate::source::git::refs;
use jiff::Timestamp;
use serde::Deserialize;
use std::{fmt, time::Duration};

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// GitHub tests the webhook.
    Ping,
    /// Deploy a commit.
    Push(Push),
    /// Do nothing.
    Ignored(Ignored),
}

/// A branch or tag with a new commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Push {
    /// The full name: `refs/heads/main`. Contains only harmless characters.
    pub(crate) reference: String,
    /// The object it points to: a commit or an annotated tag. Hexadecimal digits.
    pub(crate) after: String,
    /// The commit, also if `after` is a tag.
    pub(crate) commit: String,
}

/// Why nothing is done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    Event(String),
    Repository { pushed: String, configured: String },
    Deleted(String),
    Branch { pushed: String, configured: String },
    Tag(String),
    Reference(String),
    Old { limit: Duration },
}

/// A signed body that does not match GitHub's documentation.
#[derive(Debug, thiserror::Error)]
#[error("the payload of `{event}` cannot be read: {why}")]
pub(crate) struct Malformed {
    event: String,
    why: String,
}

/// The fields of a push that are used. GitHub may add others.
#[derive(Debug, Deserialize)]
struct Payload {
    #[serde(rename = "ref")]
    reference: String,
    after: String,
    #[serde(default)]
    deleted: bool,
    repository: Repository,
    #[serde(default)]
    head_commit: Option<Commit>,
}

#[derive(Debug, Deserialize)]
struct Commit {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Repository {
    full_name: String,
    /// Time of the last push: seconds in pushes. Older releases of GitHub Enterprise send text.
    #[serde(default)]
    pushed_at: Option<serde_json::Value>,
}

/// Parses an event. A push older than the time for which deliveries are remembered is ignored,
/// because it may have been handled before.
pub(crate) fn read(
    name: &str,
    body: &[u8],
    hook: &Hook,
    retention: Duration,
    now: Timestamp,
) -> Result<Event, Malformed> {
    match name {
        "ping" => Ok(Event::Ping),
        "push" => push(body, hook, retention, now),
        other => Ok(Event::Ignored(Ignored::Event(shown(other)))),
    }
}

fn push(body: &[u8], hook: &Hook, retention: Duration, now: Timestamp) -> Result<Event, Malformed> {
    let malformed = |why: String| Malformed { event: "push".into(), why };
    let payload: Payload =
        serde_json::from_slice(body).map_err(|err| malformed(err.to_string()))?;
    let Payload { reference, after, deleted, repository, head_commit } = payload;
    let ignored = |why| Ok(Event::Ignored(why));
    // Repository names are case-insensitive on GitHub.
    if !repository.full_name.eq_ignore_ascii_case(&hook.repository) {
        let pushed = shown(&repository.full_name);
        return ignored(Ignored::Repository { pushed, configured: hook.repository.clone() });
    }
    if !is_object_id(&after) {
        return Err(malformed("`after` is not a commit id".into()));
    }
    if deleted || after.bytes().all(|b| b == b'0') {
        return ignored(Ignored::Deleted(shown(&reference)));
    }
    if let Some(branch) = reference.strip_prefix("refs/heads/") {
        if branch != hook.branch {
            let pushed = shown(branch);
            let configured = hook.branch.clone();
            return ignored(Ignored::Branch { pushed, configured });
        }
    } else if let Some(tag) = reference.strip_prefix("refs/tags/") {
        if !is_ref_name(tag) {
            return Err(malformed("`ref` is not a valid tag name".into()));
        }
        if !hook.tags.as_ref().is_some_and(|pattern| refs::matches(pattern, tag)) {
            return ignored(Ignored::Tag(shown(tag)));
        }
    } else {
        return ignored(Ignored::Reference(shown(&reference)));
    }
    if let Some(at) = repository.pushed_at.as_ref().and_then(moment)
        && now.duration_since(at) > retention.try_into().unwrap_or(jiff::SignedDuration::MAX)
    {
        return ignored(Ignored::Old { limit: retention });
    }
    let commit = head_commit.map(|commit| commit.id).filter(|id| is_object_id(id));
    let commit = commit.unwrap_or_else(|| after.clone());
    Ok(Event::Push(Push { reference, after, commit }))
}

fn moment(value: &serde_json::Value) -> Option<Timestamp> {
    match value {
        serde_json::Value::Number(seconds) => Timestamp::from_second(seconds.as_i64()?).ok(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// SHA-1, or SHA-256 in repositories that use it.
fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Untrusted text on one short line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

impl Push {
    /// The name of the branch or tag.
    pub(crate) fn name(&self) -> &str {
        let name = |prefix| self.reference.strip_prefix(prefix);
        name("refs/heads/").or_else(|| name("refs/tags/")).unwrap_or(&self.reference)
    }

    /// The usual short form of the id.
    pub(crate) fn short(&self) -> &str {
        self.after.get(..7).unwrap_or(&self.after)
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(name) => {
                write!(f, "events `{name}` are not handled here; only `push` is")
            }
            Self::Repository { pushed, configured } => {
                write!(f, "this webhook deploys `{configured}`, but the push is to `{pushed}`")
            }
            Self::Deleted(reference) => {
                write!(f, "`{reference}` was deleted; the deployed versions still serve")
            }
            Self::Branch { pushed, configured } => {
                write!(f, "branch `{configured}` is deployed, but the push is to `{pushed}`")
            }
            Self::Tag(name) => {
                write!(f, "tag `{name}` does not match the setting `tags`")
            }
            Self::Reference(name) => write!(f, "`{name}` is neither a branch nor a tag"),
            Self::Old { limit } => {
                let limit = humantime::format_duration(*limit);
                write!(f, "the push is older than {limit}, for which deliveries are remembered")
            }
        }
    }
}

#[cfg(test)]
mod tests;
