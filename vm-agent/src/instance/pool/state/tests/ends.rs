//! The end of calls, instances and pools: timeouts, crashes, drains, the agent's end.

use super::*;

#[test]
fn closing_pool_stops_idle_instances_and_lets_calls_end() {
    let mut pool = Pool::with_instances(2, rules());
    pool.call("a");
    let actions = pool.state.close(false, pool.now);
    assert_eq!(pool.words(actions), ["kill i1"]);
    assert_eq!(pool.ends("a"), ["no call runs", "kill i2"]);
    pool.is_gone(1);
    assert!(!pool.state.is_unused(pool.now));
    pool.is_gone(2);
    assert!(pool.state.is_unused(pool.now));
}

#[test]
fn waiting_calls_are_served_before_a_pool_closes() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    let actions = pool.state.close(true, pool.now);
    assert!(pool.words(actions).is_empty(), "its start goes on");
    assert_eq!(pool.is_ready(1), ["a gets i1, alone, after its start"]);
    assert_eq!(pool.ends("a"), ["no call runs", "kill i1"]);
}

#[test]
fn drained_pool_opens_again_with_its_minimum() {
    let mut pool = Pool::with_instances(1, Rules { min_instances: 1, ..rules() });
    pool.state.request_ready(false);
    pool.state.end_ready_request();
    let actions = pool.state.close(true, pool.now);
    assert_eq!(pool.words(actions), ["kill i1"], "and nothing is started in its place");
    assert!(pool.is_gone(1).is_empty());
    assert!(!pool.state.is_unused(pool.now), "it is still wanted");
    let actions = pool.state.open(pool.now);
    assert_eq!(pool.words(actions), ["start i2"]);
    let actions = pool.state.close(false, pool.now);
    assert_eq!(pool.words(actions), ["kill i2"], "retired");
    let actions = pool.state.open(pool.now);
    assert!(pool.words(actions).is_empty());
}

#[test]
fn agent_that_ends_kills_all_and_starts_nothing() {
    let mut pool = Pool::with_instances(2, Rules { min_instances: 2, ..rules() });
    let seen = pool.state.request_ready(false);
    for call in ["a", "b", "c"] {
        pool.call(call);
    }
    let actions = pool.state.kill_all(pool.now);
    assert_eq!(pool.words(actions), ["c fails: cancelled", "kill i1", "kill i2", "kill i3"]);
    assert!(pool.ends("a").is_empty());
    assert_eq!(pool.is_gone(2), Vec::<String>::new(), "a's instance");
    assert_eq!(pool.is_gone(1), ["no call runs"], "b ended with its instance");
    assert!(pool.start_what_is_needed().is_empty() && pool.prewarm(s(999)).is_empty());
    assert_eq!(pool.state.readiness(seen), Readiness::Failed(StartFailure::Cancelled));
}

#[test]
fn timed_out_call_kills_its_instance() {
    let mut pool = Pool::with_instances(1, rules());
    pool.call("a");
    pool.call("b");
    assert_eq!(
        pool.ends_with("a", Event::CallTimedOut),
        ["no call runs", "kill i1", "bad end, early"]
    );
    assert_eq!(pool.is_ready(2), ["b gets i2, alone, after its start"]);
    let gone = pool.is_gone(1);
    assert!(gone.is_empty(), "the call ended once: {gone:?}");
}

#[test]
fn other_calls_beside_a_timed_out_one_end_first() {
    let mut pool = Pool::with_instances(1, Rules { concurrency: 2, ..rules() });
    pool.call("a");
    pool.call("b");
    assert_eq!(pool.ends_with("a", Event::CallTimedOut), ["check i1"], "its drain has a limit");
    assert_eq!(pool.call("c"), ["start i2"], "it takes no call");
    assert_eq!(pool.ends("b"), ["no call runs", "kill i1", "bad end, early"]);
    let (words, _) = pool.exits(1, true);
    assert_eq!(words, ["bad end, early"], "of the exit; the timeout counted before");
}

#[test]
fn crash_returns_the_calls_in_it() {
    let mut pool = Pool::with_instances(1, Rules { concurrency: 2, ..rules() });
    pool.call("a");
    pool.call("b");
    let (words, calls) = pool.exits(1, true);
    assert_eq!((words, calls), (vec!["bad end, early".to_owned()], 2));
    assert_eq!(pool.state.why_stopping(pool.key(1)), Some(StopReason::Crashed));
    assert!(pool.ends("a").is_empty());
    assert_eq!(pool.is_gone(1), ["no call runs"]);
    assert!(pool.ends("b").is_empty(), "its instance is gone");
    assert_eq!(pool.state.running(), 0);
}

#[test]
fn exit_that_the_engine_does_not_know_is_held_against_nothing() {
    let mut pool = Pool::with_instances(1, rules());
    let (words, _) = pool.exits(1, false);
    assert!(words.is_empty());
}

#[test]
fn instance_that_served_does_not_end_early() {
    let mut pool = Pool::with_instances(1, rules());
    for _ in 0..10 {
        pool.call("a");
        pool.ends("a");
    }
    let (words, _) = pool.exits(1, true);
    assert_eq!(words, ["bad end"]);
}

#[test]
fn dead_instance_is_replaced_for_waiting_calls() {
    let mut pool = Pool::with_instances(1, Rules { max_instances: 1, ..rules() });
    pool.call("a");
    pool.call("b");
    assert_eq!(pool.event(1, Event::Kill(StopReason::Crashed)), ["start i2", "kill i1"]);
    assert_eq!(pool.event(1, Event::Kill(StopReason::Crashed)), Vec::<String>::new());
}
