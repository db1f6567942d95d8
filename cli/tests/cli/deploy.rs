//! `epsilon deploy`: what is sent and what is printed.

use crate::support::{Fake, Ran, Reply};
use insta::assert_snapshot;

const ACCEPTED: &str = r#"{"event":"accepted","deployment":"d-0123456789abcdef"}"#;
const STARTED: &str = r#"{"event":"step_started","step":"dependencies","detail":"npm ci"}"#;
const LINE: &str = r#"{"event":"log","line":"npm error 404 Not Found: nope@1.0.0"}"#;
const STEP: &str =
    r#"{"event":"step_done","step":"dependencies","detail":"12 packages","took_ms":3210}"#;
const DONE: &str = r#"{"event":"done","deployment":{"id":"d-0123456789abcdef","project":"shop","state":"done","created_at":"2026-11-21T10:11:12Z","ended_at":null,"error":null,"functions":[{"name":"hello","version":2,"changed":true,"url":"http://127.0.0.1:8080/hello"},{"name":"pay","version":7,"changed":false,"url":"http://127.0.0.1:8080/pay"}]}}"#;
const FAILED: &str = r#"{"event":"failed","error":{"type":"invalid_request","code":"DEPENDENCIES_FAILED","message":"`npm ci` ended with 1","hint":"see its output above","request_id":null}}"#;

fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shop")).unwrap();
    std::fs::write(dir.path().join("shop/index.js"), "exports.hello = () => {}").unwrap();
    dir
}

fn deploy(lines: &[&str], more: &[&str]) -> (Fake, Ran) {
    let dir = project();
    let only = if more.contains(&"--only") { "&only=hello" } else { "" };
    let line = format!("POST /v1/deployments?folder=shop{only}");
    let fake = Fake::new(vec![(&line, Reply::ndjson(lines))]);
    let path = dir.path().join("shop");
    let args = [&["deploy", path.to_str().unwrap()], more].concat();
    let mut ran = fake.run(&args);
    // The upload's duration varies.
    let upload = ran.stderr.lines().find(|line| line.contains("upload")).map(str::to_owned);
    if let Some(line) = upload {
        ran.stderr = ran.stderr.replace(&line, "  ✔ upload           TIME  1 file, 24B");
    }
    (fake, ran)
}

#[test]
fn deployment_in_a_pipe_is_plain_text() {
    let (fake, ran) = deploy(&[ACCEPTED, STARTED, LINE, STEP, DONE], &[]);
    assert_snapshot!(ran.golden());
    let seen = &fake.seen()[0];
    assert_eq!(seen.header("content-type"), Some("application/gzip"));
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&seen.body[..]));
    let paths: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    assert_eq!(paths, [std::path::Path::new("index.js")]);
}

#[test]
fn verbose_shows_the_tools_output() {
    assert_snapshot!(deploy(&[ACCEPTED, STARTED, LINE, STEP, DONE], &["--verbose"]).1.golden());
}

#[test]
fn a_too_large_source_names_its_largest_folders() {
    const LARGE: &str = r#"{"event":"failed","error":{"type":"invalid_request","code":"SOURCE_TOO_LARGE",
        "message":"the archive has more than 20,000 files and folders","hint":null,"request_id":null}}"#;
    let (_, ran) = deploy(&[ACCEPTED, &LARGE.replace('\n', "")], &[]);
    let hint = "hint: most bytes are in `index.js` 24B; most files in `index.js` 1.";
    assert!(ran.stderr.contains(hint), "{}", ran.stderr);
    assert!(ran.stderr.contains("`.epsilonignore`"), "{}", ran.stderr);
}

#[test]
fn notes_are_shown_when_a_deployment_succeeds() {
    const NOTE: &str = r#"{"event":"log","line":"note: no lockfile: push one"}"#;
    let (_, ran) = deploy(&[ACCEPTED, STARTED, NOTE, LINE, STEP, DONE], &[]);
    assert!(ran.stderr.contains("  · no lockfile: push one\n"), "{ran:?}");
    assert!(!ran.stderr.contains("npm error"), "{ran:?}");
}

#[test]
fn what_the_error_quotes_is_not_said_twice() {
    let failed = FAILED.replace("ended with 1", r"failed:\nnpm error 404 Not Found: nope@1.0.0");
    let other = LINE.replace("npm error 404", "npm warn");
    let (_, ran) = deploy(&[ACCEPTED, STARTED, &other, LINE, &failed], &[]);
    assert_eq!(ran.stderr.matches("npm error 404").count(), 1, "{ran:?}");
    assert!(ran.stderr.contains("npm warn"), "{ran:?}");
}

#[test]
fn only_is_passed_on() {
    let (fake, ran) = deploy(&[DONE], &["--only", "hello"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn json_is_the_events_themselves() {
    let (_, ran) = deploy(&[ACCEPTED, STARTED, LINE, STEP, DONE], &["--json"]);
    assert_eq!(ran.stdout, [ACCEPTED, STARTED, LINE, STEP, DONE, ""].join("\n"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_failure_shows_what_the_tools_said_last() {
    assert_snapshot!(deploy(&[ACCEPTED, STARTED, LINE, FAILED], &[]).1.golden());
}

#[test]
fn a_stream_without_an_end_is_a_failure() {
    assert_snapshot!(deploy(&[ACCEPTED, STARTED], &[]).1.golden());
}

#[test]
fn a_refusal_before_any_event() {
    let dir = project();
    let error = r#"{"error":{"type":"platform","code":"NO_BUILDER","message":"no builder has joined",
        "hint":"start one","request_id":null}}"#;
    let fake = Fake::new(vec![("POST /v1/deployments?folder=shop", Reply::json(503, error))]);
    let ran = fake.run(&["deploy", dir.path().join("shop").to_str().unwrap()]);
    assert_snapshot!(ran.golden());
}

#[test]
fn a_huge_file_is_refused_before_anything_is_sent() {
    let dir = project();
    let file = std::fs::File::create(dir.path().join("shop/model.bin")).unwrap();
    file.set_len(1 << 30).unwrap();
    let fake = Fake::new(vec![]);
    let ran = fake.run(&["deploy", dir.path().join("shop").to_str().unwrap()]);
    assert_snapshot!(ran.golden());
    assert!(fake.seen().is_empty());
}
