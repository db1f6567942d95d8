//! The contract of every engine, as the agent relies on it. The same checks run on the Docker of
//! this machine and on the scripted engine, the real one first: where they differ, the fake is
//! wrong.
//!
//! Needs Docker and `busybox` (static; Debian's `busybox-static`), from which it makes its own
//! images.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use epsilon_api::{
    function::{FunctionSpec, ImageRef, Runtime, Version},
    ids::{DeploymentId, FunctionName, InstanceId, ProjectName, VersionNumber, VmId},
    units::{Bytes, MilliCores},
    vm::ImageRemoval,
};
use epsilon_vm_agent::{
    config::{Config, Settings},
    engine::{
        Attachment, ContainerName, ContainerSpec, Engine, EngineError, Exit, Firewall, NetworkSpec,
        Output, docker::DockerEngine, fake::FakeEngine,
    },
    labels::Labels,
};
use futures_util::StreamExt;
use prometheus::{HistogramOpts, HistogramVec};
use std::{
    collections::hash_map::DefaultHasher,
    future::pending,
    hash::{Hash, Hasher},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs until it is killed.
const IDLE: &[&str] = &["sleep", "1000000"];
/// Writes to both outputs, exits with 3.
const TALKER: &[&str] = &["sh", "-c", "sleep 0.2; echo out; echo err >&2; exit 3"];
/// Prints its hardening as seen from inside.
const PROBE: &[&str] = &["sh", "-c", PROBE_SCRIPT];
/// Doubles a text until memory is exhausted.
const EATER: &[&str] = &["sh", "-c", "x=a; while :; do x=$x$x; done"];

/// Prints its volumes, and whether a health check ran.
const VOLUMES: &[&str] = &["sh", "-c", VOLUMES_SCRIPT];

const VOLUMES_SCRIPT: &str = r#"
for at in /data /var/lib/db; do
  touch $at/x && echo $at writable
  grep " $at " /proc/mounts | grep -o nosuid
  grep " $at " /proc/mounts | grep -o nodev
  head -c 40000000 /dev/zero > $at/big 2>/dev/null && echo unbounded || echo bounded
  rm $at/big
done
sleep 1
ls /data/checked 2>/dev/null || echo unchecked
"#;

const PROBE_SCRIPT: &str = r#"
id -u; id -g
touch /x 2>/dev/null && echo root-writable || echo root-read-only
touch /tmp/x && echo tmp-writable
head -c 9000000 /dev/zero > /tmp/big 2>/dev/null && echo tmp-unbounded || echo tmp-bounded
rm /tmp/big; cat /bin/busybox > /tmp/busybox && chmod 755 /tmp/busybox && /tmp/busybox echo tmp-runs
cat /proc/self/oom_score_adj
grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '
ls /sys/class/net | tr '\n' ' '; echo
cat /proc/1/comm
ulimit -n
ls -d /run/epsilon && touch /run/epsilon/there && echo sockets-writable
"#;

fn config() -> Config {
    Settings::default().check(Path::new("/nowhere")).unwrap()
}

fn docker() -> DockerEngine {
    let opts = HistogramOpts::new("engine", "calls");
    DockerEngine::new(&config(), HistogramVec::new(opts, &["call"]).unwrap()).unwrap()
}

/// An image of busybox alone, named after what it runs; made once per machine.
fn image(command: &[&str]) -> ImageRef {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let command = serde_json::to_string(command).unwrap();
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    let reference = format!("epsilon-contract:{:016x}", hasher.finish());
    let digest = digest(&reference).unwrap_or_else(|| {
        import(&reference, &command, &[]);
        digest(&reference).unwrap()
    });
    ImageRef { reference, digest }
}

/// An image with one name, which is one of ours; made when it is first needed.
fn spare() -> ImageRef {
    ImageRef {
        reference: format!("epsilon/contract:{}", InstanceId::random()),
        digest: String::new(),
    }
}

fn import(reference: &str, command: &str, changes: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|at| Path::new(at).exists());
    std::fs::copy(found.expect("busybox-static is installed"), bin.join("busybox")).unwrap();
    for name in
        ["sh", "id", "touch", "head", "grep", "tr", "ls", "cat", "sleep", "echo", "rm", "chmod"]
    {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    let tar = Command::new("tar").arg("-C").arg(folder.path()).args(["-cf", "-", "."]).output();
    let mut child = Command::new("docker")
        .args(["import", "--change", &format!("CMD {command}")])
        .args(changes.iter().flat_map(|change| ["--change", change]))
        .args(["-", reference])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar.unwrap().stdout).unwrap();
    assert!(child.wait().unwrap().success());
}

