//! First calls: of functions that have no instance. `make bench` measures a small one ([`small`]);
//! `make bench ARGS=cold` all of it, each beside its reference, in turns within the same run.
//!
//! | module | the first call of |
//! |---|---|
//! | [`small`] | a small function, a cell being ready; the same from its image; the same image by Docker alone |
//! | [`packages`] | Express with sixty packages, beside bare `node` that loads the same code |
//! | [`unseen`] | a function whose code is not on the machine but in a registry, beside `docker pull` and run |
//! | [`burst`] | fifty functions at once, and of one function fifty times at once |
//! | [`alone`] | each call with `isolation: call`, paced and without a pause, beside the image path |
//! | [`docker`] | Docker's own first answer |
//! | [`times`] | how times are printed |

mod alone;
mod burst;
mod docker;
mod packages;
mod small;
mod times;
mod unseen;

use crate::{
    Plan,
    report::{self, Report, Row},
};
use epsilon_e2e::{http::Answer, project, up::Epsilon};

/// A function whose instance stops a second after its last call, in a cell and from its image: a
/// variable that only takes effect when a process starts keeps it out of cells. One that exits each
/// time would be a crash loop, which boots its own cells.
const FUNCTIONS: &str = r#"
const hello = (req, res) => res.send("Hello");
const env = { NODE_OPTIONS: "--no-deprecation" };
exports.cold = { config: { maxInstances: 1, idleTimeout: "1s" }, func: hello };
exports.image = { config: { maxInstances: 1, idleTimeout: "1s", cpu: 2, env }, func: hello };
exports.alone = { config: { isolation: "call" }, func: hello };
exports.aloneImage = { config: { isolation: "call", cpu: 2, env }, func: hello };
"#;

/// The rows of the first table.
pub(crate) async fn measure(up: &Epsilon, plan: Plan, report: &mut Report) {
    up.deploy(&project!("first-calls", { "index.js" => FUNCTIONS })).await;
    small::measure(up, plan.starts, plan.starts, report.rows()).await;
}

/// Runs all of it; returns markdown.
pub(crate) async fn section(plan: Plan) -> String {
    let mut rows: Vec<Row> = Vec::new();
    {
        let up = Epsilon::start().await;
        up.deploy(&project!("first-calls", { "index.js" => FUNCTIONS })).await;
        small::measure(&up, plan.cells, plan.starts, &mut rows).await;
        alone::measure(&up, plan, &mut rows).await;
        packages::measure(&up, plan, &mut rows).await;
    }
    burst::measure(plan, &mut rows).await;
    unseen::measure(plan, &mut rows).await;
    let mut out = report::heading("Request to answer, on a new connection.");
    report::rows(&rows, &mut out);
    out
}

/// Waits until the only instance is removed and a cell is ready, and makes the next call.
async fn first_call(up: &Epsilon, function: &str) -> Answer {
    go(up, function).await;
    up.cells_are_ready(1).await;
    let answer = up.get(&format!("/{function}")).await.expect(200);
    assert!(answer.header("server-timing").contains("start"), "a cold start: {answer}");
    answer
}

/// Calls the function, and waits until its instance is removed.
async fn go(up: &Epsilon, function: &str) {
    up.get(&format!("/{function}")).await.expect(200);
    up.is_cold(function).await;
}

/// Whether the answer came from a start in a cell.
fn is_from_cell(answer: &Answer) -> bool {
    answer.header("server-timing").contains("cell;")
}
