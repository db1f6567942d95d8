//! How long the gateway takes to look up the function and choose its VM, with 10,000 functions and
//! 200 full VMs, and how much memory it needs for that. Measured, so it differs from machine to
//! machine.

use super::traffic::Rng;
use epsilon_api::{
    error::VmError,
    function::{FunctionSpec, ImageRef, Runtime, Version},
    ids::{DeploymentId, FunctionName, InstanceId, ProjectName, VersionId, VersionNumber, VmId},
    log::{LogQuery, LogRecord},
    units::{Bytes, MilliCores},
    vm::{Answer, Call, InstanceState, InstanceStatus, Vm, VmState, VmStatus},
};
use epsilon_gateway::bench::{Running, Trial};
use epsilon_placement::{
    hash,
    ring::{self, Ring},
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use http::Uri;
use jiff::Timestamp;
use std::{fmt::Write, hint::black_box, sync::Arc, time::Instant};

const FUNCTIONS: usize = 10_000;
const VMS: usize = 200;
/// What each VM reports.
const INSTANCES: usize = 100; // two of each function that is at home there
const IMAGES: usize = 400;
/// Placements of one turn: short, so that most turns are not interrupted by other processes.
const ROUNDS: usize = 1000;
const TURNS: usize = 800;

/// The table.
pub(super) fn table() -> String {
    let before = resident();
    let warm = trial(true);
    let held = resident().saturating_sub(before);
    let cold = trial(false);
    let uris: Vec<Uri> =
        (0..FUNCTIONS).map(|f| format!("/function-{f}/x?y=1").parse().unwrap()).collect();

    let build = if cfg!(debug_assertions) { "a development build" } else { "a release build" };
    let mut out = format!(
        "One lookup and placement, {FUNCTIONS} functions, {VMS} VMs with {INSTANCES} instances and {IMAGES} images each: the fastest \
         quarter of {TURNS} turns of {build}. Memory of all of it, the VMs' own reports included: {:.0} MiB.\n\n\
         | fleet | one call |\n|---|---:|\n",
        held as f64 / f64::from(1 << 20)
    );
    for (name, trial, calls) in [
        ("warm at home, no calls", &warm, 0),
        ("warm at home, 8 calls on each VM", &warm, 8 * VMS),
        ("warm at home, 32 calls on each VM", &warm, 32 * VMS),
        ("nothing warm anywhere", &cold, 0),
    ] {
        let _running = fill(trial, &uris, calls);
        let ns = time(trial, &uris);
        writeln!(out, "| {name} | {:.2} µs |", ns / 1e3).unwrap();
    }
    out
}

/// The functions and VMs; each VM has instances of the functions that are at home there, or of
/// none.
fn trial(is_warm: bool) -> Trial {
    let ids: Vec<String> = (0..VMS).map(|vm| format!("i-{vm:08x}")).collect();
    let size = Bytes::mib(32 << 10);
    let ring = Ring::new(ids.iter().map(|id| (id.as_str(), ring::weight(size.get()))));
    let mut at_home = vec![Vec::new(); VMS];
    for function in (0..FUNCTIONS).filter(|_| is_warm) {
        let home = ring.walk(hash::of_name(name(function).as_str())).next().unwrap();
        at_home[home].push(function);
    }
    let vms = ids.iter().zip(&at_home).map(|(id, functions)| {
        let vm: Arc<dyn Vm> = Arc::new(FixedStatusVm(status(id, size, functions)));
        vm
    });
    Trial::new((0..FUNCTIONS).map(version).collect(), vms.collect()).unwrap()
}

/// Running calls of functions, by Zipf's law.
fn fill(trial: &Trial, uris: &[Uri], calls: usize) -> Vec<Running> {
    let mut rng = Rng::new(3);
    let zipf = |rng: &mut Rng| (uris.len() as f64).powf(rng.unit()) as usize - 1;
    (0..calls).filter_map(|_| Some(trial.begin(&uris[zipf(&mut rng)])?.1)).collect()
}

/// Nanoseconds of one placement.
fn time(trial: &Trial, uris: &[Uri]) -> f64 {
    let mut rng = Rng::new(5);
    let mut turn = || {
        let order: Vec<usize> =
            (0..ROUNDS).map(|_| (uris.len() as f64).powf(rng.unit()) as usize - 1).collect();
        let began = Instant::now();
        for function in order {
            black_box(trial.place(&uris[function]));
        }
        began.elapsed().as_nanos() as f64 / ROUNDS as f64
    };
    let mut turns: Vec<f64> = (0..TURNS).map(|_| turn()).collect();
    turns.sort_by(f64::total_cmp);
    turns[TURNS / 4]
}

fn version(n: usize) -> Version {
    let function = name(n);
    Version {
        parts: None,
        image: ImageRef {
            reference: format!("registry.example/shop/{function}@sha256:{n:064x}"),
            digest: format!("sha256:{n:064x}"),
        },
        spec: FunctionSpec::new(Runtime::Node, "index.js", function.as_str()),
        function,
        number: VersionNumber::FIRST,
        project: ProjectName::parse("shop").unwrap(),
        deployment: DeploymentId::parse("d-0000000000000001").unwrap(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn name(n: usize) -> FunctionName {
    FunctionName::parse(&format!("function-{n}")).unwrap()
}

fn status(id: &str, size: Bytes, functions: &[usize]) -> VmStatus {
    let instance = |function: &usize| InstanceStatus {
        id: InstanceId::random(),
        function: name(*function),
        version: VersionNumber::FIRST,
        state: InstanceState::Idle,
        calls_active: 0,
        concurrency: 1,
        started_at: Timestamp::UNIX_EPOCH,
    };
    let image =
        |n| VersionId { function: name((n * 17) % FUNCTIONS), number: VersionNumber::FIRST };
    let images = if functions.is_empty() { 0 } else { IMAGES };
    VmStatus {
        cells: Default::default(),
        keeps: Vec::new(),
        id: VmId::parse(id).unwrap(),
        state: VmState::Ready,
        boot: 1,
        version: None,
        certificate_ends_at: None,
        cpu_millicores: MilliCores(8000),
        memory_bytes: size,
        memory_used_bytes: Bytes::mib(25 << 10),
        calls_active: 0,
        calls_waiting: 0,
        instances: functions.iter().cycle().take(INSTANCES).map(instance).collect(),
        images: (0..images).map(image).collect(),
    }
}

/// A VM that reports its state and does nothing.
#[derive(Debug)]
struct FixedStatusVm(VmStatus);

impl Vm for FixedStatusVm {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, VmError>> {
        let function = call.version.function.clone();
        Box::pin(async { Err(VmError::NoCapacity { function, cause: "it is none".into() }) })
    }

    fn ensure_ready(&self, _: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async { Ok(()) })
    }

    fn fetch(&self, _: Arc<Version>) -> BoxFuture<'_, Result<(), VmError>> {
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, _: &FunctionName) {}

    fn retire(&self, _: &VersionId) {}

    fn logs(&self, _: &FunctionName, _: LogQuery) -> BoxStream<'static, LogRecord> {
        Box::pin(futures_util::stream::empty())
    }

    fn status(&self) -> VmStatus {
        self.0.clone()
    }

    fn drain(&self, _: bool) {}
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
