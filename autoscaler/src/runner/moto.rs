//! The whole autoscaler once: policy, plan, driver, the real SDK, and moto in place of EC2 Auto
//! Scaling. Moto has no machines; the test simulates one VM per instance, with its calls and its
//! drain. The settings use seconds instead of minutes.

use super::*;
use crate::config::DEFAULTS;
use crate::{
    config::Settings,
    driver::aws::Aws,
    runner::tests::{ScriptedVm, status},
};
use async_trait::async_trait;
use epsilon_api::{units::Bytes, vm::InstanceStatus};
use epsilon_cloud_aws::{
    moto::Moto,
    scale_group::{self, in_moto},
};
use parking_lot::Mutex;
use prometheus::Registry;
use std::collections::BTreeMap;

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The VMs of moto's instances.
#[derive(Debug, Default)]
struct Machines {
    vms: Mutex<BTreeMap<VmId, ScriptedVm>>,
    draining: Mutex<HashSet<VmId>>,
    /// Instances that were terminated, with the calls that they ran.
    gone: Mutex<Vec<(VmId, bool, u32)>>,
}

impl Machines {
    /// Boots a VM for each new instance, removes those that are gone, and spreads the calls over
    /// the others.
    fn follow(&self, group: &scale_group::GroupState, calls: u32) {
        let mut vms = self.vms.lock();
        let ids: HashSet<VmId> = group
            .instances
            .iter()
            .map(|vm| VmId::parse(&vm.id).expect("ids of EC2 are ids of VMs"))
            .collect();
        let mut gone = self.gone.lock();
        vms.retain(|id, vm| {
            let stays = ids.contains(id);
            if !stays {
                gone.push((id.clone(), vm.draining, vm.calls));
            }
            stays
        });
        for id in ids {
            vms.entry(id).or_insert_with(ScriptedVm::booted).calls = 0;
        }
        let mut serving: Vec<_> = vms.values_mut().filter(|vm| !vm.draining).collect();
        let count = serving.len().max(1) as u32;
        for (n, vm) in (0..).zip(&mut serving) {
            vm.calls = calls / count + u32::from(n < calls % count);
        }
    }
}

#[async_trait]
impl Vms for Machines {
    fn status(&self) -> Vec<VmStatus> {
        self.vms.lock().iter().map(|(id, vm)| status(id, vm)).collect()
    }

    fn memory(&self, _: &InstanceStatus) -> Option<Bytes> {
        Some(Bytes::mib(256))
    }

    async fn draining(&self) -> Result<Vec<VmId>, StoreError> {
        Ok(self.draining.lock().iter().cloned().collect())
    }

    async fn drain(&self, id: &VmId, draining: bool) -> Result<(), StoreError> {
        if draining {
            self.draining.lock().insert(id.clone());
        } else {
            self.draining.lock().remove(id);
        }
        if let Some(vm) = self.vms.lock().get_mut(id) {
            vm.draining = draining;
        }
        Ok(())
    }

    async fn lead(&self, _: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }
}

#[tokio::test]
async fn capacity_in_moto_follows_the_load() {
    let moto = Moto::start().await;
    let group = in_moto::group(&moto, 1, 8, 1).await;
    let settings: Settings = DEFAULTS
        .read(
            "autoscale",
            r#"{"driver":"aws-asg","group":"vms","max":8,"headroom":0,"trend_limit":1,
                "stable_window":"2s","scale_in_after":"2s","every":"1s"}"#,
        )
        .unwrap();
    let mut config = Config::new(settings).unwrap();
    config.lease = Duration::from_secs(5);
    config.leaving_share = 1.0;
    let machines = Arc::new(Machines::default());
    let journal = Arc::new(Journal::new(&config, &Registry::new()).unwrap());
    let runner = Runner {
        config,
        vms: Arc::clone(&machines) as _,
        group: Some(Arc::new(Aws::of(group.clone()))),
        journal: Arc::clone(&journal),
        clock: Timestamp::now,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(stop.clone()));
    let until = async |calls: u32, wanted: u32| {
        let since = Instant::now();
        loop {
            let standing = group.describe().await.unwrap();
            machines.follow(&standing, calls);
            let settled = machines.draining.lock().is_empty();
            if standing.desired == wanted
                && standing.instances.iter().all(|vm| vm.protected)
                && settled
            {
                return standing;
            }
            assert!(since.elapsed() < TEST_TIMEOUT, "{standing:#?} {:#?}", journal.info());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };

    // 24 busy places, three quarters of them used: 32 places, 4 VMs of 8.
    until(24, 4).await;
    assert!(machines.gone.lock().is_empty(), "no VM leaves while more are needed");
    until(2, 1).await;
    let gone = std::mem::take(&mut *machines.gone.lock());
    assert_eq!(gone.len(), 3, "{gone:?}");
    assert!(gone.iter().all(|(_, drained, calls)| *drained && *calls == 0), "{gone:?}");
    stop.cancel();
    task.await.unwrap();
}
