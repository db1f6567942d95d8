//! Keys that no gateway has any more: another one takes over what lies in its own file too, the rest is removed. Every gateway
//! looks for itself; one of them removes. Spawned by `app.rs`; a look is handed the time.
//!
//! ```text
//! owner silent for a day ─────▶ a gateway with the same key in its file is the owner
//! owner silent for 30 days ───▶ seen so for an hour ─▶ key removed, then the gateway itself: members trust its passes no more
//! ```
//! The times in the store are those of their writers' clocks, and one of them may be wrong by a month. So the hour is one of this
//! process's own steady clock in which nothing was heard: a heartbeat that changes the time in the store, whatever it says, begins
//! it anew.

use super::role_name;
use epsilon_api::{chain::Chain, ids::GatewayId};
use epsilon_store::{Gateway, Key, OwnedKey, Page, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

const ROLE: &str = "lost-keys";
/// Owner of a key that another gateway has too: no longer after so long a silence.
pub(crate) const OWNED_FOR: SignedDuration = SignedDuration::from_hours(24);
/// A gateway that was not heard for so long does not come back; if it does, it enters the keys in its files again.
const LOST_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long it must have looked so to this process.
const WATCHED: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_secs(600);
/// How long the others wait after a gateway that died in a look.
const LEASE: Duration = Duration::from_secs(1200);
/// Keys are read in parts of so many, and so many parts.
const PART: u32 = 500;
const PARTS: usize = 200;

/// See the module.
#[derive(Debug)]
pub(crate) struct LostKeys {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) me: GatewayId,
    /// The keys in this gateway's files.
    pub(crate) mine: Vec<Key>,
    /// Ids of keys and gateways that look lost: when the store heard of each last, and since when it has heard nothing else.
    pub(crate) suspects: HashMap<String, (Timestamp, Instant)>,
}

