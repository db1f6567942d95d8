//! Fleets as lines of text, and the steps planned for them.

use super::*;
use epsilon_api::{
    ids::{FunctionName, InstanceId, VersionNumber},
    units::{Bytes, MilliCores},
    vm::{InstanceState, InstanceStatus},
};
use jiff::Timestamp;
use proptest::prelude::*;

/// One VM: `id phase marks calls instances`, for example `i-1 serving p 3 2`. Marks: `p` protected,
/// `d` draining in the store, `D` draining by its own report, `x` engine down, `u` no reports, `g`
/// grace period over.
fn vm(line: &str) -> (GroupInstance, Option<VmStatus>, bool, bool) {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let [id, phase, marks, calls, instances] = parts[..] else { panic!("{line}") };
    let id = VmId::parse(id).unwrap();
    let has = |mark| marks.contains(mark);
    let phase = match phase {
        "starting" => Phase::Starting,
        "serving" => Phase::Serving,
        "waiting" => Phase::Waiting,
        "ending" => Phase::Terminating,
        "aside" => Phase::Unmanaged,
        other => panic!("{other}"),
    };
    let state = match (has('D') || has('d'), has('x')) {
        (true, _) => VmState::Draining,
        (false, true) => VmState::EngineDown,
        (false, false) => VmState::Ready,
    };
    let instance = |_| InstanceStatus {
        id: InstanceId::random(),
        function: FunctionName::parse("pay").unwrap(),
        version: VersionNumber::FIRST,
        state: InstanceState::Idle,
        calls_active: 0,
        concurrency: 1,
        started_at: Timestamp::UNIX_EPOCH,
    };
    let seen = phase != Phase::Starting && !has('u');
    let status = seen.then(|| VmStatus {
        cells: Default::default(),
        keeps: Vec::new(),
        id: id.clone(),
        state,
        boot: 1,
        version: None,
        certificate_ends_at: None,
        cpu_millicores: MilliCores::ONE,
        memory_bytes: Bytes::mib(2048),
        memory_used_bytes: Bytes(0),
        calls_active: calls.parse().unwrap(),
        calls_waiting: 0,
        instances: (0..instances.parse::<usize>().unwrap()).map(instance).collect(),
        images: Vec::new(),
    });
    (GroupInstance { id, phase, protected: has('p') }, status, has('d'), has('g'))
}

/// Plans for a group of these VMs with this desired number.
fn plan_of(wanted: u32, desired: u32, keeps_marks: bool, lines: &[&str]) -> Vec<String> {
    let mut group = Group { desired, min: 1, max: 20, instances: Vec::new() };
    let (mut vms, mut draining, mut since) = (Vec::new(), HashSet::new(), HashMap::new());
    for line in lines {
        let (member, status, drains, over) = vm(line);
        if drains {
            draining.insert(member.id.clone());
        }
        if over {
            since.insert(member.id.clone(), Duration::ZERO);
        }
        group.instances.push(member);
        vms.extend(status);
    }
    let input = PlanInput {
        wanted,
        group: &group,
        keeps_marks,
        vms: &vms,
        draining: &draining,
        since,
        at: Duration::from_secs(900),
        grace: Duration::from_secs(900),
        leaving_share: 0.1,
    };
    input.plan().iter().map(ToString::to_string).collect()
}

/// Each row is a test: wanted of desired, the VMs => the steps as text.
macro_rules! plans {
    ($($name:ident: $wanted:literal of $desired:literal, $vms:expr => $steps:expr;)*) => {$(
        #[test]
        fn $name() {
            let steps: [&str; _] = $steps;
            assert_eq!(plan_of($wanted, $desired, true, &$vms), steps);
        }
    )*};
}

