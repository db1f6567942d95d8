//! One machine of the fleet has a fault: its disk is full, its clock is set.

use super::{
    calls::{load, only_lost},
    functions, lent, turn,
};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    program::Launch,
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Long enough for a member's heartbeat.
const A_WHILE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_full_disk_on_one_vm_costs_no_call() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan { agents: 2, ..Plan::default() }).await;
    let full = fleet.add_agent_with(|launch| launch.disk = Some("8m".into())).await;
    let noise = full.program.data().join("noise");
    fleet.all_ready().await;
    fleet.deploy(&functions(6)).await;
    let calls = load(&fleet.gateways[0], 6);
    calls.more(200).await;
    // The write ends with the last byte of the disk.
    assert!(fs::write(&noise, vec![1; 16 << 20]).is_err(), "the disk takes 16 MiB");
    calls.more(200).await;
    // New instances have to start while it is full.
    fleet.deploy(&functions(6)).await;
    calls.more(200).await;
    fs::remove_file(&noise).unwrap();
    fleet.deploy(&functions(6)).await;
    calls.more(200).await;
    only_lost(&calls.stop().await, 0);
    fleet.all_ready().await;
}

/// Sets a program's wall clock from a file; its monotonic clock stays.
fn with_clock(launch: &mut Launch, file: &Path) {
    let library = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("faketime is installed: run infra/ensure-tools.sh");
    let file = file.to_str().unwrap();
    for (name, value) in [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ] {
        launch.env.push((name.to_owned(), value.to_owned()));
    }
}

#[tokio::test]
async fn a_vms_clock_that_jumps_costs_no_call() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan { agents: 1, ..Plan::default() }).await;
    let clock = fleet.builder.data().join("clock");
    fs::write(&clock, "+0").unwrap();
    let agent = fleet.add_agent_with(|launch| with_clock(launch, &clock)).await;
    let agent = agent.id().to_owned();
    fleet.all_ready().await;
    fleet.deploy(&functions(3)).await;
    let gateway = &fleet.gateways[0];
    let calls = load(gateway, 3);
    calls.more(100).await;
    for offset in ["+1h", "-1h", "+0"] {
        fs::write(&clock, offset).unwrap();
        let jumped = Instant::now();
        while jumped.elapsed() < A_WHILE {
            calls.more(20).await;
            let vm = gateway.vm(&agent).await.unwrap();
            assert_eq!(vm["standing"], "ready", "{offset}: {vm}");
        }
    }
    only_lost(&calls.stop().await, 0);
    fleet.deploy(&functions(3)).await;
}

#[tokio::test]
async fn a_gateways_clock_that_jumps_costs_no_call() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan { agents: 2, ..Plan::default() }).await;
    fleet.deploy(&functions(3)).await;
    let clock = fleet.gateways[0].program.data().join("clock");
    fs::write(&clock, "+0").unwrap();
    fleet.gateways[0].program.terminate().await;
    with_clock(fleet.gateways[0].program.launch(), &clock);
    fleet.gateways[0].start_again().await;
    fleet.all_ready().await;
    let gateway = &fleet.gateways[0];
    let calls = load(gateway, 3);
    calls.more(100).await;
    for offset in ["-1h", "+1h", "+0"] {
        fs::write(&clock, offset).unwrap();
        let jumped = Instant::now();
        while jumped.elapsed() < A_WHILE {
            calls.more(20).await;
            for agent in &fleet.agents {
                let vm = gateway.vm(agent.id()).await.unwrap();
                assert_eq!(vm["standing"], "ready", "{offset}: {vm}");
            }
        }
    }
    only_lost(&calls.stop().await, 0);
    // Joining and requests go on by the gateways' clock, too.
    fleet.add_agent().await;
    fleet.all_ready().await;
    fleet.deploy(&functions(3)).await;
}

#[tokio::test]
async fn gateways_are_restarted_in_turn_behind_a_balancer() {
    let mut fleet = lent::two().await;
    for (restarted, other) in [(0, 1), (1, 0)] {
        // The balancer sends new calls to the other one first, and here again as soon as it
        // listens.
        let calls = load(&fleet.gateways[other], 3);
        let status = fleet.gateways[restarted].program.terminate().await;
        assert!(status.success(), "{status}");
        fleet.gateways[restarted].start_again().await;
        let back = load(&fleet.gateways[restarted], 3);
        back.more(100).await;
        only_lost(&back.stop().await, 0);
        only_lost(&calls.stop().await, 0);
        fleet.all_ready().await;
    }
}
