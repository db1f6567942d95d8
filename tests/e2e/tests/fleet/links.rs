//! Agents on networks of their own: a link is cut, slowed and restored under load.

use super::{
    calls::{home, load, only_lost},
    functions, turn,
};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    network::Network,
    program::Launch,
};
use std::time::{Duration, Instant};

const VMS: u8 = 3;
/// A link of so many kbit/s carries some thirty calls a second; more are queued.
const SLOW: u32 = 128;

/// A fleet whose agent of number N is in the namespace of number N.
async fn fleet(network: &Network) -> Fleet {
    // Its firewall is that of its namespace, while the engine's bridges are the machine's.
    let config = Some("vm_agent: { dangerous_allow_metadata: true }".to_owned());
    let plan = Plan { agents: 0, host: network.host(), config, ..Plan::default() };
    let mut fleet = Fleet::start(plan).await;
    for number in 0..VMS {
        let change = |launch: &mut Launch| {
            launch.netns = Some(network.netns(number));
            *launch.arguments.last_mut().unwrap() = format!("{}:0", network.address(number));
        };
        fleet.add_agent_with(change).await;
    }
    fleet.all_ready().await;
    fleet
}

/// The number of the agent that serves the function.
async fn number_of_home(fleet: &Fleet, function: &str) -> u8 {
    let home = home(&fleet.gateways[0], function).await;
    let number = fleet.agents.iter().position(|agent| agent.id() == home);
    number.unwrap().try_into().unwrap()
}

#[tokio::test]
async fn cut_link_takes_a_vm_out_slow_link_not() {
    let _turn = turn().await;
    let network = Network::start(VMS);
    let fleet = fleet(&network).await;
    let gateway = &fleet.gateways[0];
    fleet.deploy(&functions(3)).await;

    let calls = load(gateway, 3);
    calls.more(150).await;
    let number = number_of_home(&fleet, "f0").await;
    let vm = fleet.agents[usize::from(number)].id();
    network.cut(number);
    let cut = Instant::now();
    gateway.sees(vm, "out").await;
    let seen = cut.elapsed();
    assert!(seen <= Duration::from_secs(5), "out after {seen:?}");
    calls.go_on_until(cut + Duration::from_secs(8)).await;
    network.join(number);
    let joined = Instant::now();
    gateway.sees(vm, "ready").await;
    eprintln!("out after {seen:?}, back after {:?}", joined.elapsed());
    calls.more(150).await;
    only_lost(&calls.stop().await, 0);

    let number = number_of_home(&fleet, "f0").await;
    let vm = fleet.agents[usize::from(number)].id();
    let calls = load(gateway, 3);
    network.slow(number, SLOW);
    let slow = Instant::now();
    while slow.elapsed() < Duration::from_secs(4) {
        calls.more(20).await;
        let standing = gateway.vm(vm).await.unwrap()["standing"].clone();
        assert_eq!(standing, "ready", "slow is not out");
    }
    network.remove_limit(number);
    let tally = calls.stop().await;
    assert!(tally.slowest >= Duration::from_millis(100), "no call met the slow link: {tally:?}");
    only_lost(&tally, 0);

    let calls = load(gateway, 3);
    calls.more(150).await;
    only_lost(&calls.stop().await, 0);
}
