//! The first call of an Express application with some sixty npm packages in its dependency layer,
//! beside bare `node` that loads the very same files: in a plain container of the function's image,
//! timed from within, so without the container's and without Node's own start. The difference is
//! what everything but loading costs.

use super::{
    first_call, is_from_cell,
    times::{Times, ms, share},
};
use crate::{Plan, report::Row};
use epsilon_e2e::{engine::ask, project, up::Epsilon};
use std::time::Duration;

const CODE: &str = r#"
const express = require("express");
const app = express();
app.use(express.json());
app.use((req, res, next) => { res.set("x-seen", "yes"); next(); });
app.get("/", (req, res) => res.send("packed"));
exports.packed = { config: { maxInstances: 1, idleTimeout: "1s" }, func: app };
"#;
const MANIFEST: &str =
    r#"{ "name": "packed", "version": "1.0.0", "dependencies": { "express": "5.1.0" } }"#;
const LOAD: &str = "const began = performance.now(); require('/app/index.js'); console.log(performance.now() - began)";

/// Runs in turns; the first one is not counted.
pub(super) async fn measure(up: &Epsilon, plan: Plan, rows: &mut Vec<Row>) {
    eprintln!("first calls of a function with packages …");
    up.deploy(&project!("packed", { "index.js" => CODE, "package.json" => MANIFEST })).await;
    let image = up.image("packed").await;
    let node = ["run", "--rm", "--network", "none", "--entrypoint", "node", &image];
    let inside = async |code| ask(&[&node[..], &["-e", code]].concat()).await;
    let packages = inside("console.log(fs.readdirSync('/app/node_modules').length)").await;
    let mut epsilon = Times::default();
    let mut bare = Times::default();
    let mut from_cells = 0;
    for turn in 0..=plan.starts {
        let answer = first_call(up, "packed").await;
        let loaded: f64 = inside(LOAD).await.parse().unwrap();
        if turn > 0 {
            epsilon.push(answer.took);
            bare.push(Duration::from_secs_f64(loaded / 1e3));
            from_cells += usize::from(is_from_cell(&answer));
        }
    }
    rows.push(Row {
        what: format!(
            "first call of Express middleware with {packages} packages, a cell being ready"
        ),
        epsilon: epsilon.summary() + &share(from_cells, plan.starts),
        reference: format!("{}: bare `node` loading the same files", ms(bare.p50())),
        ratio: format!("{:+.0} ms", epsilon.p50() - bare.p50()),
    });
}
