//! Declarations of an image (`VOLUME`, `HEALTHCHECK`, `USER`) stay within the limits of its
//! instances.

use crate::{containers::server, probe};
use epsilon_e2e::project::Project;
use serde_json::json;

/// A server that reports what its volume is.
const SERVER: &str = r#"
const fs = require("fs");
const tried = (work) => { try { work(); return "done"; } catch (e) { return e.code; } };
require("http").createServer((req, res) => {
  const mounts = fs.readFileSync("/proc/mounts", "utf8").split("\n");
  res.setHeader("content-type", "application/json");
  res.end(JSON.stringify({
    write: tried(() => fs.writeFileSync("/data/x", "x")),
    fill: tried(() => fs.writeFileSync("/data/big", Buffer.alloc(80 << 20))),
    mount: mounts.find((line) => line.split(" ")[1] === "/data").split(" ").slice(2, 4).join(" "),
    checked: fs.existsSync("/tmp/checked"), uid: process.getuid(),
  }));
  fs.rmSync("/data/big", { force: true });
}).listen(process.env.PORT);"#;

fn add(project: &Project, lines: &str) {
    let dockerfile = std::fs::read_to_string(project.path().join("Dockerfile")).unwrap();
    project.write("Dockerfile", format!("{dockerfile}{lines}"));
}

#[tokio::test]
async fn volume_is_bounded_memory_and_healthcheck_never_runs() {
    let up = probe().await;
    let project = server("declares", "").await;
    project.write("server.js", SERVER);
    add(&project, "VOLUME /data\nUSER 0\nHEALTHCHECK --interval=1ms CMD touch /tmp/checked\n");
    up.deploy(&project).await;
    let seen = up.get("/declares").await.expect(200).json();
    assert_eq!((&seen["write"], &seen["fill"]), (&json!("done"), &json!("ENOSPC")), "{seen}");
    let mount = seen["mount"].as_str().unwrap();
    assert!(mount.starts_with("tmpfs rw,nosuid,nodev") && mount.contains("size=65536k"), "{mount}");
    assert_ne!(seen["uid"], 0, "whatever its USER is");
    let inspect = up.container("declares").await.inspect;
    assert_eq!(inspect["State"]["Health"], json!(null), "there is no health check");
    let volumes = inspect["Mounts"].as_array().unwrap();
    assert!(volumes.iter().all(|mount| mount["Type"] != "volume"), "{volumes:?}");
    let seen = up.get("/declares").await.expect(200).json();
    assert_eq!(seen["checked"], false, "{seen}");
}

#[tokio::test]
async fn volume_that_cannot_be_memory_is_refused() {
    let up = probe().await;
    let project = server("overlaid", "").await;
    add(&project, "VOLUME /etc/overlaid\n");
    let deployment = up.try_deploy(&project).await;
    let message = &deployment.failed().message;
    assert!(message.contains("the volume `/etc/overlaid`"), "{deployment:?}");
    up.get("/overlaid").await.expect_error(404, "FUNCTION_NOT_FOUND");
}