fn digest(reference: &str) -> Option<String> {
    let args = ["image", "inspect", "--format", "{{.Id}}", reference];
    let output = Command::new("docker").args(args).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn fake() -> FakeEngine {
    let engine = FakeEngine::new();
    engine.add_image("idle", Arc::new(|_| Box::pin(pending())));
    engine.add_image(
        "talker",
        Arc::new(|process| {
            Box::pin(async move {
                process.print("out\n");
                process.print_error("err\n");
                3
            })
        }),
    );
    engine
}

fn fake_image(reference: &str) -> ImageRef {
    ImageRef { reference: reference.into(), digest: "sha256:fake".into() }
}

/// An engine and what to run on it.
struct Bench<E> {
    engine: E,
    vm: VmId,
    idle: ImageRef,
    talker: ImageRef,
    /// One of our images, used by this test only.
    spare: ImageRef,
}

fn vm() -> VmId {
    VmId::parse(&format!("contract-{}", InstanceId::random())).unwrap()
}

fn on_docker() -> Bench<DockerEngine> {
    Bench { engine: docker(), vm: vm(), idle: image(IDLE), talker: image(TALKER), spare: spare() }
}

fn on_fake() -> Bench<FakeEngine> {
    let engine = fake();
    let spare = fake_image("epsilon/contract:spare");
    engine.add_image(&spare.reference, Arc::new(|_| Box::pin(pending())));
    Bench { engine, vm: vm(), idle: fake_image("idle"), talker: fake_image("talker"), spare }
}

impl<E: Engine> Bench<E> {
    async fn spec(&self, image: &ImageRef) -> ContainerSpec {
        let id = InstanceId::random();
        let version = Version {
            parts: None,
            function: FunctionName::parse("contract").unwrap(),
            number: VersionNumber::FIRST,
            project: ProjectName::parse("contract").unwrap(),
            deployment: DeploymentId::random(),
            image: image.clone(),
            spec: FunctionSpec::new(Runtime::Node, "index.js", "contract"),
            created_at: jiff::Timestamp::now(),
        };
        ContainerSpec {
            name: ContainerName::parse(&format!("epsilon-contract-{id}")).unwrap(),
            image: self.engine.ensure_image(image).await.unwrap(),
            labels: Labels {
                vm: self.vm.clone(),
                instance: id,
                version: Some(Arc::new(version)),
                user: Some(65_532),
            },
            env: vec![("A".into(), "b c=d".into())],
            sockets: None,
            mounts: None,
            passwd: None,
            user: "65532:65532".into(),
            memory: Bytes::mib(64),
            cpu: MilliCores(64_000), // more than any machine here has
            network: Attachment::None,
            limits: config().limits,
        }
    }
}

/// Reads a container's whole output.
async fn read(mut output: futures_util::stream::BoxStream<'static, Output>) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let reading = async {
        while let Some(piece) = output.next().await {
            match piece {
                Output::Stdout(bytes) => out.extend_from_slice(&bytes),
                Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            }
        }
    };
    timeout(LIMIT, reading).await.unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Each check becomes a test on each engine.
macro_rules! contract {
    ($($check:ident;)*) => {
        mod real { $(#[tokio::test] async fn $check() { super::$check(super::on_docker()).await; })* }
        mod scripted { $(#[tokio::test] async fn $check() { super::$check(super::on_fake()).await; })* }
    };
}

contract! {
    machine_resources_are_reported;
    an_unknown_image_is_not_found;
    a_name_without_a_registry_is_never_pulled;
    output_and_exit_status_arrive;
    container_is_listed_by_label_and_its_output_readable;
    removing_kills_and_may_be_repeated;
    sigterm_ends_a_process_without_a_handler;
    a_frozen_container_can_be_thawed_and_removed;
    late_wait_gets_the_exit_status;
    a_name_is_used_once;
    the_unknown_is_not_found;
    own_unused_image_can_be_removed;
    the_network_is_made_once_and_removed_once;
    network_is_removed_despite_foreign_container;
}

async fn machine_resources_are_reported<E: Engine>(bench: Bench<E>) {
    let machine = bench.engine.ping().await.unwrap();
    assert!(machine.memory > Bytes::mib(100) && machine.cores >= 1);
}

async fn an_unknown_image_is_not_found<E: Engine>(bench: Bench<E>) {
    let unknown = ImageRef {
        // No registry listens there, so that no network is needed to learn that the image is
        // missing.
        reference: "127.0.0.1:9/missing/image:1".into(),
        digest: format!("sha256:{}", "0".repeat(64)),
    };
    assert!(bench.engine.ensure_image(&unknown).await.is_err());
}

/// The engine would pull it from Docker Hub, where anyone may have pushed that name.
async fn a_name_without_a_registry_is_never_pulled<E: Engine>(bench: Bench<E>) {
    let here_once = ImageRef {
        reference: "epsilon/contract/gone:0123456789ab".into(),
        digest: format!("sha256:{}", "0".repeat(64)),
    };
    let err = bench.engine.ensure_image(&here_once).await.unwrap_err();
    assert!(matches!(&err, EngineError::NotHere(name) if *name == here_once.reference), "{err:?}");
}

/// The same with the real engine: its metric counts the pulls.
#[tokio::test]
async fn docker_pulls_no_image_without_a_registry() {
    let opts = HistogramOpts::new("engine", "calls");
    let seconds = HistogramVec::new(opts, &["call"]).unwrap();
    let engine = DockerEngine::new(&config(), seconds.clone()).unwrap();
    let pulls = || seconds.with_label_values(&["pull"]).get_sample_count();
    for (reference, want) in [("epsilon/contract/gone:1", 0), ("127.0.0.1:9/contract/gone:1", 1)] {
        let digest = format!("sha256:{}", "0".repeat(64));
        let image = ImageRef { reference: reference.into(), digest };
        assert!(engine.ensure_image(&image).await.is_err(), "{reference}");
        assert_eq!(pulls(), want, "{reference}");
    }
}

async fn own_unused_image_can_be_removed<E: Engine>(mut bench: Bench<E>) {
    if bench.spare.digest.is_empty() {
        import(&bench.spare.reference, &serde_json::to_string(IDLE).unwrap(), &[]);
        bench.spare.digest = digest(&bench.spare.reference).unwrap();
    }
    let spec = bench.spec(&bench.spare).await;
    bench.engine.create(&spec).await.unwrap();
    let remove = async || bench.engine.remove_image(&bench.spare).await.unwrap();
    assert_eq!(remove().await, ImageRemoval::InUse);
    bench.engine.ensure_image(&bench.spare).await.expect("nothing was touched");
    bench.engine.remove(&spec.name).await.unwrap();
    for _ in 0..2 {
        assert_eq!(remove().await, ImageRemoval::Gone, "also when it is gone already");
    }
    assert!(matches!(bench.engine.create(&spec).await, Err(EngineError::NotFound(_))));
}

/// Neither our label nor one of our names; and a name of ours that points to another image by now.
#[tokio::test]
async fn an_image_that_is_not_ours_stays() {
    let bench = on_docker();
    let other = ImageRef { digest: format!("sha256:{}", "0".repeat(64)), ..bench.idle.clone() };
    for image in [&bench.idle, &other] {
        assert_eq!(bench.engine.remove_image(image).await.unwrap(), ImageRemoval::Gone);
        assert_eq!(digest(&bench.idle.reference).as_ref(), Some(&bench.idle.digest));
    }
    let pulled = bench.engine.pulled_images().await.unwrap();
    assert!(pulled.iter().all(|image| image.reference.contains("@sha256:")), "{pulled:?}");
    let disk =
        bench.engine.disk().await.unwrap().expect("this machine's engine is on this machine");
    assert!(disk.size > Bytes::mib(100) && disk.used_percent() <= 100, "{disk:?}");
}

async fn output_and_exit_status_arrive<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.talker).await;
    bench.engine.create(&spec).await.unwrap();
    let output = bench.engine.attach(&spec.name).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let exit = timeout(LIMIT, bench.engine.wait(&spec.name)).await.unwrap().unwrap();
    assert_eq!(exit, Exit { code: 3, out_of_memory: false });
    assert_eq!(read(output).await, ("out\n".into(), "err\n".into()));
    bench.engine.remove(&spec.name).await.unwrap();
}

async fn container_is_listed_by_label_and_its_output_readable<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.idle).await;
    bench.engine.create(&spec).await.unwrap();
    let found = bench.engine.list(&bench.vm).await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(!found[0].is_running);
    bench.engine.start(&spec.name).await.unwrap();
    let found = bench.engine.list(&bench.vm).await.unwrap();
    assert!(found[0].is_running);
    assert_eq!(found[0].name, spec.name);
    assert_eq!(Labels::from_map(&found[0].labels), Some(spec.labels.clone()));
    assert!(
        bench.engine.list(&vm()).await.unwrap().is_empty(),
        "other VMs' containers are not listed"
    );
    bench.engine.remove(&spec.name).await.unwrap();
    assert!(bench.engine.list(&bench.vm).await.unwrap().is_empty());
}

async fn removing_kills_and_may_be_repeated<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.idle).await;
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let (end, removed) = tokio::join!(timeout(LIMIT, bench.engine.wait(&spec.name)), async {
        tokio::task::yield_now().await;
        bench.engine.remove(&spec.name).await
    });
    removed.unwrap();
    // Its status, or that it is gone: both mean that it ended.
    assert!(matches!(end.unwrap(), Ok(_) | Err(EngineError::NotFound(_))));
    bench.engine.remove(&spec.name).await.unwrap();
}

