//! A VM with room for two instances: idle ones are evicted for the next start, least recently used
//! first; busy ones never are, and a call that finds no room gets an error.

use epsilon_e2e::{
    http::Call,
    project,
    up::{Epsilon, Settings},
    wait::{SOON, until},
};
use std::collections::BTreeSet;

const CONFIG: &str = "vm_agent: { memory: 300MiB, queue_wait: 1s }";

/// Functions that have instances.
async fn present(up: &Epsilon) -> BTreeSet<String> {
    let containers = up.containers(None).await;
    containers.iter().map(|c| c.label("epsilon.function").to_owned()).collect()
}

#[tokio::test]
async fn idle_instances_make_room_and_busy_ones_never() {
    let up = Epsilon::start_with(Settings::config(CONFIG)).await;
    for name in ["one", "two", "three"] {
        up.deploy(&project!(name, { "index.js" => format!(r#"
            exports.{name} = {{ config: {{ memory: "128MiB", maxInstances: 1 }}, func: (req, res) => {{
              res.write("{name}"); if (req.path !== "/hold") res.end(); }} }};"#) }))
        .await;
    }
    // Two fit: the one that was just called, and of the others the one of higher worth.
    for name in ["one", "two", "three", "one"] {
        assert_eq!(up.get(&format!("/{name}")).await.expect(200).text(), name);
        until("two instances are left", SOON, async || {
            let present = present(&up).await;
            if present.len() == 2 && present.contains(name) { Ok(()) } else { Err(present) }
        })
        .await;
    }

    // Both slots are held by running calls: none is evicted for a third.
    let one = Call::get("/one/hold").open(up.public()).await;
    let two = Call::get("/two/hold").open(up.public()).await;
    assert_eq!((one.status(), two.status()), (200, 200));
    up.get("/three").await.expect_error(503, "NO_CAPACITY");
    assert_eq!(present(&up).await, BTreeSet::from(["one".into(), "two".into()]));
    drop(one);
    until("the place is free again", SOON, async || {
        let answer = up.get("/three").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn function_larger_than_the_machine_is_refused() {
    let up = Epsilon::start_with(Settings::config(CONFIG)).await;
    let project = project!("giant", {
        "index.js" => "exports.giant = { config: { memory: '512MiB' }, func: (req, res) => res.send('x') }",
    });
    let failed = up.try_deploy(&project).await;
    let error = failed.failed();
    assert_eq!(error.code, "NO_CAPACITY", "{error:?}");
    assert!(error.message.contains("giant") && error.message.contains("MiB"), "{error:?}");
    up.get("/giant").await.expect_error(404, "FUNCTION_NOT_FOUND");
}
