//! What can go wrong between this gateway and a member (a VM, a builder), as opposed to what goes wrong in it. Travels as the cause of a
//! [`CallError`], so that the retry loop can tell the VM's health of it.

use epsilon_api::{
    chain::Chain,
    error::{CallError, Cause},
    ids::FunctionName,
};
use epsilon_wire::tls;
use std::{error::Error, io, sync::Arc, time::Duration};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Its machine answers, and nobody listens there: the agent is gone.
    #[error("it refuses connections")]
    Refused(#[source] io::Error),
    /// No connection came about: no route, silence, or a handshake that failed.
    #[error("it cannot be reached")]
    Unreachable(#[source] io::Error),
    /// A connection that there was broke.
    #[error("the connection to it broke")]
    Broke(#[source] Cause),
    /// It took the call and said nothing for longer than any call may take.
    #[error("it gave no answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// Its door does not take our pass: it has not heard of this gateway yet, or the clocks differ.
    #[error("it does not take this gateway's pass")]
    Stranger,
    /// What another call met that did the same, and for which this one waited.
    #[error(transparent)]
    Same(Arc<Trouble>),
    /// It speaks, but not as agents do.
    #[error("it answered what no member of a fleet answers: {0}")]
    Odd(String),
}

impl Trouble {
    /// What a failed attempt to open a connection means.
    pub(crate) fn opening(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(err),
            _ => Self::Unreachable(err),
        }
    }

    /// The trouble in this error's chain of causes; `None` when the VM is not to blame.
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

    /// For the operator: what it is, and not how it came to be known.
    pub(crate) fn in_words(&self) -> String {
        if let Some(words) = tls::in_words(self) {
            return words.to_owned();
        }
        match self.itself() {
            Self::Refused(_) => "nobody listens at its address".to_owned(),
            Self::Unreachable(err) if err.kind() == io::ErrorKind::TimedOut => {
                "nothing at its address answers".to_owned()
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
    fn trouble_is_found_in_the_chain_and_says_whether_the_call_ran() {
        let function = || testing::version("pay", 1).function;
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let before = Trouble::opening(refused).before(function());
        assert!(matches!(Trouble::of(&before), Some(Trouble::Refused(_))));
        assert!(before.verdict().retry_safe);

        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let shared = Trouble::Same(Arc::new(Trouble::opening(refused))).before(function());
        assert!(matches!(Trouble::of(&shared), Some(Trouble::Refused(_))), "as if it were its own");

        let timed_out = io::Error::from(io::ErrorKind::TimedOut);
        let after = Trouble::opening(timed_out).after(function());
        assert!(matches!(Trouble::of(&after), Some(Trouble::Unreachable(_))));
        assert!(!after.verdict().retry_safe && after.verdict().status == 502);

        let crash = CallError::FunctionCrashed { function: function(), cause: "exit 1".into() };
        assert!(Trouble::of(&crash).is_none() && Trouble::of(&CallError::CallerGone).is_none());
    }
}
