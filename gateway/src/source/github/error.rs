//! Why a delivery is refused, worded for the person who set up the webhook: GitHub shows the text
//! in its list of recent deliveries. Status and code are HTTP's and are given in
//! `control/github.rs`.

use super::{event::Malformed, metrics::Outcome, payload::PayloadError};
use epsilon_api::ids::{DeploymentId, ProjectName};
use epsilon_store::StoreError;
use tokio::task::JoinError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    #[error("project `{0}` has no webhook")]
    NoHook(ProjectName),
    /// One text for every case, so that guessing reveals nothing.
    #[error("the signature of this delivery is missing or was not made with this webhook's secret")]
    Unsigned,
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("the header `{0}` is missing or invalid")]
    Header(&'static str),
    #[error("the payload is not `application/json`")]
    NotJson,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("this delivery was received before; its deployment is `{0}`")]
    Replayed(DeploymentId),
    #[error("the secret of this webhook cannot be used; the gateway's log has the cause")]
    SecretUnusable,
    #[error("this gateway stops; redeliver in a moment")]
    Stopping,
    #[error("no builder has joined this gateway")]
    NoBuilder,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a bug ended the handling of this delivery; the panic is in the log above")]
    Panicked(#[source] JoinError),
}

impl DeliveryError {
    /// How it is counted.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Unsigned => Outcome::Unsigned,
            Self::Replayed(_) => Outcome::Replayed,
            Self::Payload(PayloadError::TooLarge(_) | PayloadError::Busy) => Outcome::TooMuch,
            Self::Payload(PayloadError::TooSlow(_) | PayloadError::Cut)
            | Self::NoHook(_)
            | Self::Header(_)
            | Self::NotJson
            | Self::Malformed(_) => Outcome::Invalid,
            Self::SecretUnusable
            | Self::Stopping
            | Self::NoBuilder
            | Self::Store(_)
            | Self::Panicked(_) => Outcome::Unable,
        }
    }
}
