//! A VM's report, indexed for placement once per report instead of once per call: has this version
//! a free warm instance there, has the VM its image, is there memory. Pure, and only a hint: the
//! agent decides.

use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber, VmId},
    units::{Bytes, MilliCores},
    vm::{InstanceState, VmState, VmStatus},
};
use rapidhash::v3::rapidhash_v3;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};
use tokio::time::Instant;

/// Most images of one report that are stored, the most recently used first. Limits the memory that
/// one VM can take; for images beyond it the VM seems to need a pull.
const MAX_IMAGES: usize = 16 << 10;

/// A version as a lookup key: 64 bits of a hash of its id. Two versions with the same key would be
/// confused in hints, and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VersionKey(u64);

impl VersionKey {
    /// The key of a version. Worth caching: it hashes the whole name.
    pub(crate) fn of(function: &FunctionName, number: VersionNumber) -> Self {
        let name = rapidhash_v3(function.as_str().as_bytes());
        // An odd factor spreads the number over all bits and maps no two numbers to one.
        Self(name ^ u64::from(number.get()).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// The key's bits, evenly distributed.
    pub(crate) fn spread(self) -> u64 {
        self.0
    }

    /// The key of a version.
    pub(crate) fn of_version(version: &Version) -> Self {
        Self::of(&version.function, version.number)
    }
}

/// Warm instances of one version on one VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Warm {
    /// Instances that serve, start or drain.
    pub(crate) instances: u32,
    /// Instances that start.
    pub(crate) starting: u32,
    /// Concurrency slots of the instances that serve.
    pub(crate) slots: u32,
    /// Slots in use, at most `slots`.
    pub(crate) taken: u32,
}

/// A VM's last report.
#[derive(Debug)]
pub(crate) struct View {
    /// Id of the VM.
    pub(crate) id: VmId,
    /// Whether it takes calls, drains, or has lost its engine.
    pub(crate) state: VmState,
    /// Whether it has reported. Before that, only the data of its join message is known.
    pub(crate) has_reported: bool,
    /// The agent's boot number, which changes when it restarts.
    pub(crate) boot: u64,
    /// CPUs of the machine, in thousandths.
    pub(crate) cpu: MilliCores,
    /// Memory for all instances.
    pub(crate) memory: Bytes,
    /// Memory of the running instances.
    pub(crate) memory_used: Bytes,
    /// When the report was received.
    pub(crate) at: Instant,
    warm: HashMap<VersionKey, Warm, BuildHasherDefault<IdentityHasher>>,
    /// Sorted: half the memory of a hash set, and a lookup takes some ten steps.
    images: Box<[VersionKey]>,
}

impl View {
    /// A VM that has not reported.
    pub(crate) fn never_reported(status: &VmStatus, at: Instant) -> Self {
        Self { has_reported: false, ..Self::of(status, at) }
    }

    /// A report that was received at this moment.
    pub(crate) fn of(status: &VmStatus, at: Instant) -> Self {
        let mut warm: HashMap<VersionKey, Warm, _> = HashMap::default();
        for instance in &status.instances {
            let entry =
                warm.entry(VersionKey::of(&instance.function, instance.version)).or_default();
            entry.instances += 1;
            match instance.state {
                InstanceState::Idle | InstanceState::Busy => {
                    entry.slots += instance.concurrency;
                    entry.taken += instance.calls_active.min(instance.concurrency);
                }
                InstanceState::Starting => entry.starting += 1,
                InstanceState::Draining | InstanceState::Stopping | InstanceState::Unknown => {}
            }
        }
        warm.shrink_to_fit();
        let images = status.images.iter().take(MAX_IMAGES);
        let mut images: Vec<_> = images.map(|id| VersionKey::of(&id.function, id.number)).collect();
        images.sort_unstable();
        images.dedup();
        Self {
            id: status.id.clone(),
            has_reported: true,
            state: status.state,
            boot: status.boot,
            cpu: status.cpu_millicores,
            memory: status.memory_bytes,
            memory_used: status.memory_used_bytes,
            at,
            warm,
            images: images.into_boxed_slice(),
        }
    }

