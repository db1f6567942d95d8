//! Which calls may go to a second VM, as rules without I/O. [`super::Calls::relay`] is the one loop that asks.
//!
//! | what happened | what of the call was executed | tried again |
//! |---|---|---|
//! | the VM refused: no room, no place | nothing | if the body is whole |
//! | no connection to the VM came about | nothing | if the body is whole, within the budget |
//! | the VM or the instance died before an answer's head | maybe all of it | if also method or function say that twice is as good as once |
//! | everything else: an error of the function's, a timeout, the caller's fault | – | never |
//!
//! A body is whole as long as what was read of it is kept, or nothing was: see `relay/replay.rs`.

use super::budget::Budget;
use crate::{
    fleet::{Member, trouble::Trouble},
    routes::Route,
};
use epsilon_api::{
    error::{CallError, Fault},
    vm::Answer,
};
use http::Method;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The VM said no before it did anything.
    Refused,
    /// The call did not get to the VM.
    Unsent,
    /// The VM was lost with the call.
    VmLost,
    /// The instance died under the call.
    Crashed,
    /// The platform did something wrong, and nobody knows how far the call got.
    Platform,
    /// The VM did what it could: an error of the function's or of the caller's.
    Own,
}

/// Why a call is tried again; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing was executed; costs no budget.
    Refused,
    /// Nothing was executed.
    Unsent,
    /// It may have been executed, and that is no harm.
    Repeatable,
}

/// Why it is not, though another VM might have done it; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// VMs have read more of the body than is kept.
    BodyRead,
    /// It may have been executed, and nobody said that twice is as good as once.
    NotRepeatable,
    /// It killed an instance once; a call that kills one on each VM is worse than one error.
    CrashedAgain,
    /// Too many calls are tried again just now.
    Budget,
    /// The function's `timeout` is over.
    Timeout,
    /// It was tried on as many VMs as it may be.
    Tries,
}

impl Retry {
    pub(crate) const ALL: [Self; 3] = [Self::Refused, Self::Unsent, Self::Repeatable];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unsent => "unsent",
            Self::Repeatable => "repeatable",
        }
    }
}

impl Denied {
    pub(crate) const ALL: [Self; 6] = [
        Self::BodyRead,
        Self::NotRepeatable,
        Self::CrashedAgain,
        Self::Budget,
        Self::Timeout,
        Self::Tries,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BodyRead => "body_read",
            Self::NotRepeatable => "not_repeatable",
            Self::CrashedAgain => "crashed_again",
            Self::Budget => "budget",
            Self::Timeout => "timeout",
            Self::Tries => "tries",
        }
    }
}

impl Failure {
    /// What an error means for the one who might try again.
    pub(crate) fn of(err: &CallError) -> Self {
        match err {
            CallError::NoCapacity { .. } if Trouble::of(err).is_some() => Self::Unsent,
            CallError::NoCapacity { .. } | CallError::ConcurrencyLimit { .. } => Self::Refused,
            CallError::VmLost { .. } => Self::VmLost,
            // Where the request's own body broke off or was too large, nothing crashed.
            CallError::FunctionCrashed { .. } if CallError::of_request_body(err).is_some() => {
                Self::Own
            }
            CallError::FunctionCrashed { .. } => Self::Crashed,
            CallError::Internal(_)
            | CallError::BadRequest(_)
            | CallError::FunctionNotFound(_)
            | CallError::VersionNotFound { .. }
            | CallError::VersionGuarded { .. }
            | CallError::BodyTooLarge { .. }
            | CallError::BodyTooSlow
            | CallError::HeadTooLarge
            | CallError::TargetTooLong
            | CallError::HeadTooSlow
            | CallError::TlsRequired
            | CallError::GatewayFull
            | CallError::FunctionError { .. }
            | CallError::AnswerUnreadable { .. }
            | CallError::InitFailed { .. }
            | CallError::FunctionTimeout { .. }
            | CallError::CallerGone => match err.verdict().fault {
                Fault::Platform => Self::Platform,
                Fault::Caller | Fault::Function => Self::Own,
            },
        }
    }

    /// Whether the call may be tried again as far as the call itself goes; `None` when no VM would do better. `whole`: its body can
    /// be sent from the first byte. `repeatable`: twice is as good as once. `crashes`: how often it killed an instance before.
    pub(crate) fn again(
        self,
        whole: bool,
        repeatable: bool,
        crashes: u32,
    ) -> Option<Result<Retry, Denied>> {
        let if_whole = |retry| Some(if whole { Ok(retry) } else { Err(Denied::BodyRead) });
        match self {
            Self::Refused => if_whole(Retry::Refused),
            Self::Unsent => if_whole(Retry::Unsent),
            Self::VmLost | Self::Crashed if !repeatable => Some(Err(Denied::NotRepeatable)),
            Self::Crashed if crashes > 0 => Some(Err(Denied::CrashedAgain)),
            Self::VmLost | Self::Crashed => if_whole(Retry::Repeatable),
            Self::Platform | Self::Own => None,
        }
    }
}

