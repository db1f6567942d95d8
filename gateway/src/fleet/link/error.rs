//! Errors between this gateway and a member (a VM, a builder), as opposed to errors inside the
//! member. Travels as the cause of a [`CallError`], so that the retry loop can update the VM's
//! health.

use epsilon_api::{
    chain::Chain,
    error::{CallError, Cause},
    ids::FunctionName,
};
use epsilon_fleet_link::tls;
use std::{error::Error, io, sync::Arc, time::Duration};

/// An error between this gateway and a member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The machine answers, but no process listens: the agent is not running.
    #[error("the member refuses connections")]
    Refused(#[source] io::Error),
    /// No connection: no route, silence, or a failed handshake.
    #[error("the member cannot be reached")]
    Unreachable(#[source] io::Error),
    /// An established connection broke.
    #[error("the connection to the member broke")]
    Broke(#[source] Cause),
    /// It took the request and did not answer for longer than any call may take.
    #[error("the member did not answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// Its listener does not accept our pass: it does not know this gateway yet, or the clocks
    /// differ.
    #[error("the member does not accept this gateway's pass")]
    Stranger,
    /// The error of another call that did the same work, for which this call waited.
    #[error(transparent)]
    Same(Arc<Trouble>),
    /// It answered something that is not the protocol of agents.
    #[error("unexpected answer of the member: {0}")]
    Odd(String),
}

impl Trouble {
    /// The error for a failed attempt to open a connection.
    pub(crate) fn opening(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(err),
            _ => Self::Unreachable(err),
        }
    }

    /// The link error in this error's chain of causes; `None` if the VM is not to blame.
    pub(crate) fn of(err: &CallError) -> Option<&Self> {
        let mut cause = err.source();
        while let Some(one) = cause {
            if let Some(trouble) = one.downcast_ref::<Self>() {
                return Some(trouble.itself());
            }
            cause = one.source();
        }
        None
    }

    /// A short description for the operator, without the chain of causes.
    pub(crate) fn in_words(&self) -> String {
        if let Some(words) = tls::in_words(self) {
            return words.to_owned();
        }
        match self.itself() {
            Self::Refused(_) => "no process listens at its address".to_owned(),
            Self::Unreachable(err) if err.kind() == io::ErrorKind::TimedOut => {
                "its address does not answer".to_owned()
            }
            other => Chain(other).to_string(),
        }
    }

    fn itself(&self) -> &Self {
        match self {
            Self::Same(other) => other.itself(),
            own => own,
        }
    }

    /// Nothing of the call was executed: it may go to another VM.
    pub(crate) fn before(self, function: FunctionName) -> CallError {
        CallError::NoCapacity { function, cause: Box::new(self) }
    }

    /// The VM had the call; how far it got is not known.
    pub(crate) fn after(self, function: FunctionName) -> CallError {
        CallError::VmLost { function, cause: Box::new(self) }
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
        let before = Trouble::opening(refused).before(function());
        assert!(matches!(Trouble::of(&before), Some(Trouble::Refused(_))));
        assert!(before.verdict().retry_safe);

        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let shared = Trouble::Same(Arc::new(Trouble::opening(refused))).before(function());
        assert!(
            matches!(Trouble::of(&shared), Some(Trouble::Refused(_))),
            "a shared error counts as the call's own"
        );

        let timed_out = io::Error::from(io::ErrorKind::TimedOut);
        let after = Trouble::opening(timed_out).after(function());
        assert!(matches!(Trouble::of(&after), Some(Trouble::Unreachable(_))));
        assert!(!after.verdict().retry_safe && after.verdict().status == 502);

        let crash = CallError::FunctionCrashed { function: function(), cause: "exit 1".into() };
        assert!(Trouble::of(&crash).is_none() && Trouble::of(&CallError::CallerGone).is_none());
    }
}