async fn sigterm_ends_a_process_without_a_handler<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.idle).await;
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    bench.engine.terminate(&spec.name).await.unwrap();
    let exit = timeout(LIMIT, bench.engine.wait(&spec.name)).await.unwrap().unwrap();
    assert_eq!(exit.code, 143);
    bench.engine.remove(&spec.name).await.unwrap();
    assert!(bench.engine.terminate(&spec.name).await.is_err());
}

async fn a_frozen_container_can_be_thawed_and_removed<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.idle).await;
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let freezer = bench.engine.freezer(&spec.name).await.unwrap().unwrap();
    for _ in 0..2 {
        freezer.freeze().unwrap();
        freezer.thaw().unwrap();
    }
    freezer.thaw().unwrap();
    freezer.freeze().unwrap();
    timeout(LIMIT / 6, bench.engine.remove(&spec.name)).await.unwrap().unwrap();
    assert!(bench.engine.list(&bench.vm).await.unwrap().is_empty());
    assert!(freezer.thaw().is_err());
}

async fn late_wait_gets_the_exit_status<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.talker).await;
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    for _ in 0..2 {
        let exit = timeout(LIMIT, bench.engine.wait(&spec.name)).await.unwrap().unwrap();
        assert_eq!(exit.code, 3);
    }
    assert!(!bench.engine.list(&bench.vm).await.unwrap()[0].is_running);
    bench.engine.remove(&spec.name).await.unwrap();
}

