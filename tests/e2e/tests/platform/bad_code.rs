//! Code that loaded at the inspection and fails when it runs: the caller gets the right error, the
//! developer finds the reason in the log, and the function recovers as soon as its code does.

use crate::up;
use epsilon_e2e::{
    project,
    up::Epsilon,
    wait::{SOON, until},
};

/// Deploys a function that loads at first and fails at its next start: the flag is in the
/// environment of the new version, which its first instance survives.
async fn deploy_fragile(up: &Epsilon, name: &str, failure: &str) {
    // The first start is the deployment's and must succeed, every later one fails: the clock
    // distinguishes them. Anything that the code could store is gone with its instance.
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let text = format!(
        "const late = Date.now() > {until};
         if (late) {{ {failure} }}
         exports.{name} = {{ config: {{ memory: '128MiB', idleTimeout: '1s' }},
            func: (req, res) => res.send('well') }};",
        until = begun.as_millis() + 12_000,
    );
    up.deploy(&project!(name, { "index.js" => text })).await;
    up.get(&format!("/{name}")).await.expect(200);
}

/// Calls until the first instance is gone and its successor failed; then checks the caller's
/// answer.
async fn fails_to_load(name: &str, failure: &str, logged: &str) {
    let up = up().await;
    deploy_fragile(up, name, failure).await;
    let path = format!("/{name}");
    let answer = until("a start fails", SOON * 2, async || {
        if !up.containers(Some(name)).await.is_empty() {
            return Err("the first instance is still there".to_owned());
        }
        let answer = up.get(&path).await;
        if answer.status == 502 { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    answer.expect_error(502, "FUNCTION_INIT_FAILED");
    assert!(!answer.text().contains("/app"), "{answer}");
    until("the reason is in the log", SOON, async || {
        let log = up.cli(&["logs", name]).await.text();
        if log.contains(logged) { Ok(()) } else { Err(log) }
    })
    .await;
    until("the failed instances are removed", SOON, async || {
        match up.containers(Some(name)).await.len() {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
}

#[tokio::test]
async fn throwing_at_load_is_502_with_logged_stack() {
    fails_to_load("loadThrows", "throw new Error('the config is gone')", "the config is gone")
        .await;
}

#[tokio::test]
async fn code_that_exits_at_load_is_502() {
    fails_to_load("loadExits", "process.exit(7)", "7").await;
}

#[tokio::test]
async fn hanging_at_load_is_502_after_start_timeout() {
    fails_to_load("loadHangs", "for (;;);", "8s").await;
}

#[tokio::test]
async fn code_that_eats_its_memory_at_load_is_502() {
    let code = "const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 'x'));";
    fails_to_load("loadEats", code, "memory").await;
}
