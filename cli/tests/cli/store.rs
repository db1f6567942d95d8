//! `epsilon store copy`, on files. That nothing is lost is proved in the store's own tests.

use crate::support::{Ran, epsilon};
use epsilon_api::ids::{DeploymentId, GatewayId, VmId};
use epsilon_store::Gateway;
use insta::assert_snapshot;
use jiff::Timestamp;
use std::path::Path;

fn copy(dir: &Path, more: &[&str]) -> Ran {
    let args = [&["store", "copy"], more].concat();
    epsilon(&args, &[], b"", dir)
}

async fn populate(file: &Path) {
    let store = epsilon_store::open(file.to_str().unwrap()).await.unwrap();
    let gateway = GatewayId::parse("g-00000000000a").unwrap();
    store.begin_deployment(&DeploymentId::random(), &gateway, Timestamp::now()).await.unwrap();
    store.set_draining(&VmId::parse("vm-1").unwrap(), true).await.unwrap();
}

#[tokio::test]
async fn a_store_is_copied_once() {
    let dir = tempfile::tempdir().unwrap();
    populate(&dir.path().join("old.db")).await;
    let ways = ["--from", "old.db", "--to", "new.db"];
    assert_snapshot!("store_copied", copy(dir.path(), &ways).golden());
    assert_snapshot!("store_not_empty", copy(dir.path(), &ways).golden());
    let json = copy(dir.path(), &["--from", "old.db", "--to", "third.db", "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows[1], serde_json::json!({"what": "deployments", "rows": 1}));
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    populate(&dir.path().join("old.db")).await;
    for (name, from, to) in [
        ("store_no_source", "none.db", "new.db"),
        ("store_unknown", "mysql://db/x", "new.db"),
        ("store_refused", "old.db", "postgres://epsilon:geheim@127.0.0.1:1/x"),
    ] {
        assert_snapshot!(name, copy(dir.path(), &["--from", from, "--to", to]).golden());
    }
    assert!(!dir.path().join("new.db").exists());
}

#[tokio::test]
async fn a_gateway_that_is_at_work_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old.db");
    let store = epsilon_store::open(file.to_str().unwrap()).await.unwrap();
    let heartbeat = async move || {
        let gateway = Gateway {
            id: GatewayId::parse("g-00000000000a").unwrap(),
            public_key: "ab".repeat(32),
            control_url: "http://127.0.0.1:8081".into(),
            seen_at: Timestamp::now(),
        };
        store.gateway_heartbeat(&gateway).await.unwrap();
    };
    heartbeat().await; // received before the copy begins
    let heartbeats = tokio::spawn(async move {
        loop {
            heartbeat().await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let path = dir.path().to_owned();
    let run = move || copy(&path, &["--from", "old.db", "--to", "new.db"]);
    let output = tokio::task::spawn_blocking(run).await.unwrap().golden();
    assert_snapshot!("store_in_use", output.replace("waiting 14 s", "waiting 15 s"));
    heartbeats.abort();
}
