//! Fifty first calls at once: to fifty functions, none of which has an instance, and to one
//! function that has none. The platform is its own: what other benches left warm would not be cold.

use super::{is_from_cell, times::Times};
use crate::{Plan, report::Row};
use epsilon_e2e::{
    http::Call,
    project,
    up::Epsilon,
    wait::{LONG, until},
};
use std::fmt::Write;
use tokio::task::JoinSet;

/// Calls at once.
const CALLS: usize = 50;

/// Rounds of both.
pub(super) async fn measure(plan: Plan, rows: &mut Vec<Row>) {
    let up = Epsilon::start().await;
    let mut code = String::from("const config = { idleTimeout: \"1s\" };\n");
    for index in 0..CALLS {
        writeln!(code, "exports.f{index} = {{ config, func: (req, res) => res.send('Hello') }};")
            .unwrap();
    }
    up.deploy(&project!("burst", { "index.js" => code })).await;
    let to_one: Vec<_> = (0..CALLS).map(|_| "/f0".to_owned()).collect();
    let to_all: Vec<_> = (0..CALLS).map(|index| format!("/f{index}")).collect();
    let ways = [
        ("50 functions without an instance", to_all),
        ("one function without an instance", to_one),
    ];
    for (what, paths) in ways {
        eprintln!("{CALLS} first calls at once to {what} …");
        let mut times = Times::default();
        let mut answered = 0;
        let mut in_cells = 0;
        for _ in 0..plan.bursts {
            nothing_is_warm(&up).await;
            let mut calls = JoinSet::new();
            for path in &paths {
                let path = path.clone();
                let public = up.public();
                calls.spawn(async move { Call::get(&path).try_send(public).await });
            }
            while let Some(call) = calls.join_next().await {
                if let Ok(answer) = call.unwrap() {
                    times.push(answer.took);
                    answered += usize::from(answer.status == 200);
                    in_cells += usize::from(is_from_cell(&answer));
                }
            }
        }
        let all = CALLS * plan.bursts;
        rows.push(Row {
            what: format!("{CALLS} first calls at once to {what}, {} times", plan.bursts),
            // The others waited for one of these to be free, or came from the image.
            epsilon: format!("{}; {in_cells} of them started in a cell", times.summary()),
            reference: String::new(),
            ratio: format!("{answered} of {all} answered"),
        });
    }
}

/// Waits until idle instances are removed and the pool of cells is as it was.
async fn nothing_is_warm(up: &Epsilon) {
    until("nothing is warm", LONG, async || {
        let vms = up.admin("/v1/vms").await;
        let instances = vms[0]["instances"].as_array().map(Vec::len);
        let cells = &vms[0]["cells"];
        let is_rested = cells["booting"] == 0 && cells["ready"].as_u64() > Some(0);
        if instances == Some(0) && is_rested { Ok(()) } else { Err((instances, cells.clone())) }
    })
    .await;
    until("no container is left", LONG, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}