async fn a_name_is_used_once<E: Engine>(bench: Bench<E>) {
    let spec = bench.spec(&bench.idle).await;
    bench.engine.create(&spec).await.unwrap();
    assert!(matches!(bench.engine.create(&spec).await, Err(EngineError::Refused(_))));
    bench.engine.remove(&spec.name).await.unwrap();
}

async fn the_unknown_is_not_found<E: Engine>(bench: Bench<E>) {
    let name = ContainerName::parse("epsilon-contract-missing").unwrap();
    let engine = &bench.engine;
    assert!(matches!(engine.start(&name).await, Err(EngineError::NotFound(_))));
    assert!(matches!(engine.wait(&name).await, Err(EngineError::NotFound(_))));
    assert!(matches!(engine.address(&name).await, Err(EngineError::NotFound(_))));
    assert!(engine.attach(&name).await.is_err());
    engine.remove(&name).await.unwrap();
    assert!(ContainerName::parse("../containers").is_err());
}

async fn the_network_is_made_once_and_removed_once<E: Engine>(bench: Bench<E>) {
    let id = InstanceId::random();
    let network = NetworkSpec {
        name: format!("epsilon-contract-{id}"),
        bridge: format!("epc{id}"),
        vm: bench.vm.clone(),
    };
    let engine = &bench.engine;
    engine.ensure_network(&network).await.unwrap();
    engine.ensure_network(&network).await.unwrap();
    let firewall = Firewall {
        bridge: network.bridge.clone(),
        resolvers: Vec::new(),
        open: Vec::new(),
        closed: Vec::new(),
    };
    engine.ensure_firewall(&firewall).await.unwrap();
    engine.ensure_firewall(&firewall).await.unwrap();
    let mut spec = bench.spec(&bench.idle).await;
    spec.network = Attachment::Bridge(network.name.clone());
    engine.create(&spec).await.unwrap();
    engine.start(&spec.name).await.unwrap();
    assert!(engine.address(&spec.name).await.unwrap().is_ipv4());
    engine.remove(&spec.name).await.unwrap();
    engine.remove_network(&network.name).await.unwrap();
    engine.remove_network(&network.name).await.unwrap();
    engine.remove_firewall(&network.bridge).await.unwrap();
    engine.remove_firewall(&network.bridge).await.unwrap();
}

