//! The container engine of one VM is stopped and started under load. That VM has an engine of its
//! own, and images come from a registry, as on separate machines; everything else on this machine's
//! engine is unaffected.

use super::{
    calls::{load, only_lost},
    functions, turn,
};
use epsilon_e2e::{
    dockerd::Dockerd,
    fleet::{Fleet, Gateway, Plan},
    http::Call,
    wait::{SOON, until},
};
use epsilon_registry::debian::DebianRegistry;
use std::time::Instant;
use tokio::task::JoinSet;

const FUNCTIONS: usize = 6;

/// Waits until calls run on this VM.
async fn works(gateway: &Gateway, vm: &str) {
    until(&format!("calls run on {vm}"), SOON * 2, async || match gateway.vm(vm).await {
        Some(vm) if vm["calls_active"].as_u64() > Some(0) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn engine_restart_costs_only_the_calls_running_there() {
    let _turn = turn().await;
    let registry = DebianRegistry::start().await;
    let mut engine = Dockerd::start().await;
    let config = Some(format!("builder: {{ registry: '{}/e2e' }}", registry.address()));
    let mut fleet = Fleet::start(Plan { agents: 1, config, ..Plan::default() }).await;
    let socket = engine.socket().to_str().unwrap().to_owned();
    let variable = ("EPSILON_VM_AGENT_ENGINE_SOCKET".to_owned(), socket);
    let vm = fleet.add_agent_with(|launch| launch.env.push(variable)).await.id().to_owned();
    fleet.all_ready().await;
    fleet.deploy(&functions(FUNCTIONS)).await;
    let gateway = &fleet.gateways[0];

    // More than one VM gets calls while the other one has room.
    let calls = load(gateway, FUNCTIONS);
    calls.more(300).await;
    works(gateway, &vm).await;
    let public = gateway.public();
    let mut slow = JoinSet::new();
    for index in 0..FUNCTIONS {
        let call = Call::post(&format!("/f{index}/slow"), "text/plain", "once");
        slow.spawn(call.send(public));
    }
    calls.more(50).await;
    engine.stop().await;
    calls.more(300).await;
    // Some ran there. The engine gives its containers a while to end; calls that do not finish are
    // lost, with an error to the caller.
    while let Some(answer) = slow.join_next().await {
        let answer = answer.unwrap();
        match answer.status {
            200 => assert_eq!(answer.text(), "late"),
            _ => answer.expect_error(502, "FUNCTION_CRASHED"),
        }
    }

    engine.start_again().await;
    let answers = Instant::now();
    works(gateway, &vm).await;
    eprintln!("calls run there {:?} after its engine answers again", answers.elapsed());
    calls.more(300).await;
    only_lost(&calls.stop().await, 0);
    fleet.all_ready().await;
    fleet.deploy(&functions(FUNCTIONS)).await;
}
