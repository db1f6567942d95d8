//! Commits fetched from a git server on this machine: real git on both sides.

use super::*;
use crate::config::defaults::DEFAULTS;
use crate::source::github::allowed_hosts::Hosts;
use crate::source::github::config::{Config, Settings as All};
use crate::source::github::fake_github::{Behaviour, FakeGithub, File, TOKEN};
use crate::source::github::project::Settings;
use epsilon_api::ids::ProjectName;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

const REPOSITORY: &str = "octo/shop";
const MAIN: &str = "refs/heads/main";

fn limits() -> Limits {
    Config::new(All::default(), BTreeMap::new()).unwrap().limits
}

fn hook_with(github: &FakeGithub, more: &Value, private: &[&str]) -> Hook {
    let hook = github.hook(REPOSITORY, more).to_string();
    let settings: Settings = DEFAULTS.read("github.<project>", &hook).unwrap();
    let private = private.iter().map(|host| (*host).to_owned()).collect();
    let hosts = Hosts::new(vec!["localhost".into()], private);
    Hook::new(ProjectName::parse("shop").unwrap(), settings, &hosts).unwrap()
}

fn hook(github: &FakeGithub) -> Hook {
    hook_with(github, &json!({}), &["127.0.0.1"])
}

fn pushed(reference: &str, after: &str) -> Push {
    Push { reference: reference.into(), after: after.into(), commit: after.into() }
}

/// Fetches a commit; returns the result and the folder.
async fn fetch(hook: &Hook, push: &Push, limits: &Limits) -> (Result<Source, FetchError>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("hooks/d-1");
    (Source::fetch(&Git::default(), hook, push, folder, limits).await, dir)
}

/// Code, message and full log text of a failed fetch, which must leave no file.
async fn refused(hook: &Hook, push: &Push, limits: &Limits) -> (String, String, String) {
    let (fetched, dir) = fetch(hook, push, limits).await;
    let err = fetched.unwrap_err();
    assert!(!dir.path().join("hooks/d-1").exists(), "{err}");
    let body = err.body();
    (body.code, body.message, err.log_text())
}

#[tokio::test]
async fn a_pushed_commit_is_an_archive() {
    let github = FakeGithub::start().await;
    github.commit(REPOSITORY, MAIN, &[("old.js", File::Text("1"))]);
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text("exports.a = 1"))]);
    let (source, dir) = fetch(&hook(&github), &pushed(MAIN, &id), &limits()).await;
    let source = source.unwrap();
    assert_eq!(source.commit, id);
    let enough = archive::Limits { size: units::Bytes::mib(1), time: Duration::from_secs(60) };
    let archive = source.archive(&Git::default(), enough).unwrap();
    let packed = archive.collect().await.unwrap().to_bytes();
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut tar).unwrap();
    assert!(tar.starts_with(b"index.js\0"));
    assert!(!String::from_utf8_lossy(&tar).contains("old.js"));
    drop(source);
    assert!(!dir.path().join("hooks/d-1").exists());
}

#[tokio::test]
async fn an_annotated_tag_is_its_commit() {
    let github = FakeGithub::start().await;
    let commit = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(""))]);
    let tag = github.tag(REPOSITORY, "v1", &commit);
    let (source, _dir) = fetch(&hook(&github), &pushed("refs/tags/v1", &tag), &limits()).await;
    assert_eq!(source.unwrap().commit, commit);
}

#[tokio::test]
async fn a_branch_that_moved_on_is_superseded() {
    let github = FakeGithub::start().await;
    let old = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text("1"))]);
    github.commit(REPOSITORY, MAIN, &[("index.js", File::Text("2"))]);
    let (code, message, _) = refused(&hook(&github), &pushed(MAIN, &old), &limits()).await;
    assert_eq!(
        (code.as_str(), message.contains("`main` points to another commit")),
        ("SUPERSEDED", true)
    );
    let (code, message, _) =
        refused(&hook(&github), &pushed("refs/tags/v9", &old), &limits()).await;
    assert_eq!(
        (code.as_str(), &*message),
        ("SUPERSEDED", "the pushed branch or tag does not exist any more")
    );
}

