//! The whole path of a line: queue, thread, files, readers.

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
        vm: None,
        position: None,
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
    let stored = messages(&logs, LogQuery::default()).await;
    assert!(stored.last().unwrap().starts_with("1999 "));
    assert!(stored.len() < 1000, "{}", stored.len());
    let files = std::fs::read_dir(folder.path().join("hello")).unwrap();
    let size: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 64 << 10, "{size}");
}

#[tokio::test]
async fn restart_continues_after_a_torn_line() {
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
    logs.record(record("stored", None));
    assert_eq!(messages(&logs, LogQuery::default()).await, ["stored"]);
}

#[test]
fn log_directory_is_private() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("logs");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap(); // of an earlier release
    drop(logs(&folder, 1 << 20));
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
}

/// All lines are there once, whatever their times and however often a reader begins again.
#[tokio::test]
async fn reader_continues_after_its_position() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    for n in 0..10 {
        let mut record = record(format!("{n}"), None);
        record.time = Timestamp::UNIX_EPOCH; // as good as any
        logs.record(record);
    }
    let all: Vec<LogRecord> = logs.read(name(), LogQuery::default()).collect().await;
    assert_eq!(all.len(), 10);
    for (n, record) in all.iter().enumerate() {
        let query = LogQuery { after: record.position, tail: Some(0), ..LogQuery::default() };
        let rest: Vec<LogRecord> = logs.read(name(), query).collect().await;
        assert_eq!(rest, all[n + 1..], "after {n}");
    }
    let query = LogQuery { after: all[9].position, follow: true, ..LogQuery::default() };
    let mut lines = logs.read(name(), query);
    logs.record(record("live", None));
    let live = lines.next().await.unwrap();
    assert_eq!(live.message, "live");
    let stored: Vec<LogRecord> = logs.read(name(), LogQuery::default()).collect().await;
    assert_eq!(stored.last(), Some(&live), "the same position, live or stored");
}

#[tokio::test]
async fn position_survives_segments_but_not_deletion() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 64 << 10);
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut lines = logs.read(name(), query);
    let mut after = None;
    for n in 0..300 {
        logs.record(record(format!("{n} {}", "x".repeat(100)), None));
        let line = lines.next().await.unwrap();
        assert!(line.message.starts_with(&format!("{n} ")));
        assert!(line.position > after, "{:?} > {after:?}", line.position);
        after = line.position;
    }
    assert!(messages(&logs, LogQuery { after, ..LogQuery::default() }).await.is_empty());
    logs.forget(name());
    std::thread::sleep(std::time::Duration::from_millis(20)); // made again later
    logs.record(record("of another", None));
    assert_eq!(messages(&logs, LogQuery { after, ..LogQuery::default() }).await, ["of another"]);
}

#[tokio::test]
async fn slow_follower_gets_the_rest_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    logs.record(record("first", None));
    let mut lines = logs.read(name(), LogQuery { follow: true, ..LogQuery::default() });
    assert_eq!(lines.next().await.unwrap().message, "first");
    for n in 0..3000 {
        logs.record(record(format!("{n}"), None));
    }
    drop(logs.snapshot(name(), false).await); // all are passed on: more than the follower's buffer
    for n in 0..3000 {
        assert_eq!(lines.next().await.unwrap().message, format!("{n}"));
    }
}

#[tokio::test]
async fn lines_written_during_a_read_arrive_once() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path(), 1 << 20);
    logs.record(record("before", None));
    let mut snapshot = logs.snapshot(name(), true).await.unwrap();
    logs.record(record("since", None));
    assert_eq!(snapshot.live.as_mut().unwrap().recv().await.unwrap().message, "since");
    let stored = read_stored(snapshot.files, &LogQuery::default());
    assert_eq!(stored.iter().map(|record| &record.message).collect::<Vec<_>>(), ["before"]);
}
