//! Points in time as plain numbers, for rules without a clock.

use std::time::Duration;

/// Time since the agent started (`VmContext::now`). Tests write it as plain numbers.
pub(crate) type Moment = Duration;
