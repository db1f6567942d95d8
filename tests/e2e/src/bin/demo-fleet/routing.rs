//! The first half: functions stay on their VMs, and one of the VMs is lost under load.

use crate::{note, title};
use epsilon_e2e::{
    fleet::{Fleet, Gateway, Plan},
    load::Loads,
    project,
    project::Project,
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Instant};

const FUNCTIONS: [&str; 9] =
    ["pay", "cart", "login", "search", "email", "resize", "report", "feed", "quote"];
const ROUNDS: usize = 20;
/// Callers of each function while an agent is killed.
const CALLERS: usize = 2;

/// A fleet with the default settings.
pub(crate) async fn start() -> Fleet {
    title("A gateway, a builder and three agents");
    note(
        "each a process of its own, joined with the fleet's token; one Docker engine serves all three",
    );
    let began = Instant::now();
    let fleet = Fleet::start(Plan::default()).await;
    println!("ready after {:.1?}", began.elapsed());
    fleet
}

/// Runs this part; returns whether no call was lost.
pub(crate) async fn act(fleet: &mut Fleet) -> bool {
    title("Nine functions, pushed once");
    let began = Instant::now();
    let deployment = fleet.deploy(&shop()).await;
    println!("{} functions serve after {:.1?}", deployment.done().functions.len(), began.elapsed());

    title("Each function finds its warm instance");
    let (warm, all) = calls(&fleet.gateways[0]).await;
    table(fleet).await;
    println!("{all} calls, {warm} of them found a warm instance");

    title("One agent is killed under load");
    let is_good = kill_under_load(fleet).await;
    table(fleet).await;
    is_good
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

/// Function × VM: a square for each instance.
async fn table(fleet: &Fleet) {
    let holdings = holdings(&fleet.gateways[0]).await;
    print!("{:<10}", "function");
    for agent in &fleet.agents {
        print!("  {:<16}", agent.id());
    }
    println!();
    for name in FUNCTIONS {
        let mut row = format!("{name:<10}");
        for agent in &fleet.agents {
            let count = holdings.get(name).and_then(|vms| vms.get(agent.id())).unwrap_or(&0);
            let text = if *count == 0 { "·".to_owned() } else { "■".repeat(*count) };
            row.push_str(&format!("  {text:<16}"));
        }
        println!("{}", row.trim_end());
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

/// Kills the agent that serves most functions, while all of them are called. Returns whether no
/// call was lost.
async fn kill_under_load(fleet: &mut Fleet) -> bool {
    let holdings = holdings(&fleet.gateways[0]).await;
    let held = |vm: &str| holdings.values().filter(|vms| vms.contains_key(vm)).count();
    let ids = fleet.agents.iter().map(|agent| agent.id().to_owned());
    let victim = ids.max_by_key(|id| held(id)).unwrap();
    println!(
        "{} callers without a pause; kill -9 of {victim}, which holds {} functions",
        FUNCTIONS.len() * CALLERS,
        held(&victim)
    );
    let paths = FUNCTIONS.map(|name| format!("/{name}"));
    let loads = Loads::start(fleet.gateways[0].public(), paths, CALLERS);
    loads.more(1000).await;
    fleet.agent(&victim).program.kill().await;
    let killed = Instant::now();
    fleet.gateways[0].sees(&victim, "out").await;
    println!("out of the ring after {:.0?}", killed.elapsed());
    loads.more(2000).await;
    let tally = loads.stop().await;
    println!(
        "calls answered 200: {}   anything else: {}   slowest answer: {:.0?}",
        tally.of(200),
        tally.lost(),
        tally.slowest
    );
    tally.lost() == 0
}
