//! `isolation: call`: each call has a fresh instance. With cells ready before each call (paced),
//! one call after the other (sustained: the engine's own pace of making cells shows), and from the
//! image.

use super::{
    is_from_cell,
    times::{Times, ms, share},
};
use crate::{Plan, report::Row};
use epsilon_e2e::up::Epsilon;

/// Three paths, one after the other.
pub(super) async fn measure(up: &Epsilon, plan: Plan, rows: &mut Vec<Row>) {
    eprintln!("calls with `isolation: call` …");
    let calls = plan.starts * 3;
    let (image, _) = sequence(up, "/aloneImage", plan.starts, false).await;
    let (sustained, in_cells) = sequence(up, "/alone", calls, false).await;
    let (paced, paced_in_cells) = sequence(up, "/alone", calls, true).await;
    for (what, times, in_cells) in
        [("a cell being ready", paced, paced_in_cells), ("without a pause", sustained, in_cells)]
    {
        rows.push(Row {
            what: format!("`isolation: call`, one call after the other, {what}"),
            epsilon: times.summary() + &share(in_cells, times.len()),
            reference: format!("{}: from the image", ms(image.p50())),
            ratio: format!("{:.1}× faster", image.p50() / times.p50()),
        });
    }
}

/// Makes calls; returns how many of them came from a cell. The first one is not counted.
async fn sequence(up: &Epsilon, path: &str, calls: usize, is_paced: bool) -> (Times, usize) {
    let mut times = Times::default();
    let mut in_cells = 0;
    for turn in 0..=calls {
        if is_paced {
            up.cells_are_ready(1).await;
        }
        let answer = up.get(path).await.expect(200);
        // The first one may have the instance that the deployment started.
        if turn > 0 {
            assert!(answer.header("server-timing").contains("start"), "a fresh one: {answer}");
            times.push(answer.took);
            in_cells += usize::from(is_from_cell(&answer));
        }
    }
    (times, in_cells)
}
