//! Which calls may be sent to a second VM: rules without I/O. [`super::Invoker::invoke`] is the
//! only loop that applies them.
//!
//! | what happened | what was executed | retried |
//! |---|---|---|
//! | the VM refused: no room, no slot | nothing | if the body can be sent again |
//! | no connection to the VM | nothing | if the body can be sent again, within the budget |
//! | the VM or the instance died before an answer's head | maybe all of it | if the method or the function is also idempotent |
//! | everything else: an error of the function, a timeout, the caller's fault | – | never |
//!
//! A body can be sent again as long as everything that was read of it is stored: see
//! `replay.rs`.

pub(crate) mod budget;
pub(crate) mod outcome;

use crate::fleet::Member;
use crate::fleet::link::error::LinkError;
use crate::routes::Route;
use budget::Budget;
use epsilon_api::{
    error::{Fault, VmError},
    vm::Answer,
};
use http::Method;
use outcome::{Denied, Retry};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// VMs on which one call is tried at most; on the last one it may wait for a slot. If four VMs have
/// no room, a fifth costs the caller more time than it is likely to save.
pub(crate) const MAX_TRIES: usize = 4;

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The VM refused before it executed anything.
    Refused,
    /// The call did not reach the VM.
    Unsent,
    /// The connection to the VM was lost during the call.
    VmLost,
    /// The instance died during the call.
    Crashed,
    /// The platform failed, and it is not known how far the call got.
    Platform,
    /// The VM did its part: an error of the function or of the caller.
    Own,
}

impl Failure {
    /// Classifies an error for the retry rules.
    pub(crate) fn of(err: &VmError) -> Self {
        match err {
            VmError::NoCapacity { .. } if LinkError::of(err).is_some() => Self::Unsent,
            VmError::NoCapacity { .. } | VmError::ConcurrencyLimit { .. } => Self::Refused,
            VmError::Lost { .. } => Self::VmLost,
            // If the request's own body broke off or was too large, the instance did not crash.
            VmError::FunctionCrashed { .. } if VmError::from_body_error(err).is_some() => Self::Own,
            VmError::FunctionCrashed { .. } => Self::Crashed,
            VmError::Internal(_)
            | VmError::BodyMalformed
            | VmError::BodyTooLarge { .. }
            | VmError::BodyTooSlow
            | VmError::FunctionError { .. }
            | VmError::AnswerUnreadable { .. }
            | VmError::InitFailed { .. }
            | VmError::FunctionTimeout { .. }
            | VmError::CallerGone => match err.verdict().fault {
                Fault::Platform => Self::Platform,
                Fault::Caller | Fault::Function => Self::Own,
            },
        }
    }

    /// Whether the call itself may be retried; `None` if another VM would not help.
    /// `can_resend_body`: from its first byte. `repeatable`: the call may be executed twice.
    /// `crashes`: instances that it killed before.
    pub(crate) fn again(
        self,
        can_resend_body: bool,
        repeatable: bool,
        crashes: u32,
    ) -> Option<Result<Retry, Denied>> {
        let if_resendable =
            |retry| Some(if can_resend_body { Ok(retry) } else { Err(Denied::BodyRead) });
        match self {
            Self::Refused => if_resendable(Retry::Refused),
            Self::Unsent => if_resendable(Retry::Unsent),
            Self::VmLost | Self::Crashed if !repeatable => Some(Err(Denied::NotRepeatable)),
            Self::Crashed if crashes > 0 => Some(Err(Denied::CrashedAgain)),
            Self::VmLost | Self::Crashed => if_resendable(Retry::Repeatable),
            Self::Platform | Self::Own => None,
        }
    }
}

/// Whether a call may be executed twice: by its method (RFC 9110, 9.2.2: safe methods, PUT and
/// DELETE), or by its function's settings.
pub(crate) fn is_repeatable(method: &Method, idempotent: bool) -> bool {
    idempotent || method.is_idempotent()
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    /// VMs on which the call failed.
    pub(crate) vms: Vec<Arc<Member>>,
    began: Instant,
    timeout: Duration,
    repeatable: bool,
    crashes: u32,
    /// Set once the call may have been executed: from then on the `timeout` runs.
    until: Option<Instant>,
}

impl Attempts {
    pub(crate) fn new(route: &Route, method: &Method) -> Self {
        let spec = &route.version.spec;
        Self {
            vms: Vec::new(),
            began: Instant::now(),
            timeout: spec.timeout,
            repeatable: is_repeatable(method, spec.idempotent),
            crashes: 0,
            until: None,
        }
    }

    /// Waits for an attempt's answer, at most for the rest of the timeout.
    pub(crate) async fn in_time(
        &self,
        route: &Route,
        attempt: impl Future<Output = Result<Answer, VmError>>,
    ) -> Result<Answer, VmError> {
        let Some(until) = self.until else { return attempt.await };
        timeout_at(until, attempt).await.unwrap_or_else(|_| {
            let function = route.version.function.clone();
            Err(VmError::FunctionTimeout { function, timeout: self.timeout })
        })
    }

    /// Whether to retry after this error; `None` if another VM would not help. `left`: another
    /// attempt is allowed.
    pub(crate) fn again(
        &mut self,
        err: &VmError,
        can_resend_body: bool,
        left: bool,
        budget: &Budget,
    ) -> Option<Result<Retry, Denied>> {
        let failure = Failure::of(err);
        let retry = match failure.again(can_resend_body, self.repeatable, self.crashes)? {
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
        let refused = || LinkError::opening(io::ErrorKind::ConnectionRefused.into());
        let broke = || LinkError::Disconnected("reset".into());
        let crashed = |cause| VmError::FunctionCrashed { function: function(), cause };
        for (err, want) in [
            (VmError::NoCapacity { function: function(), cause: "full".into() }, Failure::Refused),
            (VmError::ConcurrencyLimit { function: function(), limit: 1 }, Failure::Refused),
            (refused().before(function()), Failure::Unsent),
            (broke().after(function()), Failure::VmLost),
            (refused().after(function()), Failure::VmLost),
            (crashed("exit 1".into()), Failure::Crashed),
            (crashed(Box::new(BodyTooLarge { limit })), Failure::Own),
            (VmError::Internal("bug".into()), Failure::Platform),
            (VmError::FunctionError { function: function() }, Failure::Own),
            (VmError::InitFailed { function: function(), detail: "boom".into() }, Failure::Own),
            (
                VmError::FunctionTimeout { function: function(), timeout: Duration::ZERO },
                Failure::Own,
            ),
            (VmError::BodyTooLarge { limit }, Failure::Own),
            (VmError::BodyTooSlow, Failure::Own),
            (VmError::BodyMalformed, Failure::Own),
            (VmError::CallerGone, Failure::Own),
        ] {
            assert_eq!(Failure::of(&err), want, "{err:?}");
        }
    }

    #[test]
    fn who_may_be_tried_again() {
        use super::outcome::Denied::{BodyRead, CrashedAgain, NotRepeatable};
        use Failure::{Crashed, Own, Platform, Refused, Unsent, VmLost};
        for (failure, can_resend_body, repeatable, crashes, want) in [
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
            let seen = failure.again(can_resend_body, repeatable, crashes);
            assert_eq!(seen, want, "{failure:?} {can_resend_body} {repeatable} {crashes}");
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
            assert!(is_repeatable(&method, true), "the function is idempotent");
        }
    }
}
