//! The work of `epsilon store copy`: nothing is lost from one back end to the other, in both
//! directions.

use crate::support::*;
use epsilon_api::ids::{DeploymentId, FunctionName, GatewayId, VmId};
use epsilon_store::{
    CopyError, Deployment, Gateway, Key, KeyRole, Member, Page, Progress, Store, StoreError,
    StoredVersion, testing::Postgres,
};
use jiff::Timestamp;
use sqlx::Connection;
use std::{sync::Mutex, time::Duration};

/// More functions than are copied in one statement.
const MANY: usize = 1_100;

/// Contents of a populated store that cannot be listed.
struct Known {
    keys: Vec<Key>,
    /// Prepared and unfinished, of a gateway whose heartbeat is old.
    at_work: DeploymentId,
    leader: GatewayId,
    leads_from: Timestamp,
}

/// Everything that the trait can read.
#[derive(Debug, PartialEq)]
struct Everything {
    functions: Vec<epsilon_api::function::Version>,
    versions: Vec<Vec<StoredVersion>>,
    deployments: Vec<Deployment>,
    keys: Vec<Option<Key>>,
    draining: Vec<VmId>,
    members: Vec<Member>,
    gateways: Vec<Gateway>,
}

async fn populate(store: &dyn Store) -> Known {
    let names: Vec<String> = (0..MANY).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "a")).collect();
    deploy(store, "many", &many).await.unwrap();
    for digest in ["a", "b", "c"] {
        deploy(store, "shop", &[("Pay", digest), ("gone", digest)]).await.unwrap();
    }
    store.rollback(&name("Pay"), Some(v(2))).await.unwrap();
    store.delete_function(&name("gone"), now()).await.unwrap();
    let failed = begin(store).await;
    store.fail_deployment(&failed, &why(), now()).await.unwrap();

    let silent = gateway(ago(now(), 50));
    store.gateway_heartbeat(&silent).await.unwrap();
    let at_work = begin_at(store, &silent.id).await;
    store.prepare(&at_work, &built("shop", &[("Pay", "d")]), now()).await.unwrap();

    let vms = [member("vm-1"), member("vm-2")];
    let mut keys = vec![
        key("k-admin", KeyRole::Admin),
        key("k-fleet", KeyRole::Fleet),
        key("k-builder", KeyRole::Builder),
    ];
    for one in &keys {
        store.replace_key(&silent.id, one, now()).await.unwrap();
    }
    for vm in &vms {
        let id = &vm.join.id;
        let own = key(&format!("k-{id}"), KeyRole::Member(id.clone()));
        store.join(vm, &own).await.unwrap();
        keys.push(own);
    }
    store.set_draining(&vms[1].join.id, true).await.unwrap();
    let leads_from = now();
    let lease = Duration::from_secs(30);
    assert!(store.lead(&silent.id, "autoscaler", lease, leads_from).await.unwrap());
    Known { keys, at_work, leader: silent.id, leads_from }
}

async fn read(store: &dyn Store, known: &Known) -> Everything {
    let all = Page { cursor: None, limit: 10_000 };
    let functions = store.snapshot().await.unwrap();
    let mut versions = Vec::new();
    for version in &functions {
        versions.push(store.versions(&version.function, &all).await.unwrap().items);
    }
    let mut keys = Vec::new();
    for key in &known.keys {
        keys.push(store.key(&key.id).await.unwrap());
    }
    Everything {
        versions,
        deployments: store.deployments(&all).await.unwrap().items,
        keys,
        draining: store.draining().await.unwrap(),
        members: store.members().await.unwrap(),
        gateways: store.gateways().await.unwrap(),
        functions,
    }
}

/// State that cannot be read shows in what happens next: numbers continue, leases hold, deployments
/// know their gateway.
async fn continues(store: &dyn Store, known: &Known) {
    let other = GatewayId::random();
    let leads = async |who: &GatewayId, after: i64| {
        let (lease, at) = (Duration::from_secs(30), ago(known.leads_from, -after));
        store.lead(who, "autoscaler", lease, at).await.unwrap()
    };
    assert!(!leads(&other, 29).await && leads(&known.leader, 29).await);

    let living = ago(now(), 300);
    assert_eq!(store.fail_unfinished(&other, living, &why(), now()).await.unwrap(), 0);
    store.activate(&known.at_work, now()).await.unwrap();
    assert_eq!(
        deploy(store, "bank", &[("gone", "x")]).await.unwrap(),
        [row("gone", 4, true)],
        "numbers of a deleted function are not used again"
    );
    assert_eq!(deploy(store, "shop", &[("Pay", "e")]).await.unwrap(), [row("Pay", 5, true)]);
    let newest = store.deployments(&first(1)).await.unwrap().items.remove(0);
    assert_eq!(newest.functions[0].name, FunctionName::parse("Pay").unwrap());
    let new = key("k-new", KeyRole::Admin);
    store.replace_key(&known.leader, &new, now()).await.unwrap();
    assert_eq!(store.key("k-admin").await.unwrap(), None, "it was known who made it");
}

