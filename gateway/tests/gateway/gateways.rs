//! Several gateways on one store: each follows the changes of the others, and calls continue while
//! the store is unavailable.

use crate::{
    agent::Agent,
    fake::ok,
    world::{TEST_TIMEOUT, World, built, parts, patient},
};
use epsilon_api::admin::DeployEvent;
use epsilon_gateway::config::Settings;
use epsilon_store::{Store, testing::Postgres};
use http::Method;
use http_body_util::BodyExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

async fn open(url: &str) -> Arc<dyn Store> {
    epsilon_store::open(url).await.unwrap()
}

/// Two gateways, each with its own handle on the store.
async fn two(url: &str) -> (World, World) {
    let one = World::gateway(open(url).await, &["pay"], Settings::default()).await;
    let two = World::gateway(open(url).await, &["pay"], Settings::default()).await;
    (one, two)
}

/// Answers with the version of the call.
fn says_its_version(agent: &Agent) {
    agent.vm.script("pay", |call| async move { ok(call.version.number.to_string()) });
}

/// After a caller has seen the new version of one function, no gateway answers with the old version
/// of the other one.
async fn functions_of_one_deployment_change_together(url: &str) {
    const NAMES: [&str; 2] = ["pay", "ship"];
    let one = World::gateway(open(url).await, &NAMES, Settings::default()).await;
    let two = World::gateway(open(url).await, &NAMES, Settings::default()).await;
    let agent = Agent::join("vm-a", &one).await;
    for name in NAMES {
        agent.vm.script(name, |call| async move { ok(call.version.number.to_string()) });
    }
    for world in [&one, &two] {
        world.wait_for_standing("vm-a", "ready").await;
    }
    let stop = AtomicBool::new(false);
    let calling = async |world: &World| {
        let mut seen = 1;
        while !stop.load(Ordering::Relaxed) {
            for path in ["/pay", "/ship"] {
                let now: u32 = world.get(path).await.body.parse().unwrap();
                assert!(now >= seen, "{path}: {now} after {seen}");
                seen = now;
            }
        }
    };
    let deploying = async {
        for n in 2..=8 {
            let digest = n.to_string();
            one.deploy("shop", &[("pay", &digest), ("ship", &digest)]).await;
        }
        answers(&two, "8").await;
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(calling(&one), calling(&two), deploying);
}

/// Waits until calls of the function get this answer.
async fn answers(world: &World, want: &str) {
    let began = Instant::now();
    loop {
        let reply = world.get("/pay").await;
        if reply.body == want {
            return;
        }
        assert!(began.elapsed() < TEST_TIMEOUT, "wanted {want}: {reply:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The same test for each kind of store.
async fn what_one_changes_the_other_follows(url: &str) {
    let (one, two) = two(url).await;
    // Each VM joins one gateway; both gateways watch both.
    let (a, b) = (Agent::join("vm-a", &one).await, Agent::join("vm-b", &two).await);
    for agent in [&a, &b] {
        says_its_version(agent);
    }
    for world in [&one, &two] {
        world.wait_for_standing("vm-a", "ready").await;
        world.wait_for_standing("vm-b", "ready").await;
        answers(world, "1").await;
    }
    one.deploy("shop", &[("pay", "2")]).await;
    assert_eq!(one.get("/pay").await.body, "2");
    answers(&two, "2").await;

    let reply = two.ask(Method::POST, "/v1/functions/pay/rollback", "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    answers(&one, "1").await;

    one.ask(Method::POST, "/v1/vms/vm-a/drain", "").await;
    two.wait_for_standing("vm-a", "draining").await;
    two.ask(Method::POST, "/v1/vms/vm-a/undrain", "").await;
    one.wait_for_standing("vm-a", "ready").await;

    two.ask(Method::DELETE, "/v1/functions/pay", "").await;
    let began = Instant::now();
    while one.get("/pay").await.status != 404 {
        assert!(began.elapsed() < TEST_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Each gateway has its own admin key; all gateways accept all of them.
    let reply = two.ask_with(&format!("Bearer {}", one.key), Method::GET, "/v1/vms", "").await;
    assert_eq!(reply.status, 200);
    assert_ne!(one.key, two.key);
}

#[tokio::test]
async fn on_postgresql_what_one_gateway_changes_the_other_follows() {
    what_one_changes_the_other_follows(&Postgres::shared().database().await).await;
}

#[tokio::test]
async fn on_one_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epsilon.db");
    what_one_changes_the_other_follows(path.to_str().unwrap()).await;
}

#[tokio::test]
async fn vms_of_every_gateway_get_versions_with_their_parts() {
    let (one, two) = two(&Postgres::shared().database().await).await;
    let (a, b) = (Agent::join("vm-a", &one).await, Agent::join("vm-b", &two).await);
    for agent in [&a, &b] {
        agent.vm.script("pay", |call| async move {
            ok(serde_json::to_string(&call.version.parts).unwrap())
        });
    }
    for world in [&one, &two] {
        world.wait_for_standing("vm-a", "ready").await;
        world.wait_for_standing("vm-b", "ready").await;
    }
    one.deploy("shop", &[("pay", "2")]).await;
    let want = serde_json::to_string(&Some(parts("2"))).unwrap();
    for world in [&one, &two] {
        answers(world, &want).await;
    }
}

#[tokio::test]
async fn no_gateway_serves_half_a_deployment() {
    functions_of_one_deployment_change_together(&Postgres::shared().database().await).await;
}

#[tokio::test]
async fn deployments_of_one_project_queue_across_gateways() {
    let (one, two) = two(&Postgres::shared().database().await).await;
    let agent = Agent::join("vm-a", &one).await;
    two.wait_for_standing("vm-a", "ready").await;
    says_its_version(&agent);
    // The first deployment waits while its version starts.
    agent.vm.gate.forget_permits(1000);
    let first = one.deploy("shop", &[("pay", "2")]);
    let second = async {
        while !agent.has_received("POST /v1/ready pay@2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        two.builder.next(Ok(built("shop", &[("pay", "3")])));
        let mut events = two.push().await.into_body();
        let mut text = String::new();
        while let Some(frame) = patient(events.frame()).await {
            let line = String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap();
            text.push_str(&line);
            if line.contains("on another gateway") {
                assert!(!agent.has_received("POST /v1/ready pay@3"), "{:?}", agent.orders());
                agent.vm.gate.add_permits(1000);
            }
        }
        text
    };
    let (first, second) = tokio::join!(first, second);
    assert!(matches!(first.last(), Some(DeployEvent::Done { .. })), "{first:?}");
    assert!(second.contains("on another gateway") && second.contains(r#""done""#), "{second}");
    for world in [&one, &two] {
        answers(world, "3").await;
    }
}

#[tokio::test]
async fn a_later_gateway_finds_members_and_drains() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("epsilon.db");
    let url = path.to_str().unwrap();
    let one = World::gateway(open(url).await, &["pay"], Settings::default()).await;
    let (a, _b) = (Agent::join("vm-a", &one).await, Agent::join("vm-b", &one).await);
    says_its_version(&a);
    one.ask(Method::POST, "/v1/vms/vm-b/drain", "").await;
    drop(one);
    let two = World::gateway(open(url).await, &[], Settings::default()).await;
    // Its first call waits in the kernel's queue until the VMs have reported.
    assert_eq!(two.get("/pay").await.body, "1");
    two.wait_for_standing("vm-a", "ready").await;
    two.wait_for_standing("vm-b", "draining").await;
    answers(&two, "1").await;
}

#[tokio::test]
async fn calls_go_on_during_a_store_outage() {
    let server = Postgres::start();
    let world =
        World::gateway(open(&server.database().await).await, &["pay"], Settings::default()).await;
    let agent = Agent::join("vm-a", &world).await;
    says_its_version(&agent);
    answers(&world, "1").await;

    server.stop();
    let health =
        async || world.ask_with("", Method::GET, "/healthz", "").await.json()["data"].clone();
    let began = Instant::now();
    while health().await["store"]["status"] != "away" {
        assert!(began.elapsed() < TEST_TIMEOUT);
        assert_eq!(world.get("/pay").await.body, "1");
    }
    assert_eq!(health().await["status"], "ok", "calls are still served");
    assert!(world.metrics().contains("epsilon_store_up 0"));
    let verbs = [
        (Method::GET, "/v1/functions"),
        (Method::DELETE, "/v1/functions/pay"),
        (Method::POST, "/v1/deployments"),
        (Method::POST, "/v1/vms/vm-a/drain"),
    ];
    for (method, path) in verbs {
        let began = Instant::now();
        let reply = world.ask(method, path, "").await;
        assert_eq!((reply.status.as_u16(), &*reply.code()), (503, "STORE_UNAVAILABLE"), "{path}");
        assert!(reply.header("retry-after").parse::<u32>().is_ok(), "{path}: {reply:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "{path}: {:?}", began.elapsed());
    }
    // Reads answer from what the gateway knows.
    assert_eq!(world.vm("vm-a").await.unwrap()["standing"], "ready");
    assert_eq!(world.ask(Method::GET, "/v1/functions/pay", "").await.status, 200);
    assert_eq!(world.get("/pay").await.body, "1");
    // The loss of a VM is still noticed.
    agent.kill().await;
    world.wait_for_standing("vm-a", "out").await;

    server.start_again();
    let began = Instant::now();
    while health().await["store"]["status"] != "ok" {
        assert!(began.elapsed() < TEST_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.ask(Method::GET, "/v1/functions", "").await.status, 200);
    let again = Agent::join("vm-b", &world).await;
    says_its_version(&again);
    answers(&world, "1").await;
}
