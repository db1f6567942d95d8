//! Timers of an instance: idle time, prewarms that no call used, freezing.

use super::*;

#[test]
fn last_instance_stays_as_long_as_chosen_and_others_the_default() {
    let mut pool = Pool::with_instances(2, Rules { freeze_after: None, ..rules() });
    let unused = Freezer::Unknown;
    assert_eq!(pool.tick(1, s(600), unused), (vec![], Some(s(60)), Freeze::Nothing));
    pool.later(s(60));
    assert_eq!(pool.tick(1, s(600), unused), (vec!["kill i1".into()], None, Freeze::Nothing));
    assert_eq!(pool.tick(2, s(600), unused), (vec![], Some(s(540)), Freeze::Nothing));
    pool.later(s(540));
    assert_eq!(pool.tick(2, s(600), unused), (vec!["kill i2".into()], None, Freeze::Nothing));
}

#[test]
fn minimum_stays() {
    let mut pool =
        Pool::with_instances(1, Rules { min_instances: 1, freeze_after: None, ..rules() });
    pool.state.request_ready(false);
    pool.later(s(1_000));
    let (words, next, _) = pool.tick(1, s(20), Freezer::Unknown);
    assert_eq!((words, next), (vec![], Some(s(20))), "looked at again, in case that changes");
}

#[test]
fn prewarmed_instance_stops_when_no_call_came() {
    let mut pool = Pool::new(Rules { freeze_after: None, ..rules() });
    let until = pool.now + s(50);
    pool.prewarm(until);
    pool.later(s(1)).is_ready(1);
    let (_, next, _) = pool.tick(1, s(600), Freezer::Unknown);
    assert_eq!(next, Some(s(49)));
    pool.later(s(49));
    let (words, ..) = pool.tick(1, s(600), Freezer::Unknown);
    assert_eq!(words, ["kill i1"]);
}

#[test]
fn drain_is_cut_at_its_limit() {
    let mut pool = Pool::with_instances(1, rules());
    pool.call("a");
    assert_eq!(pool.event(1, Event::Stop(StopReason::Requested)), ["check i1"]);
    let (words, next, _) = pool.tick(1, s(60), Freezer::Unknown);
    assert_eq!((words, next), (vec![], Some(s(30))), "the timeout of its calls");
    pool.later(s(30));
    let (words, ..) = pool.tick(1, s(60), Freezer::Unknown);
    assert_eq!(words, ["kill i1"]);
}

#[test]
fn idle_instance_is_frozen_once_its_freezer_is_known() {
    let mut pool = Pool::with_instances(1, rules());
    let check = |pool: &mut Pool, freezer| {
        let (_, next, freeze) = pool.tick(1, s(60), freezer);
        (next, freeze)
    };
    assert_eq!(check(&mut pool, Freezer::Unknown), (Some(s(10)), Freeze::Nothing));
    pool.later(s(10));
    assert_eq!(check(&mut pool, Freezer::Unknown), (Some(s(50)), Freeze::LookUpFreezer));
    assert_eq!(check(&mut pool, Freezer::Found), (Some(s(50)), Freeze::Now));
    assert_eq!(check(&mut pool, Freezer::Applied), (Some(s(50)), Freeze::Nothing));
    pool.call("a");
    pool.later(s(100));
    assert_eq!(
        check(&mut pool, Freezer::Found),
        (Some(s(10)), Freeze::Nothing),
        "never with a call"
    );
}
