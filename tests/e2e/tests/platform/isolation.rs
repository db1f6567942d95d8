//! What an instance is not allowed to do, checked from inside it and by Docker.

use crate::{probe, run, up};
use epsilon_e2e::{
    engine::ask,
    http::Call,
    project,
    wait::{SOON, until},
};
use serde_json::{Value, json};
use std::time::Duration;

async fn returns(code: &str) -> Value {
    run(code).await.expect(200).json()
}

/// Runs code that tries something and returns the name of its error, or `"allowed"`.
async fn tries(code: &str) -> String {
    let code = format!("try {{ {code} }} catch (e) {{ return e.code ?? e.name }} return 'allowed'");
    returns(&code).await.as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn process_has_no_root_capabilities_or_new_privileges() {
    let status = returns("return require('fs').readFileSync('/proc/self/status', 'utf8')").await;
    let status = status.as_str().unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
    };
    let ids = line("Uid:");
    let id = ids.split('\t').next().unwrap();
    assert!(
        id.parse::<u32>().unwrap() >= 1_879_048_192,
        "a user id outside of all other ranges: {ids}"
    );
    assert_eq!((&line("Gid:"), &ids), (&ids, &[id; 4].join("\t")));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(line("NoNewPrivs:"), "1");
    assert_eq!(line("Seccomp:"), "2", "a filter");
}

