//! The second act of the demo: a gateway, a builder and three agents on this machine; functions that keep to
//! their VMs; one agent killed under load. `infra/demo-fleet.sh` builds and runs it.
//!
//! Prints what it does as it does it. Ends by itself, with exit status 1 when a count is not what was promised;
//! leaves nothing behind.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it shows things, and fails by panicking"
)]

use epsilon_e2e::{
    fleet::{Fleet, Gateway, Plan},
    load::Load,
    project,
    project::Project,
    wait::{SOON, until},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

const FUNCTIONS: [&str; 9] =
    ["pay", "cart", "login", "search", "email", "resize", "report", "feed", "quote"];
const ROUNDS: usize = 20;
const CALLERS: usize = 4;

fn title(text: &str) {
    println!("\n\x1b[1m== {text}\x1b[0m");
}

fn note(text: &str) {
    println!("\x1b[2m{text}\x1b[0m");
}

fn shop() -> Project {
    let code: String = FUNCTIONS
        .iter()
        .map(|name| {
            format!(
                "exports.{name} = {{ config: {{ memory: '128MiB', concurrency: 16 }},\n  \
                 func: (req, res) => setTimeout(() => res.send('{name}'), 5) }};\n"
            )
        })
        .collect();
    project!("shop", { "index.js" => code })
}

/// Instances by function and VM.
async fn holdings(gateway: &Gateway) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut found: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for vm in gateway.admin("/v1/vms").await.as_array().unwrap() {
        for instance in vm["instances"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let vms = found.entry(text(&instance["function"])).or_default();
            *vms.entry(text(&vm["id"])).or_default() += 1;
        }
    }
    found
}

async fn table(gateway: &Gateway, vms: &[String]) {
    let holdings = holdings(gateway).await;
    print!("{:<10}", "function");
    for vm in vms {
        print!("  {vm:<16}");
    }
    println!();
    for name in FUNCTIONS {
        print!("{name:<10}");
        for vm in vms {
            let count = holdings.get(name).and_then(|vms| vms.get(vm)).copied().unwrap_or(0);
            let text = if count == 0 { "·".to_owned() } else { "■".repeat(count) };
            print!("  {text:<16}");
        }
        println!();
    }
}

async fn calls(gateway: &Gateway) -> (usize, usize) {
    let (mut warm, mut all) = (0, 0);
    for _ in 0..ROUNDS {
        for name in FUNCTIONS {
            let answer = gateway.get(&format!("/{name}")).await.expect(200);
            all += 1;
            warm += usize::from(!answer.header("server-timing").contains("start"));
        }
    }
    (warm, all)
}

/// Kills the agent that most functions live on, while all of them are called. Says whether no call was lost.
async fn kill_under_load(fleet: &mut Fleet) -> bool {
    let holdings = holdings(&fleet.gateways[0]).await;
    let held = |vm: &str| holdings.values().filter(|vms| vms.contains_key(vm)).count();
    let ids = fleet.agents.iter().map(|agent| agent.id().to_owned());
    let victim = ids.max_by_key(|id| held(id)).unwrap();
    println!("kill -9 of {victim}, which holds {} functions", held(&victim));
    let public = fleet.gateways[0].public();
    let loads: Vec<_> =
        FUNCTIONS.iter().map(|name| Load::start(public, &format!("/{name}"), CALLERS)).collect();
    let answers = |loads: &[Load]| loads.iter().map(|load| load.tally().answers()).sum::<u64>();
    enough(&loads, answers(&loads) + 2000).await;
    fleet.agent(&victim).program.kill().await;
    let killed = Instant::now();
    fleet.gateways[0].sees(&victim, "out").await;
    let out = killed.elapsed();
    enough(&loads, answers(&loads) + 4000).await;
    let (mut good, mut bad, mut slowest) = (0, 0, Duration::ZERO);
    for load in loads {
        let tally = load.stop().await;
        good += tally.of(200);
        bad += tally.answers() - tally.of(200) + tally.refused + tally.broken.len() as u64;
        slowest = slowest.max(tally.slowest);
    }
    println!("answers 200: {good}   anything else: {bad}   slowest answer: {slowest:.0?}");
    println!("out of the ring after {out:.0?}");
    bad == 0
}

async fn enough(loads: &[Load], answers: u64) {
    until("calls go on", SOON, async || {
        let now = loads.iter().map(|load| load.tally().answers()).sum::<u64>();
        if now >= answers { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::main]
async fn main() -> ExitCode {
    title("A gateway, a builder and three agents");
    note(
        "each a process of its own, joined by the fleet's token; one Docker engine stands for three",
    );
    let began = Instant::now();
    let mut fleet = Fleet::start(Plan::default()).await;
    println!("ready after {:.1?}", began.elapsed());
    let vms: Vec<_> = fleet.agents.iter().map(|agent| agent.id().to_owned()).collect();

    title("Nine functions, pushed once");
    let began = Instant::now();
    let deployment = fleet.deploy(&shop()).await;
    println!("{} functions serve after {:.1?}", deployment.done().functions.len(), began.elapsed());

    title("Each function finds its warm instance");
    let (warm, all) = calls(&fleet.gateways[0]).await;
    table(&fleet.gateways[0], &vms).await;
    println!("{all} calls, {warm} of them found a warm instance");

    title("One agent is killed under load");
    let is_good = kill_under_load(&mut fleet).await;
    table(&fleet.gateways[0], &vms).await;
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