    /// The version's instances there.
    pub(crate) fn warm(&self, version: VersionKey) -> Warm {
        self.warm.get(&version).copied().unwrap_or_default()
    }

    /// Whether a start of this version needs no pull.
    pub(crate) fn holds_image(&self, version: VersionKey) -> bool {
        self.images.binary_search(&version).is_ok() || self.warm.contains_key(&version)
    }

    /// Number of versions that need no pull.
    pub(crate) fn images_held(&self) -> u32 {
        u32::try_from(self.images.len()).unwrap_or(u32::MAX)
    }

    /// Memory that is not used by instances.
    pub(crate) fn memory_free(&self) -> Bytes {
        Bytes(self.memory.get().saturating_sub(self.memory_used.get()))
    }
}

/// A hasher for keys that are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use epsilon_api::{
        ids::{InstanceId, VersionId},
        vm::InstanceStatus,
    };
    use jiff::Timestamp;

    fn id(function: &str, number: u32) -> VersionId {
        testing::version(function, number).id()
    }

    fn key(function: &str, number: u32) -> VersionKey {
        VersionKey::of_version(&testing::version(function, number))
    }

    /// `(function, version, state, calls, concurrency)`
    fn view(instances: &[(&str, u32, &str, u32, u32)], images: &[(&str, u32)]) -> View {
        let instances = instances.iter().map(|(function, number, state, calls, slots)| {
            let VersionId { function, number } = id(function, *number);
            InstanceStatus {
                id: InstanceId::random(),
                function,
                version: number,
                state: serde_json::from_value((*state).into()).unwrap(),
                calls_active: *calls,
                concurrency: *slots,
                started_at: Timestamp::UNIX_EPOCH,
            }
        });
        let status = VmStatus {
            memory_bytes: Bytes::mib(1024),
            memory_used_bytes: Bytes::mib(256),
            instances: instances.collect(),
            images: images.iter().map(|(function, number)| id(function, *number)).collect(),
            ..testing::FakeVm::arc("a").status()
        };
        View::of(&status, Instant::now())
    }

    /// Instances => how many, how many of them start, slots, slots in use.
    macro_rules! warm {
        ($($name:ident: $instances:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let Warm { instances, starting, slots, taken } =
                    view(&$instances, &[]).warm(key("pay", 2));
                assert_eq!((instances, starting, slots, taken), $want);
            }
        )*};
    }

    warm! {
        nothing_there: [] => (0, 0, 0, 0);
        an_idle_instance_has_all_its_places: [("pay", 2, "idle", 0, 3)] => (1, 0, 3, 0);
        a_busy_one_has_the_rest: [("pay", 2, "busy", 2, 3), ("pay", 2, "idle", 0, 3)] => (2, 0, 6, 2);
        more_calls_than_places_take_no_other_instances: [("pay", 2, "busy", 9, 3)] => (1, 0, 3, 3);
        what_starts_or_goes_has_none:
            [("pay", 2, "starting", 0, 3), ("pay", 2, "draining", 1, 3), ("pay", 2, "stopping", 0, 3)]
            => (3, 1, 0, 0);
        a_state_of_a_later_agent_has_none: [("pay", 2, "frozen", 0, 3)] => (1, 0, 0, 0);
        other_versions_and_functions_do_not_count:
            [("pay", 1, "idle", 0, 1), ("Pay", 2, "idle", 0, 1), ("pay2", 2, "idle", 0, 1)] => (0, 0, 0, 0);
    }

    #[test]
    fn an_image_exists_if_reported_or_running() {
        let view = view(&[("run", 1, "idle", 0, 1)], &[("pay", 2), ("ship", 7), ("pay", 2)]);
        assert!(view.holds_image(key("pay", 2)) && view.holds_image(key("ship", 7)));
        assert!(view.holds_image(key("run", 1)));
        assert!(!view.holds_image(key("pay", 1)) && !view.holds_image(key("run", 2)));
        assert_eq!(view.memory_free(), Bytes::mib(768));
    }

    #[test]
    fn keys_of_many_versions_differ() {
        let mut keys = std::collections::HashSet::new();
        for function in 0..100 {
            for number in 1..=100 {
                assert!(keys.insert(key(&format!("function-{function}"), number)));
            }
        }
    }
}