async fn copies_all(from: &str, to: &str) {
    let known = {
        let store = epsilon_store::open(from).await.unwrap();
        populate(&*store).await
    };
    let reported = Mutex::new(Vec::new());
    let copied = epsilon_store::copy(from, to, &|progress| reported.lock().unwrap().push(progress))
        .await
        .unwrap();
    let rows = |what: &str| copied.iter().find(|copied| copied.what == what).unwrap().rows;
    assert_eq!(rows("functions"), MANY as u64 + 2);
    assert_eq!(rows("versions"), MANY as u64 + 4);
    assert_eq!((rows("deployments"), rows("keys"), rows("members")), (6, 5, 2));
    assert_eq!((rows("draining VMs"), rows("gateways"), rows("leases")), (1, 1, 1));
    let reported = reported.into_inner().unwrap();
    let of_functions = reported.iter().filter_map(|progress| match progress {
        Progress::Copying { copied, of } if copied.what == "functions" => Some((copied.rows, *of)),
        _ => None,
    });
    let all = MANY as u64 + 2;
    let parts = [0, 500, 1000, all].map(|rows| (rows, all));
    assert_eq!(of_functions.collect::<Vec<_>>(), parts);

    let (source, target) =
        (epsilon_store::open(from).await.unwrap(), epsilon_store::open(to).await.unwrap());
    assert_eq!(read(&*target, &known).await, read(&*source, &known).await);
    continues(&*target, &known).await;

    // Existing rows are never mixed with copied ones.
    let again = epsilon_store::copy(from, to, &|_| {}).await.unwrap_err();
    assert!(matches!(again, CopyError::NotEmpty("functions")), "{again}");
    continues(&*source, &known).await;
}

#[tokio::test]
async fn a_file_goes_to_a_server() {
    let dir = tempfile::tempdir().unwrap();
    // Characters with a meaning in a URL.
    let file = dir.path().join("100% mine? #1 ä.db");
    copies_all(file.to_str().unwrap(), &Postgres::shared().database().await).await;
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        3,
        "the file, its WAL and its index"
    );
}

#[tokio::test]
async fn a_server_goes_to_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", dir.path().join("new.db").display());
    copies_all(&Postgres::shared().database().await, &file).await;
}

/// The command prints that the file is to be put into its place, and people move that one file.
#[tokio::test]
async fn a_file_that_was_copied_to_is_whole_without_its_log() {
    let server = Postgres::shared().database().await;
    let source = epsilon_store::open(&server).await.unwrap();
    let known = populate(&*source).await;
    let dir = tempfile::tempdir().unwrap();
    let (made, place) = (dir.path().join("new.db"), dir.path().join("epsilon.db"));
    epsilon_store::copy(&server, made.to_str().unwrap(), &|_| {}).await.unwrap();
    std::fs::rename(&made, &place).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no log, no index");
    assert_eq!(read(&*open(&place).await, &known).await, read(&*source, &known).await);
}

#[tokio::test]
async fn a_source_that_a_gateway_uses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("epsilon.db");
    let store = open(&file).await;
    let to = Postgres::shared().database().await;
    let (mut me, gone) = (gateway(now()), gateway(ago(now(), 13)));
    for one in [&me, &gone] {
        store.gateway_heartbeat(one).await.unwrap();
    }
    let heartbeats = async {
        loop {
            me.seen_at = now();
            store.gateway_heartbeat(&me).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        copied = epsilon_store::copy(file.to_str().unwrap(), &to, &|_| {}) => {
            assert!(matches!(copied.unwrap_err(), CopyError::InUse(_)));
        }
        () = heartbeats => {}
    }

    // One stopped a while ago, the other one just now.
    me.seen_at = ago(now(), 60);
    store.gateway_heartbeat(&me).await.unwrap();
    let reported = Mutex::new(Vec::new());
    epsilon_store::copy(file.to_str().unwrap(), &to, &|progress| {
        reported.lock().unwrap().push(progress);
    })
    .await
    .unwrap();
    let first = reported.into_inner().unwrap().remove(0);
    let Progress::Waiting { gateway, up_to } = first else { panic!("{first:?}") };
    assert!(gateway == gone.id && up_to < Duration::from_secs(3), "{up_to:?}");
}

/// An upgrade that was undone: the previous release runs on, and does not copy what it only half
/// knows.
#[tokio::test]
async fn a_newer_schema_is_used_but_not_copied() {
    let url = Postgres::shared().database().await;
    drop(epsilon_store::open(&url).await.unwrap());
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
                 execution_time) VALUES (9999, 'later', true, '', 0)";
    sqlx::raw_sql(later).execute(&mut admin).await.unwrap();
    let store = epsilon_store::open(&url).await.unwrap();
    deploy(&*store, "shop", &[("pay", "a")]).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("new.db");
    let err = epsilon_store::copy(&url, to.to_str().unwrap(), &|_| {}).await.unwrap_err();
    assert!(matches!(err, CopyError::Newer) && !to.exists(), "{err}");
}

#[tokio::test]
async fn what_cannot_be_copied_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (nothing, file) = (dir.path().join("nothing.db"), dir.path().join("epsilon.db"));
    let (nothing, file) = (nothing.to_str().unwrap(), file.to_str().unwrap());
    let err = epsilon_store::copy(nothing, file, &|_| {}).await.unwrap_err();
    assert!(matches!(err, CopyError::NoSource(_)), "{err}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file was made");

    let known = populate(&*open(file.as_ref()).await).await;
    let unreachable = "postgres://missing@127.0.0.1:1/none";
    let err = epsilon_store::copy(file, unreachable, &|_| {}).await.unwrap_err();
    assert!(matches!(&err, CopyError::Target(StoreError::Connect { .. })), "{err}");

    // Fails half-way: a row that the target refuses, after others that it accepted.
    let to = Postgres::shared().database().await;
    let target = epsilon_store::open(&to).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(&to).await.unwrap();
    let refuse = "ALTER TABLE leaders ADD CONSTRAINT none CHECK (role = 'none')";
    sqlx::raw_sql(refuse).execute(&mut admin).await.unwrap();
    let err = epsilon_store::copy(file, &to, &|_| {}).await.unwrap_err();
    assert!(matches!(err, CopyError::Target(StoreError::Database(_))), "{err}");
    let left = read(&*target, &known).await;
    assert!(left.functions.is_empty() && left.deployments.is_empty() && left.members.is_empty());
}
