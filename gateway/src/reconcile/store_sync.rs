//! Keeps this gateway's memory in step with the store that several gateways share: which versions
//! serve, the members of the fleet, which VMs drain. Also sends this gateway's heartbeat to the
//! store. One task. Calls never wait for it, and if the store is unavailable, everything goes on
//! with the known state.
//!
//! ```text
//! store.changes() ─▶ Routes | Members | Draining | Resync ─┐
//! every BEAT: heartbeat, members, drains ──────────────────┼─▶ read again ─▶ routes, roster, builders
//! from time to time: routes ────────────────────────────────┘
//! every RENEW: new passes
//! ```

use crate::deploy::builders::Builders;
use crate::fleet::Fleet;
use crate::fleet::membership::Roster;
use crate::routes::Routes;
use crate::store_health::StoreWatch;
use epsilon_api::{chain::Chain, error::ErrorBody, fleet::BEAT, ids::GatewayId};
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token;
use epsilon_store::{Change, Gateway, Store, StoreError};
use futures_util::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Longest wait for one query of the store. No call waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The clock of passes approaches the wall clock by at most this much per heartbeat: members
/// receive it as often, and one that has missed ten of its own heartbeats still accepts our passes.
const STEP: Duration = Duration::from_secs(2);
/// Reading all routes takes at most this fraction of the time, if no change is announced.
const ROUTES_SHARE: u32 = 200;
const ROUTES_AT_LEAST: Duration = Duration::from_secs(5);
/// Time without a heartbeat after which a gateway no longer works on its deployments.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Longest that a gateway's shutdown waits for a store that does not answer.
const LAST_BEAT_LIMIT: Duration = Duration::from_secs(1);

/// The task that follows the store.
#[derive(Debug)]
pub(crate) struct Sync {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) watch: Arc<StoreWatch>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) roster: Roster,
    /// This gateway's record; the time is filled in for each heartbeat.
    pub(crate) me: Gateway,
    pub(crate) others: Others,
    /// The clock that dates the passes.
    pub(crate) clock: Arc<Clock>,
}

