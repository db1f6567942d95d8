//! Builders of test data: functions, deployments, members, gateways, keys.

use epsilon_api::{
    admin::DeploymentState,
    build::{Built, BuiltFunction},
    error::ErrorBody,
    fleet::{Join, MemberKind},
    function::{Blob, FunctionSpec, ImageLayer, ImageRef, Parts, Runtime},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber, VmId},
    units::{Bytes, MilliCores},
};
use epsilon_store::{Delivery, Gateway, Key, KeyRole, Member, Page, Store, StoreError};
use jiff::{SignedDuration, Timestamp};
use std::{path::Path, sync::Arc};

pub(crate) async fn open(path: &Path) -> Arc<dyn Store> {
    epsilon_store::open(path.to_str().unwrap()).await.unwrap()
}

pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

pub(crate) fn id() -> DeploymentId {
    DeploymentId::random()
}

pub(crate) fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

pub(crate) fn project(text: &str) -> ProjectName {
    ProjectName::parse(text).unwrap()
}

pub(crate) fn v(number: u32) -> VersionNumber {
    VersionNumber::new(number).unwrap()
}

pub(crate) fn first(limit: u32) -> Page {
    Page { cursor: None, limit }
}

pub(crate) fn built(owner: &str, functions: &[(&str, &str)]) -> Built {
    let functions = functions
        .iter()
        .map(|(function, digest)| BuiltFunction {
            name: name(function),
            spec: FunctionSpec::new(Runtime::Node, "index.js", *function),
            image: image(function, digest),
            parts: Some(parts(digest)),
        })
        .collect();
    Built { project: project(owner), functions }
}

pub(crate) fn image(function: &str, digest: &str) -> ImageRef {
    ImageRef {
        reference: format!("epsilon/{function}:{digest}"),
        digest: format!("sha256:{digest}"),
    }
}

pub(crate) fn parts(digest: &str) -> Parts {
    let blob = Blob { digest: format!("sha256:gz-{digest}"), bytes: Bytes::mib(1) };
    Parts {
        base: image("runtime-node", "base"),
        layers: vec![
            ImageLayer { diff_id: "sha256:packages".into(), blob: None },
            ImageLayer { diff_id: format!("sha256:code-{digest}"), blob: Some(blob) },
        ],
    }
}

pub(crate) fn why() -> ErrorBody {
    ErrorBody::new(http::StatusCode::UNPROCESSABLE_ENTITY, "LOAD_FAILED", "it threw", None)
}

pub(crate) async fn begin(store: &dyn Store) -> DeploymentId {
    begin_at(store, &GatewayId::random()).await
}

pub(crate) async fn begin_at(store: &dyn Store, gateway: &GatewayId) -> DeploymentId {
    let id = DeploymentId::random();
    store.begin_deployment(&id, gateway, now()).await.unwrap();
    id
}

pub(crate) fn delivery(owner: &str, id: &str, digest: &str, seen_at: Timestamp) -> Delivery {
    Delivery {
        project: project(owner),
        id: id.into(),
        digest: digest.into(),
        deployment: DeploymentId::random(),
        source: format!("github octo/{owner} main {digest}"),
        seen_at,
    }
}

pub(crate) fn gateway(seen_at: Timestamp) -> Gateway {
    Gateway {
        id: GatewayId::random(),
        public_key: "ab".repeat(32),
        control_url: "http://10.0.0.1:8081".into(),
        seen_at,
    }
}

pub(crate) fn member(id: &str) -> Member {
    let join = Join {
        protocol: 1,
        kind: MemberKind::Vm,
        id: VmId::parse(id).unwrap(),
        address: "10.0.0.9:7070".into(),
        tls: true,
        memory_bytes: Bytes::mib(512),
        cpu: MilliCores(1500),
    };
    Member { join, joined_at: now(), seen_at: now() }
}

pub(crate) fn key(id: &str, role: KeyRole) -> Key {
    Key { id: id.into(), role, hash: "00".repeat(32), created_at: now() }
}

/// A while before, or after when negative.
pub(crate) fn ago(of: Timestamp, seconds: i64) -> Timestamp {
    of - SignedDuration::from_secs(seconds)
}

/// A whole deployment; returns (name, version, changed).
pub(crate) async fn deploy(
    store: &dyn Store,
    owner: &str,
    functions: &[(&str, &str)],
) -> Result<Vec<(String, u32, bool)>, StoreError> {
    let id = begin(store).await;
    store.prepare(&id, &built(owner, functions), now()).await?;
    let done = store.activate(&id, now()).await?;
    assert_eq!((done.state, done.project), (DeploymentState::Done, Some(project(owner))));
    Ok(done.functions.iter().map(|f| (f.name.to_string(), f.version.get(), f.changed)).collect())
}

pub(crate) async fn active(store: &dyn Store) -> Vec<String> {
    store.snapshot().await.unwrap().iter().map(|version| version.id().to_string()).collect()
}

pub(crate) fn row(function: &str, version: u32, changed: bool) -> (String, u32, bool) {
    (function.to_owned(), version, changed)
}
