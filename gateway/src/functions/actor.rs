//! Who causes a change, and by which means: what the log line of the change says. Whether the actor
//! may do it was decided where the request came in.

use epsilon_api::ids::ProjectName;
use std::{fmt, net::IpAddr};

/// Who causes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// The holder of an admin key, through the control API.
    Api(KeyHolder),
    /// The same, by `git push`.
    Git(KeyHolder),
    /// GitHub, by a delivery that it signed.
    Webhook {
        project: ProjectName,
        /// GitHub's id of the delivery.
        delivery: String,
    },
    /// The gateway itself.
    Gateway(Rule),
}

/// Who holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyHolder {
    /// The key's id, which grants nothing.
    pub(crate) key: String,
    /// The address of the connection.
    pub(crate) peer: IpAddr,
}

/// A rule by which the gateway changes something without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A version of a split fails too often.
    ErrorRate,
    /// A function has enough newer versions.
    Retention,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(KeyHolder { key, peer }) => write!(f, "control API, key {key}, {peer}"),
            Self::Git(KeyHolder { key, peer }) => write!(f, "git push, key {key}, {peer}"),
            Self::Webhook { project, delivery } => {
                write!(f, "webhook of {project}, delivery {delivery}")
            }
            Self::Gateway(Rule::ErrorRate) => f.write_str("gateway, error rate"),
            Self::Gateway(Rule::Retention) => f.write_str("gateway, retention"),
        }
    }
}
