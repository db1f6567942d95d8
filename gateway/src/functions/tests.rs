//! Each operation against a real store and a scripted VM: what is stored, what calls see, what the
//! VM is asked, and who the log line names.

use super::{
    actor::{Actor, KeyHolder, Rule},
    *,
};
use crate::{
    fleet::HealthPolicy,
    testing::{self, FakeVm},
    traffic::config::Settings,
};
use epsilon_api::{
    build::{Built, BuiltFunction},
    function::ImageRef,
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber},
    traffic::{Share, TrafficRequest},
};
use epsilon_store::StoreError;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::Registry;
use std::io;
use tempfile::TempDir;

impl Functions {
    /// The operations on a store and a fleet, with an empty table.
    pub(crate) fn for_tests(store: Arc<dyn Store>, fleet: Arc<Fleet>) -> Arc<Self> {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        Arc::new(Self {
            routes: Arc::new(Routes::new(Vec::new(), Vec::new(), Arc::clone(&metrics))),
            version_cache: Arc::new(VersionCache::new(Arc::clone(&store))),
            store,
            fleet,
            metrics,
            traffic: Traffic::new(&Settings::default()),
            start_limit: Duration::from_secs(5),
            close: CancellationToken::new(),
            background: TaskTracker::new(),
        })
    }
}

/// `pay` with two versions, of which the second serves, on one VM.
struct World {
    functions: Arc<Functions>,
    vm: Arc<FakeVm>,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epsilon.db");
        let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
        let vm = FakeVm::new("vm-1");
        let fleet = Arc::new(Fleet::new([Arc::clone(&vm) as _], &HealthPolicy::default()));
        let functions = Functions::for_tests(Arc::clone(&store), fleet);
        for digest in ["a", "b"] {
            deploy(&*store, digest).await;
        }
        let serving = store.snapshot().await.unwrap();
        functions.routes.change().await.sync_from_store(serving, Vec::new(), &functions.fleet);
        Self { functions, vm, _dir: dir }
    }

    /// The versions that get calls, by their shares.
    fn shares(&self) -> Vec<(u32, u8)> {
        let table = self.functions.routes.table();
        let Some(route) = table.named("pay") else { return Vec::new() };
        match route.split() {
            Some(split) => {
                let target =
                    |it: &crate::routes::split::Target| (it.plain.version.number.get(), it.percent);
                split.targets().iter().map(target).collect()
            }
            None => vec![(route.version.number.get(), 100)],
        }
    }
}

async fn deploy(store: &dyn Store, digest: &str) {
    let id = DeploymentId::random();
    store.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
    let image =
        ImageRef { reference: format!("epsilon/pay:{digest}"), digest: format!("sha256:{digest}") };
    let functions =
        vec![BuiltFunction { name: pay(), spec: testing::spec("pay"), image, parts: None }];
    let built = Built { project: ProjectName::parse("shop").unwrap(), functions };
    store.prepare(&id, &built, Timestamp::now()).await.unwrap();
    store.activate(&id, Timestamp::now()).await.unwrap();
}

fn pay() -> FunctionName {
    FunctionName::parse("pay").unwrap()
}

fn number(number: u32) -> VersionNumber {
    VersionNumber::new(number).unwrap()
}

fn somebody() -> Actor {
    let (key, peer) = ("0123456789ab".into(), "10.0.0.9".parse().unwrap());
    Actor::Api(KeyHolder { key, peer })
}

fn halves() -> TrafficRequest {
    let half = |version| Share { version: number(version), percent: 50 };
    TrafficRequest { shares: vec![half(1), half(2)], stable: Some(number(2)), ..Default::default() }
}

#[tokio::test]
async fn a_rollback_serves_the_old_version_and_warms_it() {
    let World { functions, vm, _dir } = &World::new().await;
    let version = functions.rollback(somebody(), pay(), None).await.unwrap();
    assert_eq!(version.number.get(), 1);
    assert_eq!(functions.store.active(&pay()).await.unwrap().number.get(), 1);
    assert_eq!(vm.retired(), ["pay@2"]);
    functions.background.close();
    functions.background.wait().await;
    assert_eq!(vm.ready(), ["pay@1"]);
    let again = functions.rollback(somebody(), pay(), None).await;
    assert!(
        matches!(again, Err(ChangeError::Store(StoreError::NoOlderVersion { .. }))),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_deleted_function_leaves_store_table_and_vm() {
    let world = World::new().await;
    let World { functions, vm, .. } = &world;
    let version = functions.delete(somebody(), pay()).await.unwrap();
    assert_eq!((version.number.get(), world.shares()), (2, vec![]));
    assert_eq!((vm.forgotten.lock().unwrap().len(), vm.retired()), (1, vec!["pay@2".to_owned()]));
    let again = functions.delete(somebody(), pay()).await;
    assert!(matches!(again, Err(ChangeError::Store(StoreError::FunctionNotFound(_)))), "{again:?}");
}

#[tokio::test]
async fn only_a_version_that_does_not_serve_is_retired() {
    let World { functions, vm, _dir } = &World::new().await;
    let serving = functions.retire(somebody(), pay(), number(2)).await;
    assert!(matches!(serving, Err(ChangeError::Store(StoreError::VersionServes { .. }))));
    assert_eq!(vm.retired(), Vec::<String>::new());
    functions.retire(somebody(), pay(), number(1)).await.unwrap();
    assert_eq!(vm.retired(), ["pay@1"]);
}

#[tokio::test]
async fn a_version_that_does_not_load_gets_no_calls() {
    let world = World::new().await;
    let World { functions, vm, .. } = &world;
    vm.broken.lock().unwrap().insert("pay".into(), "Error: no key".into());
    let promoted = functions.promote(somebody(), pay(), Some(number(1))).await;
    let not_ready = |err| matches!(err, ChangeError::NotReady { number, .. } if number.get() == 1);
    assert!(not_ready(promoted.unwrap_err()));
    assert!(not_ready(functions.split(somebody(), pay(), halves()).await.unwrap_err()));
    assert_eq!(world.shares(), [(2, 100)]);
    assert_eq!(vm.retired(), ["pay@1", "pay@1"], "what was started is retired again");
}

#[tokio::test]
async fn a_split_is_set_and_promoted() {
    let world = World::new().await;
    let functions = &world.functions;
    assert_eq!(functions.split(somebody(), pay(), halves()).await.unwrap().get(), 2);
    assert_eq!(world.shares(), [(2, 50), (1, 50)]);
    let version = functions.promote(somebody(), pay(), None).await.unwrap();
    assert_eq!((version.number.get(), world.shares()), (1, vec![(1, 100)]));
    let odd = TrafficRequest { abort_window_ms: Some(1), ..halves() };
    let odd = functions.split(somebody(), pay(), odd).await;
    assert!(matches!(odd, Err(ChangeError::AbortRule)), "{odd:?}");
}

/// The log at the default level, of one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_names_the_actor() {
    let World { functions, vm: _, _dir } = &World::new().await;
    let log = Log::default();
    let to = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    functions.rollback(somebody(), pay(), None).await.unwrap();
    functions.delete(somebody(), pay()).await.unwrap();
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    for what in ["Function rolled back", "Function deleted"] {
        let line = text.lines().find(|line| line.contains(what)).unwrap();
        assert!(line.contains("by=control API, key 0123456789ab, 10.0.0.9"), "{line}");
    }
    assert_eq!(Actor::Gateway(Rule::ErrorRate).to_string(), "gateway, error rate");
}
