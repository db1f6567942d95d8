//! Instances start when needed and are removed when not: `minInstances`, `maxInstances`,
//! `idleTimeout`, `concurrency`, reuse.

use crate::up;
use epsilon_e2e::{
    engine::Container,
    http::Call,
    load::Load,
    project,
    up::Epsilon,
    wait::{SOON, until},
};
use serde_json::json;
use std::collections::HashSet;

async fn running(up: &Epsilon, function: &str) -> Vec<Container> {
    let mut containers = up.containers(Some(function)).await;
    containers.retain(Container::is_running);
    containers
}

#[tokio::test]
async fn idle_instance_is_removed_next_call_starts_one() {
    let up = up().await;
    up.deploy(&project!("brief", { "index.js" => r#"
        exports.brief = { config: { memory: "128MiB", idleTimeout: "1s" },
          func: (req, res) => res.send("here") };"# }))
        .await;
    up.get("/brief").await.expect(200);
    until("no container is left, not even a stopped one", SOON, async || {
        match up.containers(Some("brief")).await.len() {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    let answer = up.get("/brief").await.expect(200);
    assert!(answer.header("server-timing").contains("start"), "{answer}");
}

#[tokio::test]
async fn min_instances_stay_and_come_back() {
    let up = up().await;
    up.deploy(&project!("standby", { "index.js" => r#"
        exports.standby = { config: { memory: "128MiB", minInstances: 2, idleTimeout: "1s" },
          func: (req, res) => { res.send("here"); if (req.path === "/exit") process.exit(); } };"# }))
    .await;
    let two = async || match running(up, "standby").await.len() {
        2 => Ok(()),
        other => Err(other),
    };
    until("two instances are ready", SOON, two).await;
    let _ = Call::get("/standby/exit").try_send(up.public()).await;
    until("the lost one is replaced", SOON, two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_stay_within_maximum_and_are_unshared() {
    let up = up().await;
    up.deploy(&project!("single", { "index.js" => r#"
        let active = 0, most = 0;
        exports.single = { config: { memory: "128MiB", maxInstances: 3 }, func: async (req, res) => {
          most = Math.max(most, ++active);
          await new Promise((r) => setTimeout(r, 20));
          active--;
          res.json({ most, instance: process.env.HOSTNAME ?? require("os").hostname() });
        } };"# }))
    .await;
    let load = Load::start(up.public(), "/single", 8);
    let mut seen = HashSet::new();
    until("three instances work", SOON, async || {
        let answer = up.get("/single").await;
        if answer.status == 200 {
            assert_eq!(answer.json()["most"], 1, "{answer}");
            seen.insert(answer.json()["instance"].to_string());
        }
        assert!(running(up, "single").await.len() <= 3);
        if seen.len() == 3 { Ok(()) } else { Err(seen.clone()) }
    })
    .await;
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new());
    assert_eq!(tally.answers(), tally.of(200) + tally.of(429), "{tally:?}");
}

#[tokio::test]
async fn concurrency_lets_calls_share_an_instance() {
    let up = up().await;
    up.deploy(&project!("together", { "index.js" => r#"
        const waiting = [];
        exports.together = { config: { memory: "128MiB", maxInstances: 1, concurrency: 3 },
          func: (req, res) => {
            waiting.push(res);
            if (waiting.length === 3) for (const each of waiting.splice(0)) each.json(3);
          } };"# }))
        .await;
    let (a, b, c) = tokio::join!(up.get("/together"), up.get("/together"), up.get("/together"));
    for answer in [a, b, c] {
        assert_eq!(answer.expect(200).json(), json!(3));
    }
}

#[tokio::test]
async fn the_last_used_instance_is_used_first() {
    let up = up().await;
    up.deploy(&project!("lifo", { "index.js" => r#"
        const id = require("os").hostname();
        exports.lifo = { config: { memory: "128MiB", maxInstances: 3 }, func: (req, res) =>
          setTimeout(() => res.json(id), req.path === "/slow" ? 200 : 0) };"# }))
        .await;
    let _ = tokio::join!(up.get("/lifo/slow"), up.get("/lifo/slow"), up.get("/lifo/slow"));
    let first = up.get("/lifo").await.expect(200).json();
    for _ in 0..10 {
        assert_eq!(up.get("/lifo").await.expect(200).json(), first);
    }
}

#[tokio::test]
async fn other_calls_in_a_timed_out_instance_finish() {
    let up = up().await;
    up.deploy(&project!("shared", { "index.js" => r#"
        exports.shared = {
          config: { memory: "128MiB", maxInstances: 1, concurrency: 2, timeout: 3000 },
          func: (req, res) => { if (req.path === "/ends") setTimeout(() => res.send("well"), 2000) },
        };"# }))
    .await;
    let public = up.public();
    let never = tokio::spawn(async move { Call::get("/shared/never").send(public).await });
    until("the first call runs", SOON, async || {
        let vms = up.admin("/v1/vms").await.to_string();
        if vms.contains("shared") && vms.contains(r#""busy""#) { Ok(()) } else { Err(vms) }
    })
    .await;
    // Starts late enough to still run after the first one's deadline.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let ends = up.get("/shared/ends").await;
    assert_eq!(ends.expect(200).text(), "well");
    never.await.unwrap().expect_error(504, "FUNCTION_TIMEOUT");
}

#[tokio::test]
async fn version_that_fails_to_start_leaves_old_serving() {
    let up = up().await;
    let project =
        project!("careful", { "index.js" => "exports.careful = (req, res) => res.send('1')" });
    up.deploy(&project).await;
    project.write(
        "index.js",
        "if (require('os').networkInterfaces().eth0) throw new Error('only where there is a network');
         exports.careful = (req, res) => res.send('2')",
    );
    let failed = up.try_deploy(&project).await;
    let error = failed.failed();
    assert!(error.message.contains("careful"), "{error:?}");
    assert_eq!(up.get("/careful").await.expect(200).text(), "1");
    let versions = up.admin("/v1/functions/careful/versions").await;
    assert!(versions.as_array().unwrap().iter().any(|v| v["version"] == 1 && v["active"] == true));
}