#[tokio::test]
async fn a_private_repository_gets_the_token_only() {
    let github = FakeGithub::start().await;
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(""))]);
    github.behave(Behaviour::Privately);
    let (code, message, log_text) = refused(&hook(&github), &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(message.contains("GitHub requires credentials"), "{message}; {log_text}");
    assert!(github.shown().iter().all(Option::is_none));

    let with_token =
        hook_with(&github, &json!({"token_file": github.token_file()}), &["127.0.0.1"]);
    let (source, dir) = fetch(&with_token, &pushed(MAIN, &id), &limits()).await;
    source.unwrap();
    let basic = BASE64_STANDARD.encode(format!("x-access-token:{TOKEN}"));
    assert_eq!(github.shown().pop().unwrap(), Some(format!("Basic {basic}")));
    drop(dir);

    std::fs::remove_file(github.token_file()).unwrap();
    let (code, message, log_text) = refused(&with_token, &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(
        message.contains("log has the cause") && log_text.contains("cannot be read"),
        "{message}; {log_text}"
    );
}

#[tokio::test]
async fn a_redirect_gets_neither_request_nor_token() {
    let (github, elsewhere) = (FakeGithub::start().await, FakeGithub::start().await);
    let id = elsewhere.commit(REPOSITORY, MAIN, &[("index.js", File::Text(""))]);
    let to =
        format!("http://{}/{REPOSITORY}.git/info/refs?service=git-upload-pack", elsewhere.address);
    github.behave(Behaviour::Redirecting(to));
    let with_token =
        hook_with(&github, &json!({"token_file": github.token_file()}), &["127.0.0.1"]);
    let (code, message, log_text) = refused(&with_token, &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(message.contains("a redirect, which is not followed"), "{message}; {log_text}");
    assert!(elsewhere.shown().is_empty());
    assert!(!log_text.contains(TOKEN));
}

#[tokio::test]
async fn a_repository_that_is_not_there() {
    let github = FakeGithub::start().await;
    let id = "1".repeat(40);
    let (code, message, log_text) = refused(&hook(&github), &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(message.contains("does not know this repository"), "{message}; {log_text}");
}

#[tokio::test]
async fn an_unreachable_or_silent_github_fails_the_fetch() {
    let github = FakeGithub::start().await;
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(""))]);
    github.behave(Behaviour::Silent);
    let short = Limits { fetch: Duration::from_millis(500), ..limits() };
    let (code, message, _) = refused(&hook(&github), &pushed(MAIN, &id), &short).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(message.ends_with("the fetch took longer than 500ms"), "{message}");
    let hook = hook(&github);
    drop(github);
    let (code, message, log_text) = refused(&hook, &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(message.contains("the gateway's log has the details"), "{message}; {log_text}");
    // The address is in the log, but not in the answer.
    assert!(
        log_text.contains("127.0.0.1") && !message.contains("127.0.0.1"),
        "{message}; {log_text}"
    );
}

/// Noise that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn a_huge_commit_is_not_taken() {
    let github = FakeGithub::start().await;
    let huge = noise(3 << 20);
    let id = github.commit(REPOSITORY, MAIN, &[("video.bin", File::Bytes(&huge))]);
    let small = Limits { max_fetch: units::Bytes::mib(2), ..limits() };
    let (code, message, _) = refused(&hook(&github), &pushed(MAIN, &id), &small).await;
    assert_eq!(code, "SOURCE_TOO_LARGE");
    assert!(message.contains("the commit is larger than 2MiB"), "{message}");
    let enough = Limits { max_fetch: units::Bytes::mib(4), ..limits() };
    assert!(fetch(&hook(&github), &pushed(MAIN, &id), &enough).await.0.is_ok());
}

#[tokio::test]
async fn submodules_and_lfs_files_are_named() {
    let github = FakeGithub::start().await;
    let other = "1".repeat(40);
    let files = [("index.js", File::Text("")), ("lib", File::Submodule(&other))];
    let id = github.commit(REPOSITORY, MAIN, &files);
    let (code, message, _) = refused(&hook(&github), &pushed(MAIN, &id), &limits()).await;
    assert_eq!(
        (code.as_str(), &*message),
        ("SOURCE_UNSUPPORTED", "`lib` is a submodule; submodules are not fetched")
    );
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n",
        "a".repeat(64)
    );
    let files = [("index.js", File::Text("")), ("model.bin", File::Text(&pointer))];
    let id = github.commit(REPOSITORY, MAIN, &files);
    let (code, message, _) = refused(&hook(&github), &pushed(MAIN, &id), &limits()).await;
    assert_eq!(code, "SOURCE_UNSUPPORTED");
    assert!(message.starts_with("`model.bin` is stored in Git LFS"), "{message}");
}

#[tokio::test]
async fn local_addresses_are_refused_unless_allowed() {
    let github = FakeGithub::start().await;
    let url = format!("https://localhost:{}", github.address.port());
    let hook = hook_with(&github, &json!({"url": url}), &[]);
    let (code, message, log_text) = refused(&hook, &pushed(MAIN, &"1".repeat(40)), &limits()).await;
    assert_eq!(code, "SOURCE_NOT_FETCHED");
    assert!(log_text.contains("which is not public"), "{log_text}");
    assert!(!message.contains("127.0.0.1") && !message.contains("::1"), "{message}");
    assert!(github.shown().is_empty());
}
