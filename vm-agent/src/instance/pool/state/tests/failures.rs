//! Failed starts and crashes: who gets the error, and how long nothing is tried again.

use super::*;

#[test]
fn failed_code_fails_its_calls_and_pauses_twice_as_long_each_time() {
    let mut pool = Pool::new(rules());
    for (round, pause) in [1, 2, 4, 8, 16, 30, 30].into_iter().enumerate() {
        let start = format!("start i{}", round + 1);
        assert_eq!(pool.call("a"), [start], "after {pause} s");
        let kill = format!("kill i{}", round + 1);
        let failed = pool.fails(round + 1, &init());
        assert_eq!(failed, ["a fails: it throws", &kill, "bad end, early"]);
        pool.is_gone(round + 1);
        pool.later(s(pause) - ms(1));
        assert_eq!(pool.call("b"), ["code is known to fail"]);
        assert!(!pool.state.is_unused(pool.now), "it would be forgotten with the pool");
        pool.later(ms(1));
        assert!(pool.state.is_unused(pool.now));
    }
}

#[test]
fn failures_of_a_burst_count_once() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.call("b");
    let failed = pool.fails(1, &init());
    assert_eq!(failed, ["kill i1", "bad end, early"], "i2 may serve both");
    assert_eq!(
        pool.fails(2, &init()),
        ["a fails: it throws", "b fails: it throws", "kill i2", "bad end, early"]
    );
    assert_eq!(pool.later(s(1)).call("c"), ["start i3"], "one second, not two");
}

#[test]
fn success_forgets_failures() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.fails(1, &init());
    pool.later(s(1)).call("b");
    pool.is_ready(2);
    pool.ends("b");
    pool.call("c");
    assert_eq!(pool.call("d"), ["start i3"], "no pause is left");
    pool.exits(2, false);
    pool.fails(3, &init());
    assert_eq!(pool.later(s(1)).call("e"), ["start i4"], "the first pause again");
}

#[test]
fn failed_start_beside_a_live_instance_fails_no_call() {
    let mut pool = Pool::with_instances(1, rules());
    pool.call("a");
    pool.call("b");
    assert_eq!(pool.fails(2, &no_capacity()), ["kill i2"]);
    assert!(pool.later(ms(499)).start_what_is_needed().is_empty(), "half a second of pause");
    assert_eq!(pool.later(ms(1)).start_what_is_needed(), ["start i3"]);
    assert_eq!(pool.ends("a"), ["no call runs", "b gets i1, alone"]);
}

#[test]
fn lack_of_capacity_is_not_held_against_the_next_call() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    assert_eq!(pool.fails(1, &no_capacity()), ["a fails: the disk is full", "kill i1"]);
    assert_eq!(pool.call("b"), ["start i2"], "it is another start that may find room");
}

#[test]
fn cancelled_start_is_no_failure() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    assert_eq!(pool.fails(1, &StartFailure::Cancelled), ["start i2", "kill i1"], "a still waits");
}

#[test]
fn only_a_new_failure_is_reported() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.call("b");
    let keys = [pool.key(1), pool.key(2)];
    assert!(pool.state.start_failed(keys[0], &no_capacity(), pool.now).1);
    assert!(!pool.state.start_failed(keys[1], &no_capacity(), pool.now).1);
    pool.call("c");
    assert!(pool.state.start_failed(pool.key(3), &init(), pool.now).1);
}

#[test]
fn early_crash_delays_starts_that_no_call_waits_for() {
    let mut pool = Pool::new(Rules { min_instances: 1, ..rules() });
    pool.state.request_ready(false);
    pool.state.end_ready_request();
    assert_eq!(pool.start_what_is_needed(), ["start i1"]);
    for (instance, pause) in [(1, 1), (2, 2), (3, 4)] {
        pool.is_ready(instance);
        let (words, _) = pool.later(s(9)).exits(instance, true);
        assert_eq!(words, ["bad end, early"]);
        assert!(pool.is_gone(instance).is_empty());
        assert!(pool.later(s(pause) - ms(1)).start_what_is_needed().is_empty());
        assert_eq!(pool.later(ms(1)).start_what_is_needed(), [format!("start i{}", instance + 1)]);
    }
    pool.is_ready(4);
    pool.exits(4, true);
    assert_eq!(pool.call("a"), ["start i5"], "a call does not wait for the pause");
}

#[test]
fn late_crash_delays_nothing() {
    let mut pool = Pool::new(Rules { min_instances: 1, ..rules() });
    pool.state.request_ready(false);
    pool.start_what_is_needed();
    pool.is_ready(1);
    let (words, _) = pool.later(s(10)).exits(1, true);
    assert_eq!(words, ["start i2", "bad end, early"]);
}
