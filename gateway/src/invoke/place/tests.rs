//! Placement over a fleet of scripted VMs.

use super::*;
use crate::{
    fleet::{Fleet, HealthPolicy, view::VersionKey},
    observe::metrics::Metrics,
    routes::Routes,
    testing::{self, FakeVm},
};
use epsilon_api::{
    ids::{InstanceId, VmId},
    units::{Bytes, MilliCores},
    vm::{InstanceStatus, Vm, VmStatus},
};
use jiff::Timestamp;
use std::{sync::atomic::Ordering::Relaxed, time::Duration};

const BALANCE: Balance =
    Balance { factor: 1.5, calls_per_core: 2.0, slow_start: Duration::from_secs(30) };

struct World {
    fleet: Fleet,
    routes: Routes,
    metrics: Arc<Metrics>,
}

impl World {
    /// This many VMs with one core each, and the functions `f0`, `f1`, ….
    fn new(vms: usize) -> Self {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let versions = (0..20).map(|n| testing::version(&format!("f{n}"), 1)).collect();
        let routes = Routes::new(versions, Vec::new(), Arc::clone(&metrics));
        let fleet =
            Fleet::new((0..vms).map(|n| FakeVm::arc(&format!("vm-{n}"))), &HealthPolicy::default());
        Self { fleet, routes, metrics }
    }

    fn route(&self, name: &str) -> Arc<Route> {
        Arc::clone(self.routes.table().named(name).unwrap())
    }

    fn place(&self, route: &Route, tried: &[Arc<Member>]) -> Option<Placed> {
        place(&self.fleet.snapshot(), route, tried, &BALANCE, &self.metrics.placement)
    }

    /// The function's VMs in the order of its walk.
    fn order(&self, route: &Route) -> Vec<Arc<Member>> {
        let fleet = self.fleet.snapshot();
        fleet.ring().walk(route.home).map(|vm| Arc::clone(&fleet.members()[vm])).collect()
    }

    /// The VMs to which this many concurrent calls go, as steps of the walk.
    fn spread(&self, route: &Route, calls: usize) -> Vec<usize> {
        let order = self.order(route);
        let step = |placed: &Placed| {
            order.iter().position(|member| member.id == placed.member.id).unwrap()
        };
        let placed: Vec<Placed> = (0..calls)
            .map(|_| {
                let placed = self.place(route, &[]).unwrap();
                self.expire_totals();
                placed
            })
            .collect();
        placed.iter().map(step).collect()
    }

    /// Expires the totals, as time does every 10 ms.
    fn expire_totals(&self) {
        self.fleet.snapshot().fleet_totals.due.store(0, Relaxed);
    }
}

fn report(member: &Member, warm: &[(&Route, &str)], images: &[&Route]) {
    let instance = |(route, state): &(&Route, &str)| instance(route, state, 0, 1);
    report_instances(member, warm.iter().map(instance).collect(), images);
}

/// An instance with this many running calls of this concurrency.
fn instance(route: &Route, state: &str, calls: u32, concurrency: u32) -> InstanceStatus {
    InstanceStatus {
        id: InstanceId::random(),
        function: route.version.function.clone(),
        version: route.version.number,
        state: serde_json::from_value(state.into()).unwrap(),
        calls_active: calls,
        concurrency,
        started_at: Timestamp::UNIX_EPOCH,
    }
}

fn report_instances(member: &Member, instances: Vec<InstanceStatus>, images: &[&Route]) {
    let status = VmStatus {
        calls_active: instances.iter().map(|instance| instance.calls_active).sum(),
        instances,
        images: images.iter().map(|route| route.version.id()).collect(),
        ..FakeVm::new(member.id.as_str()).status()
    };
    member.reported(status, Instant::now());
}

#[test]
fn an_idle_fleet_sends_a_function_home() {
    let world = World::new(5);
    for n in 0..20 {
        let route = world.route(&format!("f{n}"));
        assert_eq!(world.spread(&route, 2), [0, 0], "two concurrent calls stay together");
    }
}

#[test]
fn a_hot_function_spreads_in_order_and_returns() {
    let world = World::new(4);
    let route = world.route("f1");
    // Two each by the floor; the share is larger from the sixth call on: ⌈1.5 · 6 / 4⌉ = 3.
    assert_eq!(world.spread(&route, 8), [0, 0, 1, 1, 2, 0, 1, 2]);
    world.expire_totals();
    assert_eq!(world.spread(&route, 1), [0], "when all have ended, calls go home again");
}

