//! What the gateway reports about itself. An event is one struct that logs and counts; nothing else
//! in the crate changes a counter of calls.

pub(crate) mod audit;
pub(crate) mod events;
pub(crate) mod fleet;
pub(crate) mod metrics;
pub(crate) mod placement;
