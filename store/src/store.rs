//! The trait that every back end implements: small traits by topic, together. No SQL here. Time is
//! passed in: the store has no clock.

use crate::{
    Change, DeploymentStore, FleetStore, FunctionStore, ImageStore, KeyStore, LeaseStore,
    TrafficStore,
};
use futures_util::stream::BoxStream;
use std::fmt;

/// Durable state. Each method is one atomic transaction, and `Ok` means that it is durable. A
/// future dropped before `Ok` leaves the state before or after it.
///
/// Who needs one topic only takes its trait: an `Arc<dyn Store>` becomes an `Arc<dyn KeyStore>` by
/// itself.
pub trait Store:
    DeploymentStore
    + FunctionStore
    + TrafficStore
    + ImageStore
    + KeyStore
    + FleetStore
    + LeaseStore
    + Shared
{
}

impl<T> Store for T where
    T: DeploymentStore
        + FunctionStore
        + TrafficStore
        + ImageStore
        + KeyStore
        + FleetStore
        + LeaseStore
        + Shared
{
}

/// A store that several gateways may change at the same time.
pub trait Shared: Send + Sync + fmt::Debug {
    /// Whether several gateways may change it.
    fn is_shared(&self) -> bool;

    /// Changes from now on, by any gateway. A hint to read again, sent once the change is readable;
    /// several changes may be merged. Never ends while the store exists.
    fn changes(&self) -> BoxStream<'static, Change>;
}
