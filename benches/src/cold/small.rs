//! The first call of a small function: a cell being ready, from its image, and the same image by
//! Docker alone.

use super::{
    docker, first_call, is_from_cell,
    times::{Times, ms, share},
};
use crate::report::Row;
use epsilon_e2e::up::Epsilon;

/// `cells` first calls with a cell ready, and among them `images` of the other two; the first of
/// each is not counted.
pub(super) async fn measure(up: &Epsilon, cells: usize, images: usize, rows: &mut Vec<Row>) {
    eprintln!("{cells} first calls of a small function …");
    let image = up.image("image").await;
    let (mut in_cell, mut from_image) = (Times::default(), Times::default());
    let (mut started, mut answered) = (Times::default(), Times::default());
    let mut from_cells = 0;
    for turn in 0..=cells {
        let answer = first_call(up, "cold").await;
        if turn > 0 {
            in_cell.push(answer.took);
            from_cells += usize::from(is_from_cell(&answer));
        }
        if turn % (cells / images).max(1) == 0 && from_image.len() < images {
            let answer = first_call(up, "image").await;
            assert!(!is_from_cell(&answer), "from its image: {answer}");
            let (start, first) = docker::first_answer(&image).await;
            if turn > 0 {
                from_image.push(answer.took);
                started.push(start);
                answered.push(first);
            }
        }
    }
    let docker =
        |times: &Times, what| format!("{}: Docker's create + start{what}", ms(times.p50()));
    rows.push(Row {
        what: "first call of a small function, a cell being ready".into(),
        epsilon: in_cell.summary() + &share(from_cells, cells),
        reference: docker(&answered, " + first answer"),
        ratio: format!("{:.1}× faster", answered.p50() / in_cell.p50()),
    });
    rows.push(Row {
        what: "the same from its image".into(),
        epsilon: from_image.summary(),
        reference: docker(&answered, " + first answer"),
        ratio: format!("{:.2}×", from_image.p50() / answered.p50()),
    });
    rows.push(Row {
        what: "the same over Docker's create + start alone".into(),
        epsilon: ms(from_image.p50()),
        reference: docker(&started, ""),
        ratio: format!("{:+.0} ms", from_image.p50() - started.p50()),
    });
}
