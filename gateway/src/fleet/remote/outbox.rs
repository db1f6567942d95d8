//! Orders to a VM that no caller waits for: retire versions, forget functions, drain. An order is
//! repeated until the agent has taken it, unless it is revoked before. Bounded by the number of
//! versions and functions: the same order is stored once.

use super::Remote;
use epsilon_api::{
    chain::Chain,
    ids::{FunctionName, VersionId},
};
use http::Method;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

/// Pauses between attempts while the VM cannot be reached.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long after a version stopped serving it is retired: other gateways may not have learned of
/// it and still send calls.
const RETIRE_DELAY: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Orders {
    open: Mutex<OpenOrders>,
    wake: Notify,
    /// Held while an order is being sent: a call that needs a version again waits until its
    /// retirement has arrived.
    sending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct OpenOrders {
    /// Versions to retire, with the earliest time to send the order.
    retire: BTreeMap<VersionId, Instant>,
    forget: BTreeSet<FunctionName>,
    drain: Option<bool>,
    /// The order that is being sent.
    sent: Option<Order>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    Retire(VersionId),
    Forget(FunctionName),
    Drain(bool),
}

impl Orders {
    pub(super) fn retire(&self, version: &VersionId) {
        self.open.lock().retire.entry(version.clone()).or_insert(Instant::now() + RETIRE_DELAY);
        self.wake.notify_one();
    }

    pub(super) fn forget(&self, function: &FunctionName) {
        self.open.lock().forget.insert(function.clone());
        self.wake.notify_one();
    }

    pub(super) fn drain(&self, draining: bool) {
        self.open.lock().drain = Some(draining);
        self.wake.notify_one();
    }

    /// The version is needed (again): revokes its retirement.
    pub(super) async fn keep(&self, version: &VersionId) {
        let is_leaving = {
            let mut open = self.open.lock();
            open.retire.remove(version);
            matches!(&open.sent, Some(Order::Retire(sent)) if sent == version)
        };
        if is_leaving {
            drop(self.sending.lock().await);
        }
    }

    /// Selects the most urgent order and marks it as being sent.
    fn next(&self, now: Instant) -> Option<Order> {
        let mut open = self.open.lock();
        let next = open
            .drain
            .map(Order::Drain)
            .or_else(|| {
                let due = open.retire.iter().find(|(_, at)| **at <= now);
                due.map(|(version, _)| Order::Retire(version.clone()))
            })
            .or_else(|| open.forget.first().cloned().map(Order::Forget));
        open.sent.clone_from(&next);
        next
    }

    fn failed(&self) {
        self.open.lock().sent = None;
    }

    fn done(&self, order: &Order) {
        let mut open = self.open.lock();
        open.sent = None;
        match order {
            Order::Retire(version) => drop(open.retire.remove(version)),
            Order::Forget(function) => drop(open.forget.remove(function)),
            // The order may have been reversed while it was being sent.
            Order::Drain(draining) if open.drain == Some(*draining) => open.drain = None,
            Order::Drain(_) => {}
        }
    }
}

/// Sends a VM's orders, one after the other. Input: its open orders. Output: requests to its agent.
/// Ends only by being dropped; an order that was sent but not marked as done is sent again, which
/// is harmless.
pub(crate) async fn send_orders(remote: std::sync::Arc<Remote>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let sending = remote.orders.sending.lock().await;
        let Some(order) = remote.orders.next(Instant::now()) else {
            drop(sending);
            // A notification in between is not lost; orders that are not due yet are checked again
            // after `POLL`.
            let _ = timeout(POLL, remote.orders.wake.notified()).await;
            continue;
        };
        match remote.send_orders(&order).await {
            Ok(()) => {
                remote.orders.done(&order);
                pause = FIRST_PAUSE;
            }
            Err(link_error) => {
                remote.orders.failed();
                drop(sending);
                tracing::debug!(vm = %remote.link.address(), ?order, error = %Chain(&link_error), "Order could not be sent to the VM; retrying.");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

impl Remote {
    async fn send_orders(&self, order: &Order) -> Result<(), super::LinkError> {
        match order {
            Order::Retire(version) => self.order(Method::POST, "/v1/retire", version).await,
            Order::Forget(function) => self.order(Method::POST, "/v1/forget", function).await,
            Order::Drain(true) => self.order(Method::POST, "/v1/drain", &()).await,
            Order::Drain(false) => self.order(Method::POST, "/v1/undrain", &()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn what_is_wanted_again_is_not_retired() {
        let orders = Orders::default();
        let (one, two) = (testing::version("pay", 1).id(), testing::version("pay", 2).id());
        orders.retire(&one);
        orders.retire(&two);
        orders.retire(&one);
        orders.keep(&one).await;
        assert_eq!(orders.next(Instant::now()), None, "other gateways may still send calls");
        let later = Instant::now() + RETIRE_DELAY;
        assert_eq!(orders.next(later), Some(Order::Retire(two.clone())));
        orders.done(&Order::Retire(two));
        assert_eq!(orders.next(later), None);
    }

    #[test]
    fn a_drain_reversed_in_flight_is_sent_again() {
        let orders = Orders::default();
        orders.drain(true);
        let now = Instant::now();
        let sent = orders.next(now).unwrap();
        orders.drain(false);
        orders.done(&sent);
        assert_eq!(orders.next(now), Some(Order::Drain(false)));
        orders.done(&Order::Drain(false));
        assert_eq!(orders.next(now), None);
    }
}
