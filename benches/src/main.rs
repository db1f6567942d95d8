//! `make bench`: starts a platform of its own, measures it beside a reference in the same run,
//! prints one table, and with `--write` puts it into `benches/README.md`.
//!
//! Machines are noisy, and two runs on two days are hard to compare. So each figure is a ratio (or
//! a difference) of two things that were measured in turns within seconds of each other, and each
//! is the median of several turns.
//!
//! | module | what it measures |
//! |---|---|
//! | [`warm`] | a warm call: through Epsilon, through HAProxy, and the same container directly |
//! | [`cold`] | first calls beside Docker's own create + start + first answer; all of them: `make bench ARGS=cold` |
//! | [`assignments`] | what is left after a thousand assignments of a cell: `make bench ARGS=assignments` |
//! | [`push`] | `epsilon deploy` of a one-line change, and of no change |
//! | [`memory`] | what the process holds when nothing runs |
//! | [`fleet`] | gateway, agents and builder as processes: the hop, routing, lost VMs: `make bench ARGS=fleet` |
//! | [`autoscaling`] | nothing: a simulation, `make bench ARGS=autoscaling` |
//! | [`keepalive`] | a simulation: how long idle instances stay, `make bench ARGS=keepalive` |
//! | [`placement`] | a simulation too, and how long one placement takes: `make bench ARGS=placement` |
//! | [`generator`] | the callers |
//! | [`haproxy`] | the reference proxy |
//! | [`report`] | the table |

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends the run")]
#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

mod assignments;
mod autoscaling;
mod cold;
mod fleet;
mod generator;
mod haproxy;
mod keepalive;
mod memory;
mod placement;
mod push;
mod report;
mod warm;

use clap::{Parser, Subcommand};
use epsilon_e2e::{project, up::Epsilon};
use report::Report;
use std::time::Duration;

/// Measures Epsilon beside its references and prints one table.
#[derive(Debug, Parser)]
struct Arguments {
    /// Fewer and shorter turns: 40 seconds instead of three minutes, for a first look
    #[arg(long)]
    quick: bool,
    /// Put the table into benches/README.md
    #[arg(long, global = true)]
    write: bool,
    /// Another section instead
    #[command(subcommand)]
    section: Option<Section>,
}

/// A section of its own.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Section {
    /// First calls: in a cell, with sixty packages, from a registry, fifty at once, each alone
    /// (about four minutes)
    Cold,
    /// A thousand assignments of a cell one after the other: what is left of them (about seven
    /// minutes)
    Assignments,
    /// A gateway, a builder and three agents: added latency, warm instances found, balance, what a
    /// lost VM costs
    Fleet,
    /// Surges and spikes through the autoscaler's policy: calls that wait, calls refused, VM-hours
    Autoscaling,
    /// How long idle instances stay, fixed and adaptive: cold starts and memory of a week of calls
    Keepalive,
    /// Where calls go: warm instances found, balance, functions that move; and how long one
    /// placement takes (measured)
    Placement,
}

impl Section {
    async fn run(self, plan: Plan, write: bool) {
        let (section, table) = match self {
            Self::Cold => ("cold", cold::section(plan).await),
            Self::Assignments => ("assignments", assignments::section(plan).await),
            Self::Fleet => ("fleet", fleet::section(plan).await),
            Self::Autoscaling => ("autoscaling", autoscaling::table()),
            Self::Keepalive => ("keepalive", keepalive::table()),
            Self::Placement => ("placement", placement::table()),
        };
        println!("{table}");
        if write {
            report::write(section, &table);
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Turns of each warm measurement.
    turns: usize,
    /// The length of one turn.
    turn: Duration,
    /// First calls that need a container each, deployments.
    starts: usize,
    pushes: usize,
    /// First calls with a cell ready: enough for the slowest hundredth.
    cells: usize,
    /// Rounds of fifty first calls at once.
    bursts: usize,
    /// Assignments of a cell in a row.
    assignments: usize,
}

impl Plan {
    const FULL: Self = Self {
        turns: 5,
        turn: Duration::from_millis(1500),
        starts: 11,
        pushes: 7,
        cells: 100,
        bursts: 3,
        assignments: 1000,
    };
    const QUICK: Self = Self {
        turns: 3,
        turn: Duration::from_millis(500),
        starts: 3,
        pushes: 3,
        cells: 10,
        bursts: 1,
        assignments: 30,
    };
}

const FUNCTIONS: &str = r#"
const hello = (req, res) => res.send("Hello");
// Enough slots for all callers in one instance, so that both sides of each comparison use the same
// container.
exports.warm = { config: { concurrency: 100, maxInstances: 1, cpu: 2 }, func: hello };
"#;

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let plan = if arguments.quick { Plan::QUICK } else { Plan::FULL };
    if let Some(section) = arguments.section {
        return section.run(plan, arguments.write).await;
    }
    let mut report = Report::new(arguments.quick);

    eprintln!("starting {} …", epsilon_e2e::up::binary().display());
    let up = Epsilon::start().await;
    let fresh = memory::settled(up.pid()).await;
    up.deploy(&project!("bench", { "index.js" => FUNCTIONS })).await;

    warm::measure(&up, plan, &mut report).await;
    cold::measure(&up, plan, &mut report).await;
    push::measure(&up, plan, &mut report).await;
    report.memory(fresh, memory::settled(up.pid()).await);
    drop(up);

    let table = report.table();
    println!("{table}");
    if arguments.write {
        report::write("measured", &table);
    }
}
