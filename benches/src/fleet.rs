//! A fleet of real processes on this machine: what the hop from gateway to agent costs, whether
//! calls find their warm instances, how evenly VMs are loaded, and what a killed or drained VM
//! costs its callers.

use crate::{
    Plan,
    haproxy::Haproxy,
    report,
    warm::{Subject, compare},
};
use epsilon_e2e::{
    engine::{Container, containers_of},
    fleet::{self, Fleet},
    http::{Call, Connection, Target},
    load::{Loads, Tally},
    project,
};
use std::{collections::BTreeMap, fmt::Write, time::Instant};

/// Number of functions of the Zipf callers.
const FUNCTIONS: usize = 30;
/// Calls of the routing measurement.
const CALLS: usize = 6_000;
/// How often an agent is shut down, and how often one is killed.
const ROUNDS: usize = 3;

/// Runs all of it; returns the section as markdown.
pub(crate) async fn section(plan: Plan) -> String {
    eprintln!("starting a gateway, a builder and three agents …");
    let mut fleet = Fleet::start(fleet::Plan::default()).await;
    fleet.deploy(&project!("bench", { "index.js" => code() })).await;
    let mut out = report::heading("Medians of turns; all processes on this one machine.");
    hop(&fleet, plan, &mut out).await;
    writeln!(out, "\n| what | figure |\n|---|---|").unwrap();
    routing(&fleet, &mut out).await;
    lose(&mut fleet, "ends by SIGTERM", End::Drain, &mut out).await;
    lose(&mut fleet, "is killed (-9)", End::Kill, &mut out).await;
    out
}

fn code() -> String {
    let mut code = String::from(
        "const hello = (req, res) => res.send('Hello');\n\
         exports.warm = { config: { concurrency: 100, maxInstances: 1, cpu: 2 }, func: hello };\n\
         const config = { memory: '128MiB', concurrency: 16 };\n",
    );
    for index in 0..FUNCTIONS {
        let line = format!(
            "exports.f{index} = {{ config, func: (req, res) => setTimeout(() => res.send('Hello'), 2) }};\n"
        );
        code.push_str(&line);
    }
    code
}

/// Gateway → agent over TCP → container, beside the container alone and as many hops of a plain
/// proxy.
async fn hop(fleet: &Fleet, plan: Plan, out: &mut String) {
    let public = fleet.gateways[0].public();
    Call::get("/warm").send(public).await.expect(200);
    let socket = the_instance(fleet, "warm").await.sockets().join("calls.sock");
    let near = Haproxy::start(&format!("unix@{}", socket.display())).await;
    let far = match &near {
        Some(near) => Haproxy::start(&near.address().to_string()).await,
        None => None,
    };
    let mut proxies = Vec::new();
    let mut subjects: Vec<Subject<'_>> = vec![
        ("the container's socket", Target::Unix(socket), "/"),
        ("gateway → agent → container", public.into(), "/warm"),
    ];
    for (name, haproxy) in [("HAProxy → container", near), ("HAProxy → HAProxy → container", far)]
    {
        subjects.extend(haproxy.as_ref().map(|haproxy| (name, haproxy.address().into(), "/")));
        proxies.extend(haproxy);
    }
    report::warm_rows(&compare(&subjects, plan).await, out);
}

/// The only running container of a function of this fleet.
async fn the_instance(fleet: &Fleet, function: &str) -> Container {
    for agent in &fleet.agents {
        let containers = containers_of(agent.id(), &agent.program.data()).await;
        let mut its =
            containers.into_iter().filter(|one| one.label("epsilon.function") == function);
        if let Some(container) = its.find(Container::is_running) {
            return container;
        }
    }
    panic!("no VM runs it");
}