#[tokio::test]
async fn the_root_cannot_be_written() {
    for path in ["/x", "/app/index.js", "/epsilon/wrapper/main.js", "/etc/passwd", "/usr/bin/x"] {
        let error = tries(&format!("require('fs').writeFileSync('{path}', 'x')")).await;
        assert!(matches!(error.as_str(), "EROFS" | "EACCES"), "{path}: {error}");
    }
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn the_folder_for_temporary_files_is_writable_and_limited() {
    let up = up().await;
    up.deploy(&project!("filler", { "index.js" => r#"
        const fs = require("fs"), piece = Buffer.alloc(1 << 20);
        exports.filler = { config: { maxInstances: 1 }, func: (req, res) => {
          if (req.path === "/well") return res.send("well");
          const file = fs.openSync("/tmp/full", "w");
          let bytes = 0;
          try { for (;;) bytes += fs.writeSync(file, piece); } catch (e) { res.json([e.code, bytes]); }
        } };"# }))
    .await;
    let seen = up.get("/filler").await.expect(200).json();
    assert_eq!(seen[0], "ENOSPC", "{seen}");
    assert!(seen[1].as_u64().unwrap() >= 16 << 20, "some room is there: {seen}");
    // A full folder is the function's own error; it keeps running.
    up.get("/filler/well").await.expect(200);
}

#[tokio::test]
async fn what_one_function_writes_no_other_one_reads() {
    let up = probe().await;
    assert_eq!(tries("require('fs').writeFileSync('/tmp/mine', 'x')").await, "allowed");
    let project = project!("stranger", { "index.js" => r#"
        exports.stranger = { config: { memory: "128MiB" },
          func: (req, res) => res.json(require("fs").readdirSync("/tmp")) };"# });
    up.deploy(&project).await;
    let seen = up.get("/stranger").await.expect(200).json();
    assert!(!seen.as_array().unwrap().contains(&json!("mine")), "{seen}");
}

#[tokio::test]
async fn memory_over_the_limit_kills_only_the_instance() {
    let answer = run("const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 'x'));").await;
    answer.expect_error(502, "FUNCTION_CRASHED");
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn memory_is_limited_without_swap_as_asked() {
    probe().await;
    run("return 1").await.expect(200);
    for container in probe().await.containers(Some("probe")).await {
        let host = &container.inspect["HostConfig"];
        assert_eq!(host["Memory"], 128 << 20);
        assert_eq!(host["MemorySwap"], 128 << 20);
    }
}

#[tokio::test]
async fn forking_without_end_hits_a_limit() {
    let answer = run(r#"
        const { spawn } = require("child_process");
        const children = [];
        let code = "no limit";
        for (let n = 0; n < 2000; n++) {
          const child = spawn("sleep", ["30"]);
          child.on("error", (e) => { code = e.code; });
          if (child.pid === undefined) { code = "EAGAIN"; break; }
          children.push(child);
        }
        for (const child of children) child.kill("SIGKILL");
        return [code, children.length];"#)
    .await;
    if answer.status == 200 {
        let seen = answer.json();
        assert_eq!(seen[0], "EAGAIN", "{seen}");
        assert!(seen[1].as_u64().unwrap() < 1000, "{seen}");
    } else {
        answer.expect_error(502, "FUNCTION_CRASHED");
    }
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn the_container_is_hardened() {
    let up = probe().await;
    up.get("/echo").await.expect(200);
    let containers = up.containers(Some("echo")).await;
    let inspect = &containers[0].inspect;
    let host = &inspect["HostConfig"];
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["Init"], true);
    let options = host["SecurityOpt"].to_string();
    assert!(options.contains("no-new-privileges"), "{options}");
    assert!(!options.contains("unconfined"), "{options}");
    assert!(host["PidsLimit"].as_i64().is_some_and(|limit| limit > 0), "{host}");
    assert_eq!(
        host["NanoCpus"].as_i64().unwrap_or(0) + host["CpuQuota"].as_i64().unwrap_or(0) * 10_000,
        1_000_000_000,
        "one core: {host}"
    );
    let user = inspect["Config"]["User"].as_str().unwrap();
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid == gid && uid.parse::<u32>().unwrap() >= 1_879_048_192, "{user}");
    assert_eq!(host["OomScoreAdj"], 500, "functions go before the platform");
    assert!(options.contains("SCMP_ACT_ERRNO"), "the profile of this release: {options}");
    assert!(!inspect["HostConfig"]["Binds"].to_string().contains("docker.sock"));
}

/// The address of a cloud's metadata service on this machine's loopback; removed with the value.
struct Metadata;

const METADATA: &str = "169.254.169.254";

impl Metadata {
    fn ip(verb: &str) -> bool {
        let mut command = std::process::Command::new("ip");
        let command = command.args(["address", verb, &format!("{METADATA}/32"), "dev", "lo"]);
        command.status().is_ok_and(|status| status.success())
    }

    fn add() -> Self {
        assert!(Self::ip("add"), "this test must be allowed to add an address: run it as root");
        Self
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        Self::ip("del");
    }
}

#[tokio::test]
async fn the_metadata_service_cannot_be_reached() {
    let there = tokio::net::TcpStream::connect((METADATA, 80));
    let there = tokio::time::timeout(Duration::from_secs(1), there).await;
    // On a cloud's VM the real service exists. Elsewhere this machine simulates it.
    let played = if matches!(there, Ok(Ok(_))) {
        None
    } else {
        let address = Metadata::add();
        Some((tokio::net::TcpListener::bind((METADATA, 0)).await.unwrap(), address))
    };
    let port = played.as_ref().map_or(80, |(listener, _)| listener.local_addr().unwrap().port());
    let code = format!(
        r#"const socket = require("net").connect({{ host: "{METADATA}", port: {port} }});
        return await new Promise((resolve) => {{
          socket.on("connect", () => resolve("connected"));
          socket.on("error", (e) => resolve(e.code));
          setTimeout(() => resolve("silence"), 3000);
        }});"#
    );
    assert_ne!(returns(&code).await, "connected");
    let routes = returns("return require('fs').readFileSync('/proc/net/route', 'utf8')").await;
    assert!(routes.as_str().unwrap().lines().count() > 1, "the rest of the world is: {routes}");
}

#[tokio::test]
async fn instance_cannot_reach_instances_or_control_api() {
    let up = up().await;
    up.deploy(&project!("neighbours", { "index.js" => r#"
        const net = require("net"), os = require("os");
        const config = { memory: "128MiB", maxInstances: 1, timeout: 20_000 };
        let listening;
        exports.neighbourA = { config, func: async (req, res) => {
          listening ??= new Promise((r) => net.createServer().listen(7777, "0.0.0.0", r));
          await listening;
          res.json(Object.values(os.networkInterfaces()).flat()
            .filter((a) => !a.internal && a.family === "IPv4").map((a) => a.address));
        } };
        exports.neighbourB = { config, func: (req, res) => {
          const socket = net.connect({ host: req.query.host, port: Number(req.query.port) });
          socket.on("connect", () => res.json("connected"));
          socket.on("error", (e) => res.json(e.code));
          setTimeout(() => res.headersSent || res.json("silence"), 3000);
        } };"# }))
        .await;
    let addresses = up.get("/neighbourA").await.expect(200).json();
    for address in addresses.as_array().unwrap() {
        let host = address.as_str().unwrap();
        let seen = up.get(&format!("/neighbourB?host={host}&port=7777")).await.expect(200).json();
        assert_ne!(seen, "connected", "{host}");
    }
    // The host's own loopback is another network; connections to the bridge's address of the host
    // are refused.
    let network = up.networks().await;
    let network: Vec<_> = network.iter().map(String::as_str).collect();
    let inspected = ask(&[&["network", "inspect"], network.as_slice()].concat()).await;
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    for network in inspected.as_array().unwrap() {
        let Some(gateway) = network["IPAM"]["Config"][0]["Gateway"].as_str() else { continue };
        for port in [up.control().port(), up.public().port()] {
            let target = format!("/neighbourB?host={gateway}&port={port}");
            assert_ne!(up.get(&target).await.expect(200).json(), "connected", "{target}");
        }
    }
}

#[tokio::test]
async fn network_none_has_nothing_but_loopback() {
    let up = up().await;
    up.deploy(&project!("alone", {
        "index.js" => "exports.alone = (req, res) =>
            res.json(require('fs').readdirSync('/sys/class/net'))",
        "epsilon.yaml" => "functions: { alone: { network: none, memory: 128MiB } }",
    }))
    .await;
    assert_eq!(up.get("/alone").await.expect(200).json(), json!(["lo"]));
    assert_eq!(up.container("alone").await.inspect["HostConfig"]["NetworkMode"], "none");
}

#[tokio::test]
async fn what_a_caller_sends_never_reaches_the_control_socket() {
    let up = probe().await;
    for path in ["/echo/health", "/echo/init", "/echo/../control.sock", "/echo/%2e%2e/health"] {
        let answer = Call::post_json(path, &json!({ "root": "/tmp" })).send(up.public()).await;
        assert_eq!(answer.expect(200).json()["method"], "POST", "{path}");
    }
}

#[tokio::test]
async fn children_of_a_function_end_with_its_instance() {
    let up = up().await;
    up.deploy(&project!("parent", { "index.js" => r#"
        exports.parent = { config: { memory: "128MiB", maxInstances: 1 }, func: (req, res) => {
          if (req.path === "/exit") process.exit();
          require("child_process").spawn("sleep", ["1234"], { detached: true, stdio: "ignore" });
          res.send("started");
        } };"# }))
        .await;
    up.get("/parent").await.expect(200);
    let container = up.container("parent").await.id;
    up.get("/parent/exit").await.expect_error(502, "FUNCTION_CRASHED");
    until("the container is removed", SOON, async || {
        let left: Vec<_> = up.containers(Some("parent")).await;
        if left.iter().any(|c| c.id == container) { Err(left) } else { Ok(()) }
    })
    .await;
}