impl Sync {
    /// The final heartbeat, to be sent when this gateway has shut down.
    pub(crate) fn last_beat(&self) -> LastBeat {
        LastBeat { store: Arc::clone(&self.store), me: self.me.clone() }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut changes = self.store.changes();
        let mut renew = interval(gateway_token::RENEW);
        let mut beat = interval(BEAT);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut routes_at = Instant::now() + ROUTES_AT_LEAST;
        loop {
            // Cancel-safe: the stream keeps its changes, and intervals keep their times.
            tokio::select! {
                biased; // passes first: calls fail without them
                _ = renew.tick() => self.roster.renew_passes(),
                Some(change) = changes.next() => match change {
                    Change::Routes => drop(self.read_routes().await),
                    Change::Members => drop(self.read_members().await),
                    Change::Draining => drop(self.read_draining().await),
                    Change::Resync => self.read_all().await,
                },
                _ = beat.tick() => {
                    // If the store does not accept the heartbeat, it does not answer queries
                    // either, unless only its disk is full.
                    if self.beat().await.is_ok() || self.watch.since().full.is_some() {
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

    async fn beat(&mut self) -> Result<(), Away> {
        self.me.seen_at = Timestamp::now();
        self.ask(self.store.gateway_beat(&self.me)).await?;
        self.watch.wrote();
        // Not while the store is unavailable: members do not receive the step then.
        self.clock.approach(self.me.seen_at, STEP);
        let gateways = self.ask(self.store.gateways()).await?;
        for gone in self.others.gone(&gateways, Instant::now()) {
            let failed = fail_unfinished(&*self.store, &gone);
            let failed = self.ask(failed).await?;
            tracing::warn!(gateway = %gone, failed, "Gateway sends no heartbeats any more; its deployments are marked as failed.");
        }
        Ok(())
    }

    /// Reads the active versions. Other changes of the table wait meanwhile.
    pub(crate) async fn read_routes(&self) -> Result<(), Away> {
        let change = self.routes.change().await;
        let versions = self.ask(self.store.snapshot()).await?;
        let traffic = self.ask(self.store.traffic()).await?;
        change.follow(versions, traffic, &self.fleet);
        Ok(())
    }

    /// Reads the members of the fleet.
    pub(crate) async fn read_members(&mut self) -> Result<(), Away> {
        let members = self.ask(self.store.members()).await?;
        self.builders.set(members.iter().map(|member| &member.join));
        for id in self.roster.set(&members) {
            tracing::info!(member = %id, "Member gave no sign of life for too long; removed from the fleet.");
            self.ask(self.store.leave(&id)).await?;
        }
        Ok(())
    }

    /// Reads which VMs the operator wants drained.
    pub(crate) async fn read_draining(&mut self) -> Result<(), Away> {
        let draining = self.ask(self.store.draining()).await?;
        self.roster.drain(draining.into_iter().collect());
        Ok(())
    }

    async fn ask<T>(&self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, Away> {
        let answer = timeout(PATIENCE, answer).await;
        match &answer {
            Ok(Ok(_)) => self.watch.answered(),
            Ok(Err(StoreError::Unavailable(_))) | Err(_) => self.watch.silent(),
            Ok(Err(StoreError::Full(_))) => self.watch.full(),
            Ok(Err(error)) => {
                tracing::error!(error = %Chain(error), "Store query failed; going on with the known state.")
            }
        }
        answer.map_err(|_| Away)?.map_err(|_| Away)
    }
}

/// See [`Sync::last_beat`].
#[derive(Debug)]
pub(crate) struct LastBeat {
    store: Arc<dyn Store>,
    me: Gateway,
}

impl LastBeat {
    /// Dates this gateway's last heartbeat so far back that `epsilon store copy` does not wait for
    /// it. Other gateways watch for changes of the time, not for its value. Send it after the
    /// shutdown.
    pub(crate) async fn say(mut self) {
        self.me.seen_at = Timestamp::now().checked_sub(GONE_AFTER).unwrap_or(Timestamp::MIN);
        match timeout(LAST_BEAT_LIMIT, self.store.gateway_beat(&self.me)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = Chain(&error);
                tracing::debug!(%error, "Final heartbeat could not be written to the store.");
            }
            Err(_) => {
                tracing::debug!("Final heartbeat could not be written: the store does not answer.")
            }
        }
    }
}

/// The store gave no answer, which has been logged and recorded.
#[derive(Debug)]
pub(crate) struct Away;

/// The other gateways' last heartbeats, and when this gateway saw them change: wall clocks differ
/// and jump, this one does not.
#[derive(Debug, Default)]
pub(crate) struct Others(HashMap<GatewayId, Beat>);

#[derive(Debug)]
struct Beat {
    sign: Timestamp,
    at: Instant,
    told: bool,
}

impl Others {
    /// Gateways whose silence has just exceeded the limit.
    fn gone(&mut self, gateways: &[Gateway], now: Instant) -> Vec<GatewayId> {
        self.0.retain(|id, _| gateways.iter().any(|gateway| gateway.id == *id));
        let mut gone = Vec::new();
        for Gateway { id, seen_at, .. } in gateways {
            let fresh = || Beat { sign: *seen_at, at: now, told: false };
            let beat = self.0.entry(id.clone()).or_insert_with(fresh);
            if beat.sign != *seen_at {
                *beat = fresh();
            }
            if !beat.told && now.duration_since(beat.at) >= GONE_AFTER {
                beat.told = true;
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
        assert_eq!(gone(3, 60), 0, "its clock went back, but it beats");
        assert_eq!(gone(3, 119), 0);
        assert_eq!(gone(3, 120), 1);
        assert_eq!(gone(3, 200), 0, "reported already");
        assert_eq!(gone(4, 201), 0, "it is back");
        assert_eq!(gone(4, 261), 1);
    }
}
