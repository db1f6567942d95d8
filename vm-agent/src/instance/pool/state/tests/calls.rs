//! Calls: free slots, the queue, limits, calls that may not wait.

use super::*;

#[test]
fn free_slot_of_the_instance_used_last() {
    let mut pool = Pool::with_instances(3, rules());
    assert_eq!(pool.call("a"), ["a gets i3, alone"]);
    assert_eq!(pool.call("b"), ["b gets i2"]);
    assert!(pool.ends("a").is_empty());
    assert_eq!(pool.ends("b"), ["no call runs"]);
    assert_eq!(pool.call("c"), ["c gets i2, alone"], "used last, though it is not the newest");
    assert_eq!(pool.call("d"), ["d gets i3"]);
    assert_eq!(pool.state.take_uses(), Uses { calls: 4, instances: 3 });
}

#[test]
fn calls_without_a_slot_are_served_in_order() {
    let mut pool = Pool::new(rules());
    assert_eq!(pool.call("a"), ["start i1"]);
    assert_eq!(pool.call("b"), ["start i2"]);
    assert!(pool.call("c").is_empty(), "two starts at once");
    assert_eq!(
        pool.is_ready(2),
        ["a gets i2, alone, after its start", "start i3"],
        "the first call gets the first slot"
    );
    assert_eq!(pool.ends("a"), ["no call runs", "b gets i2, alone"]);
    assert_eq!(pool.ends("b"), ["no call runs", "c gets i2, alone"]);
    assert!(!pool.state.is_start_needed(), "nothing is left for i1 and i3");
}

#[test]
fn no_more_instances_than_the_version_may_have() {
    let mut pool = Pool::with_instances(2, rules());
    pool.call("a");
    pool.call("b");
    assert_eq!(pool.call("c"), ["start i3"]);
    assert!(pool.call("d").is_empty(), "three are the limit");
    assert_eq!(pool.is_ready(3), ["c gets i3, after its start"]);
    assert!(pool.start_what_is_needed().is_empty());
    assert_eq!(pool.ends("b"), ["d gets i1"]);
}

#[test]
fn one_start_for_as_many_calls_as_it_serves() {
    let mut pool = Pool::new(Rules { concurrency: 2, ..rules() });
    assert_eq!(pool.call("a"), ["start i1"]);
    assert!(pool.call("b").is_empty());
    assert_eq!(pool.call("c"), ["start i2"]);
    assert_eq!(
        pool.is_ready(1),
        ["a gets i1, alone, after its start", "b gets i1, after its start"]
    );
    assert!(pool.call("d").is_empty(), "i2 has a slot for it");
    assert_eq!(pool.ends("a"), ["c gets i1"]);
    assert_eq!(pool.is_ready(2), ["d gets i2, after its start"]);
    assert_eq!(pool.call("e"), ["e gets i2"]);
    assert_eq!(pool.state.running(), 4);
}

#[test]
fn queue_is_bounded() {
    let mut pool = Pool::new(rules());
    for call in ["a", "b", "c", "d"] {
        pool.call(call);
    }
    assert_eq!(pool.call("e"), ["queue is full"]);
    pool.cancel("b");
    assert!(pool.call("f").is_empty());
    assert_eq!(pool.state.waiting(), 4);
}

#[test]
fn cancelled_call_gets_no_slot() {
    let mut pool = Pool::new(rules());
    pool.call("a");
    pool.call("b");
    pool.cancel("a");
    assert_eq!(pool.is_ready(1), ["b gets i1, alone, after its start"]);
    assert!(!pool.state.is_start_needed(), "i2 has no call to serve");
    pool.cancel("b");
    assert_eq!(pool.ends("b"), ["no call runs"], "it was served; its slot is free once");
    assert_eq!(pool.call("c"), ["c gets i1, alone"]);
}

#[test]
fn waiting_call_knows_whether_a_start_is_for_it() {
    let mut pool = Pool::new(Rules { concurrency: 2, starts_at_once: 1, ..rules() });
    for call in ["a", "b", "c"] {
        pool.call(call);
    }
    let is_coming = |pool: &Pool, call| pool.state.is_start_coming(pool.tickets[call]);
    assert!(is_coming(&pool, "b") && !is_coming(&pool, "c"));
    pool.cancel("a");
    assert!(is_coming(&pool, "c"));
    pool.is_ready(1);
    assert!(!is_coming(&pool, "c"), "it waits no more");
}

#[test]
fn call_that_may_not_wait_is_refused_unless_a_start_serves_it() {
    let mut pool = Pool::new(rules());
    assert_eq!(pool.call_without_wait("a"), ["start i1"]);
    assert_eq!(pool.call_without_wait("b"), ["start i2"]);
    assert_eq!(pool.call_without_wait("c"), ["c is refused"], "no third start at once");
    assert!(pool.call("d").is_empty());
    assert_eq!(pool.is_ready(1), ["a gets i1, alone, after its start", "start i3"]);
    assert_eq!(pool.state.waiting(), 2);
}

#[test]
fn memory_short_is_no_start_for_calls_that_may_not_wait() {
    let mut pool = Pool::new(rules());
    pool.call_without_wait("a");
    pool.call("b");
    let refused = pool.lacks_memory(1, true);
    assert!(refused.is_empty(), "i2 serves the first in the queue: {refused:?}");
    assert_eq!(pool.lacks_memory(2, true), ["a fails: all memory for instances is in use"]);
    assert_eq!(pool.state.waiting(), 1, "b may wait for memory");
    assert!(pool.lacks_memory(2, false).is_empty());
    assert_eq!(pool.is_ready(2), ["b gets i2, alone, after its start"]);
}

#[test]
fn one_call_instance_serves_no_second_call() {
    let policy = Policy { one_call: true, ..rules().policy };
    let mut pool = Pool::with_instances(1, Rules { policy, max_instances: 1, ..rules() });
    assert_eq!(pool.call("a"), ["a gets i1, alone"]);
    assert!(pool.call("b").is_empty(), "one instance is the limit");
    assert_eq!(pool.ends("a"), ["no call runs", "start i2", "kill i1"]);
    assert_eq!(pool.is_ready(2), ["b gets i2, alone, after its start"]);
}
