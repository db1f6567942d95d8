//! Keys of lost gateways: a gateway with the same key in its own file takes it over, the others are
//! removed. Every gateway checks for itself; only the leader removes. Spawned by `app.rs`; each
//! check gets the time from its caller.
//!
//! ```text
//! owner silent for a day ─────▶ a gateway with the same key in its file is the owner
//! owner silent for 30 days ───▶ for an hour ─▶ key removed, then the gateway: members no longer accept its tokens
//! ```
//! The times in the store come from the clocks of their writers, and one of them may be wrong by a
//! month. So the hour is measured on this process's monotonic clock, and starts again when a
//! heartbeat changes the time in the store, whatever that time is.

use super::role_name;
use epsilon_api::{chain::Chain, ids::GatewayId};
use epsilon_store::{Gateway, Key, OwnedKey, Page, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

const ROLE: &str = "lost-keys";
/// Silence after which another gateway with the same key in its file becomes the key's owner.
pub(crate) const OWNED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Silence after which a gateway counts as lost. If it comes back, it enters the keys in its files
/// again.
const LOST_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long this process must have seen no change before it removes.
const CONFIRM_FOR: Duration = Duration::from_secs(3600);
/// Time between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);
/// How long the others wait after a leader that stopped during a check.
const LEASE: Duration = Duration::from_secs(1200);
/// Keys per page of the store's list.
const PAGE_SIZE: u32 = 500;
/// Pages read per check.
const MAX_PAGES: usize = 200;

/// The task that finds and removes keys of lost gateways.
#[derive(Debug)]
pub(crate) struct LostKeys {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) me: GatewayId,
    /// The keys in this gateway's files.
    pub(crate) mine: Vec<Key>,
    /// Ids of keys and gateways that look lost: the last time in the store of each, and since when
    /// it has not changed.
    pub(crate) suspects: HashMap<String, (Timestamp, Instant)>,
}

impl LostKeys {
    /// Runs until it is dropped; an interrupted check is completed by the next one.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(err) = self.check(Timestamp::now(), Instant::now()).await {
                tracing::debug!(error = %Chain(&err), "Lost keys could not be read from the store; trying again later.");
            }
        }
    }

    async fn check(&mut self, now: Timestamp, at: Instant) -> Result<(), StoreError> {
        for key in &self.mine {
            if self.store.adopt_key(&self.me, key, silent_before(now, OWNED_FOR)).await? {
                let (id, role) = (&key.id, role_name(&key.role));
                tracing::info!(key = %id, role, "Key was taken over from a silent gateway.");
            }
        }
        let lost_before = silent_before(now, LOST_AFTER);
        let (keys, gateways) = self.lost(lost_before).await?;
        let keys_seen = keys.iter().map(|one| (one.key.id.clone(), one.last_seen_at()));
        let seen = gateways.iter().map(|gateway| (gateway.id.to_string(), gateway.seen_at));
        self.suspect(keys_seen.chain(seen), at);
        if !self.store.lead(&self.me, ROLE, LEASE, now).await? {
            return Ok(());
        }
        for OwnedKey { key, owner, .. } in keys.iter().filter(|one| self.is_lost(&one.key.id, at)) {
            match self.store.remove_key(&key.id, Some(lost_before)).await {
                Ok(_) => {
                    let (id, role) = (&key.id, role_name(&key.role));
                    let gateway = owner.as_ref().map_or("unknown", GatewayId::as_str);
                    tracing::warn!(key = %id, role, gateway, "Key of a lost gateway was removed.");
                }
                // Its gateway came back, or the key was removed meanwhile.
                Err(StoreError::KeyInUse { .. } | StoreError::KeyNotFound(_)) => {}
                Err(err) => return Err(err),
            }
        }
        for gateway in gateways.iter().filter(|one| self.is_lost(one.id.as_str(), at)) {
            if self.store.forget_gateway(&gateway.id, lost_before).await? {
                let (id, seen_at) = (&gateway.id, gateway.seen_at);
                tracing::warn!(gateway = %id, %seen_at, "Lost gateway was removed.");
            }
        }
        Ok(())
    }

    /// Keys and gateways without a heartbeat since `before` by the times in the store; never this
    /// gateway's own.
    async fn lost(&self, before: Timestamp) -> Result<(Vec<OwnedKey>, Vec<Gateway>), StoreError> {
        let (mut keys, mut page) = (Vec::new(), Page { cursor: None, limit: PAGE_SIZE });
        for _ in 0..MAX_PAGES {
            let part = self.store.keys(&page).await?;
            keys.extend(
                part.items.into_iter().filter(|one| {
                    one.last_seen_at() < before && one.owner.as_ref() != Some(&self.me)
                }),
            );
            page.cursor = part.next;
            if page.cursor.is_none() {
                break;
            }
        }
        let mut gateways = self.store.gateways().await?;
        gateways.retain(|gateway| gateway.seen_at < before && gateway.id != self.me);
        Ok((keys, gateways))
    }

    /// Updates the suspects. Those that are not in `found` any more, or with another time, sent a
    /// heartbeat since the last check.
    fn suspect(&mut self, found: impl Iterator<Item = (String, Timestamp)>, at: Instant) {
        let mut before = mem::take(&mut self.suspects);
        self.suspects = found
            .map(|(id, seen)| match before.remove(&id) {
                Some((same, since)) if same == seen => (id, (seen, since)),
                _ => (id, (seen, at)),
            })
            .collect();
    }

    fn is_lost(&self, id: &str, at: Instant) -> bool {
        self.suspects.get(id).is_some_and(|(_, since)| at.duration_since(*since) >= CONFIRM_FOR)
    }
}

