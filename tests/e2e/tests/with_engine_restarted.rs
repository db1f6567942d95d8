//! The container engine of this machine is stopped and started again under load. The last of the
//! binaries (cargo runs them by name), because everything else depends on the engine; one test, so
//! nothing runs beside it.
//!
//! Stopping the engine stops all containers on the machine. So this fails, before it changes
//! anything, while other containers run.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use epsilon_e2e::{
    engine::{ask, docker},
    http::Call,
    load::Load,
    project,
    up::Epsilon,
    wait::{LONG, SOON, until},
};
use std::{path::Path, process::Command, time::Duration};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn sh(script: &str) {
    let mut command = Command::new("bash");
    // Its output is inherited, not piped: the engine that it starts would hold a pipe open.
    let done = command.args(["-euc", script]).current_dir(REPOSITORY).status().unwrap();
    assert!(done.success(), "{script}: {done}");
}

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The engine is stopped. It is started again with the value, also when the test fails meanwhile.
struct Stopped;

impl Stopped {
    async fn stop() -> Self {
        if has_systemd() {
            // With its socket unit, or the first request would start it again.
            sh("systemctl stop docker.socket docker.service");
            return Self;
        }
        let pid =
            std::fs::read_to_string("/var/run/docker.pid").expect("the engine's own pid file");
        let pid = pid.trim();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name.trim(), "dockerd", "the process of /var/run/docker.pid");
        sh(&format!("kill {pid}"));
        let stopped = Self;
        until("dockerd ends", LONG, async || {
            if Path::new(&format!("/proc/{pid}")).exists() { Err("it runs") } else { Ok(()) }
        })
        .await;
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if has_systemd() {
            sh("systemctl start docker.socket docker.service");
        }
        sh("infra/ensure-docker.sh");
    }
}

async fn instances_known(up: &Epsilon) -> usize {
    up.admin("/v1/vms").await[0]["instances"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn platform_recovers_from_engine_restart_under_load() {
    // Leftovers of the binaries before this one are being removed; whatever stays is not ours.
    until(
        "no container runs that a restart of the engine would stop; stop them yourself",
        SOON * 2,
        async || match ask(&["ps", "--format", "{{.Names}}"]).await {
            none if none.is_empty() => Ok(()),
            running => Err(running),
        },
    )
    .await;

    let up = Epsilon::start().await;
    up.deploy(&project!("stubborn", { "index.js" => r#"
        exports.stubborn = { config: { memory: "128MiB", maxInstances: 2, minInstances: 1, timeout: 10_000 },
          func: async (req, res) => {
            if (req.path !== "/metadata") return res.send("well");
            const socket = require("net").connect({ host: "169.254.169.254", port: 80 });
            socket.on("connect", () => res.send("connected"));
            socket.on("error", (e) => res.send(e.code));
            setTimeout(() => res.headersSent || res.send("silence"), 2000);
          } };"# }))
    .await;
    let load = Load::start(up.public(), "/stubborn", 2);
    until("calls run", SOON, async || {
        let tally = load.tally();
        if tally.of(200) > 50 { Ok(()) } else { Err(tally) }
    })
    .await;

    let stopped = Stopped::stop().await;
    let before = instances_known(&up).await;
    // The platform itself keeps running, and answers with one of its errors instead of hanging.
    up.get("/").await.expect(200);
    let meanwhile = up.get("/stubborn").await;
    let after = instances_known(&up).await;
    tokio::task::spawn_blocking(move || drop(stopped)).await.unwrap();
    match meanwhile.status {
        // Its slots are held by instances that only the engine can remove.
        429 => meanwhile.expect_error(429, "CONCURRENCY_LIMIT"),
        _ => meanwhile.expect_error(503, "NO_CAPACITY"),
    }
    assert!(after <= before.max(2), "attempts pile up without an engine: {before}, then {after}");

    let before = load.tally().of(200);
    until("calls are well again", Duration::from_secs(60), async || {
        let tally = load.tally();
        if tally.of(200) > before + 50 { Ok(()) } else { Err(tally) }
    })
    .await;
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new(), "every call got an answer");
    assert_eq!(tally.refused, 0);
    let known = [200, 429, 502, 503, 504];
    assert!(tally.statuses.keys().all(|status| known.contains(status)), "{tally:?}");

    // What the engine lost is set up again: the firewall of the metadata service, and deployments.
    assert_ne!(up.get("/stubborn/metadata").await.expect(200).text(), "connected");
    up.deploy(
        &project!("newcomer", { "index.js" => "exports.newcomer = (req, res) => res.send('new')" }),
    )
    .await;
    assert_eq!(up.get("/newcomer").await.expect(200).text(), "new");
    until("dead containers are removed", SOON, async || {
        let vm = format!("label=epsilon.vm={}", up.vm());
        let dead = docker(&["ps", "-aq", "--filter", &vm, "--filter", "status=exited"]).await;
        if dead.stdout.trim().is_empty() { Ok(()) } else { Err(dead.stdout) }
    })
    .await;
    Call::get("/healthz").send(up.control()).await.expect(200);
}
