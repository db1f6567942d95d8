//! Faults under constant load: only calls that ran on the failed process may fail, and those with a
//! clear 502.

use super::{
    calls::{home, load, only_lost},
    functions,
    lent::{self, FUNCTIONS, Lent},
    turn,
};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    http::Call,
    load::Loads,
    wait::{SOON, until},
};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A fleet under load, and a VM that runs some of it.
async fn under_load() -> (Lent, Loads, String) {
    let fleet = lent::one().await;
    let calls = load(&fleet.gateways[0], FUNCTIONS);
    calls.more(300).await;
    let victim = home(&fleet.gateways[0], "f0").await;
    (fleet, calls, victim)
}

#[tokio::test]
async fn killed_agent_loses_only_its_running_calls() {
    let (mut fleet, calls, victim) = under_load().await;
    fleet.agent(&victim).program.kill().await;
    let killed = Instant::now();
    fleet.gateways[0].sees(&victim, "out").await;
    let seen = killed.elapsed();
    assert!(seen <= Duration::from_secs(3), "the ring is right after {seen:?}");
    calls.more(600).await;
    // GETs are idempotent: even those that ran on it are retried elsewhere.
    only_lost(&calls.stop().await, 0);
    eprintln!("out after {seen:?}");
}

#[tokio::test]
async fn running_post_gets_502_when_its_agent_is_killed() {
    let mut fleet = lent::one().await;
    let public = fleet.gateways[0].public();
    let slow = tokio::spawn(Call::post("/f0/slow", "text/plain", "once").send(public));
    let victim = until("the call runs", SOON, async || fleet.gateways[0].busy_vm().await).await;
    fleet.agent(&victim).program.kill().await;
    slow.await.unwrap().expect_error(502, "FUNCTION_CRASHED");
    fleet.gateways[0].get("/f0").await.expect(200);
}

#[tokio::test]
async fn stopped_agent_is_out_then_ready_again() {
    let (mut fleet, calls, victim) = under_load().await;
    fleet.agent(&victim).program.signal(Signal::STOP);
    let stopped = Instant::now();
    fleet.gateways[0].sees(&victim, "out").await;
    let seen = stopped.elapsed();
    assert!(seen <= Duration::from_secs(5), "out after {seen:?}");
    calls.go_on_until(stopped + Duration::from_secs(10)).await;
    fleet.agent(&victim).program.signal(Signal::CONT);
    fleet.gateways[0].sees(&victim, "ready").await;
    calls.more(300).await;
    only_lost(&calls.stop().await, 0);
}

#[tokio::test]
async fn three_of_five_agents_die_at_once() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan { agents: 5, ..Plan::default() }).await;
    fleet.deploy(&functions(FUNCTIONS)).await;
    let calls = load(&fleet.gateways[0], FUNCTIONS);
    calls.more(300).await;
    for agent in &mut fleet.agents[..3] {
        agent.program.signal(Signal::KILL);
    }
    let killed = Instant::now();
    for index in 0..3 {
        let id = fleet.agents[index].id().to_owned();
        fleet.gateways[0].sees(&id, "out").await;
        fleet.agents[index].program.ended(SOON).await;
    }
    let seen = killed.elapsed();
    assert!(seen <= Duration::from_secs(3), "the ring is right after {seen:?}");
    calls.more(600).await;
    only_lost(&calls.stop().await, 0);
}

#[tokio::test]
async fn every_process_is_restarted_in_turn() {
    let mut fleet = lent::one().await;
    let calls = load(&fleet.gateways[0], 3);
    calls.more(100).await;
    for index in 0..fleet.agents.len() {
        let status = fleet.agents[index].program.terminate().await;
        assert!(status.success(), "{status}");
        fleet.agents[index].program.start_again().await;
        fleet.all_ready().await;
        calls.more(100).await;
    }
    fleet.builder.terminate().await;
    fleet.builder.start_again().await;
    only_lost(&calls.stop().await, 0);
    fleet.deploy(&functions(FUNCTIONS)).await;
}