pub(crate) fn silent_before(now: Timestamp, silence: SignedDuration) -> Timestamp {
    now.checked_sub(silence).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::{super::make, *};
    use epsilon_store::KeyRole;
    use tempfile::TempDir;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    struct World {
        store: Arc<dyn Store>,
        lost: LostKeys,
        start: (Timestamp, Instant),
        _dir: TempDir,
    }

    impl World {
        /// The gateway that checks has this key in its file.
        async fn new(mine: Key) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
            let lost = LostKeys {
                store: Arc::clone(&store),
                me: GatewayId::random(),
                mine: vec![mine],
                suspects: HashMap::new(),
            };
            Self { store, lost, start: (Timestamp::now(), Instant::now()), _dir: dir }
        }

        /// A gateway whose last heartbeat was this long before the start, with this key.
        async fn gateway(&self, silence: SignedDuration, key: &Key) -> Gateway {
            let gateway = Gateway {
                id: GatewayId::random(),
                public_key: "0".repeat(64),
                control_url: "http://10.0.0.5:8081".into(),
                seen_at: self.start.0 - silence,
            };
            self.store.gateway_heartbeat(&gateway).await.unwrap();
            self.store.replace_key(&gateway.id, key, Timestamp::MIN).await.unwrap();
            gateway
        }

        /// A check this many seconds after the start.
        async fn check(&mut self, seconds: u64) {
            let (now, at) = self.start;
            let after = Duration::from_secs(seconds);
            let now = now + SignedDuration::try_from(after).unwrap();
            self.lost.check(now, at + after).await.unwrap();
        }

        async fn opens(&self, key: &Key) -> bool {
            self.store.key(&key.id).await.unwrap().is_some()
        }
    }

    fn key(age: SignedDuration) -> Key {
        let key = make(&KeyRole::Admin).0;
        Key { created_at: key.created_at - age, ..key }
    }

    #[tokio::test]
    async fn lost_gateways_and_their_keys_are_removed_after_an_hour() {
        let (lost, quiet, own) = (key(40 * DAY), key(40 * DAY), key(40 * DAY));
        let mut world = World::new(own.clone()).await;
        let me = world.lost.me.clone();
        world.store.replace_key(&me, &own, Timestamp::MIN).await.unwrap();
        world.gateway(31 * DAY, &lost).await;
        let there = world.gateway(29 * DAY, &quiet).await;
        world.check(0).await;
        world.check(3599).await;
        assert!(world.opens(&lost).await);
        world.check(3600).await;
        assert!(!world.opens(&lost).await);
        assert!(world.opens(&quiet).await && world.opens(&own).await);
        assert_eq!(world.store.gateways().await.unwrap(), [there]);
    }

    #[tokio::test]
    async fn a_heartbeat_in_that_hour_keeps_the_key() {
        let silent = key(40 * DAY);
        let mut world = World::new(key(DAY)).await;
        let mut gateway = world.gateway(31 * DAY, &silent).await;
        world.check(0).await;
        gateway.seen_at = world.start.0 + SignedDuration::from_secs(5);
        world.store.gateway_heartbeat(&gateway).await.unwrap();
        world.check(10).await;
        // The wall clock jumps by two months.
        world.start.0 += 60 * DAY;
        world.check(3600).await;
        world.check(7199).await;
        assert!(world.opens(&silent).await);
        world.check(7200).await;
        assert!(!world.opens(&silent).await, "it was silent all the time");
    }

    /// This clock is two months ahead, or the other gateway's two months slow: its heartbeats count
    /// all the same.
    #[tokio::test]
    async fn a_wrong_clock_loses_no_live_gateway() {
        let live = key(40 * DAY);
        let mut world = World::new(key(DAY)).await;
        let mut gateway = world.gateway(31 * DAY, &live).await;
        world.start.0 += 60 * DAY;
        for seconds in (0..=7200).step_by(600) {
            gateway.seen_at += SignedDuration::from_secs(600);
            world.store.gateway_heartbeat(&gateway).await.unwrap();
            world.check(seconds).await;
        }
        assert!(world.opens(&live).await);
        assert_eq!(world.store.gateways().await.unwrap(), [gateway]);
    }

    #[tokio::test]
    async fn a_key_also_in_the_own_file_is_taken_over() {
        let shared = key(40 * DAY);
        let mut world = World::new(shared.clone()).await;
        let owner = world.gateway(31 * DAY, &shared).await;
        for seconds in [0, 3600, 7200] {
            world.check(seconds).await;
        }
        assert!(world.opens(&shared).await);
        assert_eq!(world.store.gateways().await.unwrap(), [], "{owner:?} is removed");
    }

    #[tokio::test]
    async fn one_gateway_removes_for_all() {
        let lost = key(40 * DAY);
        let mut world = World::new(key(DAY)).await;
        world.gateway(31 * DAY, &lost).await;
        let leader = GatewayId::random();
        for seconds in [0, 3600] {
            let now = world.start.0 + SignedDuration::from_secs(seconds);
            assert!(world.store.lead(&leader, ROLE, LEASE, now).await.unwrap());
            world.check(seconds.unsigned_abs()).await;
        }
        assert!(world.opens(&lost).await);
    }
}