#[test]
fn an_overloaded_warm_home_keeps_calls_until_prewarmed() {
    let world = World::new(4);
    let route = world.route("f1");
    let order = world.order(&route);
    for member in &order {
        report_instances(member, Vec::new(), &[&route]);
    }
    report_instances(&order[0], vec![instance(&route, "idle", 0, 16)], &[]);
    let place = || {
        world.expire_totals();
        world.place(&route, &[]).unwrap()
    };
    let prewarm =
        |placed: &Placed| placed.prewarm.as_ref().map(|(what, vm)| (*what, vm.id.clone()));
    let make_next_ready = Some((Prewarm::StartInstance, order[1].id.clone()));
    // Its floor is two calls; no call waits for a start while it has free slots.
    let mut running: Vec<_> = (0..12).map(|_| place()).collect();
    assert!(running.iter().all(|placed| placed.member.id == order[0].id));
    let prewarms: Vec<_> = running.iter().map(prewarm).collect();
    assert_eq!(prewarms[..2], [None, None]);
    assert!(prewarms[2..].iter().all(|prewarm| *prewarm == make_next_ready), "{prewarms:?}");

    report_instances(&order[0], vec![instance(&route, "busy", 12, 16)], &[]);
    report_instances(&order[1], vec![instance(&route, "idle", 0, 16)], &[]);
    // ⌈1.5 · 18 / 4⌉ = 7 at most with 17 running: the next VM takes them all.
    running.extend((0..6).map(|_| place()));
    assert!(running[12..].iter().all(|placed| placed.member.id == order[1].id));
    // The first VM's slots are all taken now, and the second is at its bound: it keeps what comes,
    // and the third is made ready.
    report_instances(&order[0], vec![instance(&route, "busy", 12, 12)], &[]);
    let _of_others: Vec<_> =
        (0..4).map(|_| order[1].load.begin_call(world.route("f9").key)).collect();
    let placed = place();
    assert_eq!(placed.member.id, order[1].id);
    assert_eq!(prewarm(&placed), Some((Prewarm::StartInstance, order[2].id.clone())));
}

#[test]
fn a_home_without_free_slots_spreads_to_cold_vms() {
    let world = World::new(4);
    let route = world.route("f1");
    let order = world.order(&route);
    report_instances(&order[0], vec![instance(&route, "idle", 0, 3)], &[]);
    assert_eq!(world.spread(&route, 5), [0, 0, 0, 1, 1]);
}

#[test]
fn calls_of_other_gateways_count_for_bound_and_slots() {
    let world = World::new(4);
    let route = world.route("f1");
    let order = world.order(&route);
    let busy = |calls| report_instances(&order[0], vec![instance(&route, "busy", calls, 8)], &[]);
    (0..8).for_each(|_| busy(6));
    let placed: Vec<_> = (0..2).map(|_| world.place(&route, &[]).unwrap()).collect();
    for placed in &placed {
        let (what, next) = placed.prewarm.as_ref().unwrap();
        assert_eq!(
            (&placed.member.id, *what, &next.id),
            (&order[0].id, Prewarm::StartInstance, &order[1].id)
        );
    }
    assert_eq!(world.spread(&route, 1), [1], "no slot is left");
    drop(placed);
    (0..8).for_each(|_| busy(8));
    assert_eq!(world.spread(&route, 1), [1]);
}

#[test]
fn a_warm_neighbour_is_preferred_until_home_is_warm() {
    let world = World::new(6);
    let route = world.route("f2");
    let order = world.order(&route);
    report(&order[0], &[], &[&route]);
    report(&order[2], &[(&route, "idle")], &[]);
    assert_eq!(world.spread(&route, 2), [2, 0], "the first call takes its only slot");
    report(&order[0], &[(&route, "idle")], &[]);
    assert_eq!(world.spread(&route, 1), [0]);
}

