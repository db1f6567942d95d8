//! The whole way of a line: queue, thread, files, readers.

use super::*;
use epsilon_api::ids::{InstanceId, VersionNumber};
use prometheus::Opts;

fn logs(folder: &Path, limit: u64) -> Logs {
    let dropped = IntCounterVec::new(Opts::new("dropped", "lines"), &["function"]).unwrap();
    Logs::open(folder, Bytes(limit), dropped).unwrap()
}

fn record(message: impl Into<String>, request_id: Option<&str>) -> LogRecord {
    LogRecord {
        time: Timestamp::now(),
        level: Level::Info,
        function: name(),
        version: VersionNumber::FIRST,
        instance: InstanceId::parse("0123456789ab").unwrap(),
        request_id: request_id.map(|id| RequestId::parse(id).unwrap()),
        message: message.into(),
    }
}

fn name() -> FunctionName {
    FunctionName::parse("hello").unwrap()
}

async fn messages(logs: &Logs, query: LogQuery) -> Vec<String> {
    logs.read(name(), query).map(|record| record.message).collect().await
}

#[tokio::test]
async fn lines_come_back_in_order_filtered_and_tailed() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    for n in 0..10 {
        logs.record(record(format!("{n}"), (n % 2 == 0).then_some("even-call")));
    }
    assert_eq!(messages(&logs, LogQuery::default()).await.concat(), "0123456789");
    let query = LogQuery { tail: Some(3), ..LogQuery::default() };
    assert_eq!(messages(&logs, query).await.concat(), "789");
    let request_id = RequestId::parse("even-call").ok();
    let query = LogQuery { request_id, tail: Some(2), ..LogQuery::default() };
    assert_eq!(messages(&logs, query).await.concat(), "68");
}

#[tokio::test]
async fn a_follower_misses_nothing_between_old_and_new() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    logs.record(record("old", None));
    let mut lines = logs.read(name(), LogQuery { follow: true, ..LogQuery::default() });
    assert_eq!(lines.next().await.unwrap().message, "old");
    for n in 0..100 {
        logs.record(record(format!("{n}"), None));
    }
    for n in 0..100 {
        assert_eq!(lines.next().await.unwrap().message, format!("{n}"));
    }
}

#[tokio::test]
async fn the_disk_limit_holds_and_the_newest_stay() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 64 << 10);
    for n in 0..2000 {
        logs.record(record(format!("{n} {}", "x".repeat(100)), None));
        if n % 100 == 0 {
            messages(&logs, LogQuery { tail: Some(0), ..LogQuery::default() }).await; // let it write
        }
    }
    let kept = messages(&logs, LogQuery::default()).await;
    assert!(kept.last().unwrap().starts_with("1999 "));
    assert!(kept.len() < 1000, "{}", kept.len());
    let files = std::fs::read_dir(folder.path().join("hello")).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 64 << 10, "{size}");
}

#[tokio::test]
async fn a_restart_goes_on_behind_a_torn_line() {
    let folder = tempfile::tempdir().unwrap();
    let first = logs(folder.path(), 1 << 20);
    first.record(record("before", None));
    first.close().await;
    let path =
        std::fs::read_dir(folder.path().join("hello")).unwrap().next().unwrap().unwrap().path();
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"time\":\"20");
    std::fs::write(&path, text).unwrap();
    let second = logs(folder.path(), 1 << 20);
    second.record(record("after", None));
    assert_eq!(messages(&second, LogQuery::default()).await, ["before", "after"]);
}

#[tokio::test]
async fn asking_for_an_unknown_function_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    assert!(messages(&logs, LogQuery::default()).await.is_empty());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn restarts_do_not_multiply_the_files() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..10 {
        let logs = logs(folder.path(), 1 << 20);
        logs.record(record(format!("{n}"), None));
        logs.close().await;
    }
    let logs = logs(folder.path(), 1 << 20);
    assert_eq!(messages(&logs, LogQuery::default()).await.concat(), "0123456789");
    assert_eq!(std::fs::read_dir(folder.path().join("hello")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("hello/0000000001.ndjson");
    std::fs::create_dir(folder.path().join("hello")).unwrap();
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let logs = logs(folder.path(), 1 << 20);
    for _ in 0..10 {
        logs.record(record("lost", None));
        drop(logs.snapshot(name(), false).await); // so that each line is written on its own
    }
    assert_eq!(std::fs::read_dir(folder.path().join("hello")).unwrap().count(), 1);
    std::fs::remove_file(&full).unwrap();
    logs.record(record("kept", None));
    assert_eq!(messages(&logs, LogQuery::default()).await, ["kept"]);
}

#[test]
fn others_on_this_machine_cannot_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("logs");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap(); // of an earlier release
    drop(logs(&folder, 1 << 20));
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
}
