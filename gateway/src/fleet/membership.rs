//! The members of the fleet by the store, turned into [`Member`]s with their tasks. Updated by
//! `reconcile/store_sync.rs` whenever the list may have changed. A member that reports stays, even
//! if the store is unavailable or no longer lists it.

use super::link::Identity;
use super::remote::{Remote, Timeouts, outbox};
use super::{HealthPolicy, Member, watch};
use crate::reconcile::drain_prewarm::DrainPrewarm;
use epsilon_api::{
    chain::Chain,
    fleet::{Join, MemberKind},
    ids::VmId,
};
use epsilon_store as store;
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

/// Limits for members of the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemberLimits {
    /// Longest wait for a connection, its TLS included; then a call goes to the next VM.
    pub(crate) connect: Duration,
    /// How long a connection stays open between two requests. VMs and builders keep one for 60 s,
    /// so no call is sent into a connection that closes.
    pub(crate) idle: Duration,
    /// Longest time for a member to do what it does at once: accept an order, begin to answer.
    order: Duration,
    /// Longest time for a VM before a function runs: queueing, pulling the image, starting. VMs
    /// have their own limits for each; this one is for VMs that hang.
    start: Duration,
    /// Time without a report after which pending calls on a VM fail. A VM that was only suspended
    /// continues its calls; new ones go to other VMs long before that.
    lost_after: Duration,
    /// Time without a sign of life after which a member is removed: 120 heartbeats.
    forget_after: Duration,
}

/// The least of [`MemberLimits::start`].
const SHORTEST_START: Duration = Duration::from_secs(10 * 60);

impl MemberLimits {
    /// For VMs that may pull an image for `fetch_timeout`.
    pub(crate) fn new(fetch_timeout: Duration) -> Self {
        Self {
            connect: Duration::from_secs(1),
            idle: Duration::from_secs(15),
            order: Duration::from_secs(10),
            start: SHORTEST_START.max(fetch_timeout.saturating_mul(2)),
            lost_after: Duration::from_secs(15),
            forget_after: Duration::from_secs(10 * 60),
        }
    }
}

/// The joined members and their tasks.
#[derive(Debug)]
pub(crate) struct FleetMembership {
    drain_prewarm: DrainPrewarm,
    identity: Identity,
    limits: MemberLimits,
    health_policy: HealthPolicy,
    /// Members of the first list were in the fleet before this gateway started; later ones are new.
    has_read: bool,
    draining: HashSet<VmId>,
    joined: HashMap<VmId, Joined>,
    /// The last sign of life of each member in the store, and when this gateway saw it change: wall
    /// clocks may jump, this one does not.
    signs: HashMap<VmId, (Timestamp, Instant)>,
}

#[derive(Debug)]
struct Joined {
    join: Join,
    member: Arc<Member>,
    remote: Arc<Remote>,
    _tasks: DropGuard,
}

impl FleetMembership {
    /// An empty list. The members' tasks end with those that prewarm on drains and are tracked with
    /// them.
    pub(crate) fn new(
        drain_prewarm: DrainPrewarm,
        identity: Identity,
        limits: MemberLimits,
        health_policy: HealthPolicy,
    ) -> Self {
        let joined = HashMap::new();
        let signs = HashMap::new();
        let draining = HashSet::new();
        Self {
            drain_prewarm,
            identity,
            limits,
            health_policy,
            has_read: false,
            draining,
            joined,
            signs,
        }
    }

    /// Applies the list in the store. Returns the members without a sign of life for too long,
    /// which are to be removed from the store.
    pub(crate) fn set(&mut self, members: &[store::Member]) -> Vec<VmId> {
        let now = Instant::now();
        let vms = members.iter().filter(|member| member.join.kind == MemberKind::Vm);
        let unusable = vms.filter(|member| !self.admit(&member.join)).count();
        self.drain_prewarm.fleet.set_unusable(unusable);
        self.has_read = true;
        let listed: HashSet<&VmId> = members.iter().map(|member| &member.join.id).collect();
        let gone = self.joined.iter().filter(|(id, joined)| {
            !listed.contains(id) && !reported_within(&joined.member, watch::SILENCE, now)
        });
        let gone: Vec<VmId> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.forget(&id);
        }
        self.signs.retain(|id, _| listed.contains(id));
        members.iter().filter(|member| self.is_long_gone(member, now)).map(id_of).collect()
    }

    /// Adds a member if it is new or changed. Returns whether it can be used.
    fn admit(&mut self, join: &Join) -> bool {
        if self.joined.get(&join.id).is_some_and(|known| known.join == *join) {
            return true;
        }
        let timeouts = Timeouts { order: self.limits.order, start: self.limits.start };
        let remote = match Remote::new(join, &self.identity, timeouts) {
            Ok(remote) => Arc::new(remote),
            Err(link_error) => {
                tracing::warn!(vm = %join.id, error = %Chain(&link_error), "VM joined but cannot be used; it gets no calls.");
                return false;
            }
        };
        tracing::info!(vm = %join.id, address = join.address, "VM joined.");
        let vm = Arc::clone(&remote);
        let member = Member::joined(vm, &self.health_policy, self.has_read.then(Instant::now));
        let member = Arc::new(member.at(join.address.clone()));
        let DrainPrewarm { fleet, close, tasks, .. } = &self.drain_prewarm;
        if self.draining.contains(&join.id) {
            member.drain(true);
        }
        let ends = close.child_token();
        let watched = Arc::clone(&member);
        let reached = Arc::clone(&remote);
        let watch =
            watch::follow(watched, reached, self.limits.lost_after, self.drain_prewarm.clone());
        tasks.spawn(ends.clone().run_until_cancelled_owned(watch));
        let orders = outbox::send_orders(Arc::clone(&remote));
        tasks.spawn(ends.clone().run_until_cancelled_owned(orders));
        fleet.admit(Arc::clone(&member));
        let id = join.id.clone();
        let join = join.clone();
        self.joined.insert(id, Joined { join, member, remote, _tasks: ends.drop_guard() });
        true
    }

    fn forget(&mut self, id: &VmId) {
        tracing::info!(vm = %id, "VM left.");
        self.joined.remove(id);
        self.drain_prewarm.fleet.forget(id);
    }

    /// Whether it has neither sent a heartbeat to any gateway nor a report to this one.
    fn is_long_gone(&mut self, member: &store::Member, now: Instant) -> bool {
        let id = &member.join.id;
        let sign = self.signs.entry(id.clone()).or_insert((member.seen_at, now));
        if sign.0 != member.seen_at {
            *sign = (member.seen_at, now);
        }
        let limit = self.limits.forget_after;
        let has_reported = |joined: &Joined| reported_within(&joined.member, limit, now);
        now.duration_since(sign.1) >= limit && !self.joined.get(id).is_some_and(has_reported)
    }

    /// The VMs that the operator wants drained; applies also to those that join later.
    pub(crate) fn drain(&mut self, draining: HashSet<VmId>) {
        self.draining = draining;
        for member in self.drain_prewarm.fleet.members() {
            member.drain(self.draining.contains(&member.id));
        }
    }

    /// Signs new gateway tokens for all members.
    pub(crate) fn renew_tokens(&self) {
        for joined in self.joined.values() {
            joined.remote.link.renew_token();
        }
    }
}

fn id_of(member: &store::Member) -> VmId {
    member.join.id.clone()
}

fn reported_within(member: &Member, limit: Duration, now: Instant) -> bool {
    let view = member.view();
    view.has_reported && now.duration_since(view.at) < limit
}
