//! Keeps this gateway's memory in step with the store that several gateways share: which versions
//! serve, the members of the fleet, which VMs drain. Also sends this gateway's heartbeat to the
//! store. One task. Calls never wait for it, and if the store is unavailable, everything continues
//! with the known state.
//!
//! ```text
//! store.changes() ─▶ Routes | Members | Draining | Resync ─┐
//! every HEARTBEAT_INTERVAL: heartbeat, members, drains ──────────────────┼─▶ read again ─▶ routes, membership, builders
//! from time to time: routes ────────────────────────────────┘
//! every RENEW_EVERY: new gateway tokens
//! ```

use crate::deploy::builders::Builders;
use crate::fleet::Fleet;
use crate::fleet::membership::FleetMembership;
use crate::routes::Routes;
use crate::store_health::StoreHealth;
use epsilon_api::{chain::Chain, error::ErrorBody, fleet::HEARTBEAT_INTERVAL, ids::GatewayId};
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token;
use epsilon_store::{Change, Gateway, Store, StoreError};
use futures_util::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Longest wait for one query of the store. No call waits for it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// The clock of gateway tokens approaches the wall clock by at most this much per heartbeat:
/// members receive it as often, and one that has missed ten of its own heartbeats still accepts our
/// tokens.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// Reading all routes takes at most this fraction of the time, if no change is announced.
const ROUTES_SHARE: u32 = 200;
const ROUTES_AT_LEAST: Duration = Duration::from_secs(5);
/// Time without a heartbeat after which a gateway no longer works on its deployments.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Longest that a gateway's shutdown waits for a store that does not answer.
const FINAL_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// The task that follows the store.
#[derive(Debug)]
pub(crate) struct Sync {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) watch: Arc<StoreHealth>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) membership: FleetMembership,
    /// This gateway's record; the time is filled in for each heartbeat.
    pub(crate) me: Gateway,
    pub(crate) others: Others,
    /// The clock that dates the gateway tokens.
    pub(crate) clock: Arc<Clock>,
}

impl Sync {
    /// The final heartbeat, to be sent when this gateway has shut down.
    pub(crate) fn final_heartbeat(&self) -> FinalHeartbeat {
        FinalHeartbeat { store: Arc::clone(&self.store), me: self.me.clone() }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut changes = self.store.changes();
        let mut renew = interval(gateway_token::RENEW_EVERY);
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut routes_at = Instant::now() + ROUTES_AT_LEAST;
        loop {
            // Cancel-safe: the stream keeps its changes, and intervals keep their times.
            tokio::select! {
                biased; // tokens first: calls fail without them
                _ = renew.tick() => self.membership.renew_tokens(),
                Some(change) = changes.next() => match change {
                    Change::Routes => drop(self.read_routes().await),
                    Change::Members => drop(self.read_members().await),
                    Change::Draining => drop(self.read_draining().await),
                    Change::Resync => self.read_all().await,
                },
                _ = heartbeat.tick() => {
                    // If the store does not accept the heartbeat, it does not answer queries
                    // either, unless only its disk is full.
                    if self.send_heartbeat().await.is_ok() || self.watch.since().full.is_some() {
                        let _ = (self.read_draining().await, self.read_members().await);
                    }
                    if Instant::now() >= routes_at {
                        let began = Instant::now();
                        let _ = self.read_routes().await;
                        routes_at = Instant::now()
                            + (began.elapsed() * ROUTES_SHARE).max(ROUTES_AT_LEAST);
                    }
                }
            }
        }
    }

    async fn read_all(&mut self) {
        let _ = (self.read_routes().await, self.read_members().await, self.read_draining().await);
    }

    async fn send_heartbeat(&mut self) -> Result<(), StoreUnavailable> {
        self.me.seen_at = Timestamp::now();
        self.query(self.store.gateway_heartbeat(&self.me)).await?;
        self.watch.mark_writable();
        // Not while the store is unavailable: members do not receive the step then.
        self.clock.approach(self.me.seen_at, CLOCK_STEP);
        let gateways = self.query(self.store.gateways()).await?;
        for gone in self.others.gone(&gateways, Instant::now()) {
            let failed = fail_unfinished(&*self.store, &gone);
            let failed = self.query(failed).await?;
            tracing::warn!(gateway = %gone, failed, "Gateway sends no heartbeats any more; its deployments are marked as failed.");
        }
        Ok(())
    }

    /// Reads the active versions. Other changes of the table wait meanwhile.
    pub(crate) async fn read_routes(&self) -> Result<(), StoreUnavailable> {
        let change = self.routes.change().await;
        let versions = self.query(self.store.snapshot()).await?;
        let traffic = self.query(self.store.traffic()).await?;
        change.sync_from_store(versions, traffic, &self.fleet);
        Ok(())
    }

