//! `runtime: container`: any image or Dockerfile that listens on `$PORT`, over TCP, with the same
//! hardening, limits and errors.

use crate::probe;
use epsilon_e2e::{engine::ask, http::Call, project, project::Project};
use serde_json::json;

/// A server on plain Node without a wrapper. Its base is the platform's own runtime base, the one
/// image with Node that is certainly on this machine.
pub(crate) async fn server(name: &str, more: &str) -> Project {
    let listed = ask(&["images", "-q", "--filter", "label=epsilon.image=runtime"]).await;
    let base = listed.lines().next().expect("the runtime base is there").to_owned();
    project!(name, {
        "Dockerfile" => format!(
            "FROM {base}\nCOPY server.js /server.js\nENTRYPOINT [\"node\", \"/server.js\"]\n"),
        "server.js" => r#"
            require("http").createServer((req, res) => {
              if (req.url === "/exit") process.exit(1);
              if (req.url === "/never") return;
              const pieces = [];
              req.on("data", (piece) => pieces.push(piece)).on("end", () => {
                res.setHeader("content-type", "application/json");
                res.end(JSON.stringify({ method: req.method, url: req.url, uid: process.getuid(),
                  port: process.env.PORT, colour: process.env.COLOUR,
                  body: Buffer.concat(pieces).toString() }));
              });
            }).listen(process.env.PORT);"#,
        "epsilon.yaml" => format!("runtime: container\nfunctions:\n  {name}:\n    memory: 128MiB\n{more}"),
    })
}

#[tokio::test]
async fn a_folder_with_a_dockerfile_is_built_and_served() {
    let up = probe().await;
    let project = server("boxed", "    env: { COLOUR: red }\n    timeout: 2s\n").await;
    up.deploy(&project).await;
    let answer = Call::post("/boxed/path?x=1", "text/plain", "hello").send(up.public()).await;
    let seen = answer.expect(200).json();
    assert_eq!(seen["url"], "/path?x=1");
    assert_eq!(seen["method"], "POST");
    assert_eq!(seen["body"], "hello");
    assert_eq!(seen["port"], "8080");
    assert_eq!(seen["colour"], "red");
    assert_ne!(seen["uid"], 0);
    let host = up.container("boxed").await.inspect["HostConfig"].clone();
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(
        host["PortBindings"].as_object().map_or(0, serde_json::Map::len),
        0,
        "no port of the host"
    );

    for _ in 0..3 {
        up.get("/boxed/exit").await.expect_error(502, "FUNCTION_CRASHED");
        up.get("/boxed").await.expect(200);
    }
    up.get("/boxed/never").await.expect_error(504, "FUNCTION_TIMEOUT");
    up.get("/boxed").await.expect(200);
    assert_eq!(up.deploy(&project).await.changed(), [], "unchanged");
}

#[tokio::test]
async fn image_that_does_not_listen_never_serves() {
    let up = probe().await;
    let project = server("deaf", "").await;
    project.write("server.js", "setInterval(() => {}, 1000)");
    let deployment = up.try_deploy(&project).await;
    assert!(deployment.failed().message.contains("deaf"), "{deployment:?}");
    up.get("/deaf").await.expect_error(404, "FUNCTION_NOT_FOUND");
}

#[tokio::test]
async fn a_dockerfile_that_does_not_build_shows_why() {
    let up = probe().await;
    let project = server("unbuilt", "").await;
    project.write("Dockerfile", "FROM scratch\nCOPY missing.txt /\n");
    let deployment = up.try_deploy(&project).await;
    let error = deployment.failed();
    assert_eq!(error.code, "IMAGE_FAILED", "{error:?}");
    let output = format!("{error:?}{}", deployment.log());
    assert!(output.contains("missing.txt"), "{output}");
}
