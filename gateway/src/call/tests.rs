//! The retry loop, with several VMs.

use super::*;
use crate::config::Settings;
use crate::fleet::Fleet;
use crate::fleet::link::error::LinkError;
use crate::fleet::{HealthPolicy, Member};
use crate::invoke::retry::budget;
use crate::keys::ApiKeys;
use crate::store_health::StoreHealth;
use crate::testing;
use crate::testing::{FakeVm, ok};
use epsilon_api::{
    body::{self, CallBody},
    ids::{FunctionName, RequestId},
    vm::{Call, Vm},
};
use http_body_util::BodyExt;
use prometheus::{IntGauge, Registry};
use std::{
    io,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};
use tokio::time::Instant;

/// `calls` over some VMs, and one function.
struct World {
    calls: Calls,
    route: Arc<Route>,
    registry: Registry,
    /// In the order of the function's walk.
    vms: Vec<Arc<FakeVm>>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(vms: usize) -> Self {
        Self::with(vms, |_| {}, false).await
    }

    async fn with(vms: usize, set: impl FnOnce(&mut Config), idempotent: bool) -> Self {
        let mut config = Config::new(Settings::default(), "/data").unwrap();
        set(&mut config);
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let mut version = testing::version("pay", 1);
        version.spec.idempotent = idempotent;
        let routes = Arc::new(Routes::new(vec![version], Vec::new(), Arc::clone(&metrics)));
        let route = Arc::clone(routes.table().named("pay").unwrap());
        let vms: Vec<_> = (0..vms).map(|n| FakeVm::new(&format!("vm-{n}"))).collect();
        // As if all VMs had joined: only those can be out.
        let fleet = Fleet::new([], &config.health_policy);
        for vm in &vms {
            let member =
                Member::joined(Arc::clone(vm) as Arc<dyn Vm>, &HealthPolicy::default(), None);
            member.reported(vm.status(), Instant::now());
            fleet.admit(Arc::new(member));
        }
        let snapshot = fleet.snapshot();
        let vms = snapshot.ring().walk(route.home).map(|at| Arc::clone(&vms[at])).collect();
        drop(snapshot);
        let dir = tempfile::tempdir().unwrap();
        let store = epsilon_store::open(dir.path().join("s.db").to_str().unwrap()).await.unwrap();
        let version_cache = Arc::new(VersionCache::new(Arc::clone(&store)));
        let watch = Arc::new(StoreHealth::new(IntGauge::new("up", "up").unwrap()));
        let api_keys = ApiKeys::new(store, Arc::clone(&watch));
        let public_addresses = VersionAddresses::new(Default::default(), Arc::new(api_keys));
        let health = Health {
            fleet: Arc::new(fleet),
            store: watch,
            certificates: Vec::new(),
            began: Instant::now(),
        };
        let calls = Calls::new(
            &config,
            routes,
            version_cache,
            public_addresses,
            None,
            Arc::new(health),
            metrics,
        );
        Self { calls, route, registry, vms, _dir: dir }
    }

    async fn call(&self, method: Method) -> String {
        let request = Request::builder().method(method).uri("/x").header("x-mine", "1");
        let body = body::full("hello");
        self.send(request.body(body).unwrap()).await
    }

    /// A call without a body.
    async fn get(&self) -> String {
        self.send(Request::get("/x").header("x-mine", "1").body(body::empty()).unwrap()).await
    }

    async fn send(&self, request: Request<CallBody>) -> String {
        let version = Arc::clone(&self.route.version);
        let outgoing = Outgoing::new(version, RequestId::random(), request, None);
        match self.calls.invoker.invoke(&self.route, outgoing).await {
            Ok(Invoked { answer, .. }) => {
                let body = answer.response.into_body().collect().await.unwrap().to_bytes();
                String::from_utf8_lossy(&body).into_owned()
            }
            Err(err) => err.verdict().code.to_owned(),
        }
    }

    fn metric(&self, line: &str) -> bool {
        let text = prometheus::TextEncoder::new();
        text.encode_to_string(&self.registry.gather()).unwrap().contains(line)
    }
}

/// Scripts the function on this VM to fail; returns how often it was called.
fn fails(
    vm: &FakeVm,
    err: impl Fn(FunctionName) -> VmError + Send + Sync + 'static,
) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    vm.script("pay", move |call: Call| {
        counted.fetch_add(1, SeqCst);
        let err = err(call.version.function.clone());
        async move { Err(err) }
    });
    count
}

fn full(vm: &FakeVm) -> Arc<AtomicU32> {
    fails(vm, |function| VmError::ConcurrencyLimit { function, limit: 1 })
}

fn refused(function: FunctionName) -> VmError {
    LinkError::opening(io::ErrorKind::ConnectionRefused.into()).before(function)
}

