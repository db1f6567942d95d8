//! Fifty concurrent first calls: all of them are answered, whether a cell is left for them or not.

use epsilon_e2e::{
    http::Call,
    load::at_once,
    project,
    up::{Epsilon, Settings},
    wait::{LONG, until},
};
use std::fmt::Write;
use tokio::task::JoinSet;

/// Concurrent calls.
const CALLS: usize = 50;
/// Starts that are queued on a busy machine of two cores, or for memory on a small one, must not be
/// refused.
const CONFIG: &str = "vm_agent: { queue_wait: 2m, start_timeout: 2m }";

/// Waits until no function has an instance.
async fn nothing_is_warm(up: &Epsilon) {
    until("nothing is warm", LONG, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_concurrent_first_calls_are_all_answered() {
    let up = Epsilon::start_with(Settings::config(CONFIG)).await;
    let mut code = String::from("const config = { memory: '128MiB', idleTimeout: '1s' };\n");
    for index in 0..CALLS {
        writeln!(code, "exports.f{index} = {{ config, func: (req, res) => res.send('{index}') }};")
            .unwrap();
    }
    up.deploy(&project!("burst", { "index.js" => code })).await;

    nothing_is_warm(&up).await;
    let tally = at_once(up.public(), "/f0", CALLS).await;
    assert_eq!((tally.of(200), tally.lost()), (CALLS as u64, 0), "{tally:?}");

    nothing_is_warm(&up).await;
    let mut calls = JoinSet::new();
    for index in 0..CALLS {
        let public = up.public();
        calls.spawn(async move {
            (index, Call::get(&format!("/f{index}")).limit(LONG).send(public).await)
        });
    }
    while let Some(ended) = calls.join_next().await {
        let (index, answer) = ended.unwrap();
        assert_eq!(answer.expect(200).text(), index.to_string(), "its own function answered");
    }
}