plans! {
    enough_is_nothing_to_do: 2 of 2, ["i-1 serving p 1 1", "i-2 serving p 0 0"] => [];
    what_serves_is_protected: 2 of 2, ["i-1 serving - 1 1", "i-2 serving - 0 0"] => ["protect i-1, i-2"];
    more_are_ordered: 5 of 2, ["i-1 serving p 1 1", "i-2 serving p 0 0"] => ["order VMs up to 5"];
    not_beyond_the_groups_own_limit: 50 of 1, ["i-1 serving p 1 1"] => ["order VMs up to 20"];
    ordered_ones_are_not_ordered_twice: 3 of 3, ["i-1 serving p 1 1", "i-2 starting - 0 0", "i-3 starting - 0 0"] => [];

    the_fewest_calls_go_first: 2 of 3, ["i-1 serving p 9 9", "i-2 serving p 2 9", "i-3 serving p 3 1"]
        => ["unprotect i-2", "drain i-2"];
    then_the_fewest_instances: 2 of 3, ["i-1 serving p 0 5", "i-2 serving p 0 2", "i-3 serving p 0 3"]
        => ["unprotect i-2", "drain i-2"];
    then_the_smallest_id: 1 of 2, ["i-2 serving p 0 0", "i-1 serving p 0 0"]
        => ["unprotect i-1", "drain i-1"];
    a_vm_without_calls_goes_first: 2 of 3, ["i-1 serving p 0 0", "i-2 serving px 0 9", "i-3 serving p 0 0"]
        => ["unprotect i-2", "drain i-2"];
    a_tenth_at_once_and_one_at_least: 1 of 4,
        ["i-1 serving p 0 0", "i-2 serving p 0 0", "i-3 serving p 1 0", "i-4 serving p 1 0"]
        => ["unprotect i-1", "drain i-1"];
    none_goes_while_another_leaves: 1 of 4,
        ["i-1 serving d 1 0", "i-2 serving p 0 0", "i-3 serving p 1 0", "i-4 serving p 1 0"] => [];

    never_below_what_serves: 2 of 4, ["i-1 serving p 0 0", "i-2 serving p 0 0", "i-3 starting - 0 0", "i-4 starting - 0 0"] => [];
    who_is_not_seen_does_not_count_as_serving: 2 of 4,
        ["i-1 serving p 0 0", "i-2 serving p 0 0", "i-3 serving pu 0 0", "i-4 serving pu 0 0"] => [];
    the_groups_own_minimum_holds: 0 of 1, ["i-1 serving p 0 0"] => [];

    a_leaving_one_with_calls_is_let_be: 1 of 2, ["i-1 serving p 5 1", "i-2 serving d 1 1"] => [];
    an_empty_one_is_ended: 1 of 2, ["i-1 serving p 5 1", "i-2 serving d 0 1"] => ["terminate i-2: it is empty"];
    one_whose_grace_is_over_is_ended: 1 of 2, ["i-1 serving p 5 1", "i-2 serving dg 3 1"]
        => ["terminate i-2: its grace period is over"];
    a_silent_vm_waits_for_its_grace: 1 of 2, ["i-1 serving p 5 1", "i-2 serving du 0 0"] => [];
    and_then_it_is: 1 of 2, ["i-1 serving p 5 1", "i-2 serving dug 0 0"] => ["terminate i-2: its grace period is over"];
    demand_that_is_back_wakes_it: 2 of 2, ["i-1 serving p 5 1", "i-2 serving d 0 1"]
        => ["undrain i-2", "protect i-2"];
    the_fullest_is_woken_first: 3 of 4,
        ["i-1 serving p 5 1", "i-2 serving d 0 1", "i-3 serving d 2 1", "i-4 serving p 1 1"]
        => ["undrain i-3", "protect i-3", "terminate i-2: it is empty"];
    waking_comes_before_ordering: 4 of 2, ["i-1 serving p 5 1", "i-2 serving d 3 1"]
        => ["undrain i-2", "order VMs up to 4", "protect i-2"];
    who_is_not_seen_cannot_be_woken: 2 of 2, ["i-1 serving p 5 1", "i-2 serving du 0 0"] => ["order VMs up to 3"];

    what_an_operator_drains_is_his: 1 of 2, ["i-1 serving p 5 1", "i-2 serving pd 0 1"] => [];
    and_is_made_up_for: 2 of 2, ["i-1 serving p 5 1", "i-2 serving pd 0 1"] => ["order VMs up to 3"];

    one_that_aws_ends_is_drained: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting - 4 1"]
        => ["drain i-2", "extend the wait of i-2"];
    gets_more_time_while_it_runs_calls: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting d 4 1"]
        => ["extend the wait of i-2"];
    is_let_go_when_it_is_empty: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting d 0 1"] => ["complete i-2: it is empty"];
    also_when_it_drained_itself: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting D 0 1"] => ["complete i-2: it is empty"];
    and_when_its_grace_is_over: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting dg 4 1"]
        => ["complete i-2: its grace period is over"];
    a_silent_one_may_still_run_calls: 1 of 1, ["i-1 serving p 1 1", "i-2 waiting u 0 0"]
        => ["extend the wait of i-2"];
    what_ends_or_stands_aside_is_not_ours: 1 of 1, ["i-1 serving p 1 1", "i-2 ending - 0 0", "i-3 aside d 0 0"] => [];
}

