//! The fourteen defects of the project that Epsilon descends from, one named test each: its
//! gateway, port service, wrapper and builder failed every one of these. Numbered as in the list
//! made when its code was read.

use crate::{probe, run, up};
use epsilon_e2e::{
    http::Call,
    load::{Load, at_once},
    project,
    wait::{SOON, until},
    wire::{Wire, exchange, status},
};
use serde_json::json;
use std::time::Duration;

/// A body parser in the gateway consumed the body before it was forwarded.
#[tokio::test]
async fn defect_01_json_and_form_bodies_arrive_whole() {
    let up = probe().await;
    let call = Call::post_json("/echo", &json!({ "deep": { "list": [1, 2, 3] } }));
    let seen = call.limit(SOON).send(up.public()).await.expect(200).json();
    assert_eq!(seen["body"]["deep"]["list"], json!([1, 2, 3]));
    let call = Call::post("/echo", "application/x-www-form-urlencoded", "a=1&b=two");
    let seen = call.limit(SOON).send(up.public()).await.expect(200).json();
    assert_eq!(seen["body"], json!({ "a": "1", "b": "two" }));
    assert_eq!(seen["raw"], "a=1&b=two");
}

/// Errors of the gateway were answered with status 200.
#[tokio::test]
async fn defect_02_platform_errors_are_never_200() {
    run("process.exit(1)").await.expect_error(502, "FUNCTION_CRASHED");
    run("throw new Error('x')").await.expect_error(500, "FUNCTION_ERROR");
    up().await.get("/missing").await.expect_error(404, "FUNCTION_NOT_FOUND");
}