fn lost(function: FunctionName) -> VmError {
    LinkError::Disconnected("reset".into()).after(function)
}

fn crashed(function: FunctionName) -> VmError {
    VmError::FunctionCrashed { function, cause: "exit 7".into() }
}

/// Scripts the function to answer with a header and the body it received.
fn echoes(vm: &FakeVm) {
    vm.script("pay", |call| async move {
        let mine = call.request.headers()["x-mine"].to_str().unwrap().to_owned();
        let body = call.request.into_body().collect().await.unwrap().to_bytes();
        ok(format!("{mine} {}", String::from_utf8_lossy(&body)))
    });
}

#[tokio::test]
async fn a_call_refused_by_full_vm_is_retried() {
    let world = World::new(3).await;
    let calls = full(&world.vms[0]);
    full(&world.vms[1]);
    echoes(&world.vms[2]);
    assert_eq!(world.call(Method::POST).await, "1 hello");
    assert!(world.metric(r#"epsilon_retries_total{reason="refused"} 2"#));
    // The VM is known to be full and is not tried until it reports.
    assert_eq!(world.call(Method::POST).await, "1 hello");
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn when_all_are_full_the_last_answer_stands() {
    let world = World::new(2).await;
    let calls = [full(&world.vms[0]), full(&world.vms[1])];
    assert_eq!(world.call(Method::POST).await, "CONCURRENCY_LIMIT");
    assert_eq!(calls.map(|calls| calls.load(SeqCst)), [1, 1]);
}

#[tokio::test]
async fn a_call_waits_only_on_the_last_vm() {
    let world = World::new(3).await;
    let seen: Arc<parking_lot::Mutex<Vec<bool>>> = Arc::default();
    for vm in &world.vms {
        let seen = Arc::clone(&seen);
        vm.script("pay", move |call: Call| {
            seen.lock().push(call.may_wait);
            let function = call.version.function.clone();
            async move { Err(VmError::ConcurrencyLimit { function, limit: 1 }) }
        });
    }
    assert_eq!(world.call(Method::POST).await, "CONCURRENCY_LIMIT");
    assert_eq!(*seen.lock(), [false, false, true]);
    // All are known to be full: the call waits at home, and no other VM is tried.
    seen.lock().clear();
    assert_eq!(world.call(Method::POST).await, "CONCURRENCY_LIMIT");
    assert_eq!(*seen.lock(), [true]);
}

#[tokio::test]
async fn a_walk_is_no_longer_than_it_may_be() {
    let world = World::with(4, |config| config.max_tries = 2, false).await;
    let calls: Vec<_> = world.vms.iter().map(|vm| full(vm)).collect();
    assert_eq!(world.call(Method::POST).await, "CONCURRENCY_LIMIT");
    assert_eq!(calls.iter().map(|calls| calls.load(SeqCst)).collect::<Vec<_>>(), [1, 1, 0, 0]);
}

#[tokio::test]
async fn a_possibly_executed_call_is_not_retried() {
    for err in [crashed, lost] {
        let world = World::new(2).await;
        fails(&world.vms[0], err);
        echoes(&world.vms[1]);
        assert_eq!(world.call(Method::POST).await, "FUNCTION_CRASHED");
        assert!(world.metric(r#"epsilon_retries_denied_total{reason="not_repeatable"} 1"#));
    }
}

#[tokio::test]
async fn idempotent_calls_are_retried() {
    for err in [crashed, lost] {
        let world = World::new(2).await;
        fails(&world.vms[0], err);
        echoes(&world.vms[1]);
        assert_eq!(world.get().await, "1 ");
        assert_eq!(world.call(Method::PUT).await, "1 hello");

        let world = World::with(2, |_| {}, true).await;
        fails(&world.vms[0], err);
        echoes(&world.vms[1]);
        assert_eq!(world.call(Method::POST).await, "1 hello");
        assert!(world.metric(r#"epsilon_retries_total{reason="repeatable"} 1"#));
    }
}

#[tokio::test]
async fn a_crashing_call_kills_at_most_two_instances() {
    let world = World::new(4).await;
    let calls: Vec<_> = world.vms.iter().map(|vm| fails(vm, crashed)).collect();
    assert_eq!(world.get().await, "FUNCTION_CRASHED");
    assert_eq!(calls.iter().map(|calls| calls.load(SeqCst)).sum::<u32>(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_retry_gets_the_rest_of_the_timeout() {
    let world = World::new(2).await;
    let timeout = world.route.version.spec.timeout;
    world.vms[0].script("pay", move |call| async move {
        tokio::time::sleep(timeout * 2 / 3).await;
        Err(lost(call.version.function.clone()))
    });
    world.vms[1].script("pay", |_| std::future::pending());
    let began = Instant::now();
    assert_eq!(world.get().await, "FUNCTION_TIMEOUT");
    assert_eq!(began.elapsed().as_secs(), timeout.as_secs());
}

#[tokio::test]
async fn a_vm_that_refuses_connections_is_out_at_once() {
    let world = World::new(2).await;
    let calls = fails(&world.vms[0], refused);
    echoes(&world.vms[1]);
    for _ in 0..3 {
        assert_eq!(world.call(Method::POST).await, "1 hello");
    }
    assert_eq!(calls.load(SeqCst), 1);
    assert!(world.metric(r#"epsilon_retries_total{reason="unsent"} 1"#));
    assert!(world.metric(r#"epsilon_placement_passed_over_total{reason="out"} 2"#));
}

#[tokio::test]
async fn the_last_vm_is_tried_although_it_is_out() {
    let world = World::new(1).await;
    let calls = fails(&world.vms[0], refused);
    for _ in 0..3 {
        assert_eq!(world.call(Method::POST).await, "NO_CAPACITY");
    }
    assert_eq!(calls.load(SeqCst), 3);
    echoes(&world.vms[0]);
    assert_eq!(world.call(Method::POST).await, "1 hello");
}

#[tokio::test]
async fn without_budget_only_refusals_are_retried() {
    let none = budget::Policy { percent: 0, per_second: 0 };
    let world = World::with(3, |config| config.retries = none, false).await;
    fails(&world.vms[0], lost);
    echoes(&world.vms[1]);
    echoes(&world.vms[2]);
    assert_eq!(world.get().await, "FUNCTION_CRASHED");
    assert!(world.metric(r#"epsilon_retries_denied_total{reason="budget"} 1"#));
    full(&world.vms[0]);
    assert_eq!(world.get().await, "1 ");
}

#[tokio::test]
async fn small_bodies_read_by_refusing_vm_are_resent() {
    let world = async || {
        let world = World::new(2).await;
        world.vms[0].script("pay", |mut call| async move {
            call.request.body_mut().frame().await.unwrap().unwrap();
            let function: FunctionName = call.version.function.clone();
            Err(VmError::NoCapacity { function, cause: "changed its mind".into() })
        });
        echoes(&world.vms[1]);
        world
    };
    assert_eq!(world().await.call(Method::POST).await, "1 hello");
    let world = world().await;
    let large = Request::post("/x").header("x-mine", "1").body(body::full(vec![b'x'; 1 << 20]));
    assert_eq!(world.send(large.unwrap()).await, "NO_CAPACITY");
    assert!(world.metric(r#"epsilon_retries_denied_total{reason="body_read"} 1"#));
}

#[tokio::test]
async fn when_every_vm_drains_there_is_no_capacity() {
    let world = World::new(1).await;
    world.calls.health.fleet.members()[0].drain(true);
    assert_eq!(world.call(Method::POST).await, "NO_CAPACITY");
}

#[tokio::test]
async fn a_call_at_overloaded_home_prewarms_next_vm() {
    let world = World::new(3).await;
    let home = &world.vms[0];
    echoes(home);
    home.ready.lock().unwrap().push(world.route.version.id());
    let fleet = world.calls.health.fleet.snapshot();
    let member = fleet.members().iter().find(|member| member.vm.status().id == home.status().id);
    let member = Arc::clone(member.unwrap());
    member.reported(home.status(), Instant::now());
    let other = testing::version("other", 1);
    let key = crate::fleet::view::VersionKey::of_version(&other);
    let _busy: Vec<_> = (0..20).map(|_| member.load.begin_call(key)).collect();
    for _ in 0..3 {
        assert_eq!(world.get().await, "1 ");
    }
    let is_requested = async {
        while world.vms[1].ready().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), is_requested).await.expect("it is made ready");
    assert_eq!((world.vms[1].ready(), world.vms[2].ready()), (vec!["pay@1".to_owned()], vec![]));
    assert!(world.metric("epsilon_placement_starts_total 1"));
}

#[tokio::test]
async fn an_answer_counts_as_load_until_it_is_over() {
    let world = World::new(1).await;
    echoes(&world.vms[0]);
    let request = Request::get("/x").header("x-mine", "1").body(body::empty()).unwrap();
    let version = Arc::clone(&world.route.version);
    let outgoing = Outgoing::new(version, RequestId::random(), request, None);
    let relayed = world.calls.invoker.invoke(&world.route, outgoing).await.unwrap();
    let member = Arc::clone(&world.calls.health.fleet.members()[0]);
    assert_eq!(member.load.calls(), 1);
    drop(relayed);
    assert_eq!(member.load.calls(), 0);
}
