//! Histories of demand with their decisions; and properties that hold for any demand.

use super::{
    super::config::{Config, PolicyConfig, Settings},
    *,
};
use proptest::prelude::*;

const fn s(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

/// VMs of 8 places, 75 % of them used, 2 kept free, 1 to 20 VMs.
fn settings() -> Settings {
    Settings { max: 20, headroom: 2, ..Settings::default() }
}

fn policy(settings: Settings) -> Policy {
    Policy::new(Config::new(settings).unwrap().policy())
}

/// A policy that orders no more VMs than this at once.
fn bounded(settings: Settings, starting_at_once: u32) -> Policy {
    let config = Config::new(settings).unwrap().policy;
    Policy::new(&PolicyConfig { starting_at_once, ..config })
}

fn sample(demand: f64, ready: u32) -> Sample {
    let places = 8.0 * f64::from(ready);
    Sample { demand, queued: 0.0, places, outside: 0.0, vm_places: 8.0, ready, current: ready }
}

/// Feeds one sample per second and returns the last decision.
fn after(
    policy: &mut Policy,
    from: u64,
    demand: impl IntoIterator<Item = f64>,
    ready: u32,
) -> Decision {
    let mut last = None;
    for (second, demand) in (from..).zip(demand) {
        last = Some(policy.decide(s(second), now(), &sample(demand, ready)));
    }
    last.unwrap()
}

fn steady(seconds: usize, demand: f64) -> impl Iterator<Item = f64> {
    std::iter::repeat_n(demand, seconds)
}

#[test]
fn steady_demand_is_divided_by_target_or_headroom() {
    for (demand, vms) in [(0.0, 1), (1.0, 1), (6.0, 1), (6.1, 2), (12.0, 2), (12.1, 3), (60.0, 10)]
    {
        let mut policy = policy(settings());
        // With as many VMs as are wanted, no other reason applies.
        let decision = after(&mut policy, 0, steady(60, demand), vms);
        assert_eq!(decision.wanted, vms, "{demand}: {}", decision.reason);
    }
}

#[test]
fn headroom_counts_where_it_is_more_than_target_leaves() {
    let mut policy = policy(Settings { headroom: 20, ..settings() });
    // 10 busy and 20 free are 30 places.
    assert_eq!(after(&mut policy, 0, steady(60, 10.0), 4).wanted, 4);
}

#[test]
fn one_second_is_no_reason_to_panic() {
    let mut policy = policy(settings());
    after(&mut policy, 0, steady(60, 4.0), 1);
    let decision = after(&mut policy, 60, [20.0], 1);
    assert!(!decision.panicking, "{decision:?}");
    assert_eq!(decision.wanted, 1);
}

#[test]
fn a_jump_is_followed_within_the_panic_window() {
    let mut policy = policy(settings());
    after(&mut policy, 0, steady(60, 4.0), 1);
    let decision = after(&mut policy, 60, steady(6, 48.0), 1);
    assert!(decision.panicking);
    assert_eq!(decision.wanted, 8, "{}", decision.reason);
    assert!(decision.reason.to_string().contains("48.0 were needed over the last 6s"));
}

#[test]
fn panic_ends_a_stable_window_after_there_is_room() {
    let mut policy = policy(settings());
    after(&mut policy, 0, steady(10, 16.0), 2);
    assert!(after(&mut policy, 10, steady(59, 16.0), 8).panicking);
    assert!(!after(&mut policy, 69, steady(1, 16.0), 8).panicking);
}

#[test]
fn a_rise_is_met_before_it_is_there() {
    let mut policy = policy(settings());
    let rise = |from: u64| (from..from + 60).map(|second| 20.0 + 0.2 * second as f64);
    let decision = after(&mut policy, 0, rise(0), 6);
    // 32 at the end, 50 in 90 s, at most 1.25 times the 31 of the last 6 s: 39 places.
    assert_eq!(decision.reason.label(), "trend", "{}", decision.reason);
    assert_eq!(decision.wanted, 7);
    let unbounded = Settings { trend_limit: 10.0, ..settings() };
    let decision = after(&mut self::policy(unbounded), 0, rise(0), 6);
    assert_eq!(decision.wanted, 9, "49.8 places: {}", decision.reason);
}

#[test]
fn a_falling_line_takes_nothing_away() {
    let mut policy = policy(settings());
    let fall = (0..60).map(|second| 40.0 - 0.5 * f64::from(second));
    let decision = after(&mut policy, 0, fall, 8);
    // The mean of the minute is 25 places, the last seconds had 11, and the line falls to zero.
    let held = matches!(decision.reason, Reason::Held { needed: 5, .. });
    assert!(held, "{}", decision.reason);
}

#[test]
fn scale_in_waits_until_fewer_were_enough_for_minutes() {
    let mut policy = policy(settings());
    after(&mut policy, 0, steady(60, 48.0), 8);
    // The mean needs 8 for another 7 s, and that is held for 300.
    let held = after(&mut policy, 60, steady(307, 4.0), 8);
    assert_eq!((held.wanted, held.reason.label()), (8, "held"), "{}", held.reason);
    assert_eq!(after(&mut policy, 367, steady(3, 4.0), 8).wanted, 7);
    assert_eq!(after(&mut policy, 370, steady(60, 4.0), 8).wanted, 1, "as the mean fell");
}

#[test]
fn near_a_border_one_more_stays() {
    let mut policy = policy(settings());
    // 12 places are two VMs at 75 %, just.
    after(&mut policy, 0, steady(60, 12.5), 3);
    let decision = after(&mut policy, 60, steady(600, 11.8), 3);
    assert_eq!((decision.wanted, decision.reason), (3, Reason::Slack { needed: 2 }));
    assert_eq!(after(&mut policy, 660, steady(400, 11.0), 3).wanted, 2);
}

/// The settings of the end-to-end test: VMs of 4 places, windows of seconds.
fn brisk() -> Policy {
    policy(Settings {
        max: 3,
        headroom: 2,
        trend_limit: 1.0,
        stable_window: s(4),
        scale_in_after: s(4),
        boot_time: s(1),
        ..Settings::default()
    })
}

fn small(demand: f64, ready: u32) -> Sample {
    Sample { vm_places: 4.0, places: 4.0 * f64::from(ready), ..sample(demand, ready) }
}

/// The wanted count, second by second, after a load that needed three VMs has fallen to `demand`.
fn after_the_fall(demand: f64) -> Vec<u32> {
    let mut policy = brisk();
    for second in 0..20 {
        policy.decide(s(second), now(), &small(8.0, 3));
    }
    (20..60).map(|second| policy.decide(s(second), now(), &small(demand, 3)).wanted).collect()
}

/// Regression: a group of three shrank to two and no further in 20 s. The policy's own part of that
/// is 6 s.
#[test]
fn a_load_that_falls_is_followed_within_the_windows() {
    let wanted = after_the_fall(1.0);
    assert_eq!(wanted.iter().position(|vms| *vms == 1), Some(6), "{wanted:?}");
    assert!(wanted[6..].iter().all(|vms| *vms == 1), "{wanted:?}");
}

/// Here it correctly stays at two: two places that are always busy and two to keep free are just
/// one VM, so the slack keeps one more.
#[test]
fn slack_keeps_two_vms_at_the_border() {
    assert_eq!(after_the_fall(2.0).last(), Some(&2));
    assert_eq!(after_the_fall(1.9).last(), Some(&1), "a little less and it is one");
}

#[test]
fn a_new_leader_drains_no_vm_at_once() {
    let mut policy = policy(settings());
    // VMs report after a while.
    assert_eq!(after(&mut policy, 0, steady(2, 0.0), 0).wanted, 1);
    let held = after(&mut policy, 2, steady(357, 0.0), 7);
    assert_eq!((held.wanted, held.reason.label()), (7, "held"));
    assert_eq!(after(&mut policy, 359, steady(1, 0.0), 7).wanted, 1);
}

#[test]
fn starts_at_once_are_bounded_and_schedules_are_not() {
    let mut policy = bounded(settings(), 3);
    let decision = after(&mut policy, 0, steady(10, 100.0), 2);
    assert_eq!((decision.wanted, decision.reason.label()), (5, "starting"));
    let schedule = serde_json::from_str(
        r#"[{"days":"fri","from":"11:00","to":"13:00","zone":"UTC","at_least":15}]"#,
    );
    let scheduled = Settings { schedule: schedule.unwrap(), ..settings() };
    let decision = after(&mut bounded(scheduled, 3), 0, steady(10, 100.0), 2);
    assert_eq!(decision.wanted, 15);
    assert_eq!(decision.reason.to_string(), "scheduled: fri 11:00–13:00 UTC");
}

#[test]
fn limits_are_reported() {
    let mut small = policy(Settings { max: 3, ..settings() });
    let decision = after(&mut small, 0, steady(10, 100.0), 2);
    assert_eq!(decision.wanted, 3);
    assert!(decision.reason.to_string().contains("are needed; this is the maximum"));
    let mut large = policy(Settings { min: 4, ..settings() });
    let decision = after(&mut large, 0, steady(10, 1.0), 1);
    assert_eq!((decision.wanted, decision.reason.to_string()), (4, "the minimum".into()));
    // The held count would be as large; the minimum is the reason that stays.
    let decision = after(&mut large, 10, steady(10, 1.0), 4);
    assert_eq!((decision.wanted, decision.reason.to_string()), (4, "the minimum".into()));
}

#[test]
fn what_new_vms_work_off_is_no_demand() {
    let waiting = |ready: u32| {
        let places = 8.0 * f64::from(ready);
        Sample { demand: 2.0 * places, queued: places, ..sample(0.0, ready) }
    };
    let mut policy = policy(Settings { trend_limit: 1.0, ..settings() });
    let mut at = |second, sample: &Sample| policy.decide(s(second), now(), sample).wanted;
    let ordered = (0..70).map(|second| at(second, &waiting(2))).last();
    assert_eq!(ordered, Some(6), "32 places");
    // They run, full, and the queue is as long as before.
    let settling = (70..85).map(|second| at(second, &waiting(6))).last();
    assert_eq!(settling, Some(8), "48 places are busy; 48 calls wait");
    let settled = (85..95).map(|second| at(second, &waiting(6))).last();
    assert_eq!(settled, Some(16), "they still do");
}

#[test]
fn places_outside_the_group_are_used_first() {
    let mut policy = policy(settings());
    let mut with = |demand| {
        let sample = Sample { outside: 80.0, places: 88.0, ..sample(demand, 1) };
        policy.decide(s(1), now(), &sample).wanted
    };
    assert_eq!(with(30.0), 1);
}

#[test]
fn an_empty_group_gets_one_vm_to_learn_size() {
    let mut policy = policy(settings());
    assert_eq!(policy.decide(s(0), now(), &Sample::default()).wanted, 1);
    let blind = Sample { demand: 50.0, ..Sample::default() };
    assert_eq!(policy.decide(s(1), now(), &blind).wanted, 1);
}

/// Settings for the properties, with limits that sometimes apply.
fn any_config() -> impl Strategy<Value = PolicyConfig> {
    (1u32..4, 0u32..20, 0u32..20, 1u32..20, 1.0f64..3.0).prop_map(
        |(min, more, headroom, starting_at_once, trend_limit)| {
            let settings =
                Settings { min, max: min + more, headroom, trend_limit, ..Settings::default() };
            let config = Config::new(settings).unwrap().policy;
            PolicyConfig { starting_at_once, ..config }
        },
    )
}

/// Demand and serving VMs, second by second.
fn any_history() -> impl Strategy<Value = Vec<(f64, u32)>> {
    prop::collection::vec((0.0f64..200.0, 0u32..20), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_outside_the_limits(config in any_config(), history in any_history()) {
        let (min, max) = (config.min, config.max);
        let mut policy = Policy::new(&config);
        for (second, (demand, ready)) in (0..).zip(history) {
            let wanted = policy.decide(s(second), now(), &sample(demand, ready)).wanted;
            prop_assert!((min..=max).contains(&wanted));
        }
    }

    /// More demand in any second never means fewer VMs. (Without the trend, which is a slope; see
    /// the next property.)
    #[test]
    fn more_demand_never_means_fewer(
        config in any_config(),
        history in prop::collection::vec((0.0f64..200.0, 0u32..20, 0.0f64..50.0), 1..400),
    ) {
        let config = PolicyConfig { trend_limit: 1.0, ..config };
        let (mut less, mut more) = (Policy::new(&config), Policy::new(&config));
        for (second, (demand, ready, extra)) in (0..).zip(history) {
            let less = less.decide(s(second), now(), &sample(demand, ready));
            let more = more.decide(s(second), now(), &sample(demand + extra, ready));
            prop_assert!(more.wanted >= less.wanted, "{more:?} {less:?}");
        }
    }

    /// With the trend: demand that is larger by a factor never means fewer VMs.
    #[test]
    fn larger_demand_never_means_fewer(
        config in any_config(),
        history in any_history(),
        factor in 1.0f64..5.0,
    ) {
        let (mut less, mut more) = (Policy::new(&config), Policy::new(&config));
        for (second, (demand, ready)) in (0..).zip(history) {
            let less = less.decide(s(second), now(), &sample(demand, ready));
            let more = more.decide(s(second), now(), &sample(demand * factor, ready));
            prop_assert!(more.wanted >= less.wanted, "{more:?} {less:?}");
        }
    }

    /// Noise of a fifth around a level: after the first minutes the count changes at most once.
    #[test]
    fn noise_does_not_flap(
        level in 5.0f64..100.0,
        noise in prop::collection::vec(0.8f64..1.2, 1500),
    ) {
        let mut policy = policy(settings());
        let mut ready = 16;
        let mut changes = 0;
        for (second, noise) in (0..).zip(noise) {
            let wanted = policy.decide(s(second), now(), &sample(level * noise, ready)).wanted;
            if second > 600 && wanted != ready {
                changes += 1;
            }
            ready = wanted;
        }
        prop_assert!(changes <= 1, "{changes} changes around {level}");
    }

    /// A fleet that can grow covers any steady demand, and returns to the count it needs.
    #[test]
    fn steady_demand_comes_to_rest_at_its_need(level in 0.0f64..110.0, start in 1u32..20) {
        let mut policy = policy(settings());
        let mut ready = start;
        for second in 0..1000 {
            ready = policy.decide(s(second), now(), &sample(level, ready)).wanted;
        }
        let need = ((level / 0.75).max(level + 2.0) / 8.0 - 1e-6).ceil().max(1.0) as u32;
        let just = ((level * 1.05 / 0.75) / 8.0).ceil() as u32 > need;
        let rest = need.min(20)..=(need + u32::from(just)).min(20);
        prop_assert!(rest.contains(&ready), "{ready} of {rest:?}");
    }
}
