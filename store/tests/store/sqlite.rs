//! SQLite only: the file is private, survives a kill, and errors name the cause.

use crate::support::open;
use epsilon_api::{
    build::{Built, BuiltFunction},
    chain::Chain,
    error::ErrorBody,
    function::{FunctionSpec, ImageRef, Runtime},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName},
};
use epsilon_store::StoreError;
use http::StatusCode;
use jiff::Timestamp;
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Names the file for the child of the kill test.
const CHILD_FILE: &str = "STORE_TEST_CHILD_FILE";
/// Acknowledgements that the parent waits for before it kills.
const ANSWERS: usize = 25;

#[tokio::test]
async fn the_file_is_private_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epsilon.db");
    let id = DeploymentId::random();
    open(&path).await.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
    assert_eq!(open(&path).await.deployment(&id).await.unwrap().id, id);
}

#[tokio::test]
async fn what_is_no_store_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "this is not a database, however long it may be".repeat(50)).unwrap();
    let err = epsilon_store::open(path.to_str().unwrap()).await.unwrap_err();
    assert!(err.to_string().contains("notes.txt"), "{err}");
    let err = epsilon_store::open("/nowhere/at/all.db").await.unwrap_err();
    assert!(matches!(err, StoreError::Open { .. }));
    let err = epsilon_store::open("mysql://db/x").await.unwrap_err();
    assert!(matches!(err, StoreError::UnknownScheme(scheme) if scheme == "mysql"));
}

/// Not a test of its own: [`kill_loses_nothing_that_was_answered`] runs it in a process to be
/// killed.
#[tokio::test]
#[ignore = "started by kill_loses_nothing_that_was_answered"]
async fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let store = open(Path::new(&path)).await;
    loop {
        let id = DeploymentId::random();
        store.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
        println!("answered {id}");
    }
}

#[tokio::test]
async fn kill_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epsilon.db");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sqlite::child_that_writes_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_FILE, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let answered: Vec<DeploymentId> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.split_once("answered ")?.1.parse().ok())
        .take(ANSWERS)
        .collect();
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert_eq!(answered.len(), ANSWERS);
    let store = open(&path).await;
    for id in &answered {
        store.deployment(id).await.unwrap();
    }
}

/// A cancelled deployment is a future dropped at any point. The one connection that writes must be
/// usable for the next operation each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_operation_leaves_the_store_usable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("epsilon.db")).await;
    let built = Built {
        project: ProjectName::parse("shop").unwrap(),
        functions: (0..20)
            .map(|n| BuiltFunction {
                name: FunctionName::parse(&format!("f{n}")).unwrap(),
                spec: FunctionSpec::new(Runtime::Node, "index.js", "f"),
                image: ImageRef { reference: "x".into(), digest: "sha256:1".into() },
                parts: None,
            })
            .collect(),
    };
    for round in 0..200u64 {
        let id = DeploymentId::random();
        store.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
        let limit = Duration::from_micros(round * 25);
        let _ = tokio::time::timeout(limit, store.prepare(&id, &built, Timestamp::now())).await;
        let why = ErrorBody::new(StatusCode::CONFLICT, "CANCELLED", "cancelled", None);
        store.fail_deployment(&id, &why, Timestamp::now()).await.unwrap();
        let (me, now) = (GatewayId::random(), Timestamp::now());
        assert_eq!(store.fail_unfinished(&me, now, &why, now).await.unwrap(), 0, "{round}");
    }
    assert!(store.snapshot().await.unwrap().is_empty());
}

/// A small file system of its own; unmounted at the end. Needs root, as all of the tests do.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[tokio::test]
async fn full_disk_recovers_when_space_is_freed() {
    let disk = SmallDisk::new("1m");
    let store = open(&disk.path().join("epsilon.db")).await;
    let built = Built {
        project: ProjectName::parse("shop").unwrap(),
        functions: (0..50)
            .map(|n| BuiltFunction {
                name: FunctionName::parse(&format!("f{n}")).unwrap(),
                spec: FunctionSpec::new(Runtime::Node, "index.js", "f".repeat(500)),
                image: ImageRef { reference: "x".into(), digest: "sha256:1".into() },
                parts: None,
            })
            .collect(),
    };
    let id = DeploymentId::random();
    store.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
    // Fills what the store leaves free, to the last byte.
    let ballast = disk.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write(&[0; 512]).is_ok_and(|written| written > 0) {}
    for round in 0..5 {
        let err = store.prepare(&id, &built, Timestamp::now()).await.unwrap_err();
        let error = Chain(&err).to_string();
        assert!(error.contains("disk is full"), "{round}: {error}");
    }
    assert!(store.snapshot().await.unwrap().is_empty(), "it can be read all the time");
    drop(file);
    std::fs::remove_file(ballast).unwrap();
    store.prepare(&id, &built, Timestamp::now()).await.unwrap();
    store.activate(&id, Timestamp::now()).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().len(), 50);
}