impl LostKeys {
    /// Runs until it is dropped; what a look that is cut leaves is removed by the next one.
    pub(crate) async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            if let Err(err) = self.look(Timestamp::now(), Instant::now()).await {
                tracing::debug!(error = %Chain(&err), "The store does not say which keys are lost.");
            }
        }
    }

    async fn look(&mut self, now: Timestamp, at: Instant) -> Result<(), StoreError> {
        for key in &self.mine {
            if self.store.adopt_key(&self.me, key, silent_before(now, OWNED_FOR)).await? {
                let (id, role) = (&key.id, role_name(&key.role));
                tracing::info!(key = %id, role, "Key taken over from a gateway that is silent.");
            }
        }
        let lost_before = silent_before(now, LOST_AFTER);
        let (keys, gateways) = self.lost(lost_before).await?;
        let heard = keys.iter().map(|one| (one.key.id.clone(), one.last_seen_at()));
        let seen = gateways.iter().map(|gateway| (gateway.id.to_string(), gateway.seen_at));
        self.suspect(heard.chain(seen), at);
        if !self.store.lead(&self.me, ROLE, LEASE, now).await? {
            return Ok(());
        }
        for OwnedKey { key, owner, .. } in keys.iter().filter(|one| self.is_lost(&one.key.id, at)) {
            match self.store.remove_key(&key.id, Some(lost_before)).await {
                Ok(_) => {
                    let (id, role) = (&key.id, role_name(&key.role));
                    let gateway = owner.as_ref().map_or("unknown", GatewayId::as_str);
                    tracing::warn!(key = %id, role, gateway, "Key removed: its gateway is lost.");
                }
                // It came back, or somebody was faster.
                Err(StoreError::KeyInUse { .. } | StoreError::KeyNotFound(_)) => {}
                Err(err) => return Err(err),
            }
        }
        for gateway in gateways.iter().filter(|one| self.is_lost(one.id.as_str(), at)) {
            if self.store.forget_gateway(&gateway.id, lost_before).await? {
                let (id, seen_at) = (&gateway.id, gateway.seen_at);
                tracing::warn!(gateway = %id, %seen_at, "Gateway forgotten: it is lost.");
            }
        }
        Ok(())
    }

    /// What is silent for long by the store's times; never this gateway's own.
    async fn lost(&self, before: Timestamp) -> Result<(Vec<OwnedKey>, Vec<Gateway>), StoreError> {
        let (mut keys, mut page) = (Vec::new(), Page { cursor: None, limit: PART });
        for _ in 0..PARTS {
            let part = self.store.keys(&page).await?;
            keys.extend(
                part.items
                    .into_iter()
                    .filter(|one| one.last_seen_at() < before && one.owner.as_ref() != Some(&self.me)),
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

    /// What looks lost now; the rest was heard since, as was what has another time than at the last look.
    fn suspect(&mut self, found: impl Iterator<Item = (String, Timestamp)>, at: Instant) {
        let mut before = mem::take(&mut self.suspects);
        self.suspects = found
            .map(|(id, heard)| match before.remove(&id) {
                Some((same, since)) if same == heard => (id, (heard, since)),
                _ => (id, (heard, at)),
            })
            .collect();
    }

    fn is_lost(&self, id: &str, at: Instant) -> bool {
        self.suspects.get(id).is_some_and(|(_, since)| at.duration_since(*since) >= WATCHED)
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
        /// The gateway that looks has this key in its file.
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

        /// A gateway that was heard so long before the start, with this key.
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

        /// A look so many seconds after the start.
        async fn look(&mut self, seconds: u64) {
            let (now, at) = self.start;
            let after = Duration::from_secs(seconds);
            let now = now + SignedDuration::try_from(after).unwrap();
            self.lost.look(now, at + after).await.unwrap();
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
    async fn keys_of_a_lost_gateway_go_after_an_hour_and_the_gateway_with_them() {
        let (lost, quiet, own) = (key(40 * DAY), key(40 * DAY), key(40 * DAY));
        let mut world = World::new(own.clone()).await;
        let me = world.lost.me.clone();
        world.store.replace_key(&me, &own, Timestamp::MIN).await.unwrap();
        world.gateway(31 * DAY, &lost).await;
        let there = world.gateway(29 * DAY, &quiet).await;
        world.look(0).await;
        world.look(3599).await;
        assert!(world.opens(&lost).await);
        world.look(3600).await;
        assert!(!world.opens(&lost).await);
        assert!(world.opens(&quiet).await && world.opens(&own).await);
        assert_eq!(world.store.gateways().await.unwrap(), [there]);
    }

    #[tokio::test]
    async fn who_beats_in_that_hour_is_not_lost() {
        let kept = key(40 * DAY);
        let mut world = World::new(key(DAY)).await;
        let mut gateway = world.gateway(31 * DAY, &kept).await;
        world.look(0).await;
        gateway.seen_at = world.start.0 + SignedDuration::from_secs(5);
        world.store.gateway_heartbeat(&gateway).await.unwrap();
        world.look(10).await;
        // The clock of the wall jumps by two months.
        world.start.0 += 60 * DAY;
        world.look(3600).await;
        world.look(7199).await;
        assert!(world.opens(&kept).await);
        world.look(7200).await;
        assert!(!world.opens(&kept).await, "it was silent all the time");
    }

    /// Here the clock is two months ahead, or the other gateway's two months behind: it is heard all the same.
    #[tokio::test]
    async fn a_wrong_clock_makes_no_gateway_lost_that_beats() {
        let beating = key(40 * DAY);
        let mut world = World::new(key(DAY)).await;
        let mut gateway = world.gateway(31 * DAY, &beating).await;
        world.start.0 += 60 * DAY;
        for seconds in (0..=7200).step_by(600) {
            gateway.seen_at += SignedDuration::from_secs(600);
            world.store.gateway_heartbeat(&gateway).await.unwrap();
            world.look(seconds).await;
        }
        assert!(world.opens(&beating).await);
        assert_eq!(world.store.gateways().await.unwrap(), [gateway]);
    }

    #[tokio::test]
    async fn a_key_that_lies_here_too_is_taken_over_and_stays() {
        let shared = key(40 * DAY);
        let mut world = World::new(shared.clone()).await;
        let owner = world.gateway(31 * DAY, &shared).await;
        for seconds in [0, 3600, 7200] {
            world.look(seconds).await;
        }
        assert!(world.opens(&shared).await);
        assert_eq!(world.store.gateways().await.unwrap(), [], "{owner:?} is forgotten");
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
            world.look(seconds.unsigned_abs()).await;
        }
        assert!(world.opens(&lost).await);
    }
}
