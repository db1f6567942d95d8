//! Prepares new versions before they serve: the VMs that will get a function's first calls pull its
//! image, and the first of them starts an instance. So no caller waits for a pull, even if the home
//! VM is lost or over its share.

use super::progress::Progress;
use crate::fleet::{Fleet, Member};
use epsilon_api::{
    chain::Chain,
    error::{Fault, VmError},
    function::{ImageRef, Version},
    ids::FunctionName,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// VMs of a function's order that get its image in advance: home, and the next one.
const HOLDERS: usize = 2;

/// Why a version is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    /// The code failed to start, or no VM is left.
    #[error("a new version did not start")]
    Start(#[source] VmError),
    /// The image is stored where no VM can pull it.
    #[error("no VM can pull the image of `{function}`")]
    ImageUnreachable {
        function: FunctionName,
        #[source]
        cause: VmError,
    },
}

/// Starts new versions on the VMs of a fleet.
#[derive(Clone, Copy)]
pub(super) struct Starter<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) progress: &'a Progress,
    /// The only VM shares its engine with the builder, so the image is already there.
    pub(super) is_local_image: bool,
    /// Longest that one VM may take to pull an image before it is left out.
    pub(super) pull_timeout: Duration,
}

impl Starter<'_> {
    /// Ensures that one VM has an instance of the version, and that the next one has the image if
    /// it can pull it.
    pub(super) async fn ensure_ready(self, version: Arc<Version>) -> Result<(), NotReady> {
        let order = self.order(&version.function);
        let holders =
            if self.is_local_image { order } else { self.spread(&order, &version).await? };
        let mut last = every_vm_drains(&version);
        for holder in holders {
            match holder.vm.ensure_ready(Arc::clone(&version)).await {
                Ok(()) => return Ok(()),
                Err(err) if err.verdict().fault == Fault::Platform => {
                    self.report_skipped(&holder, &version, "could not start", &err);
                    last = err;
                }
                Err(err) => return Err(NotReady::Start(err)), // the code would fail on every VM
            }
        }
        Err(NotReady::Start(last))
    }

    /// The VMs in the order in which calls try them.
    fn order(self, function: &FunctionName) -> Vec<Arc<Member>> {
        self.fleet.snapshot().order(function)
    }

    /// Has the first VMs pull the image; if none of them can, the next ones. Returns those that
    /// have it.
    async fn spread(
        self,
        order: &[Arc<Member>],
        version: &Arc<Version>,
    ) -> Result<Vec<Arc<Member>>, NotReady> {
        let mut last = every_vm_drains(version);
        for some in order.chunks(HOLDERS) {
            let mut holders = Vec::new();
            let fetched = join_all(some.iter().map(|member| self.fetch(member, version))).await;
            for (member, fetched) in some.iter().zip(fetched) {
                match fetched {
                    Ok(()) => holders.push(Arc::clone(member)),
                    Err(err) => {
                        self.report_skipped(member, version, "could not pull the image", &err);
                        last = err;
                    }
                }
            }
            if !holders.is_empty() {
                return Ok(holders);
            }
        }
        let function = version.function.clone();
        Err(if is_in_a_registry(&version.image) || order.is_empty() {
            NotReady::Start(last)
        } else {
            NotReady::ImageUnreachable { function, cause: last }
        })
    }

    async fn fetch(self, member: &Member, version: &Arc<Version>) -> Result<(), VmError> {
        let fetched = timeout(self.pull_timeout, member.vm.fetch(Arc::clone(version))).await;
        fetched.unwrap_or_else(|_| {
            let pull_timeout = humantime::format_duration(self.pull_timeout);
            let cause = format!("the pull took longer than {pull_timeout}").into();
            Err(VmError::NoCapacity { function: version.function.clone(), cause })
        })
    }

    fn report_skipped(self, member: &Member, version: &Version, what: &str, err: &VmError) {
        let vm = &member.id;
        let function = &version.function;
        let version = version.id();
        let error = Chain(err);
        tracing::warn!(%vm, %version, what, %error, "VM could not prepare a new version; the deployment continues without it.");
        self.progress.line(format!("note: VM `{vm}` {what} of `{function}`"));
    }
}

fn every_vm_drains(version: &Version) -> VmError {
    let cause = "no VM takes calls".into();
    VmError::NoCapacity { function: version.function.clone(), cause }
}

