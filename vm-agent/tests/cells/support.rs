//! An agent with cells in a directory of its own, a runtime base with this checkout's wrapper, and
//! functions on it.

use epsilon_api::{
    body,
    error::VmError,
    function::{FunctionSpec, ImageLayer, ImageRef, Parts, Runtime, Version},
    ids::{DeploymentId, FunctionName, InstanceId, ProjectName, RequestId, VersionNumber},
    log::LogQuery,
    vm::{Answer, Call, Vm, VmStatus},
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_vm_agent::{
    app::Agent,
    config::{Config, Settings},
};
use futures_util::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use prometheus::Registry;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for anything; far more than any of it needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
const RUNTIME: &str = "epsilon/runtime-node:current";
const WRAPPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../wrapper-image/node");

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Whether nothing is in a network that the engine refuses to remove as in use: Docker 20.10 can
/// miscount when many containers come and go at once, or are killed.
fn is_miscounted(network: &str) -> bool {
    let inside = docker(&["network", "inspect", "-f", "{{len .Containers}}", network]);
    let removal = Command::new("docker").args(["network", "rm", network]).output().unwrap();
    inside == "0" && String::from_utf8_lossy(&removal.stderr).contains("has active endpoints")
}

/// An image of the test's own, removed on drop.
#[derive(Debug)]
pub(crate) struct Image(ImageRef);

impl Image {
    /// `from` with directories of this machine copied in.
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

/// A runtime base, shared by the tests that run at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Base(Arc<Image>);

impl Base {
    pub(crate) fn new() -> Self {
        static ALIVE: Mutex<Weak<Image>> = Mutex::new(Weak::new());
        let mut alive = ALIVE.lock().unwrap();
        let image = alive.upgrade().unwrap_or_else(|| Arc::new(Self::image()));
        *alive = Arc::downgrade(&image);
        Self(image)
    }

    fn image_ref(&self) -> ImageRef {
        self.0.0.clone()
    }

    fn image() -> Image {
        let known = Command::new("docker").args(["image", "inspect", RUNTIME]).output().unwrap();
        assert!(known.status.success(), "there is no {RUNTIME}; `epsilon up` makes it");
        let wrapper = Path::new(WRAPPER);
        let (main, lib) = (wrapper.join("main.js"), wrapper.join("lib/."));
        Image::new(RUNTIME, &[(&main, "/epsilon/wrapper/"), (&lib, "/epsilon/wrapper/lib")])
    }
}

/// The code of a function as a layer in a builder's cache. Its image is the base, and cannot run
/// it.
pub(crate) fn function(
    world: &World,
    base: &Base,
    code: &str,
    change: impl FnOnce(&mut FunctionSpec),
) -> Arc<Version> {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    std::fs::create_dir(&app).unwrap();
    // No two functions have the same layer: it is the mount that makes them different.
    let name = format!("f{}", InstanceId::random());
    std::fs::write(app.join("index.js"), format!("{code}\n// {name}\n")).unwrap();
    let tar = folder.path().join("layer.tar");
    run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(folder.path()).arg("app"));
    let hex = run(Command::new("sha256sum").arg(&tar))[..64].to_owned();
    std::fs::create_dir_all(world.layer_cache()).unwrap();
    std::fs::copy(&tar, world.layer_cache().join(format!("{hex}.tar"))).unwrap();
    let base = base.image_ref();
    let layers = vec![ImageLayer { diff_id: format!("sha256:{hex}"), blob: None }];
    version(&name, base.clone(), Some(Parts { base, layers }), change)
}

/// The same as an image that can run without cells; its layers are in no builder's cache.
pub(crate) fn image_of(base: &Base, code: &str) -> (Image, Arc<Version>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("index.js"), code).unwrap();
    let parts = Parts { base: base.image_ref(), layers: Vec::new() };
    let image = Image::new(&base.image_ref().reference, &[(&folder.path().join("."), "/app")]);
    let name = format!("f{}", InstanceId::random());
    let version = version(&name, image.0.clone(), Some(parts), |_| {});
    (image, version)
}