/// Containers were named after the first request, and stopped by the name of the current one.
#[tokio::test]
async fn defect_03_used_instance_is_removed_when_idle() {
    let up = up().await;
    up.deploy(&project!("warm", { "index.js" => r#"
        exports.warm = { config: { memory: "128MiB", maxInstances: 1, idleTimeout: "2s" },
          func: (req, res) => res.json(require("os").hostname()) };"# }))
        .await;
    let first = up.get("/warm").await.expect(200).json();
    for _ in 0..3 {
        assert_eq!(up.get("/warm").await.expect(200).json(), first, "the same instance");
    }
    until("no container is left", SOON, async || match up.containers(Some("warm")).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}

/// The idle timer started with a request and killed long ones.
#[tokio::test]
async fn defect_04_call_longer_than_idle_timeout_finishes() {
    let up = up().await;
    up.deploy(&project!("patient", { "index.js" => r#"
        exports.patient = { config: { memory: "128MiB", idleTimeout: "1s", timeout: "20s" },
          func: (req, res) => setTimeout(() => res.send("done"), 4000) };"# }))
        .await;
    assert_eq!(up.get("/patient").await.expect(200).text(), "done");
}

/// Two requests got the same "idle" container, and containers were used before they were ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect_05_concurrent_calls_get_separate_ready_instances() {
    let up = up().await;
    up.deploy(&project!("lonely", { "index.js" => r#"
        const ready = Date.now() + 300; while (Date.now() < ready);
        let active = 0;
        exports.lonely = { config: { memory: "128MiB", maxInstances: 4 }, func: async (req, res) => {
          const together = ++active;
          await new Promise((r) => setTimeout(r, 30));
          active--;
          res.status(together === 1 ? 200 : 409).send(String(together));
        } };"# }))
    .await;
    for _ in 0..5 {
        let tally = at_once(up.public(), "/lonely", 12).await;
        assert_eq!(tally.of(200), 12, "{tally:?}");
    }
}

/// A caller that disconnected left its container busy for ever.
#[tokio::test]
async fn defect_06_disconnected_caller_frees_its_slot() {
    let up = up().await;
    up.deploy(&project!("place", { "index.js" => r#"
        exports.place = { config: { memory: "128MiB", maxInstances: 1, timeout: "5s" },
          func: (req, res) => { if (req.path !== "/wait") return res.send("well");
            setTimeout(() => res.send("late"), 500); } };"# }))
        .await;
    for _ in 0..5 {
        let mut wire = Wire::connect(up.public()).await;
        wire.send("GET /place/wait HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until("the call runs", SOON, async || {
            let vms = up.admin("/v1/vms").await;
            let busy =
                vms[0]["instances"].as_array().unwrap().iter().any(|instance| {
                    instance["function"] == "place" && instance["calls_active"] == 1
                });
            if busy { Ok(()) } else { Err(vms.to_string()) }
        })
        .await;
        drop(wire);
        up.get("/place").await.expect(200);
    }
}

/// The function's name was passed from the URL to a shell.
#[tokio::test]
async fn defect_07_a_name_never_reaches_a_shell() {
    let up = up().await;
    let marker = std::env::temp_dir().join("epsilon-e2e-owned");
    let path = marker.display();
    for name in [
        format!("x;touch${{IFS}}{path}"),
        format!("$(touch%20{path})"),
        format!("`touch%20{path}`"),
        format!("x%0atouch%20{path}"),
        format!("x|touch%20{path}"),
        format!("x&&touch%20{path}"),
    ] {
        let request = format!("GET /{name} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = exchange(up.public(), request).await;
        assert!(matches!(status(&answer), 400 | 404), "{name}: {answer}");
    }
    assert!(!marker.exists());
}

/// Any text on a tool's standard error was a failure.
#[tokio::test]
async fn defect_08_text_on_standard_error_is_no_failure() {
    let up = up().await;
    // npm warns about the deprecated package on standard error.
    up.deploy(&project!("noisy", {
        "package.json" => r#"{ "dependencies": { "har-validator": "5.1.5" } }"#,
        "index.js" => r#"
            process.stderr.write("a warning while loading\n");
            exports.noisy = { config: { memory: "128MiB" }, func: (req, res) => {
              console.error("a warning while running"); process.emitWarning("another");
              res.send("well"); } };"#,
    }))
    .await;
    assert_eq!(up.get("/noisy").await.expect(200).text(), "well");
}

/// A port was searched, released, and passed to Docker, which could find it taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defect_09_instances_take_no_port_of_the_machine() {
    let up = up().await;
    up.deploy(&project!("portless", { "index.js" => r#"
        exports.portless = { config: { memory: "128MiB", maxInstances: 4 },
          func: (req, res) => setTimeout(() => res.send("x"), 200) };"# }))
        .await;
    let tally = at_once(up.public(), "/portless", 8).await;
    assert_eq!(tally.of(200), 8, "{tally:?}");
    let containers = up.containers(Some("portless")).await;
    assert!(containers.len() > 1);
    for container in containers {
        let bindings = container.inspect["HostConfig"]["PortBindings"].clone();
        assert_eq!(bindings.as_object().map_or(0, serde_json::Map::len), 0, "{bindings}");
    }
}

/// Log lines were posted to a route and a host name that did not exist, from an unbounded queue.
#[tokio::test]
async fn defect_10_log_lines_arrive() {
    let up = probe().await;
    let answer = run("console.log('the line that must arrive')").await.expect(200);
    let id = answer.header("x-epsilon-request-id");
    until("the line", SOON, async || {
        let log = up.cli(&["logs", "probe", "--request", id]).await.expect(0).stdout;
        if log.contains("the line that must arrive") { Ok(()) } else { Err(log) }
    })
    .await;
}

/// The handler's key was `definition` in the code and `func` in the text; timeouts answered 504
/// while the handler ran on.
#[tokio::test]
async fn defect_11_func_definition_and_timeouts_work() {
    let up = up().await;
    up.deploy(&project!("keys", { "index.js" => r#"
        const config = { memory: "128MiB", timeout: 700, maxInstances: 1 };
        exports.byFunc = { config, func: (req, res) => res.send("func") };
        exports.byDefinition = { config, definition: (req, res) => {
          if (req.path !== "/never") return res.send("definition");
          setInterval(() => console.log("still running"), 100); } };"# }))
        .await;
    assert_eq!(up.get("/byFunc").await.expect(200).text(), "func");
    assert_eq!(up.get("/byDefinition").await.expect(200).text(), "definition");
    let container = up.container("byDefinition").await;
    up.get("/byDefinition/never").await.expect_error(504, "FUNCTION_TIMEOUT");
    until("the process is gone", SOON, async || {
        let alive = std::path::Path::new(&format!("/proc/{}", container.pid())).exists();
        if alive { Err("it runs") } else { Ok(()) }
    })
    .await;
}

/// `chmod` was the only protection, and the process was root.
#[tokio::test]
async fn defect_12_code_is_read_only_and_unprivileged() {
    let seen = run(r#"
        const fs = require("fs"), seen = [process.getuid()];
        for (const path of ["/app/index.js", "/app", "/epsilon/wrapper/main.js"]) {
          try { fs.chmodSync(path, 0o777); seen.push("changed") } catch (e) { seen.push(e.code) }
        }
        return seen;"#)
    .await
    .expect(200)
    .json();
    assert_ne!(seen[0], 0);
    for error in seen.as_array().unwrap().iter().skip(1) {
        assert!(error == "EROFS" || error == "EPERM", "{seen}");
    }
}

/// A new image of the same tag did not replace warm containers, and every cold start pulled.
#[tokio::test]
async fn defect_13_a_deployment_replaces_warm_instances_at_once() {
    let up = up().await;
    let text = |n: u32| {
        format!(
            "exports.fresh = {{ config: {{ memory: '128MiB' }},
        func: (req, res) => res.send('{n}') }}"
        )
    };
    let project = project!("fresh", { "index.js" => text(1) });
    up.deploy(&project).await;
    let load = Load::start(up.public(), "/fresh", 1);
    project.write("index.js", text(2));
    up.deploy(&project).await;
    for _ in 0..20 {
        assert_eq!(up.get("/fresh").await.expect(200).text(), "2");
    }
    let tally = load.stop().await;
    assert_eq!(tally.answers(), tally.of(200), "{tally:?}");
}

/// All state was in memory, nothing was authenticated, an unknown name was 500 after a failed pull.
/// (That functions survive a restart is in the binary `restarts`.)
#[tokio::test]
async fn defect_14_unknown_is_404_and_api_is_authenticated() {
    let up = up().await;
    let answer = up.get("/unknownFunction").await;
    answer.expect_error(404, "FUNCTION_NOT_FOUND");
    assert!(answer.took < Duration::from_secs(1), "{answer}");
    Call::get("/v1/functions").send(up.control()).await.expect(401);
}
