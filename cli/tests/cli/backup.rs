//! `epsilon backup` and `restore` without a container engine: keys and an empty store. An
//! end-to-end test has images; the tests of `backup/read.rs` have forged files.

use crate::support::{Ran, epsilon};
use epsilon_api::ids::{DeploymentId, GatewayId};
use epsilon_bootstrap::lock::Lock;
use epsilon_store::Gateway;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{fs, path::Path};
use tempfile::TempDir;

fn run(dir: &Path, args: &[&str]) -> Ran {
    epsilon(args, &[], b"", dir)
}

#[track_caller]
fn json(ran: &Ran) -> Value {
    assert_eq!(ran.code, 0, "{}", ran.golden());
    serde_json::from_str(&ran.stdout).unwrap()
}

#[track_caller]
fn refused(ran: &Ran, code: i32, word: &str) {
    assert_eq!(ran.code, code, "{}", ran.golden());
    assert!(ran.golden().contains(word), "{word}: {}", ran.golden());
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A data folder, with the store of a gateway whose last heartbeat is `silent_for` old.
async fn platform(dir: &TempDir, silent_for: SignedDuration) {
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("vm")).unwrap();
    fs::write(data.join("admin.key"), "epsilon_admin_x_y\n").unwrap();
    fs::write(data.join("vm/id"), "vm-1").unwrap();
    let store = epsilon_store::open(data.join("epsilon.db").to_str().unwrap()).await.unwrap();
    let gateway = GatewayId::random();
    store.begin_deployment(&DeploymentId::random(), &gateway, Timestamp::now()).await.unwrap();
    let heartbeat = Gateway {
        id: gateway,
        public_key: "ab".repeat(32),
        control_url: "http://127.0.0.1:8081".into(),
        seen_at: Timestamp::now() - silent_for,
    };
    store.gateway_heartbeat(&heartbeat).await.unwrap();
}

#[tokio::test]
async fn keys_and_store_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    platform(&dir, SignedDuration::ZERO).await;
    let data = dir.path().join("data");
    let _lock = Lock::take(&data).unwrap();
    let made = json(&run(dir.path(), &["backup", "b.tgz", "--data-dir", "data", "--json"]));
    assert_eq!(made["store"], "sqlite");
    assert_eq!(made["keys"], serde_json::json!(["admin.key"]));
    assert_eq!(names(dir.path()), ["b.tgz", "data"]);

    refused(&run(dir.path(), &["restore", "b.tgz", "--data-dir", "data"]), 1, "a gateway runs on");
    json(&run(dir.path(), &["restore", "b.tgz", "--data-dir", "new", "--json"]));
    assert_eq!(names(&dir.path().join("new")), ["admin.key", "epsilon.db"]);
    assert_eq!(names(dir.path()), ["b.tgz", "data", "new"]);
    let read = |folder: &str| fs::read(dir.path().join(folder).join("admin.key")).unwrap();
    assert_eq!(read("new"), read("data"));
    let store = dir.path().join("new/epsilon.db");
    let store = epsilon_store::open(store.to_str().unwrap()).await.unwrap();
    assert_eq!(store.gateways().await.unwrap().len(), 1);
    refused(&run(dir.path(), &["restore", "b.tgz", "--data-dir", "new"]), 1, "is not empty");

    let mut bytes = fs::read(dir.path().join("b.tgz")).unwrap();
    let middle = bytes.len() / 2;
    // Not one bit: in a run of zeros there are bits that change nothing of what is unpacked.
    bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(dir.path().join("damaged.tgz"), bytes).unwrap();
    refused(
        &run(dir.path(), &["restore", "damaged.tgz", "--data-dir", "third"]),
        1,
        "nothing was restored",
    );
    assert_eq!(names(dir.path()), ["b.tgz", "damaged.tgz", "data", "new"]);
}

#[tokio::test]
async fn a_store_in_a_database_is_reported_as_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    platform(&dir, SignedDuration::from_hours(24)).await;
    let lock = Lock::take(&dir.path().join("data")).unwrap();
    let backup = |env: &[(&str, &str)]| {
        epsilon(&["backup", "b.tar", "--data-dir", "data"], env, b"", dir.path())
    };
    // The file that stays when a gateway moves to PostgreSQL.
    refused(&backup(&[]), 1, "EPSILON_GATEWAY_STORE");
    assert_eq!(names(dir.path()), ["data"]);
    let made = backup(&[("EPSILON_GATEWAY_STORE", "postgres://db/epsilon")]);
    assert_eq!(made.code, 0, "{}", made.golden());
    assert!(
        made.stdout.contains("pg_dump") && made.stdout.contains("admin.key"),
        "{}",
        made.stdout
    );
    let restored = run(dir.path(), &["restore", "b.tar", "--data-dir", "new"]);
    assert_eq!(restored.code, 0, "{}", restored.golden());
    assert!(restored.stdout.contains("pg_restore"), "{}", restored.stdout);
    assert_eq!(names(&dir.path().join("new")), ["admin.key"]);
    drop(lock);
    // Without a running gateway this cannot be known.
    assert_eq!(run(dir.path(), &["backup", "c.tar", "--data-dir", "data"]).code, 0);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    platform(&dir, SignedDuration::ZERO).await;
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::write(dir.path().join("there.tar"), "mine").unwrap();
    for (file, data, word) in [
        ("b.tar", "empty", "no gateway keeps its data"),
        ("b.tar", "nowhere", "no gateway keeps its data"),
        ("data/b.tar", "data", "inside of the data folder"),
        ("there.tar", "data", "already exists"),
        ("empty", "data", "it is a folder"),
        ("nowhere/b.tar", "data", "its folder does not exist"),
    ] {
        let ran = run(dir.path(), &["backup", file, "--data-dir", data]);
        assert!(ran.code > 0 && ran.golden().contains(word), "{word}: {}", ran.golden());
        assert_eq!(names(dir.path()), ["data", "empty", "there.tar"], "{word}");
    }
    assert_eq!(fs::read(dir.path().join("there.tar")).unwrap(), b"mine");
    let forced = run(dir.path(), &["backup", "there.tar", "--force", "--data-dir", "data"]);
    assert_eq!(forced.code, 0, "{}", forced.golden());
    refused(&run(dir.path(), &["restore", "none.tar", "--data-dir", "new"]), 1, "cannot be read");
}
