//! Effects of one function on shared resources (logs, cells), and on its neighbours.

use crate::{support::World, wrapper::Load};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_flood_drops_only_its_own_lines() {
    let world = World::new().await;
    let (loud, _) = world.function("loud", Load::Works, |_| {});
    let (quiet, _) = world.function("quiet", Load::Works, |_| {});
    world.text(&quiet, "/").await;
    let flood = async {
        for _ in 0..3 {
            world.text(&loud, "/flood").await;
        }
    };
    let lines = async {
        for _ in 0..200 {
            world.text(&quiet, "/log").await;
        }
    };
    tokio::join!(flood, lines);
    // Reported within a second, also when nothing else is logged any more.
    let dropped = "lines were dropped: a function may log 5000 lines and 2MiB a second";
    let mut log = Vec::new();
    for _ in 0..200 {
        log = world.log(&loud).await;
        if log.iter().any(|line| line.ends_with(dropped)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(log.iter().any(|line| line.ends_with(dropped)), "{} lines", log.len());
    assert!(log.len() < 150_000, "{} lines", log.len());
    assert_eq!(world.log(&quiet).await.len(), 400, "two lines a call");
    world.end().await;
}