    /// Reads the members of the fleet.
    pub(crate) async fn read_members(&mut self) -> Result<(), StoreUnavailable> {
        let members = self.query(self.store.members()).await?;
        self.builders.set(members.iter().map(|member| &member.join));
        for id in self.membership.set(&members) {
            tracing::info!(member = %id, "Member gave no sign of life for too long; removed from the fleet.");
            self.query(self.store.leave(&id)).await?;
        }
        Ok(())
    }

    /// Reads which VMs the operator wants drained.
    pub(crate) async fn read_draining(&mut self) -> Result<(), StoreUnavailable> {
        let draining = self.query(self.store.draining()).await?;
        self.membership.drain(draining.into_iter().collect());
        Ok(())
    }

    async fn query<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreUnavailable> {
        let answer = timeout(QUERY_TIMEOUT, answer).await;
        match &answer {
            Ok(Ok(_)) => self.watch.mark_answered(),
            Ok(Err(StoreError::Unavailable(_))) | Err(_) => self.watch.mark_unavailable(),
            Ok(Err(StoreError::Full(_))) => self.watch.mark_full(),
            Ok(Err(error)) => {
                tracing::error!(error = %Chain(error), "Store query failed; using the known state.");
            }
        }
        answer.map_err(|_| StoreUnavailable)?.map_err(|_| StoreUnavailable)
    }
}

/// See [`Sync::final_heartbeat`].
#[derive(Debug)]
pub(crate) struct FinalHeartbeat {
    store: Arc<dyn Store>,
    me: Gateway,
}

impl FinalHeartbeat {
    /// Dates this gateway's last heartbeat so far back that `epsilon store copy` does not wait for
    /// it. Other gateways watch for changes of the time, not for its value. Send it after the
    /// shutdown.
    pub(crate) async fn send(mut self) {
        self.me.seen_at = Timestamp::now().checked_sub(GONE_AFTER).unwrap_or(Timestamp::MIN);
        match timeout(FINAL_HEARTBEAT_TIMEOUT, self.store.gateway_heartbeat(&self.me)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = Chain(&error);
                tracing::debug!(%error, "Final heartbeat could not be written to the store.");
            }
            Err(_) => {
                tracing::debug!("Final heartbeat could not be written: the store does not answer.");
            }
        }
    }
}

/// The store gave no answer, which has been logged and recorded.
#[derive(Debug)]
pub(crate) struct StoreUnavailable;

/// The other gateways' last heartbeats, and when this gateway saw them change: wall clocks differ
/// and jump, this one does not.
#[derive(Debug, Default)]
pub(crate) struct Others(HashMap<GatewayId, LastSign>);

#[derive(Debug)]
struct LastSign {
    sign: Timestamp,
    at: Instant,
    is_reported: bool,
}

impl Others {
    /// Gateways whose silence has just exceeded the limit.
    fn gone(&mut self, gateways: &[Gateway], now: Instant) -> Vec<GatewayId> {
        self.0.retain(|id, _| gateways.iter().any(|gateway| gateway.id == *id));
        let mut gone = Vec::new();
        for Gateway { id, seen_at, .. } in gateways {
            let fresh = || LastSign { sign: *seen_at, at: now, is_reported: false };
            let last_sign = self.0.entry(id.clone()).or_insert_with(fresh);
            if last_sign.sign != *seen_at {
                *last_sign = fresh();
            }
            if !last_sign.is_reported && now.duration_since(last_sign.at) >= GONE_AFTER {
                last_sign.is_reported = true;
                gone.push(id.clone());
            }
        }
        gone
    }
}

/// Marks the unfinished deployments of a gateway as failed. Returns their number.
pub(crate) async fn fail_unfinished(
    store: &dyn Store,
    gateway: &GatewayId,
) -> Result<u64, StoreError> {
    let error = ErrorBody::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "DEPLOYMENT_INTERRUPTED",
        "the gateway stopped during the deployment",
        Some("nothing was changed; deploy again".into()),
    );
    // Only this gateway's deployments: whether other gateways are gone is not decided by their
    // clocks.
    store.fail_unfinished(gateway, Timestamp::UNIX_EPOCH, &error, Timestamp::now()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(id: &GatewayId, second: i64) -> Gateway {
        Gateway {
            id: id.clone(),
            public_key: String::new(),
            control_url: String::new(),
            seen_at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[tokio::test]
    async fn a_gateway_without_heartbeats_is_gone_once() {
        let id = GatewayId::random();
        let mut others = Others::default();
        let start = Instant::now();
        let mut gone = |second: i64, after: u64| {
            let now = start + Duration::from_secs(after);
            others.gone(&[gateway(&id, second)], now).len()
        };
        assert_eq!(gone(10, 0), 0);
        assert_eq!(gone(10, 59), 0);
        assert_eq!(gone(3, 60), 0, "its clock went back, but it sends heartbeats");
        assert_eq!(gone(3, 119), 0);
        assert_eq!(gone(3, 120), 1);
        assert_eq!(gone(3, 200), 0, "reported already");
        assert_eq!(gone(4, 201), 0, "it is back");
        assert_eq!(gone(4, 261), 1);
    }
}
