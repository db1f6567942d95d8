//! Why a call was tried again, and why not. These are label values of two metrics; `retry.rs`
//! decides, `observe` counts.

/// Why a call is retried; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing was executed; costs no budget.
    Refused,
    /// Nothing was executed.
    Unsent,
    /// It may have been executed, and executing it twice is harmless.
    Repeatable,
}

/// Why a call is not retried, although another VM might have succeeded; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// VMs have read more of the body than is stored.
    BodyRead,
    /// It may have been executed, and neither method nor function is idempotent.
    NotRepeatable,
    /// It already killed an instance; killing one on each VM is worse than one error.
    CrashedAgain,
    /// The retry budget is used up.
    Budget,
    /// The function's `timeout` is over.
    Timeout,
    /// It was tried on as many VMs as allowed.
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
