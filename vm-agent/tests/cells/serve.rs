//! A cold start through a cell, and which cells the pool has.

use crate::support::{Base, World, code, docker, function, text, until};
use epsilon_api::{
    function::Network,
    units::{Bytes, MilliCores},
};

const CODE: &str = r#"
let calls = 0;
const fs = require('node:fs');
exports.hello = (req, res) => {
  if (req.path === '/count') return res.send(String(++calls));
  if (req.path === '/cwd') return res.send(process.cwd());
  if (req.path === '/crash') process.exit(7);
  if (req.path === '/log') { console.log('said this'); return res.send('logged'); }
  res.send('hello ' + (process.env.WHO ?? 'world'));
};
"#;

#[tokio::test]
async fn a_first_call_finds_a_booted_container() {
    let base = Base::new();
    let world = World::new("{}").await;
    let you =
        function(&world, &base, CODE, |spec| drop(spec.env.insert("WHO".into(), "you".into())));
    let other = function(&world, &base, CODE, |_| {});
    world.until_ready(&you, 2).await;

    let answer = world.get(&you, "/").await.unwrap();
    let phases = answer.spent.start.unwrap();
    println!("cold start: {phases:?}");
    assert!(phases.create.is_zero() && phases.start.is_zero() && phases.pull.is_zero());
    assert!(!phases.cell.is_zero() && !phases.init.is_zero());
    assert_eq!(text(answer).await, "hello you");
    assert_eq!(world.text(&you, "/count").await, "1");
    assert_eq!(world.text(&you, "/count").await, "2", "state survives between calls");
    assert_eq!(world.text(&you, "/cwd").await, "/app");
    assert_eq!(world.text(&you, "/log").await, "logged");
    world.line(&you, "said this").await;
    let instance = &world.status().instances[0];
    assert!(world.containers().contains(&format!("epsilon-cell-{}", instance.id)));

    // The next version gets the next cell, and the first one's data is gone with its cell.
    assert_eq!(world.text(&other, "/count").await, "1");
    assert_eq!(world.text(&other, "/").await, "hello world");
    assert_eq!(world.mounts().len(), 2);
    world.until_ready(&you, 1).await;
    assert_eq!(code(&world.get(&you, "/crash").await), "FUNCTION_CRASHED");
    assert_eq!(world.text(&you, "/count").await, "1", "a new instance");
    assert_eq!(world.assigned("ready"), 3);
    world.end().await;
}

#[tokio::test]
async fn limits_of_the_function_are_set_beside_the_load() {
    let base = Base::new();
    let world = World::new("{}").await;
    let small = function(&world, &base, CODE, |spec| {
        (spec.memory, spec.cpu) = (Bytes::mib(300), MilliCores(500));
    });
    world.until_ready(&small, 2).await;
    assert_eq!(world.text(&small, "/").await, "hello world");
    assert_eq!(world.assigned("ready"), 1, "a cell of 256 MiB serves 300 MiB");
    let limits = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}}";
    let container = world.container();
    let wanted = format!("{} {} 500000000", 300 << 20, 300 << 20);
    until(|| docker(&["inspect", "-f", limits, &container]), |seen| *seen == wanted).await;
    let used = world.status().memory_used_bytes;
    let cells = u64::from(world.status().cells.ready + world.status().cells.booting);
    assert!(used.get() >= (300 << 20) + cells * (256 << 20) - (256 << 20), "{used}");
    world.end().await;
}

#[tokio::test]
async fn without_a_ready_cell_one_is_booted() {
    let base = Base::new();
    let world = World::new("{cells_min: 0, cells_max: 1}").await;
    let none = function(&world, &base, CODE, |spec| spec.network = Network::None);
    let answer = world.get(&none, "/").await.unwrap();
    let phases = answer.spent.start.unwrap();
    assert!(!phases.create.is_zero() && !phases.start.is_zero() && !phases.cell.is_zero());
    assert_eq!(text(answer).await, "hello world");
    assert_eq!((world.assigned("booted"), world.assigned("image")), (1, 0));
    // After one start, the pool has a cell of its kind for the next one.
    until(|| world.status().cells.ready, |ready| *ready == 1).await;
    world.end().await;
}

#[tokio::test]
async fn cells_of_known_base_are_ready_after_restart() {
    let base = Base::new();
    let world = World::new("{}").await;
    let hello = function(&world, &base, CODE, |_| {});
    world.until_ready(&hello, 2).await;
    let folder = world.end().await;
    let world = World::on(folder, "{}").await;
    until(|| world.status().cells.ready, |ready| *ready == 2).await;
    assert_eq!(world.text(&hello, "/").await, "hello world");
    world.end().await;
}

#[tokio::test]
async fn no_cells_means_images() {
    let world = World::new("{cells_max: 0}").await;
    assert_eq!(world.mounts().len(), 0);
    assert!(!world.cells_folder().exists());
    world.end().await;
}