#[test]
fn a_vm_with_the_image_serves_while_home_pulls() {
    let world = World::new(6);
    let route = world.route("f3");
    let order = world.order(&route);
    report(&order[1], &[], &[&route]);
    let placed = world.place(&route, &[]).unwrap();
    assert_eq!(placed.member.id, order[1].id);
    assert_eq!(placed.prewarm.unwrap().1.id, order[0].id);
    report(&order[0], &[], &[&route]);
    let placed = world.place(&route, &[]).unwrap();
    assert_eq!(placed.member.id, order[0].id);
    assert!(placed.prewarm.is_none());
}

#[test]
fn draining_and_refusing_vms_are_passed_over_for_now() {
    let world = World::new(4);
    let route = world.route("f4");
    let order = world.order(&route);
    let full = || VmError::ConcurrencyLimit { function: route.version.function.clone(), limit: 1 };
    order[0].drain(true);
    assert_eq!(world.spread(&route, 1), [1]);
    record_outcome(&order[1], &route, Some(&full()));
    assert_eq!(world.spread(&route, 1), [2]);
    let other = (0..20)
        .map(|n| world.route(&format!("f{n}")))
        .find(|other| other.key != route.key && world.order(other)[0].id == order[1].id)
        .unwrap();
    assert_eq!(world.spread(&other, 1), [0], "other functions have room there");
    order[0].drain(false);
    report(&order[1], &[], &[]);
    assert_eq!(world.spread(&route, 1), [0]);
}

#[test]
fn new_vms_get_little_and_unreported_ones_nothing() {
    let world = World::new(0);
    let health_policy = HealthPolicy::default();
    let join = |id: &str, came| {
        let member = Arc::new(Member::joined(FakeVm::arc(id), &health_policy, came));
        world.fleet.admit(Arc::clone(&member));
        member
    };
    let old: Vec<_> = (0..3).map(|n| join(&format!("old-{n}"), None)).collect();
    let new = join("new", Some(Instant::now()));
    let names: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
    let home_of_new = names
        .iter()
        .map(|name| world.route(name))
        .find(|route| world.order(route)[0].id == new.id)
        .unwrap();
    for member in &old {
        report(member, &[], &[]);
    }
    assert!(world.spread(&home_of_new, 3).iter().all(|step| *step > 0), "it has not reported yet");
    report(&new, &[], &[]);
    world.expire_totals();
    let at_once = world.spread(&home_of_new, 3);
    assert_eq!(at_once.iter().filter(|step| **step == 0).count(), 1, "{at_once:?}");
}

/// Functions and their home VMs.
type Homes = Vec<(Arc<Route>, VmId)>;

/// Five VMs with warm instances of all functions whose home they are, and a sixth that joined `age`
/// ago. Returns the functions with their former homes, and the new VM.
fn with_newcomer(age: Duration) -> (World, Homes, Arc<Member>) {
    let mut world = World::new(5);
    let versions = (0..300).map(|n| testing::version(&format!("g{n}"), 1)).collect();
    world.routes = Routes::new(versions, Vec::new(), Arc::clone(&world.metrics));
    let routes: Vec<_> = (0..300).map(|n| world.route(&format!("g{n}"))).collect();
    let placed = |route: &Arc<Route>| world.place(route, &[]).unwrap().member;
    let homes: Vec<_> = routes.iter().map(|route| (Arc::clone(route), placed(route))).collect();
    for member in world.fleet.members() {
        let own = homes.iter().filter(|(_, home)| home.id == member.id);
        let warm: Vec<_> = own.map(|(route, _)| (&**route, "idle")).collect();
        let images: Vec<_> = routes.iter().map(|route| &**route).collect();
        report(&member, &warm, &images);
    }
    let homes = homes.into_iter().map(|(route, home)| (route, home.id.clone())).collect();
    let joined = Instant::now().checked_sub(age).unwrap();
    let new = Arc::new(Member::joined(FakeVm::arc("new"), &HealthPolicy::default(), Some(joined)));
    world.fleet.admit(Arc::clone(&new));
    (world, homes, new)
}

