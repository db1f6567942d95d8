//! Why a container did not come up with its code, and whose fault that is.

use super::control::ControlError;
use crate::engine::EngineError;
use epsilon_api::chain::Chain;
use epsilon_api::error::VmError;
use epsilon_api::ids::FunctionName;

/// Why a start failed. Shared by all calls that waited for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartFailure {
    /// The code threw, exited or hung while loading; the text is for its author.
    Init(String),
    /// This VM cannot run it now; the text is for the operator.
    NoCapacity(String),
    /// No call waits for it any more, or it was ordered to stop.
    Cancelled,
}

impl StartFailure {
    pub(crate) fn to_error(&self, function: &FunctionName) -> VmError {
        let function = function.clone();
        match self {
            Self::Init(detail) => VmError::InitFailed { function, detail: detail.clone() },
            Self::NoCapacity(cause) => {
                VmError::NoCapacity { function, cause: cause.clone().into() }
            }
            Self::Cancelled => {
                VmError::NoCapacity { function, cause: "the start was called off".into() }
            }
        }
    }

    /// The metric's label value.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Init(_) => "init_failed",
            Self::NoCapacity(_) => "no_capacity",
            Self::Cancelled => "called_off",
        }
    }
}

impl From<EngineError> for StartFailure {
    fn from(err: EngineError) -> Self {
        Self::NoCapacity(Chain(&err).to_string())
    }
}

/// Why a container did not load the code.
#[derive(Debug)]
pub(crate) enum LoadFailure {
    Start(StartFailure),
    /// The wrapper stopped answering: its process is about to exit, and the exit gives the
    /// cause.
    Silent(StartFailure),
    /// Its wrapper sees no code at all, and still waits.
    NotMounted,
}

impl From<ControlError> for LoadFailure {
    fn from(err: ControlError) -> Self {
        match err {
            ControlError::Failed { message, stack } => {
                Self::Start(StartFailure::Init(match stack {
                    Some(stack) if stack.contains(&message) => stack,
                    Some(stack) => format!("{message}\n{stack}"),
                    None => message,
                }))
            }
            other @ (ControlError::NotListening(_) | ControlError::NoAnswer(_)) => {
                Self::Silent(StartFailure::Init(Chain(&other).to_string()))
            }
            ControlError::NotMounted => Self::NotMounted,
        }
    }
}
