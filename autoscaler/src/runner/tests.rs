//! The loop with a scripted group, scripted VMs and a paused clock: hours pass in milliseconds.

use super::*;
use crate::config::DEFAULTS;
use crate::{config::Settings, driver::GroupInstance};
use async_trait::async_trait;
use epsilon_api::{
    ids::{FunctionName, InstanceId, VersionNumber},
    units::{Bytes, MilliCores},
    vm::{InstanceState, InstanceStatus, VmState},
};
use parking_lot::Mutex;
use prometheus::Registry;
use std::collections::BTreeMap;
use tokio::task::JoinHandle;

/// A cloud with its VMs and a store, without failures unless scripted.
#[derive(Debug, Default)]
struct World {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    desired: u32,
    /// By id: when it takes calls, its calls, its marks.
    vms: BTreeMap<VmId, ScriptedVm>,
    made: u32,
    boot: Duration,
    draining: HashSet<VmId>,
    not_leader: bool,
    store_is_down: bool,
    group_fails: Option<fn() -> GroupError>,
    /// How long ordering VMs takes.
    slow: Duration,
    /// Every change requested from the cloud.
    orders: Vec<String>,
    queries: u32,
}

#[derive(Debug)]
pub(super) struct ScriptedVm {
    ready_at: Instant,
    pub(super) calls: u32,
    protected: bool,
    pub(super) draining: bool,
    ending: bool,
}

impl ScriptedVm {
    /// A VM that takes calls.
    pub(super) fn booted() -> Self {
        let ready_at = Instant::now();
        Self { ready_at, calls: 0, protected: false, draining: false, ending: false }
    }
}

impl World {
    /// A cloud with this many serving VMs of 8 places each.
    fn with(vms: u32) -> Arc<Self> {
        let world = Self::default();
        world.state.lock().grow(vms);
        world.state.lock().boot = Duration::from_secs(60);
        Arc::new(world)
    }

    /// Spreads this many calls evenly over the VMs that take calls; calls of other VMs end.
    fn load(&self, calls: u32) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.vms.values_mut().for_each(|vm| vm.calls = 0);
        let serving: Vec<&mut ScriptedVm> = state
            .vms
            .values_mut()
            .filter(|vm| vm.ready_at <= now && !vm.draining && !vm.ending)
            .collect();
        let count = serving.len().max(1) as u32;
        for (n, vm) in (0..).zip(serving) {
            vm.calls = calls / count + u32::from(n < calls % count);
        }
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        edit(&mut self.state.lock())
    }

    fn orders(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().orders)
    }

    fn count(&self) -> usize {
        self.state.lock().vms.len()
    }
}

impl State {
    fn grow(&mut self, desired: u32) {
        self.desired = desired;
        while (self.vms.len() as u32) < desired {
            self.made += 1;
            let id = VmId::parse(&format!("i-{:02}", self.made)).unwrap();
            let vm = ScriptedVm { ready_at: Instant::now() + self.boot, ..ScriptedVm::booted() };
            self.vms.insert(id, vm);
        }
    }

    fn answer(&mut self) -> Result<(), GroupError> {
        self.queries += 1;
        self.group_fails.map_or(Ok(()), |fail| Err(fail()))
    }
}

#[async_trait]
impl ScaleGroup for World {
    async fn describe(&self, _: &[VmId]) -> Result<Group, GroupError> {
        let mut state = self.state.lock();
        state.answer()?;
        let instances = state.vms.iter().map(|(id, vm)| GroupInstance {
            id: id.clone(),
            phase: match (vm.ending, vm.ready_at <= Instant::now()) {
                (true, _) => crate::driver::Phase::Waiting,
                (false, true) => crate::driver::Phase::Serving,
                (false, false) => crate::driver::Phase::Starting,
            },
            protected: vm.protected,
        });
        Ok(Group { desired: state.desired, min: 1, max: 20, instances: instances.collect() })
    }