/// A foreign container in the network is disconnected, not removed.
async fn network_is_removed_despite_foreign_container<E: Engine>(bench: Bench<E>) {
    let id = InstanceId::random();
    let network = NetworkSpec {
        name: format!("epsilon-contract-{id}"),
        bridge: format!("epc{id}"),
        vm: bench.vm.clone(),
    };
    let engine = &bench.engine;
    engine.ensure_network(&network).await.unwrap();
    let mut stranger = bench.spec(&bench.idle).await;
    stranger.network = Attachment::Bridge(network.name.clone());
    engine.create(&stranger).await.unwrap();
    engine.start(&stranger.name).await.unwrap();
    let removed = engine.remove_network(&network.name).await;
    let found = engine.list(&bench.vm).await.unwrap();
    engine.remove(&stranger.name).await.unwrap();
    removed.unwrap();
    assert!(found.iter().any(|one| one.name == stranger.name && one.is_running), "{found:?}");
    engine.remove_network(&network.name).await.unwrap();
}

/// Docker 20.10 sometimes keeps the endpoint of a container that is removed while it starts, and
/// then refuses to remove the network. Whether or not it happens in these rounds, the network is
/// removed.
#[tokio::test]
async fn network_is_removed_after_containers_removed_during_start() {
    let bench = on_docker();
    let id = InstanceId::random();
    let name = format!("epsilon-contract-{id}");
    let bridge = format!("epc{id}");
    let network = NetworkSpec { name, bridge, vm: bench.vm.clone() };
    bench.engine.ensure_network(&network).await.unwrap();
    for round in 0..4 {
        let mut spec = bench.spec(&bench.idle).await;
        spec.network = Attachment::Bridge(network.name.clone());
        bench.engine.create(&spec).await.unwrap();
        let engine = bench.engine.clone();
        let started = spec.name.clone();
        let start = tokio::spawn(async move { engine.start(&started).await });
        tokio::time::sleep(Duration::from_millis(40 * round)).await; // somewhere in its start
        while bench.engine.remove(&spec.name).await.is_err() {}
        drop(start.await.unwrap());
        bench.engine.remove(&spec.name).await.unwrap();
    }
    bench.engine.remove_network(&network.name).await.unwrap();
    let filter = format!("name={}", network.name);
    let left = Command::new("docker").args(["network", "ls", "-q", "-f", &filter]).output();
    assert_eq!(String::from_utf8(left.unwrap().stdout).unwrap(), "");
}

