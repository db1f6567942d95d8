//! An agent with cells in a folder of its own, a runtime base with this checkout's wrapper, and functions upon it.

use epsilon_api::{
    body,
    error::CallError,
    function::{FunctionSpec, ImageRef, Network, Parts, Runtime, Version},
    ids::{DeploymentId, FunctionName, InstanceId, ProjectName, RequestId, VersionNumber},
    log::LogQuery,
    vm::{Answer, Call, Vm, VmStatus},
};
use epsilon_vm_agent::{app::Agent, config::Settings};
use futures_util::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use prometheus::Registry;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Longest that anything may take; far more than any of it needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
const RUNTIME: &str = "epsilon/runtime-node:current";
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../wrapper-image/node");

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image of the test's own, removed in the end.
#[derive(Debug)]
struct Image(ImageRef);

impl Image {
    /// `from` with folders of this machine copied in.
    fn new(from: &str, copies: &[(&Path, &str)]) -> Self {
        let name = format!("epsilon-test-{}", InstanceId::random());
        docker(&["create", "--name", &name, from]);
        for (source, target) in copies {
            docker(&["cp", &source.display().to_string(), &format!("{name}:{target}")]);
        }
        let reference = format!("{name}:1");
        let digest = docker(&["commit", &name, &reference]);
        docker(&["rm", &name]);
        Self(ImageRef { reference, digest })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rmi", "-f", &self.0.reference]).output());
    }
}

/// A runtime base.
#[derive(Debug)]
pub(crate) struct Base(Image);

impl Base {
    pub(crate) fn new() -> Self {
        let known = Command::new("docker").args(["image", "inspect", RUNTIME]).output().unwrap();
        assert!(known.status.success(), "there is no {RUNTIME}; `epsilon up` makes it");
        let wrapper = Path::new(WRAPPER);
        let (main, lib) = (wrapper.join("main.js"), wrapper.join("lib/."));
        Self(Image::new(RUNTIME, &[(&main, "/epsilon/wrapper/"), (&lib, "/epsilon/wrapper/lib")]))
    }
}

/// A function's first version, with its image.
#[derive(Debug)]
pub(crate) struct Function {
    _image: Image,
    version: Arc<Version>,
}

impl Function {
    pub(crate) fn new(base: &Base, code: &str, change: impl FnOnce(&mut FunctionSpec)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index.js"), code).unwrap();
        let base = &base.0.0;
        let image = Image::new(&base.reference, &[(&folder.path().join("."), "/app")]);
        let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
        spec.timeout = Duration::from_secs(20);
        change(&mut spec);
        let version = Version {
            parts: Some(Parts { base: base.clone(), layers: Vec::new() }),
            function: FunctionName::parse(&format!("f{}", InstanceId::random())).unwrap(),
            number: VersionNumber::FIRST,
            project: ProjectName::parse("test").unwrap(),
            deployment: DeploymentId::random(),
            image: image.0.clone(),
            spec,
            created_at: jiff::Timestamp::now(),
        };
        Self { _image: image, version: Arc::new(version) }
    }

    pub(crate) fn version(&self) -> Arc<Version> {
        Arc::clone(&self.version)
    }
}

/// An agent on this machine's Docker.
pub(crate) struct World {
    agent: Agent,
    folder: TempDir,
}

impl World {
    pub(crate) async fn new(yaml: &str) -> Self {
        Self::on(tempfile::tempdir().unwrap(), yaml).await
    }

    pub(crate) async fn on(folder: TempDir, yaml: &str) -> Self {
        let settings: Settings = serde_yaml::from_str(yaml).unwrap();
        let config = settings.check(folder.path()).unwrap();
        Self { agent: Agent::build(config, &Registry::new()).await.unwrap(), folder }
    }

    pub(crate) fn vm(&self) -> Arc<dyn Vm> {
        self.agent.vm()
    }

    pub(crate) fn status(&self) -> VmStatus {
        self.vm().status()
    }

    pub(crate) async fn until_ready(&self, cells: u32) {
        until(|| self.status().cells, |seen| seen.ready >= cells).await;
    }

    pub(crate) async fn get(&self, function: &Function, path: &str) -> Result<Answer, CallError> {
        let request =
            Request::builder().uri(path).header("host", "test").body(body::empty()).unwrap();
        let version = function.version();
        let request_id = RequestId::random();
        let call = Call { version, request_id, may_wait: true, request };
        timeout(LIMIT, self.vm().call(call)).await.unwrap()
    }

    pub(crate) async fn text(&self, function: &Function, path: &str) -> String {
        text(self.get(function, path).await.unwrap()).await
    }

    /// Waits for a line of the function's log that holds the text.
    pub(crate) async fn line(&self, function: &Function, part: &str) {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut lines = self.vm().logs(&function.version.function, query);
        let find = async { while !lines.next().await.unwrap().message.contains(part) {} };
        timeout(LIMIT, find).await.unwrap_or_else(|_| panic!("no line with `{part}`"));
    }

    /// Names of the VM's containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        let label = format!("label=epsilon.vm={}", self.status().id);
        let names = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// Folders that something is mounted on, below the agent's.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(self.folder.path())
    }

    /// Folders of cells.
    pub(crate) fn folders(&self) -> usize {
        folders_in(self.folder.path())
    }

    /// Ends the agent; nothing of its VM is left in the engine, in the kernel, or on disk.
    pub(crate) async fn end(self) {
        let id = self.status().id;
        self.agent.shutdown(Duration::from_secs(5)).await;
        let label = format!("label=epsilon.vm={id}");
        assert_eq!(docker(&["ps", "-aq", "--filter", &label]), "");
        assert_eq!(docker(&["network", "ls", "-q", "--filter", &label]), "");
        assert_eq!(mounts_below(self.folder.path()), [PathBuf::new(); 0]);
        assert_eq!(folders_in(self.folder.path()), 0);
        let sockets = std::fs::read_dir(self.folder.path().join("vm/sockets")).unwrap();
        assert_eq!(sockets.count(), 0);
    }
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

fn folders_in(folder: &Path) -> usize {
    let cells = std::fs::read_dir(folder.join("vm/cells")).into_iter().flatten().flatten();
    cells.filter(|entry| InstanceId::parse(&entry.file_name().to_string_lossy()).is_ok()).count()
}

pub(crate) async fn text(answer: Answer) -> String {
    let bytes = answer.response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn code(answer: &Result<Answer, CallError>) -> &'static str {
    answer.as_ref().err().map_or("OK", |err| err.verdict().code)
}

/// Waits until the condition holds; shows the last state that was seen when it does not.
pub(crate) async fn until<T: std::fmt::Debug>(
    look: impl Fn() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "last seen: {seen:?}");
        sleep(Duration::from_millis(5)).await;
    }
}