    async fn set_desired(&self, vms: u32) -> Result<(), GroupError> {
        let slow = self.state.lock().slow;
        tokio::time::sleep(slow).await;
        let mut state = self.state.lock();
        state.answer()?;
        assert!(vms > state.desired, "never called to make the group smaller");
        state.orders.push(format!("desired {vms}"));
        state.grow(vms);
        Ok(())
    }

    async fn protect(&self, vms: &[VmId], protected: bool) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.answer()?;
        for id in vms {
            if let Some(vm) = state.vms.get_mut(id) {
                vm.protected = protected;
            }
        }
        Ok(())
    }

    async fn terminate(&self, id: &VmId) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.answer()?;
        let vm = state.vms.get_mut(id).unwrap();
        assert!(vm.draining, "only drained VMs are terminated");
        vm.ending = true;
        let calls = vm.calls;
        state.desired -= 1;
        state.orders.push(format!("end {id} with {calls} calls"));
        Ok(())
    }

    async fn complete(&self, id: &VmId) -> Result<(), GroupError> {
        let mut state = self.state.lock();
        state.answer()?;
        state.vms.remove(id);
        state.orders.push(format!("let {id} go"));
        Ok(())
    }

    async fn heartbeat(&self, _: &VmId) -> Result<(), GroupError> {
        self.state.lock().answer()
    }
}

#[async_trait]
impl Vms for World {
    fn status(&self) -> Vec<VmStatus> {
        let state = self.state.lock();
        let ready = state.vms.iter().filter(|(_, vm)| vm.ready_at <= Instant::now());
        ready.map(|(id, vm)| status(id, vm)).collect()
    }

    fn memory(&self, _: &InstanceStatus) -> Option<Bytes> {
        Some(Bytes::mib(256))
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        Ok(self.state.lock().draining.iter().cloned().collect())
    }

    async fn drain(&self, id: &VmId, draining: bool) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if draining {
            state.draining.insert(id.clone());
        } else {
            state.draining.remove(id);
        }
        if let Some(vm) = state.vms.get_mut(id) {
            vm.draining = draining;
        }
        Ok(())
    }

    async fn lead(&self, _: Duration) -> Result<bool, StoreError> {
        if self.state.lock().store_is_down {
            std::future::pending::<()>().await;
        }
        Ok(!self.state.lock().not_leader)
    }
}

pub(super) fn status(id: &VmId, vm: &ScriptedVm) -> VmStatus {
    let busy = |_| InstanceStatus {
        id: InstanceId::random(),
        function: FunctionName::parse("pay").unwrap(),
        version: VersionNumber::FIRST,
        state: InstanceState::Busy,
        calls_active: 1,
        concurrency: 1,
        started_at: Timestamp::UNIX_EPOCH,
    };
    VmStatus {
        cells: Default::default(),
        keeps: Vec::new(),
        id: id.clone(),
        state: if vm.draining { VmState::Draining } else { VmState::Ready },
        boot: 1,
        version: None,
        certificate_ends_at: None,
        cpu_millicores: MilliCores::ONE,
        memory_bytes: Bytes::mib(2048),
        memory_used_bytes: Bytes(0),
        calls_active: vm.calls,
        calls_waiting: 0,
        instances: (0..vm.calls).map(busy).collect(),
        images: Vec::new(),
    }
}

struct Running {
    journal: Arc<Journal>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    fn state(&self) -> AutoscalerState {
        self.journal.info().state
    }
}

/// The autoscaler of one gateway in this world. `aws-asg`, because that driver's marks outlive the
/// process.
fn run(world: &Arc<World>, change: impl FnOnce(&mut Settings)) -> Running {
    let mut settings: Settings = DEFAULTS
        .read(
            "autoscale",
            r#"{"driver":"aws-asg","group":"vms","max":20,"headroom":2,"trend_limit":1}"#,
        )
        .unwrap();
    change(&mut settings);
    let config = Config::new(settings).unwrap();
    let journal = Arc::new(Journal::new(&config, &Registry::new()).unwrap());
    let group: Arc<dyn ScaleGroup> = Arc::clone(world) as _;
    let runner = Runner {
        config,
        vms: Arc::clone(world) as _,
        group: Some(group),
        journal: Arc::clone(&journal),
        clock: || Timestamp::UNIX_EPOCH,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(stop.clone()));
    Running { journal, stop, task }
}

