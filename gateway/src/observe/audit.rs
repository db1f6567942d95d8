//! Who changed what, and who knocked with a wrong key: a line of the log and a counter each. A key is told by its id, which opens
//! nothing; never by its text. Emitted by the control API (`control/audit.rs`), its doors and git's.
//!
//! Strangers can make as many lines as they like, so of wrong keys there is one in ten seconds for each door, with the number of
//! those that were left out; the counter has all.

use epsilon_launch::log::repeats::Repeats;
use http::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};
use std::{net::IpAddr, time::Instant};

/// What can be changed from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Deploy,
    Push,
    Rollback,
    Promote,
    Split,
    Delete,
    Retire,
    Drain,
    Undrain,
    RemoveKey,
}

impl Action {
    pub(crate) const ALL: [Self; 10] = [
        Self::Deploy,
        Self::Push,
        Self::Rollback,
        Self::Promote,
        Self::Split,
        Self::Delete,
        Self::Retire,
        Self::Drain,
        Self::Undrain,
        Self::RemoveKey,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Push => "push",
            Self::Rollback => "rollback",
            Self::Promote => "promote",
            Self::Split => "split",
            Self::Delete => "delete",
            Self::Retire => "retire",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::RemoveKey => "remove_key",
        }
    }
}

/// Where a key was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Control,
    Git,
    Fleet,
}

impl Door {
    const ALL: [Self; 3] = [Self::Control, Self::Git, Self::Fleet];

    fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Git => "git",
            Self::Fleet => "fleet",
        }
    }
}

const OUTCOMES: [&str; 4] = ["ok", "refused", "failed", "unknown"];

/// Counters of both, and which wrong keys become lines.
#[derive(Debug)]
pub(crate) struct Audit {
    actions: IntCounterVec,
    refused: IntCounterVec,
    repeats: Repeats,
}

impl Audit {
    /// Puts the counters into the registry; all of them are there from the start.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let actions = IntCounterVec::new(
            Opts::new("epsilon_control_actions_total", "Changes that were asked for with a key."),
            &["action", "outcome"],
        )?;
        let refused = IntCounterVec::new(
            Opts::new("epsilon_auth_failed_total", "Keys that were shown and did not open."),
            &["door"],
        )?;
        for action in Action::ALL {
            for outcome in OUTCOMES {
                actions.with_label_values(&[action.as_str(), outcome]);
            }
        }
        for door in Door::ALL {
            refused.with_label_values(&[door.as_str()]);
        }
        registry.register(Box::new(actions.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { actions, refused, repeats: Repeats::default() })
    }
}

/// Somebody with a key asked for a change and was answered.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) action: Action,
    /// What it is about, as the path says it.
    pub(crate) path: &'a str,
    /// The id of the key.
    pub(crate) key: &'a str,
    pub(crate) peer: IpAddr,
    /// What was answered; `None`: who asked hung up before that.
    pub(crate) status: Option<StatusCode>,
    /// The deployment that began with it.
    pub(crate) deployment: Option<&'a str>,
}

impl Asked<'_> {
    pub(crate) fn emit(&self, audit: &Audit) {
        let status = self.status.map(|status| status.as_u16());
        let outcome = match status {
            Some(..400) => "ok",
            Some(400..500) => "refused",
            Some(500..) => "failed",
            None => "unknown",
        };
        audit.actions.with_label_values(&[self.action.as_str(), outcome]).inc();
        tracing::info!(
            action = self.action.as_str(),
            path = self.path,
            key = self.key,
            peer = %self.peer,
            status,
            outcome,
            deployment = self.deployment,
            "Control API was asked for a change."
        );
    }
}

/// Somebody showed a key that does not open this door.
#[derive(Debug)]
pub(crate) struct Refused<'a> {
    pub(crate) door: Door,
    /// The id that it has, if it looks like a key at all.
    pub(crate) key: Option<&'a str>,
    pub(crate) peer: IpAddr,
}

impl Refused<'_> {
    pub(crate) fn emit(&self, audit: &Audit) {
        let door = self.door.as_str();
        audit.refused.with_label_values(&[door]).inc();
        let Some(repeated) = audit.repeats.admit(door, Instant::now()) else { return };
        let repeated = (repeated > 0).then_some(repeated);
        let (key, peer) = (self.key.unwrap_or("none of ours"), self.peer);
        tracing::warn!(door, key, %peer, repeated, "A key was refused.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(registry: &Registry, line: &str) -> bool {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.lines().any(|one| one == line)
    }

    #[test]
    fn all_that_may_be_counted_is_there_from_the_start() {
        let registry = Registry::new();
        let audit = Audit::new(&registry).unwrap();
        assert!(count(&registry, r#"epsilon_auth_failed_total{door="git"} 0"#));
        assert!(count(
            &registry,
            r#"epsilon_control_actions_total{action="drain",outcome="failed"} 0"#
        ));
        let (peer, path) = ("10.0.0.9".parse().unwrap(), "/v1/functions/pay");
        let statuses = [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY];
        for status in statuses.into_iter().map(Some).chain([None]) {
            let (action, key, deployment) = (Action::Delete, "00", None);
            Asked { action, path, key, peer, status, deployment }.emit(&audit);
        }
        for outcome in OUTCOMES {
            let line = format!(
                r#"epsilon_control_actions_total{{action="delete",outcome="{outcome}"}} 1"#
            );
            assert!(count(&registry, &line), "{line}");
        }
        for _ in 0..3 {
            Refused { door: Door::Fleet, key: None, peer }.emit(&audit);
        }
        assert!(count(&registry, r#"epsilon_auth_failed_total{door="fleet"} 3"#));
    }
}
