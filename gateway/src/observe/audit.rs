//! Audit: who changed what, and which wrong keys were used: one log line and one counter each. A
//! key is logged by its id, which grants nothing, never by its text. Emitted by the control API
//! (`control/audit.rs`) and by the checks of its keys and those of git.
//!
//! Anyone can cause any number of wrong keys, so at most one line in ten seconds is logged for each
//! listener, with the number of those left out; the counter has all.

use epsilon_bootstrap::log::repeats::Repeats;
use http::StatusCode;
use prometheus::{IntCounterVec, Opts, Registry};
use std::{net::IpAddr, time::Instant};

/// Changes that can be requested from outside.
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

/// Where a key was used; the label `door`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    Control,
    Git,
    Fleet,
}

impl Entrance {
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

/// The counters, and the limit on log lines of wrong keys.
#[derive(Debug)]
pub(crate) struct Audit {
    actions: IntCounterVec,
    refused: IntCounterVec,
    repeats: Repeats,
}

impl Audit {
    /// Registers the counters; all label values exist from the start.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let actions = IntCounterVec::new(
            Opts::new("epsilon_control_actions_total", "Changes requested with a valid key."),
            &["action", "outcome"],
        )?;
        let refused = IntCounterVec::new(
            Opts::new("epsilon_auth_failed_total", "Requests with an invalid key."),
            &["door"],
        )?;
        for action in Action::ALL {
            for outcome in OUTCOMES {
                actions.with_label_values(&[action.as_str(), outcome]);
            }
        }
        for entrance in Entrance::ALL {
            refused.with_label_values(&[entrance.as_str()]);
        }
        registry.register(Box::new(actions.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { actions, refused, repeats: Repeats::default() })
    }
}

/// A change was requested with a valid key, and answered.
#[derive(Debug)]
pub(crate) struct ChangeRequested<'a> {
    pub(crate) action: Action,
    /// The path of the request.
    pub(crate) path: &'a str,
    /// The id of the key.
    pub(crate) key: &'a str,
    pub(crate) peer: IpAddr,
    /// The answer's status; `None` if the client hung up before it.
    pub(crate) status: Option<StatusCode>,
    /// The deployment that began with the request.
    pub(crate) deployment: Option<&'a str>,
}

impl ChangeRequested<'_> {
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
            "Control API handled a change request."
        );
    }
}

/// A request with a key that is not valid here.
#[derive(Debug)]
pub(crate) struct KeyRefused<'a> {
    pub(crate) entrance: Entrance,
    /// The key's id, if it has the form of our keys.
    pub(crate) key: Option<&'a str>,
    pub(crate) peer: IpAddr,
}

impl KeyRefused<'_> {
    pub(crate) fn emit(&self, audit: &Audit) {
        let entrance = self.entrance.as_str();
        audit.refused.with_label_values(&[entrance]).inc();
        let Some(repeated) = audit.repeats.admit(entrance, Instant::now()) else { return };
        let repeated = (repeated > 0).then_some(repeated);
        let key = self.key.unwrap_or("none of ours");
        let peer = self.peer;
        tracing::warn!(door = entrance, key, %peer, repeated, "Request with an invalid key was refused.");
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
    fn all_series_exist_from_the_start() {
        let registry = Registry::new();
        let audit = Audit::new(&registry).unwrap();
        assert!(count(&registry, r#"epsilon_auth_failed_total{door="git"} 0"#));
        assert!(count(
            &registry,
            r#"epsilon_control_actions_total{action="drain",outcome="failed"} 0"#
        ));
        let peer = "10.0.0.9".parse().unwrap();
        let path = "/v1/functions/pay";
        let statuses = [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY];
        for status in statuses.into_iter().map(Some).chain([None]) {
            let action = Action::Delete;
            let key = "00";
            let deployment = None;
            ChangeRequested { action, path, key, peer, status, deployment }.emit(&audit);
        }
        for outcome in OUTCOMES {
            let line = format!(
                r#"epsilon_control_actions_total{{action="delete",outcome="{outcome}"}} 1"#
            );
            assert!(count(&registry, &line), "{line}");
        }
        for _ in 0..3 {
            KeyRefused { entrance: Entrance::Fleet, key: None, peer }.emit(&audit);
        }
        assert!(count(&registry, r#"epsilon_auth_failed_total{door="fleet"} 3"#));
    }
}
