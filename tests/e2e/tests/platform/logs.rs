//! Output of user code becomes log lines with level, time, version, instance and the call that
//! wrote them; `epsilon logs` prints and follows them.

use crate::{probe, run, up};
use epsilon_e2e::{
    http::{Answer, Call},
    project,
    up::Epsilon,
    wait::{SOON, until, within},
};
use serde_json::Value;
use std::{collections::HashMap, process::Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};

/// The records of one call, once there are so many.
async fn records(up: &Epsilon, function: &str, answer: &Answer, count: usize) -> Vec<Value> {
    let id = answer.header("x-epsilon-request-id");
    let target = format!("/v1/functions/{function}/logs?request_id={id}");
    until("the records of a call", SOON, async || {
        let log = up.send_admin(Call::get(&target)).await.expect(200).text();
        let records: Vec<Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if records.len() >= count { Ok(records) } else { Err(log) }
    })
    .await
}

#[tokio::test]
async fn each_level_and_stream_becomes_a_record() {
    let up = probe().await;
    let answer = run(r#"
        console.debug("a debug"); console.log("an info %d", 1); console.warn("a warning");
        console.error(new Error("an error"));
        console.log("two\nlines"); console.log({ an: "object" });"#)
    .await
    .expect(200);
    let records = records(up, "probe", &answer, 6).await;
    let seen: Vec<_> = records
        .iter()
        .map(|r| (r["level"].as_str().unwrap(), r["message"].as_str().unwrap()))
        .collect();
    assert_eq!(seen[0], ("debug", "a debug"));
    assert_eq!(seen[1], ("info", "an info 1"));
    assert_eq!(seen[2], ("warn", "a warning"));
    assert_eq!(seen[3].0, "error");
    assert!(seen[3].1.contains("an error") && seen[3].1.contains("at "), "{seen:?}");
    assert_eq!(seen[4], ("info", "two\nlines"));
    assert!(seen[5].1.contains("an: 'object'"), "{seen:?}");
    for record in &records {
        assert_eq!(record["function"], "probe");
        assert_eq!(record["version"], 1);
        assert_eq!(record["instance"].as_str().unwrap().len(), 12);
        assert!(record["time"].as_str().unwrap().ends_with('Z'), "{record}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_keep_their_log_lines_apart() {
    let up = up().await;
    up.deploy(&project!("chatty", { "index.js" => r#"
        const { setTimeout: sleep } = require("timers/promises");
        const { EventEmitter } = require("events");
        exports.chatty = {
          config: { memory: "128MiB", maxInstances: 1, concurrency: 10 },
          func: async (req, res) => {
            const me = req.query.me;
            for (let n = 0; n < 5; n++) {
              await sleep(Math.random() * 20);
              console.log(`${me} ${n}`);
            }
            setImmediate(() => console.log(`${me} immediate`));
            Promise.resolve().then(() => console.log(`${me} microtask`));
            process.nextTick(() => console.log(`${me} tick`));
            res.on("finish", () => console.log(`${me} finish`));
            await sleep(5);
            res.send("ok");
          },
        };"# }))
        .await;
    let mut calls = HashMap::new();
    for round in 0..3 {
        let answers = futures_util::future::join_all((0..10).map(|n| {
            let me = format!("r{round}c{n}");
            async move {
                let answer = up.get(&format!("/chatty?me={me}")).await.expect(200);
                (me, answer)
            }
        }))
        .await;
        calls.extend(answers);
    }
    for (me, answer) in calls {
        let records = records(up, "chatty", &answer, 9).await;
        assert_eq!(records.len(), 9, "{me}: {records:?}");
        for record in records {
            let message = record["message"].as_str().unwrap();
            assert_eq!(message.split(' ').next(), Some(me.as_str()), "{record}");
        }
    }
}

#[tokio::test]
async fn lines_of_loading_and_child_processes_are_stored() {
    let up = up().await;
    up.deploy(&project!("loader", { "index.js" => r#"
        console.log("while loading");
        process.stderr.write("raw on stderr\n");
        exports.loader = { config: { memory: "128MiB" }, func: (req, res) => {
          require("child_process").execSync("echo from a child", { stdio: "inherit" });
          res.send("x");
        } };"# }))
        .await;
    up.get("/loader").await.expect(200);
    let log = until("all lines", SOON, async || {
        let log = up.send_admin(Call::get("/v1/functions/loader/logs")).await.expect(200).text();
        let all = ["while loading", "raw on stderr", "from a child"];
        if all.iter().all(|line| log.contains(line)) { Ok(log) } else { Err(log) }
    })
    .await;
    let raw = log.lines().find(|line| line.contains("raw on stderr")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(raw).unwrap()["level"], "error");
}

#[tokio::test]
async fn line_that_looks_like_a_record_is_text() {
    let up = probe().await;
    let forged = r#"{"time":"2001-01-01T00:00:00Z","level":"error","message":"forged"}"#;
    let answer = run(&format!("console.log('{forged}')")).await.expect(200);
    let records = records(up, "probe", &answer, 1).await;
    assert_eq!(records[0]["level"], "info");
    assert_eq!(records[0]["message"], forged);
}

#[tokio::test]
async fn log_flood_stops_neither_function_nor_platform() {
    let up = up().await;
    up.deploy(&project!("floody", { "index.js" => r#"
        exports.floody = { config: { maxInstances: 1 }, func: (req, res) => {
          if (req.path === "/lines")
            for (let n = 0; n < 50_000; n++) console.log("line " + n + " " + "x".repeat(100));
          if (req.path === "/line") console.log("y".repeat(5 << 20));
          res.send("well"); } };"# }))
        .await;
    for path in ["/floody/lines", "/floody/line", "/floody"] {
        up.get(path).await.expect(200);
    }
    let stored: u64 = walk(&up.data().join("vm/logs"));
    assert!(stored > 0 && stored < 100 << 20, "{stored} bytes of logs on disk");
}

fn walk(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => walk(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn logs_follow_shows_lines_as_they_come() {
    let up = up().await;
    up.deploy(&project!("follow", { "index.js" => r#"
        exports.follow = { config: { memory: "128MiB" },
          func: (req, res) => { console.log("seen " + req.query.n); res.send("x"); } };"# }))
        .await;
    up.get("/follow?n=before").await.expect(200);
    let mut child = up
        .command(&std::env::temp_dir())
        .args(["logs", "follow", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut expect = async |text: &str| {
        within(text, SOON, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return;
                }
            }
            panic!("the end came before `{text}`");
        })
        .await;
    };
    expect("seen before").await;
    for n in 0..3 {
        up.get(&format!("/follow?n={n}")).await.expect(200);
        expect(&format!("seen {n}")).await;
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn logs_request_shows_only_that_call() {
    let up = probe().await;
    let one = run("console.log('only me, one')").await.expect(200);
    let two = run("console.log('only me, two')").await.expect(200);
    records(up, "probe", &one, 1).await;
    records(up, "probe", &two, 1).await;
    let id = two.header("x-epsilon-request-id");
    let shown = up.cli(&["logs", "probe", "--request", id]).await.expect(0).stdout;
    assert!(shown.contains("only me, two") && !shown.contains("only me, one"), "{shown}");
    assert_eq!(shown.lines().count(), 1, "{shown}");
}

#[tokio::test]
async fn logs_of_an_unknown_function_are_an_error() {
    let up = up().await;
    let outcome = up.cli(&["logs", "missing"]).await.expect(1);
    assert!(outcome.stderr.contains("missing"), "{outcome}");
}
