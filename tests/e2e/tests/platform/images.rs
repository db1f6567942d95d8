//! A function's image is a plain OCI image that runs anywhere, with layers ordered so that only
//! changed ones are shipped.

use crate::{probe, up};
use epsilon_e2e::{
    engine::{ask, docker},
    http::Call,
    project,
    up::Epsilon,
    wait::{SOON, until},
};
use serde_json::{Value, json};
use std::net::SocketAddr;

async fn image(up: &Epsilon, function: &str) -> String {
    let listed = up.cli(&["versions", function, "--json"]).await.expect(0).json();
    listed[0]["image"].as_str().unwrap().to_owned()
}

async fn layers(image: &str) -> Vec<String> {
    let inspected: Value = serde_json::from_str(&ask(&["image", "inspect", image]).await).unwrap();
    serde_json::from_value(inspected[0]["RootFS"]["Layers"].clone()).unwrap()
}

/// A container outside of the platform; removed when dropped.
struct Plain(String);

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}

#[tokio::test]
async fn docker_run_serves_the_function_on_8080() {
    let up = probe().await;
    let image = image(up, "echo").await;
    let label = format!("epsilon.e2e={}", std::process::id());
    let run = ["run", "-d", "--label", &label, "-p", "127.0.0.1:0:8080", &image];
    let plain = Plain(ask(&run).await);
    let address: SocketAddr = ask(&["port", &plain.0, "8080"]).await.parse().unwrap();
    let answer = until("the function serves on its own", SOON, async || {
        let call = Call::post_json("/any/path?x=1", &json!({ "n": 1 }));
        call.try_send(address).await.map_err(|broken| broken.to_string())
    })
    .await
    .expect(200)
    .json();
    assert_eq!(answer["url"], "/any/path?x=1");
    assert_eq!(answer["body"], json!({ "n": 1 }));
    // It ends on SIGTERM, without waiting for a kill.
    let began = std::time::Instant::now();
    ask(&["stop", "-t", "20", &plain.0]).await;
    assert!(began.elapsed().as_secs() < 10, "SIGTERM ends it");
    let log = docker(&["logs", &plain.0]).await.text();
    assert!(!log.contains('\u{1e}'), "human lines outside of the platform: {log:?}");
}

#[tokio::test]
async fn the_image_says_how_it_is_run() {
    let up = probe().await;
    let image = image(up, "echo").await;
    let inspected: Value = serde_json::from_str(&ask(&["image", "inspect", &image]).await).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["WorkingDir"], "/app");
    assert_eq!(config["Entrypoint"], json!(["node", "/epsilon/wrapper/main.js"]));
    assert_eq!(config["ExposedPorts"], json!({ "8080/tcp": {} }));
    assert_eq!(config["Labels"]["epsilon.image"], "function");
}

#[tokio::test]
async fn a_change_of_code_changes_only_the_last_layer() {
    let up = up().await;
    let project = project!("layered", {
        "index.js" => "exports.layered = (req, res) => res.send(require('ms')('1s') + '')",
        "package.json" => r#"{ "dependencies": { "ms": "2.1.3" } }"#,
    });
    up.deploy(&project).await;
    let first = layers(&image(up, "layered").await).await;
    project.write("index.js", "exports.layered = (req, res) => res.send(require('ms')('2s') + '')");
    let second = up.deploy(&project).await;
    assert_eq!(second.changed(), [("layered".into(), 2)]);
    let second = layers(&image(up, "layered").await).await;
    assert_eq!(first.len(), second.len());
    let (last, rest) = second.split_last().unwrap();
    assert_eq!(rest, &first[..first.len() - 1], "the base and the dependencies are the same");
    assert_ne!(Some(last), first.last());
    assert_eq!(up.get("/layered").await.expect(200).text(), "2000");
}

#[tokio::test]
async fn same_source_gives_same_digest_on_every_platform() {
    let up = up().await;
    let project =
        project!("constant", { "index.js" => "exports.constant = (req, res) => res.send('x')" });
    up.deploy(&project).await;
    let first = up.admin("/v1/functions/constant/versions").await[0]["digest"].clone();
    let other = Epsilon::start().await;
    other.deploy(&project).await;
    assert_eq!(other.admin("/v1/functions/constant/versions").await[0]["digest"], first);
    assert_eq!(other.get("/constant").await.expect(200).text(), "x");
}

#[tokio::test]
async fn what_belongs_to_the_machine_is_in_no_image() {
    let up = up().await;
    let project = project!("clean", {
        "index.js" => "exports.clean = (req, res) => res.json(require('fs').readdirSync('.').sort())",
        "node_modules/junk/index.js" => "the developer's own",
        ".git/config" => "[remote]",
        ".env" => "SECRET=1",
        ".gitignore" => ".env\n",
    });
    up.cli_in(&project.path(), &["deploy"]).await.expect(0);
    let files = up.get("/clean").await.expect(200).json();
    let files = files.to_string();
    for junk in [".git\"", "junk", ".env"] {
        assert!(!files.contains(junk), "{junk} in {files}");
    }
}