#[test]
fn where_marks_do_not_last_whatever_drains_goes_first() {
    let vms = ["vm-1 serving p 0 0", "vm-2 serving pd 1 1"];
    let steps = plan_of(1, 2, false, &vms);
    assert_eq!(steps, ["unprotect vm-2", "drain vm-2"]);
    // And counts as present until then.
    assert!(plan_of(2, 2, false, &vms).is_empty());
}

#[test]
fn a_tenth_of_a_large_group_leaves_at_once() {
    let lines: Vec<String> = (10..40).map(|n| format!("i-{n} serving p 0 0")).collect();
    let mut group: Vec<&str> = lines.iter().map(String::as_str).collect();
    let drained = |steps: &[String]| steps.iter().filter(|step| step.starts_with("drain")).count();
    assert_eq!(drained(&plan_of(5, 30, true, &group)), 3);
    group[0] = "i-10 serving d 5 0";
    assert_eq!(drained(&plan_of(5, 30, true, &group)), 2);
}

fn any_vm() -> impl Strategy<Value = String> {
    let phases =
        prop::sample::select(vec!["starting", "serving", "serving", "waiting", "ending", "aside"]);
    (phases, "[pdDxug]{0,3}", 0u32..4, 0u32..3).prop_map(|(phase, marks, calls, instances)| {
        format!("{phase} -{marks} {calls} {instances}")
    })
}

proptest! {
    /// Whatever the fleet: enough VMs keep serving, or all of them; no busy VM is terminated before
    /// its grace period is over; no VM gets contradictory steps.
    #[test]
    fn a_plan_keeps_what_is_needed(
        wanted in 1u32..8,
        more in 0u32..4,
        keeps_marks: bool,
        vms in prop::collection::vec(any_vm(), 1..12),
    ) {
        let lines: Vec<String> =
            vms.iter().enumerate().map(|(n, line)| format!("i-{n} {line}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let parsed: Vec<_> = lines.iter().map(|line| vm(line)).collect();
        let held = parsed.iter().filter(|(m, ..)| matches!(m.phase, Phase::Starting | Phase::Serving));
        let desired = held.count() as u32 + more;
        let steps = plan_of(wanted, desired, keeps_marks, &lines);

        let named = |verb: &str, id: &VmId| steps.iter().any(|step| {
            step.strip_prefix(verb).is_some_and(|rest| rest.split_whitespace().next() == Some(id.as_str()))
        });
        let takes_calls = |(member, status, drains, _): &&(GroupInstance, Option<VmStatus>, bool, bool)| {
            let ready = status.as_ref().is_some_and(|vm| vm.state == VmState::Ready);
            member.phase == Phase::Serving && ready && !drains
        };
        let ready = parsed.iter().filter(takes_calls).count();
        let stay = parsed.iter().filter(takes_calls).filter(|(m, ..)| !named("drain", &m.id)).count();
        prop_assert!(stay >= ready.min(wanted as usize), "{steps:?}");
        for (member, status, drains, over) in &parsed {
            let ended = steps.iter().any(|step| step.starts_with(&format!("terminate {}:", member.id)));
            if ended {
                prop_assert!(*drains && member.phase == Phase::Serving && (!keeps_marks || !member.protected));
                prop_assert!(*over || status.as_ref().is_some_and(|vm| vm.calls_active == 0), "{steps:?}");
                prop_assert!(!named("drain", &member.id) && !named("undrain", &member.id));
            }
        }
        let orders = steps.iter().filter(|step| step.starts_with("order")).count();
        let drains = steps.iter().filter(|step| step.starts_with("unprotect")).count();
        prop_assert!(orders + drains <= 1, "both more and fewer: {steps:?}");
    }
}