/// Whether every machine can pull it. An image outside a registry is stored in the engine of its
/// builder.
pub(super) fn is_in_a_registry(image: &ImageRef) -> bool {
    image.reference.contains("@sha256:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::HealthPolicy,
        observe::metrics::Metrics,
        testing::{self, FakeVm, StartFault},
    };
    use epsilon_api::{admin::DeployEvent, vm::Vm as _};

    /// In the engine that the one VM has too.
    const UP: &str = "epsilon/shop/pay:2";
    const IN_AN_ENGINE: &str = "epsilon/shop/pay:1";
    const REGISTRY: &str = "registry.example/shop/pay@sha256:1";

    /// The outcome of starting a version on VMs with these faults, in the order in which calls try
    /// them: the result, the VMs that fetched and that started (from 1), and the number of lines
    /// logged.
    async fn start(
        image: &str,
        start_faults: &[Option<StartFault>],
    ) -> (Result<(), &'static str>, Vec<usize>, Vec<usize>, usize) {
        let mut version = testing::version(if image.is_empty() { "broken" } else { "pay" }, 1);
        version.image.reference = image.into();
        let vms: Vec<_> =
            (0..start_faults.len()).map(|n| FakeVm::new(&format!("vm-{n}"))).collect();
        let fleet = Fleet::new(vms.iter().map(|vm| Arc::clone(vm) as _), &HealthPolicy::default());
        let (progress, mut events) =
            Progress::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        let starter = Starter {
            fleet: &fleet,
            progress: &progress,
            is_local_image: image == UP,
            pull_timeout: Duration::from_millis(50),
        };
        let order = starter.order(&version.function);
        let in_order = order.iter().map(|member| {
            let found = vms.iter().find(|vm| vm.status().id == member.id);
            found.expect("a VM of this fleet")
        });
        let in_order: Vec<_> = in_order.collect();
        for (vm, start_fault) in in_order.iter().zip(start_faults) {
            *vm.start_fault.lock().unwrap() = *start_fault;
            vm.broken.lock().unwrap().insert("broken".into(), "Error: no key".into());
        }
        let ended = starter.ensure_ready(Arc::new(version)).await;
        drop(progress);
        let mut lines = 0;
        while let Some(DeployEvent::Log { .. }) = events.recv().await {
            lines += 1;
        }
        let ended = ended.map_err(|err| match err {
            NotReady::Start(err) => err.verdict().code,
            NotReady::ImageUnreachable { .. } => "IMAGE_UNREACHABLE",
        });
        let matching = |what: &dyn Fn(&FakeVm) -> usize| -> Vec<usize> {
            (1..).zip(&in_order).filter(|(_, vm)| what(vm) > 0).map(|(nth, _)| nth).collect()
        };
        (ended, matching(&FakeVm::fetched), matching(&|vm| vm.ready().len()), lines)
    }

    /// Each row: image, faults of the VMs => result, VMs that fetched, VMs that started, lines
    /// logged.
    macro_rules! starts {
        ($($name:ident: $image:expr, [$($start_fault:expr),*]
            => $ended:expr, $fetched:expr, $ready:expr, $lines:expr;)*) => {$(
            #[tokio::test]
            async fn $name() {
                let (ended, fetched, ready, lines) = start($image, &[$($start_fault),*]).await;
                let (want_fetched, want_ready): (&[usize], &[usize]) = (&$fetched, &$ready);
                assert_eq!((ended, lines), ($ended, $lines));
                assert_eq!((&fetched[..], &ready[..]), (want_fetched, want_ready));
            }
        )*};
    }

    const FINE: Option<StartFault> = None;
    const NO_IMAGE: Option<StartFault> = Some(StartFault::NoImage);
    const HANGS: Option<StartFault> = Some(StartFault::Hangs);
    const NO_START: Option<StartFault> = Some(StartFault::NoStart);

    starts! {
        one_machine_only_starts: UP, [FINE] => Ok(()), [], [1], 0;
        one_machine_keeps_its_own_error: UP, [NO_START] => Err("NO_CAPACITY"), [], [1], 1;
        one_vm_elsewhere_fetches_too: REGISTRY, [FINE] => Ok(()), [1], [1], 0;
        two_hold_the_image_and_home_starts: REGISTRY, [FINE, FINE, FINE] => Ok(()), [1, 2], [1], 0;
        home_without_the_image_is_left_out: REGISTRY, [NO_IMAGE, FINE, FINE] => Ok(()), [1, 2], [2], 1;
        the_second_without_the_image_is_logged: REGISTRY, [FINE, NO_IMAGE] => Ok(()), [1, 2], [1], 1;
        a_hanging_vm_delays_no_other: REGISTRY, [HANGS, FINE] => Ok(()), [1, 2], [2], 1;
        the_next_ones_are_tried_when_neither_can: REGISTRY, [NO_IMAGE, HANGS, FINE]
            => Ok(()), [1, 2, 3], [3], 2;
        home_that_starts_nothing_is_passed_over: REGISTRY, [NO_START, FINE] => Ok(()), [1, 2], [1, 2], 1;
        none_that_can_fails: REGISTRY, [NO_IMAGE, HANGS] => Err("NO_CAPACITY"), [1, 2], [], 2;
        an_image_in_an_engine_that_none_can_get: IN_AN_ENGINE, [NO_IMAGE, NO_IMAGE]
            => Err("IMAGE_UNREACHABLE"), [1, 2], [], 2;
        an_engine_image_the_only_vm_cannot_pull: IN_AN_ENGINE, [NO_IMAGE]
            => Err("IMAGE_UNREACHABLE"), [1], [], 1;
        code_that_does_not_load_is_tried_once: "", [FINE, FINE]
            => Err("FUNCTION_INIT_FAILED"), [1, 2], [1], 0;
        no_vm_at_all: REGISTRY, [] => Err("NO_CAPACITY"), [], [], 0;
    }
}
