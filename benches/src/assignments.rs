//! `make bench ARGS=assignments`: a thousand cells are assigned to a function, one after the other
//! (`isolation: call`: one for each call). Whatever a cell takes from the machine must be given
//! back: mounts, directories, memory, open files, containers.

use crate::{
    Plan, memory,
    report::{self, Row},
};
use epsilon_e2e::{
    project,
    up::{Epsilon, Settings},
    wait::{LONG, until},
};
use std::{path::Path, time::Instant};

/// Calls before the first measurement: what is created once exists by then.
const WARM_UP: usize = 20;
/// Calls that may come from the image while no cell is ready, for each wanted assignment.
const IMAGE_STARTS: usize = 20;

/// A fixed number of cells: a pool that follows demand has more of them after a thousand calls.
const CONFIG: &str = "vm_agent: { cells_min: 4, cells_max: 4 }";
const CODE: &str = r#"
exports.alone = { config: { isolation: "call" }, func: (req, res) => res.send("Hello") };
"#;

/// What the idle platform holds.
#[derive(Debug)]
struct Held {
    mounts: usize,
    folders: usize,
    files: usize,
    containers: usize,
    memory: u64,
}

/// Runs the bench; returns the section as markdown.
pub(crate) async fn section(plan: Plan) -> String {
    let up = Epsilon::start_with(Settings::config(CONFIG)).await;
    up.deploy(&project!("assignments", { "index.js" => CODE })).await;
    assign(&up, WARM_UP).await;
    let before = Held::by(&up).await;
    eprintln!("{} assignments …", plan.assignments);
    let began = Instant::now();
    let calls = assign(&up, plan.assignments).await;
    let took = began.elapsed();
    let after = Held::by(&up).await;

    let row = |what: &str, before: usize, after: usize| Row {
        what: what.to_owned(),
        epsilon: after.to_string(),
        reference: format!("{before}: before"),
        ratio: format!("{:+}", after as i64 - before as i64),
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rows = [
        row("mounts below the data folder", before.mounts, after.mounts),
        row("folders of cells, sockets and layers", before.folders, after.folders),
        row("containers, waiting cells among them", before.containers, after.containers),
        row("open files", before.files, after.files),
        Row {
            what: "memory of `epsilon up`".into(),
            epsilon: format!("{:.1} MiB", mib(after.memory)),
            reference: format!("{:.1} MiB: before", mib(before.memory)),
            ratio: format!("{:+.1} MiB", mib(after.memory) - mib(before.memory)),
        },
    ];
    let mut out = report::heading(&format!(
        "After {} assignments of a cell in {:.0} s ({calls} calls one after the other, the others from the image), and before.",
        plan.assignments,
        took.as_secs_f64()
    ));
    report::rows(&rows, &mut out);
    out
}

/// Calls until this many were served by a cell of their own; returns how many calls that took.
async fn assign(up: &Epsilon, wanted: usize) -> usize {
    let (mut assigned, mut calls) = (0, 0);
    while assigned < wanted {
        let answer = up.get("/alone").await.expect(200);
        assigned += usize::from(answer.header("server-timing").contains("cell;"));
        calls += 1;
        assert!(calls < wanted * IMAGE_STARTS, "only {assigned} of {calls} calls came from a cell");
    }
    calls
}

impl Held {
    /// Counts once all instances are removed and the pool is at its target.
    async fn by(up: &Epsilon) -> Self {
        let containers = until("the platform rests", LONG, async || {
            let vms = up.admin("/v1/vms").await;
            let cells = &vms[0]["cells"];
            let ready = cells["ready"].as_u64().unwrap_or(0) as usize;
            let containers = up.containers_and_cells().await.len();
            let rests = cells["booting"] == 0 && ready > 0 && containers == ready;
            if rests { Ok(containers) } else { Err((cells.clone(), containers)) }
        })
        .await;
        let memory = memory::settled(up.pid()).await;
        let data = up.data().display().to_string();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let in_folder = |name: &str| entries(&up.data().join("vm").join(name));
        Self {
            mounts: mounts.lines().filter(|line| line.contains(&data)).count(),
            folders: ["cells", "sockets", "layers"].into_iter().map(in_folder).sum(),
            files: entries(Path::new(&format!("/proc/{}/fd", up.pid()))),
            containers,
            memory,
        }
    }
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}
