//! Keeps what this gateway has in memory in step with the store that it shares with others: which versions serve, who is
//! in the fleet, who drains; and tells the store that this gateway is there. One task. Calls never wait for it, and when
//! the store is away, everything goes on with what is known.
//!
//! ```text
//! store.changes() ─▶ Routes | Members | Draining | Resync ─┐
//! each BEAT: beat, members, drains ────────────────────────┼─▶ read again ─▶ routes, roster, builders
//! each now and then: routes ───────────────────────────────┘
//! each RENEW: new passes
//! ```

pub(crate) mod away;

use crate::{
    deploy::builders::Builders,
    fleet::{Fleet, roster::Roster},
    routes::Routes,
};
use away::StoreWatch;
use epsilon_api::{chain::Chain, error::ErrorBody, fleet::BEAT, ids::GatewayId};
use epsilon_store::{Change, Gateway, Store, StoreError};
use epsilon_wire::{clock::Clock, pass};
use futures_util::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// Longest that one question to the store may take here. Nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The clock of passes follows the wall's by so much with each beat: members hear of it as often, and one that has missed
/// ten of its own beats still takes our passes.
const STEP: Duration = Duration::from_secs(2);
/// Reading all routes is kept to this part of the time, where nothing tells that they changed.
const ROUTES_SHARE: u32 = 200;
const ROUTES_AT_LEAST: Duration = Duration::from_secs(5);
/// A gateway that has not beaten for so long does not work on its deployments any more.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Longest that the end of a gateway waits for a store that does not answer.
const LAST_BEAT_LIMIT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Sync {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) watch: Arc<StoreWatch>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) roster: Roster,
    /// As this gateway shows itself; its time is filled in.
    pub(crate) me: Gateway,
    pub(crate) others: Others,
    /// What passes are dated by.
    pub(crate) clock: Arc<Clock>,
}

impl Sync {
    /// What is left to tell the store when this gateway has ended.
    pub(crate) fn last_beat(&self) -> LastBeat {
        LastBeat { store: Arc::clone(&self.store), me: self.me.clone() }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut changes = self.store.changes();
        let (mut renew, mut beat) = (interval(pass::RENEW), interval(BEAT));
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut routes_at = Instant::now() + ROUTES_AT_LEAST;
        loop {
            // Nothing is lost by dropping an arm that was not ready: the stream keeps its changes, intervals their times.
            tokio::select! {
                biased; // passes first: without them calls fail
                _ = renew.tick() => self.roster.renew_passes(),
                Some(change) = changes.next() => match change {
                    Change::Routes => drop(self.read_routes().await),
                    Change::Members => drop(self.read_members().await),
                    Change::Draining => drop(self.read_draining().await),
                    Change::Resync => self.read_all().await,
                },
                _ = beat.tick() => {
                    // When the store does not take the beat, it does not give answers either; unless it is only full.
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
        // Not while the store is away: members do not hear of the step then.
        self.clock.approach(self.me.seen_at, STEP);
        let gateways = self.ask(self.store.gateways()).await?;
        for gone in self.others.gone(&gateways, Instant::now()) {
            let failed = fail_unfinished(&*self.store, &gone);
            let failed = self.ask(failed).await?;
            tracing::warn!(gateway = %gone, failed, "A gateway is gone; its deployments failed.");
        }
        Ok(())
    }

    /// What serves, by the store. Other changes of the table wait meanwhile.
    pub(crate) async fn read_routes(&self) -> Result<(), Away> {
        let change = self.routes.change().await;
        let versions = self.ask(self.store.snapshot()).await?;
        let traffic = self.ask(self.store.traffic()).await?;
        change.follow(versions, traffic, &self.fleet);
        Ok(())
    }

    /// Who is in the fleet.
    pub(crate) async fn read_members(&mut self) -> Result<(), Away> {
        let members = self.ask(self.store.members()).await?;
        self.builders.set(members.iter().map(|member| &member.join));
        for id in self.roster.set(&members) {
            tracing::info!(member = %id, "No sign of life for long; it is not listed any more.");
            self.ask(self.store.leave(&id)).await?;
        }
        Ok(())
    }

    /// Whom the operator wants empty.
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
            Ok(Err(error)) => tracing::error!(error = %Chain(error), "The store cannot be read."),
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
    /// Notes that this gateway was last there so long ago that `epsilon store copy` does not wait for it. Other gateways go by
    /// changes of the time, and not by the time. To be said when it has ended.
    pub(crate) async fn say(mut self) {
        self.me.seen_at = Timestamp::now().checked_sub(GONE_AFTER).unwrap_or(Timestamp::MIN);
        match timeout(LAST_BEAT_LIMIT, self.store.gateway_beat(&self.me)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = Chain(&error);
                tracing::debug!(%error, "The store was not told that the gateway ended.");
            }
            Err(_) => tracing::debug!(
                "The store does not answer; it was not told that the gateway ended."
            ),
        }
    }
}

/// The store gave no answer; it was told to whoever has to know.
#[derive(Debug)]
pub(crate) struct Away;

/// The other gateways' last beats, and when they were new to us: clocks differ and jump, ours does not.
#[derive(Debug, Default)]
pub(crate) struct Others(HashMap<GatewayId, Beat>);

#[derive(Debug)]
struct Beat {
    sign: Timestamp,
    at: Instant,
    told: bool,
}

impl Others {
    /// Those that have just been silent for too long.
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

/// Deployments that this gateway began and nobody works on any more. Answers how many.
pub(crate) async fn fail_unfinished(
    store: &dyn Store,
    gateway: &GatewayId,
) -> Result<u64, StoreError> {
    let error = ErrorBody::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "DEPLOYMENT_INTERRUPTED",
        "the gateway stopped while the deployment was at work",
        Some("nothing was changed; deploy again".into()),
    );
    // Whether others are gone is not told by their clocks, so none of them is meant.
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
    async fn a_gateway_is_gone_once_when_its_beats_stop_whatever_its_clock_says() {
        let (id, mut others) = (GatewayId::random(), Others::default());
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
        assert_eq!(gone(3, 200), 0, "told already");
        assert_eq!(gone(4, 201), 0, "it is back");
        assert_eq!(gone(4, 261), 1);
    }
}
