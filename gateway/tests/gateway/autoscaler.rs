//! The autoscaler in a whole gateway: reports of a VM, a lease in a real store, a real command, the
//! control API.

use crate::{
    fake::ok,
    world::{TEST_TIMEOUT, World},
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_gateway::config::Settings;
use http::Method;
use serde_json::Value;
use std::time::{Duration, Instant};

async fn info(world: &World) -> Value {
    world.ask(Method::GET, "/v1/autoscaler", "").await.json()["data"].clone()
}

/// Polls until the answer is as wanted; panics with the last answer otherwise.
async fn until(world: &World, wanted: impl Fn(&Value) -> bool) -> Value {
    let since = Instant::now();
    loop {
        let last = info(world).await;
        if wanted(&last) {
            return last;
        }
        assert!(since.elapsed() < TEST_TIMEOUT, "{last:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_a_driver_it_only_shows() {
    let world = World::with(&["hello"]).await;
    let shown = until(&world, |info| info["wanted"] == 1).await;
    assert_eq!((&shown["driver"], &shown["state"]), (&"none".into(), &"watching".into()));
    assert_eq!((&shown["current"], &shown["ready"]), (&1.into(), &1.into()));
    let metrics = world.ask(Method::GET, "/metrics", "").await.body;
    assert!(metrics.contains("epsilon_autoscaler_wanted_vms 1"), "{metrics}");
    assert!(
        !metrics.contains("epsilon_autoscaler_leading"),
        "the metric exists only with a driver"
    );
}

#[tokio::test]
async fn a_command_gets_the_wanted_number() {
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls");
    let script = format!("echo \"$1 $EPSILON_WANTED\" >> '{}'", calls.display());
    let settings = serde_json::json!({
        "autoscale": { "driver": "exec", "command": ["sh", "-c", script, "scale"], "min": 3, "every": "1s" }
    });
    let settings = Settings::read(&settings.to_string()).unwrap();
    let world = World::start(&["hello"], settings).await;
    let shown = until(&world, |info| info["current"] == 3).await;
    assert_eq!(shown["state"], "leading");
    let ordered = shown["decisions"].as_array().unwrap().iter().find(|made| {
        made["steps"].to_string().contains("order VMs up to 3") && made["reason"] == "the minimum"
    });
    assert!(ordered.is_some(), "{shown:#}");
    assert_eq!(std::fs::read_to_string(calls).unwrap(), "3 3\n");
    let metrics = world.ask(Method::GET, "/metrics", "").await.body;
    assert!(metrics.contains("epsilon_autoscaler_leading 1"), "{metrics}");
}

#[tokio::test]
async fn a_failing_scale_command_is_reported() {
    let settings = serde_json::json!({
        "autoscale": { "driver": "exec", "command": ["sh", "-c", "echo no quota >&2; exit 1"], "min": 2, "every": "1s" }
    });
    let settings = Settings::read(&settings.to_string()).unwrap();
    let world = World::start(&["hello"], settings).await;
    let shown = until(&world, |info| info["state"] == "group_away").await;
    assert!(shown["problem"].as_str().unwrap().contains("no quota"), "{shown:#}");
    world.vm.script("hello", |_| async { ok("hi") });
    assert_eq!(world.get("/hello").await.body, "hi");
}