/// Zipf calls, one at a time on eight connections.
async fn routing(fleet: &Fleet, out: &mut String) {
    eprintln!("{CALLS} Zipf calls to {FUNCTIONS} functions …");
    let public = fleet.gateways[0].public();
    // A call of each, so that the share below is about finding instances and not about making the
    // first ones.
    for index in 0..FUNCTIONS {
        Call::get(&format!("/f{index}")).send(public).await.expect(200);
    }
    let before = served(fleet).await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..8_u64 {
        callers.spawn(async move {
            let mut connection = Connection::open(&public.into()).await.unwrap();
            let mut random = Random(caller + 1);
            let mut warm = 0;
            for _ in 0..CALLS / 8 {
                let path = format!("/f{}", random.zipf(FUNCTIONS));
                let answer = connection.call(Call::get(&path)).await.unwrap().expect(200);
                warm += usize::from(!answer.header("server-timing").contains("start"));
            }
            warm
        });
    }
    let mut warm = 0;
    while let Some(count) = callers.join_next().await {
        warm += count.unwrap();
    }
    let after = served(fleet).await;
    let calls: Vec<f64> =
        after.iter().map(|(vm, count)| count - before.get(vm).unwrap_or(&0.0)).collect();
    let mean = calls.iter().sum::<f64>() / calls.len() as f64;
    let max = calls.iter().copied().fold(0.0, f64::max);
    writeln!(
        out,
        "| {CALLS} Zipf calls to {FUNCTIONS} functions on 3 VMs: found a warm instance | {:.1} % |",
        100.0 * warm as f64 / CALLS as f64
    )
    .unwrap();
    writeln!(out, "| the same: calls of the busiest VM ÷ mean | {:.2} |", max / mean).unwrap();
}

/// Calls that each VM has answered so far, by the gateway's own count of instances' calls.
async fn served(fleet: &Fleet) -> BTreeMap<String, f64> {
    let text = Call::get("/metrics")
        .header("authorization", &format!("Bearer {}", fleet.gateways[0].key()))
        .send(fleet.gateways[0].control())
        .await
        .expect(200)
        .text();
    let mut served = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("epsilon_vm_calls_total{")) {
        let (labels, value) = line.rsplit_once(' ').unwrap();
        let vm = labels.split('"').nth(1).unwrap().to_owned();
        served.insert(vm, value.parse().unwrap());
    }
    assert!(!served.is_empty(), "the gateway counts calls by VM");
    served
}

/// How a VM is lost.
#[derive(Clone, Copy)]
enum End {
    Drain,
    Kill,
}

/// One agent after the other ends under load, and is started again.
async fn lose(fleet: &mut Fleet, what: &str, how: End, out: &mut String) {
    eprintln!("an agent {what}, {ROUNDS} times …");
    let mut all = Tally::default();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let victim = busiest(fleet).await;
        let paths = (0..FUNCTIONS).map(|index| format!("/f{index}"));
        let loads = Loads::start(fleet.gateways[0].public(), paths, 1);
        loads.more(2_000).await;
        let began = Instant::now();
        match how {
            End::Drain => {
                fleet.agent(&victim).program.terminate().await;
            }
            End::Kill => {
                fleet.agent(&victim).program.kill().await;
                fleet.gateways[0].sees(&victim, "out").await;
            }
        }
        times.push(began.elapsed().as_secs_f64());
        loads.more(2_000).await;
        all.merge(loads.stop().await);
        fleet.agent(&victim).program.start_again().await;
        fleet.all_ready().await;
    }
    let until = match how {
        End::Drain => "its process is gone",
        End::Kill => "it is out of the ring",
    };
    let median = report::median(times) * 1e3;
    let (good, lost, slowest) = (all.of(200), all.lost(), all.slowest);
    writeln!(
        out,
        "| an agent {what} under load, {ROUNDS} times: until {until} | {median:.0} ms; {good} calls answered, {lost} lost, \
         slowest {slowest:.1?} |"
    )
    .unwrap();
}

/// The VM with most instances.
async fn busiest(fleet: &Fleet) -> String {
    let vms = fleet.gateways[0].admin("/v1/vms").await;
    let vms = vms.as_array().unwrap();
    let most = vms.iter().max_by_key(|vm| vm["instances"].as_array().unwrap().len()).unwrap();
    most["id"].as_str().unwrap().to_owned()
}

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): the same calls in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A rank below `count`, the first one most often: Zipf's law with exponent 1.
    fn zipf(&mut self, count: usize) -> usize {
        let total: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
        let mut left = (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * total;
        for rank in 1..=count {
            left -= 1.0 / rank as f64;
            if left <= 0.0 {
                return rank - 1;
            }
        }
        count - 1
    }
}
