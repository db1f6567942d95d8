//! Rounds against a real store, scripted VMs and a builder that records removals.

use super::*;
use crate::{
    deploy::builders::Builders,
    fleet::{
        HealthPolicy,
        link::{Identity, LinkLimits},
    },
    testing::{self, FakeVm},
};
use epsilon_api::{
    build::{BuildError, BuildJob, Builder, Built, BuiltFunction},
    ids::{DeploymentId, FunctionName, ProjectName},
};
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token::Signer;
use epsilon_store::StoreError;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::future::ready;
use tempfile::TempDir;

#[derive(Debug, Default)]
struct Noting(Mutex<Vec<String>>, bool);

impl Builder for Noting {
    fn build(&self, _: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        panic!("nothing is built here")
    }

    fn remove(&self, image: ImageRef) -> BoxFuture<'_, Result<(), BuildError>> {
        self.0.lock().push(image.reference);
        let failed = BuildError {
            code: "REGISTRY_FAILED".into(),
            status: http::StatusCode::BAD_GATEWAY,
            message: "no answer".into(),
            hint: None,
        };
        Box::pin(ready(if self.1 { Err(failed) } else { Ok(()) }))
    }
}

struct World {
    retention: Retention,
    vms: Vec<Arc<FakeVm>>,
    builder: Arc<Noting>,
    _dir: TempDir,
}

impl World {
    async fn new(vms: usize, is_builder_broken: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epsilon.db");
        let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
        let vms: Vec<_> = (0..vms).map(|n| FakeVm::new(&format!("vm-{n}"))).collect();
        let fleet = Fleet::new(vms.iter().map(|vm| Arc::clone(vm) as _), &HealthPolicy::default());
        let builder = Arc::new(Noting(Mutex::default(), is_builder_broken));
        let local = Arc::clone(&builder) as Arc<dyn Builder>;
        let limits = LinkLimits { connect: Duration::from_secs(1), idle: Duration::from_secs(1) };
        let signer = Signer::load_or_create(&dir.path().join("gateway.key")).unwrap();
        let clock = Arc::new(Clock::start(Timestamp::now()));
        let identity = Identity { signer: Arc::new(signer), clock, tls: None, limits };
        let fleet = Arc::new(fleet);
        let retention = Retention {
            functions: Functions::for_tests(Arc::clone(&store), Arc::clone(&fleet)),
            store,
            fleet,
            builders: Arc::new(Builders::new(Some(local), identity, Duration::from_secs(1))),
            me: GatewayId::random(),
            keep: Keep { versions: NonZeroU32::MIN, grace: Duration::ZERO },
        };
        Self { retention, vms, builder, _dir: dir }
    }

    async fn deploy(&self, digest: &str) -> Result<(), StoreError> {
        let store = &self.retention.store;
        let id = DeploymentId::random();
        store.begin_deployment(&id, &self.retention.me, Timestamp::now()).await?;
        let name = FunctionName::parse("pay").unwrap();
        let image = ImageRef {
            reference: format!("epsilon/pay:{digest}"),
            digest: format!("sha256:{digest}"),
        };
        let functions =
            vec![BuiltFunction { name, spec: testing::spec("pay"), image, parts: None }];
        let built = Built { project: ProjectName::parse("shop").unwrap(), functions };
        store.prepare(&id, &built, Timestamp::now()).await?;
        store.activate(&id, Timestamp::now()).await.map(drop)
    }

    /// The removals that VMs and the builder received.
    fn removal_counts(&self) -> (Vec<usize>, usize) {
        let vms = self.vms.iter().map(|vm| vm.removed.lock().unwrap().len()).collect();
        (vms, self.builder.0.lock().len())
    }
}

#[tokio::test]
async fn unneeded_images_are_removed_everywhere() {
    let world = World::new(2, false).await;
    for digest in ["a", "b"] {
        world.deploy(digest).await.unwrap();
    }
    world.retention.round().await.unwrap();
    assert_eq!(world.removal_counts(), (vec![1, 1], 1));
    assert_eq!(*world.builder.0.lock(), ["epsilon/pay:a"]);
    world.retention.round().await.unwrap();
    assert_eq!(
        world.removal_counts(),
        (vec![1, 1], 1),
        "the image is gone and is not removed again"
    );
}

#[tokio::test]
async fn an_image_in_use_is_retried_later() {
    let mut world = World::new(1, false).await;
    for digest in ["a", "b"] {
        world.deploy(digest).await.unwrap();
    }
    world.vms[0].uses_images.store(true, std::sync::atomic::Ordering::SeqCst);
    world.retention.keep.grace = Duration::ZERO;
    world.retention.round().await.unwrap();
    let (vms, builder) = world.removal_counts();
    assert!(vms[0] > 0 && builder == 0, "the builder gets no removal: {vms:?} {builder}");
    world.deploy("a").await.expect("the image was not removed");
    world.vms[0].uses_images.store(false, std::sync::atomic::Ordering::SeqCst);
    world.retention.round().await.unwrap();
    assert_eq!(*world.builder.0.lock(), ["epsilon/pay:b"], "`a` is needed again");
}

#[tokio::test]
async fn a_vm_that_does_not_answer_is_tried_again() {
    let world = World::new(1, true).await;
    for digest in ["a", "b"] {
        world.deploy(digest).await.unwrap();
    }
    world.retention.round().await.unwrap();
    let before = world.removal_counts().1;
    world.retention.round().await.unwrap();
    assert!(world.removal_counts().1 > before);
}

#[tokio::test]
async fn only_the_leader_does_it() {
    let world = World::new(1, false).await;
    for digest in ["a", "b"] {
        world.deploy(digest).await.unwrap();
    }
    let other = GatewayId::random();
    let store = &world.retention.store;
    assert!(store.lead(&other, ROLE, LEASE, Timestamp::now()).await.unwrap());
    world.retention.round().await.unwrap();
    assert_eq!(world.removal_counts(), (vec![0], 0));
}
