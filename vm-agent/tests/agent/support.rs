//! An agent on the scripted engine in a directory of its own, and helpers for tests.

use crate::wrapper::{Image, Load};
use epsilon_api::{
    body::{self, CallBody},
    error::VmError,
    function::{FunctionSpec, ImageRef, Runtime, Version},
    ids::{DeploymentId, FunctionName, ProjectName, RequestId, VersionNumber},
    log::LogQuery,
    vm::{Answer, Call, Vm},
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_vm_agent::{
    app::Agent,
    config::{Config, Settings},
    engine::fake::FakeEngine,
};
use futures_util::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use prometheus::Registry;
use std::{path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

/// Longest wait for a condition; far more than any of them needs.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) agent: Agent,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) engine: FakeEngine,
    pub(crate) registry: Registry,
    pub(crate) folder: TempDir,
}

/// Settings from YAML; keys that operators cannot set are put on the checked ones.
pub(crate) fn config(folder: &Path, yaml: &str) -> Config {
    let mut written: serde_yaml::Mapping = serde_yaml::from_str(yaml).unwrap();
    let mut fixed = |key: &str| written.remove(key);
    let duration =
        |value: serde_yaml::Value| humantime::parse_duration(value.as_str().unwrap()).unwrap();
    let count = |value: serde_yaml::Value| value.as_u64().unwrap() as usize;
    let reconcile_every = fixed("reconcile_every").map(duration);
    let instance_idle_min = fixed("instance_idle_min").map(duration);
    let queue_depth = fixed("queue_depth").map(count);
    let starts_per_version = fixed("starts_per_version").map(count);
    let settings = Settings::read(&serde_yaml::to_string(&written).unwrap()).unwrap();
    let mut config = settings.check(folder).unwrap();
    config.reconcile_every = reconcile_every.unwrap_or(config.reconcile_every);
    config.keep.min = instance_idle_min.unwrap_or(config.keep.min);
    config.queue_depth = queue_depth.unwrap_or(config.queue_depth);
    config.starts_per_version = starts_per_version.unwrap_or(config.starts_per_version);
    config
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with("{}").await
    }

    pub(crate) async fn with(yaml: &str) -> Self {
        Self::on(FakeEngine::new(), tempfile::tempdir().unwrap(), yaml).await
    }

    pub(crate) async fn on(engine: FakeEngine, folder: TempDir, yaml: &str) -> Self {
        let registry = Registry::new();
        let config = config(folder.path(), yaml);
        let agent = Agent::with_engine(config, Arc::new(engine.clone()), &registry).await.unwrap();
        Self { vm: agent.vm(), agent, engine, registry, folder }
    }

    /// A function with an image of its own; `change` adjusts its settings.
    pub(crate) fn function(
        &self,
        name: &str,
        load: Load,
        change: impl FnOnce(&mut FunctionSpec),
    ) -> (Arc<Version>, Arc<Image>) {
        let image = Image::new(load);
        self.engine.add_image(name, image.program());
        let mut spec = FunctionSpec::new(Runtime::Node, "index.js", name);
        change(&mut spec);
        (version(name, 1, spec), image)
    }

    pub(crate) async fn get(&self, version: &Arc<Version>, path: &str) -> Result<Answer, VmError> {
        self.vm.call(call(version, path, body::empty())).await
    }

    /// The text of an answer that must succeed.
    pub(crate) async fn text(&self, version: &Arc<Version>, path: &str) -> String {
        text(self.get(version, path).await.unwrap()).await
    }

    pub(crate) fn states(&self) -> Vec<String> {
        self.vm
            .status()
            .instances
            .into_iter()
            .map(|instance| instance.state.as_str().to_owned())
            .collect()
    }

    pub(crate) async fn log(&self, version: &Version) -> Vec<String> {
        let lines = self.vm.logs(&version.function, LogQuery::default());
        lines.map(|record| record.message).collect().await
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(0.0, |family| {
            family
                .get_metric()
                .iter()
                .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
                .sum()
        })
    }

    /// Ends the agent and checks that nothing is left.
    pub(crate) async fn end(self) {
        self.agent.shutdown(Duration::from_secs(5)).await;
        assert_eq!(self.engine.containers(), [""; 0]);
        assert_eq!(self.engine.networks(), [""; 0]);
        let sockets = std::fs::read_dir(self.folder.path().join("vm/sockets")).unwrap();
        assert_eq!(sockets.count(), 0);
    }
}

pub(crate) fn version(name: &str, number: u32, spec: FunctionSpec) -> Arc<Version> {
    Arc::new(Version {
        parts: None,
        function: FunctionName::parse(name).unwrap(),
        number: VersionNumber::new(number).unwrap(),
        project: ProjectName::parse("test").unwrap(),
        deployment: DeploymentId::random(),
        image: ImageRef { reference: name.into(), digest: format!("sha256:{name}") },
        spec,
        created_at: jiff::Timestamp::now(),
    })
}

pub(crate) fn call(version: &Arc<Version>, path: &str, body: CallBody) -> Call {
    let request = Request::builder().uri(path).header("host", "test").body(body).unwrap();
    Call {
        version: Arc::clone(version),
        request_id: RequestId::random(),
        may_wait: true,
        request,
        upload: None,
        interim: None,
    }
}

pub(crate) async fn text(answer: Answer) -> String {
    let bytes = answer.response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn code(answer: &Result<Answer, VmError>) -> &'static str {
    answer.as_ref().err().map_or("OK", |err| err.verdict().code)
}

/// Waits until the condition holds; shows the last observed state when it does not.
pub(crate) async fn until<T: std::fmt::Debug>(
    look: impl Fn() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "last seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn one(n: u32) -> std::num::NonZeroU32 {
    std::num::NonZeroU32::new(n).unwrap()
}
