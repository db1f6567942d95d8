//! Errors between this gateway and a member (a VM, a builder), as opposed to errors inside the
//! member. Travels as the cause of a [`VmError`], so that the retry loop can update the VM's
//! health.

use epsilon_api::{
    chain::Chain,
    error::{Cause, VmError},
    ids::FunctionName,
};
use epsilon_fleet_link::tls;
use std::{error::Error, io, sync::Arc, time::Duration};

/// An error between this gateway and a member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The machine answers, but no process listens: the agent is not running.
    #[error("the member refuses connections")]
    Refused(#[source] io::Error),
    /// No connection: no route, silence, or a failed handshake.
    #[error("the member cannot be reached")]
    Unreachable(#[source] io::Error),
    /// An established connection broke.
    #[error("the connection to the member broke")]
    Disconnected(#[source] Cause),
    /// It took the request and did not answer for longer than any call may take.
    #[error("the member did not answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// Its listener does not accept our token: it does not know this gateway yet, or the clocks
    /// differ.
    #[error("the member does not accept this gateway's token")]
    Unauthenticated,
    /// The error of another call that did the same work, for which this call waited.
    #[error(transparent)]
    Shared(Arc<LinkError>),
    /// It answered something that is not the protocol of agents.
    #[error("unexpected answer of the member: {0}")]
    Protocol(String),
}

impl LinkError {
    /// The error for a failed attempt to open a connection.
    pub(crate) fn opening(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(err),
            _ => Self::Unreachable(err),
        }
    }

    /// The link error in this error's chain of causes; `None` if the VM is not to blame.
    pub(crate) fn of(err: &VmError) -> Option<&Self> {
        let mut cause = err.source();
        while let Some(one) = cause {
            if let Some(link_error) = one.downcast_ref::<Self>() {
                return Some(link_error.unshared());
            }
            cause = one.source();
        }
        None
    }

    /// A short description for the operator, without the chain of causes.
    pub(crate) fn describe(&self) -> String {
        if let Some(words) = tls::explain(self) {
            return words.to_owned();
        }
        match self.unshared() {
            Self::Refused(_) => "no process listens at its address".to_owned(),
            Self::Unreachable(err) if err.kind() == io::ErrorKind::TimedOut => {
                "its address does not answer".to_owned()
            }
            other => Chain(other).to_string(),
        }
    }

    fn unshared(&self) -> &Self {
        match self {
            Self::Shared(other) => other.unshared(),
            own => own,
        }
    }

    /// Nothing of the call was executed: it may go to another VM.
    pub(crate) fn before(self, function: FunctionName) -> VmError {
        VmError::NoCapacity { function, cause: Box::new(self) }
    }

    /// The VM had the call; how far it got is not known.
    pub(crate) fn after(self, function: FunctionName) -> VmError {
        VmError::Lost { function, cause: Box::new(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn link_errors_are_found_in_the_cause_chain() {
        let function = || testing::version("pay", 1).function;
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let before = LinkError::opening(refused).before(function());
        assert!(matches!(LinkError::of(&before), Some(LinkError::Refused(_))));
        assert!(before.verdict().retry_safe);

        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let shared = LinkError::Shared(Arc::new(LinkError::opening(refused))).before(function());
        assert!(
            matches!(LinkError::of(&shared), Some(LinkError::Refused(_))),
            "a shared error counts as the call's own"
        );

        let timed_out = io::Error::from(io::ErrorKind::TimedOut);
        let after = LinkError::opening(timed_out).after(function());
        assert!(matches!(LinkError::of(&after), Some(LinkError::Unreachable(_))));
        assert!(!after.verdict().retry_safe && after.verdict().status == 502);

        let crash = VmError::FunctionCrashed { function: function(), cause: "exit 1".into() };
        assert!(LinkError::of(&crash).is_none() && LinkError::of(&VmError::CallerGone).is_none());
    }
}
