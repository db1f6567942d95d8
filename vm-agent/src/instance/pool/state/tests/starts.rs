//! Starts that no call waits for: minimum, explicit requests, prewarms; and evictions.

use super::*;

#[test]
fn request_starts_the_minimum_and_keeps_it() {
    let mut pool = Pool::new(Rules { min_instances: 2, starts_at_once: 1, ..rules() });
    assert!(pool.start_what_is_needed().is_empty(), "not wanted yet");
    let seen = pool.state.request_ready(false);
    assert_eq!(pool.start_what_is_needed(), ["start i1"]);
    assert_eq!(pool.state.readiness(seen), Readiness::Pending);
    assert_eq!(pool.is_ready(1), ["start i2"]);
    assert_eq!(pool.state.readiness(seen), Readiness::Pending, "two are the minimum");
    pool.is_ready(2);
    assert_eq!(pool.state.readiness(seen), Readiness::Ready);
    pool.state.end_ready_request();
    assert_eq!(pool.state.spare(), 0);
    pool.exits(2, true);
    assert_eq!(pool.is_gone(2), Vec::<String>::new(), "it pauses after an early crash");
    assert_eq!(pool.later(s(1)).start_what_is_needed(), ["start i3"]);
}

#[test]
fn request_without_minimum_needs_one_instance() {
    let mut pool = Pool::new(rules());
    let seen = pool.state.request_ready(false);
    assert_eq!(pool.start_what_is_needed(), ["start i1"]);
    pool.is_ready(1);
    assert_eq!(pool.state.readiness(seen), Readiness::Ready);
    assert_eq!(pool.state.spare(), 0, "the request holds it");
    pool.state.end_ready_request();
    assert_eq!(pool.state.spare(), 1);
}

#[test]
fn request_fails_with_its_last_start() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.fails(1, &init());
    let seen = pool.state.request_ready(false);
    assert_eq!(
        pool.start_what_is_needed(),
        ["start i2"],
        "an explicit request tries again at once"
    );
    assert_eq!(pool.state.readiness(seen), Readiness::Pending, "that failure was before");
    pool.fails(2, &no_capacity());
    assert_eq!(pool.state.readiness(seen), Readiness::Failed(no_capacity()));
}

#[test]
fn request_to_a_draining_vm_is_refused() {
    let mut pool = Pool::new(rules());
    let seen = pool.state.request_ready(true);
    assert!(pool.start_what_is_needed().is_empty());
    assert_eq!(pool.state.readiness(seen), Readiness::Failed(StartFailure::Cancelled));
}

#[test]
fn prewarm_only_into_an_empty_pool() {
    let mut pool = Pool::new(rules());
    let until = pool.now + s(50);
    assert_eq!(pool.prewarm(until), ["start i1"]);
    assert!(pool.state.is_start_needed() && pool.state.is_prewarm_only());
    assert!(pool.prewarm(until).is_empty(), "one is enough");
    pool.lacks_memory(1, true);
    assert!(!pool.state.is_start_needed(), "a prewarm does not wait for memory");
    pool.call("a");
    assert!(pool.state.is_start_needed() && !pool.state.is_prewarm_only());
    assert_eq!(pool.is_ready(1), ["a gets i1, prewarmed, alone, after its start"]);
    pool.ends("a");
    assert_eq!(pool.call("b"), ["b gets i1, alone"], "prewarmed for the first call only");
}

#[test]
fn no_prewarm_after_a_failure_or_while_closing() {
    let until = s(500);
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.fails(1, &init());
    pool.is_gone(1);
    assert!(pool.later(s(60)).prewarm(until).is_empty(), "a failure stays until a success");
    let mut pool = Pool::new(rules());
    pool.state.close(true, pool.now);
    assert!(pool.prewarm(until).is_empty());
    pool.state.open(pool.now);
    assert_eq!(pool.prewarm(until), ["start i1"]);
}

#[test]
fn only_idle_instances_are_evicted() {
    let mut pool = Pool::with_instances(2, rules());
    pool.call("a");
    assert_eq!(pool.evict(2), None, "it has a call");
    assert_eq!(pool.evict(1), Some(vec!["kill i1".into()]));
    assert_eq!(pool.evict(1), None, "once");
    assert_eq!(pool.state.why_stopping(pool.key(1)), Some(StopReason::Evicted));
    assert_eq!(pool.call("b"), ["start i3"], "it takes no call any more");
}

#[test]
fn idle_longest_comes_first_and_the_minimum_is_not_spare() {
    let mut pool = Pool::with_instances(3, Rules { min_instances: 1, ..rules() });
    pool.state.request_ready(false);
    for call in ["a", "b", "c"] {
        pool.call(call);
    }
    assert!(pool.state.idle().is_empty());
    for call in ["a", "c", "b"] {
        pool.later(s(5)).ends(call);
    }
    let idle: Vec<_> = pool.state.idle().into_iter().map(|(_, key)| pool.name(key)).collect();
    assert_eq!(idle, ["i3", "i1", "i2"]);
    assert_eq!((pool.state.live(), pool.state.spare()), (3, 2));
}