/// Whether a call may run twice: its method says so (RFC 9110, 9.2.2: what is safe, PUT and DELETE), or its function's settings.
pub(crate) fn is_repeatable(method: &Method, idempotent: bool) -> bool {
    idempotent || method.is_idempotent()
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Tries {
    /// VMs that had the call and did not do it.
    pub(crate) made: Vec<Arc<Member>>,
    began: Instant,
    timeout: Duration,
    repeatable: bool,
    crashes: u32,
    /// Set once it may have been executed: then the `timeout` runs.
    until: Option<Instant>,
}

impl Tries {
    pub(crate) fn new(route: &Route, method: &Method) -> Self {
        let spec = &route.version.spec;
        Self {
            made: Vec::new(),
            began: Instant::now(),
            timeout: spec.timeout,
            repeatable: is_repeatable(method, spec.idempotent),
            crashes: 0,
            until: None,
        }
    }

    /// Waits for an attempt's answer, no longer than is left.
    pub(crate) async fn in_time(
        &self,
        route: &Route,
        attempt: impl Future<Output = Result<Answer, CallError>>,
    ) -> Result<Answer, CallError> {
        let Some(until) = self.until else { return attempt.await };
        timeout_at(until, attempt).await.unwrap_or_else(|_| {
            let function = route.version.function.clone();
            Err(CallError::FunctionTimeout { function, timeout: self.timeout })
        })
    }

    /// Whether there is another attempt after this error; `None` when no VM would do better. `left`: another
    /// VM may be asked.
    pub(crate) fn again(
        &mut self,
        err: &CallError,
        whole: bool,
        left: bool,
        budget: &Budget,
    ) -> Option<Result<Retry, Denied>> {
        let failure = Failure::of(err);
        let retry = match failure.again(whole, self.repeatable, self.crashes)? {
            Ok(retry) => retry,
            Err(denied) => return Some(Err(denied)),
        };
        let now = Instant::now();
        let until = self.began + self.timeout;
        Some(match retry {
            _ if !left => Err(Denied::Tries),
            Retry::Repeatable if now >= until => Err(Denied::Timeout),
            Retry::Repeatable | Retry::Unsent if !budget.take(now) => Err(Denied::Budget),
            Retry::Repeatable => {
                self.crashes += u32::from(failure == Failure::Crashed);
                self.until = Some(until);
                Ok(retry)
            }
            Retry::Unsent | Retry::Refused => Ok(retry),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use epsilon_api::{body::BodyTooLarge, units::Bytes};
    use std::io;

    #[test]
    fn each_error_means_one_thing() {
        let function = || testing::version("pay", 1).function;
        let limit = Bytes(7);
        let refused = || Trouble::opening(io::ErrorKind::ConnectionRefused.into());
        let broke = || Trouble::Broke("reset".into());
        let crashed = |cause| CallError::FunctionCrashed { function: function(), cause };
        for (err, want) in [
            (
                CallError::NoCapacity { function: function(), cause: "full".into() },
                Failure::Refused,
            ),
            (CallError::ConcurrencyLimit { function: function(), limit: 1 }, Failure::Refused),
            (refused().before(function()), Failure::Unsent),
            (broke().after(function()), Failure::VmLost),
            (refused().after(function()), Failure::VmLost),
            (crashed("exit 1".into()), Failure::Crashed),
            (crashed(Box::new(BodyTooLarge { limit })), Failure::Own),
            (CallError::Internal("bug".into()), Failure::Platform),
            (CallError::FunctionError { function: function() }, Failure::Own),
            (CallError::InitFailed { function: function(), detail: "boom".into() }, Failure::Own),
            (
                CallError::FunctionTimeout { function: function(), timeout: Duration::ZERO },
                Failure::Own,
            ),
            (CallError::BodyTooLarge { limit }, Failure::Own),
            (CallError::BodyTooSlow, Failure::Own),
            (CallError::BadRequest("no"), Failure::Own),
            (CallError::CallerGone, Failure::Own),
        ] {
            assert_eq!(Failure::of(&err), want, "{err:?}");
        }
    }

    #[test]
    fn who_may_be_tried_again() {
        use Denied::{BodyRead, CrashedAgain, NotRepeatable};
        use Failure::{Crashed, Own, Platform, Refused, Unsent, VmLost};
        for (failure, whole, repeatable, crashes, want) in [
            (Refused, true, false, 0, Some(Ok(Retry::Refused))),
            (Refused, false, true, 0, Some(Err(BodyRead))),
            (Unsent, true, false, 0, Some(Ok(Retry::Unsent))),
            (Unsent, false, true, 0, Some(Err(BodyRead))),
            (VmLost, true, true, 0, Some(Ok(Retry::Repeatable))),
            (VmLost, true, false, 0, Some(Err(NotRepeatable))),
            (VmLost, false, true, 0, Some(Err(BodyRead))),
            (VmLost, true, true, 1, Some(Ok(Retry::Repeatable))),
            (Crashed, true, true, 0, Some(Ok(Retry::Repeatable))),
            (Crashed, true, true, 1, Some(Err(CrashedAgain))),
            (Crashed, true, false, 0, Some(Err(NotRepeatable))),
            (Platform, true, true, 0, None),
            (Own, true, true, 0, None),
        ] {
            let seen = failure.again(whole, repeatable, crashes);
            assert_eq!(seen, want, "{failure:?} {whole} {repeatable} {crashes}");
        }
    }

    #[test]
    fn methods_that_may_run_twice() {
        for (method, want) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::OPTIONS, true),
            (Method::TRACE, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::CONNECT, false),
            (Method::from_bytes(b"PURGE").unwrap(), false),
        ] {
            assert_eq!(is_repeatable(&method, false), want, "{method}");
            assert!(is_repeatable(&method, true), "the function says so");
        }
    }
}
