//! Logging when standard error is not read: a process of its own, on a pipe. Linux keeps 64 KiB in
//! a pipe; a writer beyond that waits for the reader.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use epsilon_bootstrap::log::{self, Format};
use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Set when this test program is started again as the process that logs; holds the number of lines.
const LINES: &str = "EPSILON_TEST_LINES";
/// Far more than the pipe and the queue hold together.
const FLOOD: usize = 50_000;

#[test]
#[ignore = "the process that the other tests start"]
fn program() {
    let Ok(lines) = std::env::var(LINES) else { return };
    let logging = log::init(Some(Format::Json), None).unwrap();
    for n in 0..lines.parse::<usize>().unwrap() {
        tracing::info!(n, "line");
    }
    println!("\nlogged");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap(); // until standard input closes
    drop(logging);
}

fn start(lines: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--ignored", "--nocapture"])
        .env(LINES, lines.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether it finished its work; waits ten seconds at most.
fn has_logged(child: &mut Child) -> bool {
    let (sender, receiver) = mpsc::channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok).filter(|line| line == "logged") {
            let _ = sender.send(line);
        }
    });
    receiver.recv_timeout(Duration::from_secs(10)).is_ok()
}

fn messages(text: &str, message: &str) -> Vec<serde_json::Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &serde_json::Value| line["message"] == message).collect()
}

#[test]
fn stalled_reader_blocks_nothing_and_gets_loss_count() {
    let mut child = start(FLOOD);
    let finished = has_logged(&mut child);
    if !finished {
        child.kill().unwrap();
    }
    assert!(finished, "the program waits for the reader of its log");

    // The pipe is read again: queued lines arrive whole, then the count of lost ones.
    let stdin = child.stdin.take();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("lost_total") {
        assert!(stderr.read_line(&mut text).unwrap() > 0, "the loss is not logged: {text}");
    }
    drop(stdin);
    stderr.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let logged = messages(&text, "line").len();
    let losses = messages(&text, "Log lines were lost: standard error is not read fast enough.");
    let lost = losses.last().unwrap()["lost_total"].as_u64().unwrap();
    // The reports of losses may be lost themselves, one a second.
    assert!(
        (FLOOD..FLOOD + 20).contains(&(logged + lost as usize)),
        "{logged} logged, {lost} lost"
    );
}

#[test]
fn what_was_logged_is_written_before_the_end() {
    let mut child = start(1000);
    assert!(has_logged(&mut child));
    drop(child.stdin.take()); // now it ends, and 1,000 lines are more than the pipe holds
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(messages(&text, "line").len(), 1000);
}

#[test]
fn stalled_reader_does_not_delay_the_end() {
    let mut child = start(FLOOD);
    let finished = has_logged(&mut child);
    drop(child.stdin.take());
    let ended = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(100));
        child.try_wait().unwrap().is_some()
    });
    if !ended {
        child.kill().unwrap();
    }
    assert!(finished && ended);
}