#[test]
fn a_new_vm_takes_its_functions_one_by_one() {
    let mut moved_by = Vec::new();
    for seconds in [0, 10, 20, 29] {
        let (world, homes, new) = with_newcomer(Duration::from_secs(seconds));
        let images: Vec<_> = homes.iter().map(|(route, _)| &**route).collect();
        let (mut moved, mut fetched) = (0, 0);
        // Before its first report, while it has no image, and when it has them all.
        for knows in [None, Some(&[][..]), Some(&images[..])] {
            if let Some(images) = knows {
                report(&new, &[], images);
            }
            let has_images = knows.is_some_and(|images| !images.is_empty());
            world.expire_totals();
            for (route, before) in &homes {
                let placed = world.place(route, &[]).unwrap();
                let now = &placed.member.id;
                let name = &route.version.function;
                let is_moved = has_images && *now == new.id && world.order(route)[0].id == new.id;
                assert!(now == before || is_moved, "{name}: {before} → {now} after {seconds} s");
                moved += u32::from(*now == new.id);
                fetched += u32::from(placed.prewarm.is_some_and(|(_, vm)| vm.id == new.id));
            }
        }
        assert!(fetched >= moved, "each moved function was fetched before: {fetched}, {moved}");
        moved_by.push(moved);
    }
    // Its share of 300 functions is 50; some have their warm instance on one of the two VMs after
    // it, and stay there.
    let all = f64::from(moved_by[3]);
    assert!((20.0..75.0).contains(&all), "{moved_by:?}");
    for (moved, part) in moved_by.iter().zip([0.0, 0.33, 0.67]) {
        let part_moved = f64::from(*moved) / all;
        assert!((part_moved - part).abs() < 0.2, "{part}: {moved_by:?}");
    }
}

#[test]
fn functions_wait_at_their_former_home() {
    let (world, homes, new) = with_newcomer(Duration::from_secs(20));
    let images: Vec<_> = homes.iter().map(|(route, _)| &**route).collect();
    report(&new, &[], &images);
    world.expire_totals();
    // At this age its bound is one call, because it has one core.
    let own: Vec<_> =
        homes.iter().filter(|(route, _)| world.order(route)[0].id == new.id).collect();
    let _busy = new.load.begin_call(own[0].0.key);
    world.expire_totals();
    for (route, before) in &own {
        let now = world.place(route, &[]).unwrap().member.id.clone();
        assert_eq!(now, *before, "{}", route.version.function);
    }
}

#[test]
fn platform_failures_move_one_function_only() {
    let world = World::new(4);
    let (route, other) = (world.route("f6"), world.route("f7"));
    let home = Arc::clone(&world.order(&route)[0]);
    for _ in 0..3 {
        record_outcome(&home, &route, Some(&VmError::Internal("no such image".into())));
    }
    assert_eq!(world.spread(&route, 1), [1]);
    record_outcome(&home, &other, None);
    assert_eq!(world.spread(&other, 1), [0]);
    for _ in 0..9 {
        let function = other.version.function.clone();
        record_outcome(&home, &other, Some(&VmError::FunctionError { function }));
    }
    assert_eq!(world.spread(&other, 1), [0], "errors of the function do not open the breaker");
}

#[test]
fn in_a_full_fleet_calls_wait_at_home() {
    let world = World::new(3);
    let route = world.route("f8");
    let order = world.order(&route);
    for member in &order {
        let function = route.version.function.clone();
        record_outcome(
            member,
            &route,
            Some(&VmError::NoCapacity { function, cause: "full".into() }),
        );
    }
    let placed = world.place(&route, &[]).unwrap();
    assert_eq!((placed.member.id.clone(), placed.has_other_vm), (order[0].id.clone(), false));
    assert!(world.place(&route, &order).is_none(), "all VMs were tried");
}

#[test]
fn a_larger_vm_carries_more() {
    let world = World::new(0);
    for (id, gib) in [("large", 24), ("small-1", 8), ("small-2", 8)] {
        let vm = FakeVm::new(id);
        *vm.size.lock().unwrap() = (Bytes::mib(gib * 1024), MilliCores(1000));
        world.fleet.admit(Arc::new(Member::local(vm, &HealthPolicy::default())));
    }
    let route = world.route("f9");
    let placed: Vec<_> = (0..60)
        .map(|_| {
            world.expire_totals();
            world.place(&route, &[]).unwrap()
        })
        .collect();
    let large = VmId::parse("large").unwrap();
    let there = placed.iter().filter(|placed| placed.member.id == large).count();
    // ⌈1.5 · 60 · 24 / 40⌉ at most; the two others 18 at most each.
    assert!((24..=54).contains(&there), "{there}");
    let key = VersionKey::of_version(&route.version);
    assert_eq!(key, route.key);
}