/// Only the real engine enforces hardening.
#[tokio::test]
async fn hardening_holds_from_inside() {
    let bench = on_docker();
    let folder = tempfile::tempdir().unwrap();
    let sockets = folder.path().join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    std::os::unix::fs::chown(&sockets, Some(65532), Some(65532)).unwrap();
    let mut spec = bench.spec(&image(PROBE)).await;
    spec.sockets = Some(sockets.clone());
    spec.limits.tmp_size = Bytes::mib(3);
    bench.engine.create(&spec).await.unwrap();
    let output = bench.engine.attach(&spec.name).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let (out, err) = read(output).await;
    bench.engine.remove(&spec.name).await.unwrap();
    let want = "65532\n65532\nroot-read-only\ntmp-writable\ntmp-bounded\ntmp-runs\n500\n\
        CapEff: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\nlo \ndocker-init\n16384\n\
        /run/epsilon\nsockets-writable\n";
    assert_eq!(out, want, "{err}");
    assert!(sockets.join("there").exists());
}

/// What an image declares: a health check in each millisecond, and two volumes on the engine's
/// disk.
#[tokio::test]
async fn images_health_checks_and_volumes_are_limited() {
    let bench = on_docker();
    let reference = format!("epsilon/contract:{}", InstanceId::random());
    let changes =
        ["HEALTHCHECK --interval=1ms CMD touch /data/checked", "VOLUME /data /var/lib/db/"];
    import(&reference, &serde_json::to_string(VOLUMES).unwrap(), &changes);
    let image = ImageRef { digest: digest(&reference).unwrap(), reference };
    let spec = bench.spec(&image).await;
    bench.engine.create(&spec).await.unwrap();
    let output = bench.engine.attach(&spec.name).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let (out, err) = read(output).await;
    let inspect = ["inspect", "-f", "{{json .Mounts}} {{json .State.Health}}", spec.name.as_str()];
    let inspected = Command::new("docker").args(inspect).output().unwrap();
    bench.engine.remove(&spec.name).await.unwrap();
    assert_eq!(bench.engine.remove_image(&image).await.unwrap(), ImageRemoval::Gone);
    let inspected = String::from_utf8(inspected.stdout).unwrap();
    assert!(
        !inspected.contains(r#""Type":"volume""#) && inspected.trim().ends_with("null"),
        "{inspected}"
    );
    let want = "/data writable\nnosuid\nnodev\nbounded\n\
        /var/lib/db writable\nnosuid\nnodev\nbounded\nunchecked\n";
    assert_eq!(out, want, "{err}");
}

#[tokio::test]
async fn out_of_memory_exit_is_recognised() {
    let bench = on_docker();
    let spec = bench.spec(&image(EATER)).await;
    bench.engine.create(&spec).await.unwrap();
    bench.engine.start(&spec.name).await.unwrap();
    let exit = timeout(LIMIT, bench.engine.wait(&spec.name)).await.unwrap().unwrap();
    bench.engine.remove(&spec.name).await.unwrap();
    assert!(exit.out_of_memory, "{exit:?}");
}
