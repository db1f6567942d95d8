//! Images in a registry instead of this machine's engine, against the real one that Debian ships as
//! `docker-registry`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use epsilon_e2e::{
    engine::{ask, docker},
    project,
    up::{Epsilon, Settings},
    wait::{SOON, until},
};
use epsilon_registry::debian::DebianRegistry;

#[tokio::test]
async fn images_go_to_a_registry_and_come_back_from_it() {
    let mut registry = DebianRegistry::start().await;
    let name = format!("{}/e2e", registry.address());
    let config = format!("builder: {{ registry: \"{name}\" }}");
    let up = Epsilon::start_with(Settings::config(&config)).await;
    let project = project!("remote", {
        "index.js" => "exports.remote = { config: { memory: '128MiB', idleTimeout: '1s' },
            func: (req, res) => res.send(require('ms')('1s') + '') }",
        "package.json" => r#"{ "dependencies": { "ms": "2.1.3" } }"#,
    });
    assert_eq!(up.deploy(&project).await.changed(), [("remote".into(), 1)]);
    assert_eq!(up.get("/remote").await.expect(200).text(), "1000");
    let image = up.admin("/v1/functions/remote/versions").await[0]["image"].clone();
    let image = image.as_str().unwrap().to_owned();
    assert!(image.starts_with(&name) && image.contains("@sha256:"), "{image}");

    // A machine that never saw the function: its image is pulled for the call.
    until("the instance has gone", SOON, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    ask(&["rmi", "-f", &image]).await;
    assert_ne!(docker(&["image", "inspect", &image]).await.code, 0, "it is gone from the engine");
    let answer = up.get("/remote").await.expect(200);
    assert!(answer.header("server-timing").contains("pull"), "{answer}");

    assert_eq!(up.deploy(&project).await.changed(), [], "unchanged");

    // Without the registry a push fails with a clear word, and what serves goes on.
    registry.stop().await;
    project.write("index.js", "exports.remote = (req, res) => res.send('2')");
    let failed = up.try_deploy(&project).await;
    assert_eq!(failed.failed().code, "REGISTRY_FAILED", "{failed:?}");
    up.get("/remote").await.expect(200);
    registry.start_again().await;
    up.deploy(&project).await;
    assert_eq!(up.get("/remote").await.expect(200).text(), "2");

    for version in up.admin("/v1/functions/remote/versions").await.as_array().unwrap() {
        docker(&["rmi", "-f", version["image"].as_str().unwrap()]).await;
    }
}