/// Lets this many seconds pass with this constant number of calls.
async fn pass(world: &World, seconds: u32, calls: u32) {
    for _ in 0..seconds {
        world.load(calls);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn load_rises_and_falls_and_vms_come_and_go() {
    let world = World::with(1);
    world.state.lock().boot = Duration::ZERO;
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |_| {});
    pass(&world, 20, 4).await;
    assert_eq!((world.count(), scaler.state()), (1, AutoscalerState::Leading));

    world.edit(|state| state.boot = Duration::from_secs(60));
    pass(&world, 10, 24).await;
    assert_eq!(world.count(), 4, "{:?}", scaler.journal.info());
    pass(&world, 200, 24).await;
    // As the six seconds fill; not again while those VMs boot.
    assert_eq!(world.orders(), ["desired 2", "desired 3", "desired 4"]);

    // Scale-in only after minutes, one VM after the other, none with a call.
    pass(&world, 240, 4).await;
    assert_eq!(world.count(), 4);
    pass(&world, 400, 4).await;
    assert_eq!(world.count(), 1);
    let orders = world.orders();
    assert_eq!(
        orders.iter().filter(|order| order.ends_with("with 0 calls")).count(),
        3,
        "{orders:?}"
    );
    pass(&world, 30, 4).await;
    assert!(world.edit(|state| state.draining.is_empty()), "drains of terminated VMs are removed");
    let decisions = scaler.journal.info().decisions;
    assert!(
        decisions.iter().any(|made| made.steps.contains(&"order VMs up to 4".to_owned())),
        "{decisions:#?}"
    );
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leaving_vm_keeps_its_calls_within_its_grace() {
    let world = World::with(2);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |settings| settings.leave_grace = Duration::from_secs(600));
    // One place is busy on each: one VM is enough. The draining one never ends its call.
    for _ in 0..400 {
        world.edit(|state| state.vms.values_mut().for_each(|vm| vm.calls = 1));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.edit(|state| state.draining.len()), 1);
    let since = Instant::now();
    while world.edit(|state| state.orders.is_empty()) {
        assert!(since.elapsed() < Duration::from_secs(700));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(since.elapsed() > Duration::from_secs(500), "{:?}", since.elapsed());
    assert!(world.orders()[0].ends_with("with 1 calls"));
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn returning_demand_undrains_leaving_vms_also_after_restart() {
    let world = World::with(3);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |_| {});
    let mut waited = 0;
    while world.edit(|state| state.draining.is_empty()) {
        world.edit(|state| state.vms.values_mut().for_each(|vm| vm.calls = 1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        waited += 1;
        assert!(waited < 700);
    }
    scaler.stop().await;

    // Another process: leaving VMs are found again by drain and mark.
    let scaler = run(&world, |_| {});
    for _ in 0..40 {
        world.edit(|state| state.vms.values_mut().for_each(|vm| vm.calls = 7));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.edit(|state| {
        assert!(state.draining.is_empty());
        assert!(state.vms.values().all(|vm| vm.protected || vm.ready_at > Instant::now()));
    });
    assert!(world.orders().iter().all(|order| order.starts_with("desired")));
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing_and_reports_its_steps() {
    let world = World::with(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |settings| settings.dry_run = true);
    pass(&world, 120, 40).await;
    assert!(
        world.orders().is_empty() && world.edit(|state| state.vms.values().all(|vm| !vm.protected))
    );
    let decisions = scaler.journal.info().decisions;
    let would =
        |step: &str| decisions.iter().filter(|made| made.steps.iter().any(|s| s == step)).count();
    assert_eq!(would("would order VMs up to 7"), 1, "recorded once: {decisions:#?}");
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_acts_and_its_successor_knows_history() {
    let world = World::with(2);
    tokio::time::advance(Duration::from_secs(60)).await;
    world.edit(|state| state.not_leader = true);
    let scaler = run(&world, |_| {});
    pass(&world, 60, 40).await;
    assert_eq!(scaler.state(), AutoscalerState::Following);
    assert!(world.orders().is_empty());
    assert_eq!(world.edit(|state| state.queries), 0, "only the leader queries the cloud");
    world.edit(|state| state.not_leader = false);
    pass(&world, 12, 40).await;
    assert_eq!(world.orders(), ["desired 7"]);
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_gateway_acts_while_the_store_is_unavailable() {
    let world = World::with(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |_| {});
    pass(&world, 20, 2).await;
    world.edit(|state| state.store_is_down = true);
    pass(&world, 60, 40).await;
    let info = scaler.journal.info();
    assert_eq!((info.state, info.wanted), (AutoscalerState::StoreAway, 7));
    assert!(info.problem.unwrap().contains("the leading gateway is unknown"));
    assert!(world.orders().is_empty());
    world.edit(|state| state.store_is_down = false);
    pass(&world, 300, 40).await;
    assert_eq!(world.orders(), ["desired 7"]);
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusing_group_is_queried_less_often() {
    let world = World::with(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    world.edit(|state| state.group_fails = Some(|| GroupError::Throttled("Rate exceeded".into())));
    let scaler = run(&world, |_| {});
    pass(&world, 600, 40).await;
    let info = scaler.journal.info();
    assert_eq!(info.state, AutoscalerState::GroupAway);
    assert!(info.problem.as_ref().unwrap().contains("Rate exceeded"), "{info:?}");
    let queries = world.edit(|state| state.queries);
    assert!((4..=8).contains(&queries), "{queries} requests in ten minutes");
    assert_eq!(info.decisions.iter().filter(|made| made.problem.is_some()).count(), 1, "{info:#?}");
    world.edit(|state| state.group_fails = None);
    pass(&world, 301, 40).await;
    assert_eq!((scaler.state(), scaler.journal.info().problem), (AutoscalerState::Leading, None));
    assert_eq!(world.orders(), ["desired 7"]);
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_terminated_by_the_cloud_is_drained_first() {
    let world = World::with(2);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |settings| settings.min = 2);
    pass(&world, 20, 2).await;
    let id = VmId::parse("i-02").unwrap();
    world.edit(|state| state.vms.get_mut(&id).unwrap().ending = true);
    for _ in 0..60 {
        world.edit(|state| state.vms.get_mut(&id).unwrap().calls = 3);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(world.edit(|state| state.vms[&id].draining));
    assert!(world.orders().is_empty(), "it runs calls");
    world.edit(|state| state.vms.get_mut(&id).unwrap().calls = 0);
    pass(&world, 15, 2).await;
    assert_eq!(world.orders(), ["let i-02 go"]);
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_smaller_than_wanted_is_reported_and_filled() {
    let world = World::with(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    let scaler = run(&world, |settings| (settings.max, settings.min) = (30, 25));
    pass(&world, 30, 2).await;
    let info = scaler.journal.info();
    assert_eq!(info.state, AutoscalerState::Leading);
    assert!(info.problem.unwrap().contains("the group's own maximum is 20"));
    assert_eq!(world.orders(), ["desired 20"]);
    scaler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_former_leader_stops_its_round() {
    let world = World::with(1);
    tokio::time::advance(Duration::from_secs(60)).await;
    // The lease is 30 s: while the cloud is slow, another gateway may have begun to lead.
    world.edit(|state| state.slow = Duration::from_secs(35));
    let scaler = run(&world, |settings| settings.min = 3);
    pass(&world, 30, 2).await;
    world.edit(|state| state.slow = Duration::ZERO);
    let since = Instant::now();
    while scaler.state() != AutoscalerState::Following {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", scaler.journal.info());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.orders(), ["desired 3"]);
    assert!(world.edit(|state| state.vms.values().all(|vm| !vm.protected)), "the next step");
    pass(&world, 20, 2).await;
    let id = VmId::parse("i-01").unwrap();
    assert!(world.edit(|state| state.vms[&id].protected), "in its next round, with a new lease");
    scaler.stop().await;
}