fn version(
    name: &str,
    image: ImageRef,
    parts: Option<Parts>,
    change: impl FnOnce(&mut FunctionSpec),
) -> Arc<Version> {
    let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
    spec.timeout = Duration::from_secs(20);
    change(&mut spec);
    Arc::new(Version {
        parts,
        function: FunctionName::parse(name).unwrap(),
        number: VersionNumber::FIRST,
        project: ProjectName::parse("test").unwrap(),
        deployment: DeploymentId::random(),
        image,
        spec,
        created_at: jiff::Timestamp::now(),
    })
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An agent on this machine's Docker.
pub(crate) struct World {
    agent: Agent,
    folder: Data,
    registry: Registry,
}

impl World {
    pub(crate) async fn new(yaml: &str) -> Self {
        Self::on(tempfile::tempdir().unwrap(), yaml).await
    }

    /// With limits that are not settings.
    pub(crate) async fn with_limits(yaml: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::build(tempfile::tempdir().unwrap().into(), yaml, change).await
    }

    pub(crate) async fn on(folder: impl Into<Data>, yaml: &str) -> Self {
        Self::build(folder.into(), yaml, |_| {}).await
    }

    async fn build(folder: Data, yaml: &str, change: impl FnOnce(&mut Config)) -> Self {
        let mut settings = Settings::read(yaml).unwrap();
        settings.layer_cache = Some(folder.path().join("layers"));
        let registry = Registry::new();
        let mut config = settings.check(folder.path()).unwrap();
        change(&mut config);
        let agent = Agent::build(config, &registry).await.unwrap();
        Self { agent, folder, registry }
    }

    fn layer_cache(&self) -> PathBuf {
        self.folder.path().join("layers")
    }

    pub(crate) fn vm(&self) -> Arc<dyn Vm> {
        self.agent.vm()
    }

    pub(crate) fn status(&self) -> VmStatus {
        self.vm().status()
    }

    /// Sends the version, and waits for that many cells.
    pub(crate) async fn until_ready(&self, version: &Arc<Version>, cells: u32) {
        self.vm().fetch(Arc::clone(version)).await.unwrap();
        until(|| self.status().cells, |seen| seen.ready >= cells && seen.booting == 0).await;
    }

    pub(crate) async fn get(&self, version: &Arc<Version>, path: &str) -> Result<Answer, VmError> {
        let request =
            Request::builder().uri(path).header("host", "test").body(body::empty()).unwrap();
        let version = Arc::clone(version);
        let request_id = RequestId::random();
        let call =
            Call { version, request_id, may_wait: true, request, upload: None, interim: None };
        timeout(LIMIT, self.vm().call(call)).await.unwrap()
    }

    pub(crate) async fn text(&self, version: &Arc<Version>, path: &str) -> String {
        text(self.get(version, path).await.unwrap()).await
    }

    /// Waits for a line of the function's log that contains the text.
    pub(crate) async fn line(&self, version: &Version, part: &str) {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut lines = self.vm().logs(&version.function, query);
        let find = async { while !lines.next().await.unwrap().message.contains(part) {} };
        timeout(LIMIT, find).await.unwrap_or_else(|_| panic!("no line with `{part}`"));
    }

    /// How many starts that were to go through a cell had this outcome.
    pub(crate) fn assigned(&self, outcome: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|f| f.name() == "epsilon_cell_assignments_total");
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let metric = metrics.iter().find(|metric| metric.get_label()[0].value() == outcome);
        metric.map_or(0, |metric| metric.get_counter().get_value() as u64)
    }

    /// The interface of its network on this machine.
    pub(crate) fn bridge(&self) -> String {
        let network = format!("epsilon-{}", self.status().id);
        let option = r#"{{index .Options "com.docker.network.bridge.name"}}"#;
        docker(&["network", "inspect", "-f", option, &network])
    }

    /// Names of the VM's containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        let label = format!("label=epsilon.vm={}", self.status().id);
        let names = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }

    /// The container of the only instance.
    pub(crate) fn container(&self) -> String {
        let instances = self.status().instances;
        assert_eq!(instances.len(), 1);
        format!("epsilon-cell-{}", instances[0].id)
    }

    /// Directories of cells on which something is mounted.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let below = mounts_below(self.folder.path());
        below.into_iter().filter(|point| point.ends_with("app")).collect()
    }

    /// The directories of cells.
    pub(crate) fn cells(&self) -> Vec<PathBuf> {
        cells_in(self.folder.path())
    }

    /// Retires a version and waits until its instances are gone.
    pub(crate) async fn retire(&self, version: &Version) {
        self.vm().retire(&version.id());
        let of = |status: VmStatus| {
            status.instances.into_iter().filter(|i| i.function == version.function).count()
        };
        until(|| of(self.status()), |left| *left == 0).await;
    }

    /// Ends the agent as a kill does: with its runtime, so that no destructor runs.
    pub(crate) fn abandon(self) -> Data {
        let Self { agent, folder, .. } = self;
        drop(agent);
        folder
    }

    /// Shuts the agent down; nothing of its VM is left in the engine, in the kernel, or on disk.
    pub(crate) async fn end(self) -> Data {
        let id = self.status().id;
        self.agent.shutdown(Duration::from_secs(5)).await;
        let label = format!("label=epsilon.vm={id}");
        assert_eq!(docker(&["ps", "-aq", "--filter", &label]), "");
        let networks = docker(&["network", "ls", "-q", "--filter", &label]);
        assert!(networks.lines().all(is_miscounted), "left: {networks}");
        assert_eq!(mounts_below(self.folder.path()), Vec::<PathBuf>::new());
        assert_eq!(cells_in(self.folder.path()), Vec::<PathBuf>::new());
        let sockets = std::fs::read_dir(self.folder.path().join("vm/sockets")).unwrap();
        assert_eq!(sockets.count(), 0);
        self.folder
    }

    pub(crate) fn cells_folder(&self) -> PathBuf {
        self.folder.path().join("vm/cells")
    }
}

/// The directory of an agent. Mounts that are left when a test fails are removed with it.
#[derive(Debug)]
pub(crate) struct Data(TempDir);

impl Data {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl From<TempDir> for Data {
    fn from(folder: TempDir) -> Self {
        Self(folder)
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        for point in mounts_below(self.path()).into_iter().rev() {
            drop(Command::new("umount").arg("--lazy").arg(point).output());
        }
    }
}

/// Runs an agent in a runtime of its own and drops that.
pub(crate) fn run_and_kill(
    folder: impl Into<Data>,
    yaml: &'static str,
    act: impl AsyncFnOnce(&World) + Send + 'static,
) -> Data {
    let folder = folder.into();
    let life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let world = runtime.block_on(async {
            let world = World::on(folder, yaml).await;
            act(&world).await;
            world
        });
        runtime.shutdown_background();
        world.abandon()
    });
    life.join().unwrap()
}

fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

fn cells_in(folder: &Path) -> Vec<PathBuf> {
    let cells = std::fs::read_dir(folder.join("vm/cells")).into_iter().flatten().flatten();
    let is_cell = |name: &str| InstanceId::parse(name).is_ok();
    let cells = cells.filter(|entry| is_cell(&entry.file_name().to_string_lossy()));
    cells.map(|entry| entry.path()).collect()
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
