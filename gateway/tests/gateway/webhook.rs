//! Webhooks: which deliveries are accepted, what is deployed, which statuses GitHub gets, and what
//! is stored.

use crate::{
    fake::ok,
    fake_github::{self, Behaviour, FakeGithub, File},
    world::{Reply, World, built, eventually, open, patient, read},
};
use epsilon_api::{
    admin::DeploymentState,
    body::{self, CallBody},
    build::BuildError,
    ids::DeploymentId,
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_gateway::config::Settings;
use http::{Method, Request, StatusCode};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const REPOSITORY: &str = "octo/shop";
const MAIN: &str = "refs/heads/main";

/// A gateway whose project `shop` is deployed from `octo/shop` of this fake GitHub, with these hook
/// settings.
fn settings(github: &FakeGithub, more: &Value) -> Settings {
    let mut hook = json!({"token_file": github.token_file()});
    for (key, value) in more.as_object().unwrap() {
        hook[key] = value.clone();
    }
    let settings = json!({
        "hooks": {"private_hosts": ["127.0.0.1"]},
        "github": {"shop": github.hook(REPOSITORY, &hook)},
    });
    Settings::read(&settings.to_string()).unwrap()
}

async fn world(github: &FakeGithub) -> World {
    let world = World::start(&["hello"], settings(github, &json!({}))).await;
    world.vm.script("hello", |call| async move { ok(call.version.number.to_string()) });
    world
}

/// Makes a commit on `main`; returns its id and the payload of its push.
fn pushed(github: &FakeGithub, text: &str) -> (String, Vec<u8>) {
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(text))]);
    let body = fake_github::push(REPOSITORY, MAIN, &id, &id).to_string().into_bytes();
    (id, body)
}

/// Sends a delivery; a repeated header replaces the first one, an empty one is left out.
async fn send(world: &World, project: &str, headers: &[(&str, String)], body: Vec<u8>) -> Reply {
    let mut request = world.control_request(Method::POST, &format!("/v1/hooks/github/{project}"));
    let mut names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (_, value) = headers.iter().rfind(|(other, _)| *other == name).unwrap();
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let request: Request<CallBody> = request.body(body::full(body)).unwrap();
    let client: Client<_, CallBody> = Client::builder(TokioExecutor::new()).build_http();
    read(patient(client.request(request)).await.unwrap()).await
}

async fn deliver(world: &World, event: &str, delivery: &str, body: &[u8]) -> Reply {
    send(world, "shop", &fake_github::headers(event, delivery, body), body.to_vec()).await
}

/// The deployment id of an accepted delivery.
fn accepted(reply: &Reply) -> DeploymentId {
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    let data = &reply.json()["data"];
    assert_eq!(data["result"], "accepted", "{reply:?}");
    data["deployment"].as_str().unwrap().parse().unwrap()
}

/// Waits for the end of a deployment; returns its state and error code.
async fn ended(world: &World, id: &DeploymentId) -> (DeploymentState, Option<String>) {
    let wait = async {
        loop {
            let deployment = world.store.deployment(id).await.unwrap();
            if deployment.state != DeploymentState::Running {
                return (deployment.state, deployment.error.map(|error| error.code));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    patient(wait).await
}

fn failed(code: &str) -> (DeploymentState, Option<String>) {
    (DeploymentState::Failed, Some(code.into()))
}

fn refused() -> BuildError {
    BuildError {
        code: "BUILD_FAILED".into(),
        status: StatusCode::UNPROCESSABLE_ENTITY,
        message: format!("index.js:1: unexpected end of input {}", "…".repeat(200)),
        hint: None,
    }
}

#[tokio::test]
async fn a_push_is_deployed_and_reported_to_github() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (commit, body) = pushed(&github, "2");
    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    let reply = deliver(&world, "push", "11111111-aaaa", &body).await;
    let id = accepted(&reply);
    assert_eq!(
        reply.json()["data"]["message"],
        format!("main at {} is being deployed", &commit[..7])
    );
    assert_eq!(ended(&world, &id).await, (DeploymentState::Done, None));
    assert_eq!(world.get("/hello").await.body, "2");
    let short = &commit[..7];
    eventually(
        vec![
            format!("{short} pending main is being deployed"),
            format!("{short} success deployed; 1 of 1 functions changed"),
        ],
        || github.status_lines(),
    )
    .await;
    assert_eq!(github.statuses()[1].body["target_url"], format!("http://{}/hello", world.public));
    let shown = world.ask(Method::GET, &format!("/v1/deployments/{id}"), "").await.json();
    assert_eq!(shown["data"]["source"], format!("github octo/shop main {short}"));
    assert!(!world.dir.path().join("hooks").join(id.as_str()).exists(), "its folder is removed");
    let metrics = world.metrics();
    assert!(metrics.contains(r#"epsilon_hooks_total{outcome="accepted"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"epsilon_hook_statuses_total{outcome="taken"} 2"#), "{metrics}");
}

#[tokio::test]
async fn sample_payloads_of_github_are_understood() {
    let github = FakeGithub::start().await;
    let mut settings = settings(&github, &json!({}));
    let mut other = settings.github.values().next().unwrap().clone();
    other.repository = "Codertocat/Hello-World".into();
    settings.github.insert("other".parse().unwrap(), other);
    let world = World::start(&[], settings).await;
    for (event, sample, result, word) in [
        ("ping", "ping", "pong", "pushes to this repository will be deployed"),
        ("ping", "ping-organization", "pong", "will be deployed"),
        (
            "push",
            "push-branch",
            "ignored",
            "branch `main` is deployed, but the push is to `master`",
        ),
        ("push", "push-tag", "ignored", "tag `simple-tag`"),
        ("push", "push-deleted", "ignored", "`refs/tags/simple-tag` was deleted"),
        ("fork", "fork", "ignored", "events `fork` are not handled here"),
    ] {
        let path = format!("{}/tests/fixtures/github/{sample}.json", env!("CARGO_MANIFEST_DIR"));
        let body = std::fs::read(path).unwrap();
        // Without an effect the same delivery may be repeated.
        for _ in 0..2 {
            let headers = fake_github::headers(event, "22222222-bbbb", &body);
            let reply = send(&world, "other", &headers, body.clone()).await;
            let data = &reply.json()["data"];
            assert_eq!((reply.status, &data["result"]), (StatusCode::ACCEPTED, &json!(result)));
            assert!(data["message"].as_str().unwrap().contains(word), "{reply:?}");
        }
        let headers = fake_github::headers(event, "22222222-bbbb", &body);
        let reply = send(&world, "shop", &headers, body).await;
        if event == "push" {
            assert!(reply.body.contains("this webhook deploys `octo/shop`"), "{reply:?}");
        }
    }
    assert_eq!(world.builder.begun(), 0);
    let all = world.ask(Method::GET, "/v1/deployments", "").await.json();
    assert_eq!(all["data"], json!([]));
}

#[tokio::test]
async fn only_signed_deliveries_are_accepted() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    let signed = fake_github::signature(&body);
    let other = fake_github::signature(b"another body");
    for signature in [
        String::new(),
        other,
        signed[..signed.len() - 1].to_owned(),
        signed[..40].to_owned(),
        format!("{signed}00"),
        signed.replace("sha256", "sha1"),
        "sha256=".to_owned(),
    ] {
        let mut headers = fake_github::headers("push", "33333333-cccc", &body).to_vec();
        headers.push(("x-hub-signature-256", signature.clone()));
        // The admin key does not replace the signature.
        headers.push(("authorization", format!("Bearer {}", world.key)));
        let reply = send(&world, "shop", &headers, body.clone()).await;
        assert_eq!(
            (reply.status, &*reply.code()),
            (StatusCode::UNAUTHORIZED, "SIGNATURE_REFUSED"),
            "{signature}"
        );
    }
    // Without a signature the body is not parsed.
    let reply = send(&world, "shop", &[], b"{".to_vec()).await;
    assert_eq!(reply.code(), "SIGNATURE_REFUSED");
    let reply =
        send(&world, "missing", &fake_github::headers("push", "33333333-cccc", &body), body).await;
    assert_eq!((reply.status, &*reply.code()), (StatusCode::NOT_FOUND, "HOOK_NOT_FOUND"));
    assert_eq!(world.builder.begun(), 0);
    assert!(world.metrics().contains(r#"epsilon_hooks_total{outcome="unsigned"} 8"#));
}

#[tokio::test]
async fn signed_but_invalid_deliveries_are_explained() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    let ask = async |name: &'static str, value: &str, body: &[u8]| {
        let mut headers = fake_github::headers("push", "44444444-dddd", body).to_vec();
        headers.push((name, value.to_owned()));
        let reply = send(&world, "shop", &headers, body.to_vec()).await;
        (reply.status.as_u16(), reply.code())
    };
    let refusal = |status, code: &str| (status, code.to_owned());
    assert_eq!(
        ask("content-type", "application/x-www-form-urlencoded", &body).await,
        refusal(415, "NOT_JSON")
    );
    assert_eq!(ask("content-type", "", &body).await, refusal(415, "NOT_JSON"));
    assert_eq!(ask("x-github-event", "", &body).await, refusal(422, "INVALID_HEADER"));
    assert_eq!(ask("x-github-delivery", "", &body).await, refusal(422, "INVALID_HEADER"));
    assert_eq!(ask("x-github-delivery", "a b", &body).await, refusal(422, "INVALID_HEADER"));
    assert_eq!(ask("x-more", "", b"{\"ref\":1}").await, refusal(422, "INVALID_BODY"));
    assert_eq!(ask("x-more", "", b"").await, refusal(422, "INVALID_BODY"));
    let reply = world.ask(Method::GET, "/v1/hooks/github/shop", "").await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
}

/// 30 MB are announced and a thousandth of it is sent: the answer arrives before the rest.
#[tokio::test]
async fn a_payload_of_30_megabytes_is_not_read() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let mut stream = TcpStream::connect(world.control).await.unwrap();
    let head = format!(
        "POST /v1/hooks/github/shop HTTP/1.1\r\nhost: epsilon\r\ncontent-length: 30000000\r\n\
         content-type: application/json\r\nx-github-event: push\r\nx-github-delivery: 5\r\n\
         x-hub-signature-256: {}\r\n\r\n",
        fake_github::signature(b"")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b' '; 30_000]).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = patient(stream.read(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("25MiB"), "{answer}");
    assert!(world.metrics().contains(r#"epsilon_hooks_total{outcome="too_much"} 1"#));
}

#[tokio::test]
async fn a_delivery_is_deployed_once_by_any_gateway() {
    let github = FakeGithub::start().await;
    let mut world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    let id = accepted(&deliver(&world, "push", "66666666-ffff", &body).await);
    // Refused while running and when done, by id or by payload: the signature does not cover the
    // id.
    let refused = async |world: &World| {
        for delivery in ["66666666-ffff", "77777777-ffff"] {
            let reply = deliver(world, "push", delivery, &body).await;
            assert_eq!((reply.status, &*reply.code()), (StatusCode::CONFLICT, "DELIVERY_REPLAYED"));
            assert!(reply.body.contains(id.as_str()), "{reply:?}");
        }
    };
    refused(&world).await;
    assert_eq!(ended(&world, &id).await, (DeploymentState::Done, None));
    refused(&world).await;

    let other = World::gateway(Arc::clone(&world.store), &[], settings(&github, &json!({}))).await;
    refused(&other).await;
    drop(other);
    world.drain(Duration::from_secs(5)).await;
    let dir = Arc::clone(&world.dir);
    drop(world);
    let store = open(&dir).await;
    let world = World::on(dir, store, settings(&github, &json!({})), true).await;
    refused(&world).await;
    assert_eq!(world.builder.begun(), 0);
}

#[tokio::test]
async fn a_failed_delivery_is_reported_and_can_be_repeated() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (commit, body) = pushed(&github, "2");
    world.builder.next(Err(refused()));
    let id = accepted(&deliver(&world, "push", "88888888-aaaa", &body).await);
    assert_eq!(ended(&world, &id).await, failed("BUILD_FAILED"));
    assert_eq!(world.get("/hello").await.body, "1");
    eventually(2, || github.status_lines().len()).await;
    let lines = github.status_lines().pop().unwrap();
    let start = format!("{} failure index.js:1: unexpected end of input ", &commit[..7]);
    assert!(lines.starts_with(&start), "{lines}");
    let description = github.statuses()[1].body["description"].as_str().unwrap().to_owned();
    assert_eq!(description.chars().count(), 140);

    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    let again = accepted(&deliver(&world, "push", "88888888-aaaa", &body).await);
    assert_eq!(ended(&world, &again).await, (DeploymentState::Done, None));
    assert_eq!(world.get("/hello").await.body, "2");
}

#[tokio::test]
async fn of_pushes_that_wait_the_newest_is_deployed() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    world.builder.close_gate();
    for digest in ["2", "4"] {
        world.builder.next(Ok(built("shop", &[("hello", digest)])));
    }
    let (first_commit, first) = pushed(&github, "2");
    let first = accepted(&deliver(&world, "push", "99999999-0001", &first).await);
    eventually(1, || world.builder.begun()).await;
    let (second_commit, second) = pushed(&github, "3");
    let second = deliver(&world, "push", "99999999-0002", &second).await;
    assert!(second.body.contains("is deployed after the previous push"), "{second:?}");
    let second = accepted(&second);
    let (third_commit, third) = pushed(&github, "4");
    let third = accepted(&deliver(&world, "push", "99999999-0003", &third).await);
    assert_eq!(ended(&world, &second).await, failed("SUPERSEDED"));
    world.builder.gate.add_permits(2);
    assert_eq!(ended(&world, &first).await, (DeploymentState::Done, None));
    assert_eq!(ended(&world, &third).await, (DeploymentState::Done, None));
    assert_eq!((world.builder.begun(), &*world.get("/hello").await.body), (2, "3"));
    let mut want = vec![
        format!("{} pending main is being deployed", &first_commit[..7]),
        format!("{} success deployed; 1 of 1 functions changed", &first_commit[..7]),
        format!("{} pending main is being deployed", &second_commit[..7]),
        format!("{} error a newer push replaced it before its turn", &second_commit[..7]),
        format!("{} pending main is being deployed", &third_commit[..7]),
        format!("{} success deployed; 1 of 1 functions changed", &third_commit[..7]),
    ];
    want.sort();
    eventually(want, || {
        let mut lines = github.status_lines();
        lines.sort();
        lines
    })
    .await;
}

/// One push to a repository that has one hook per project.
#[tokio::test]
async fn many_projects_take_turns() {
    let github = FakeGithub::start().await;
    let mut settings: Settings = settings(&github, &json!({}));
    settings
        .github
        .insert("blog".parse().unwrap(), settings.github.values().next().unwrap().clone());
    settings.hooks.limits.at_once = 1;
    let world = World::start(&["hello"], settings).await;
    world.builder.close_gate();
    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    world.builder.next(Ok(built("blog", &[("post", "1")])));
    let (_, body) = pushed(&github, "2");
    let headers = fake_github::headers("push", "eeeeeeee-0001", &body);
    let shop = accepted(&send(&world, "shop", &headers, body.clone()).await);
    eventually(1, || world.builder.begun()).await;
    // The same payload and secret, from another hook of the same repository.
    let blog = accepted(&send(&world, "blog", &headers, body).await);
    let fetched = github.shown().len();
    world.builder.gate.add_permits(1);
    assert_eq!(ended(&world, &shop).await, (DeploymentState::Done, None));
    eventually(2, || world.builder.begun()).await;
    assert!(github.shown().len() > fetched, "it was fetched after the first deployment");
    world.builder.gate.add_permits(1);
    assert_eq!(ended(&world, &blog).await, (DeploymentState::Done, None));
}

#[tokio::test]
async fn a_commit_that_cannot_be_had_changes_nothing() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    github.behave(Behaviour::Privately);
    std::fs::write(github.token_file(), "a valid token").unwrap();
    github.behave(Behaviour::Empty);
    let id = accepted(&deliver(&world, "push", "aaaaaaaa-0001", &body).await);
    assert_eq!(ended(&world, &id).await, failed("SOURCE_NOT_FETCHED"));
    let shown = world.ask(Method::GET, &format!("/v1/deployments/{id}"), "").await.json();
    assert_eq!(
        shown["data"]["error"]["message"],
        "GitHub does not know this repository, or does not show it"
    );
    eventually(2, || github.status_lines().len()).await;
    assert!(
        github.status_lines()[1].contains(" failure GitHub does not know this repository"),
        "{:?}",
        github.status_lines()
    );
    assert_eq!((world.builder.begun(), &*world.get("/hello").await.body), (0, "1"));
}

#[tokio::test]
async fn the_configured_git_fetches_commits() {
    let github = FakeGithub::start().await;
    let mut settings = settings(&github, &json!({}));
    settings.git.limits.program = "/nonexistent/git".into();
    let world = World::start(&["hello"], settings).await;
    let (_, body) = pushed(&github, "2");
    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    let id = accepted(&deliver(&world, "push", "11111111-eeee", &body).await);
    assert_eq!(ended(&world, &id).await, failed("SOURCE_NOT_FETCHED"));
    let shown = world.ask(Method::GET, &format!("/v1/deployments/{id}"), "").await;
    assert!(shown.body.contains("there is no `git` on the gateway's machine"), "{shown:?}");
}

/// A permission to push to one repository does not allow a deployment of another project.
#[tokio::test]
async fn a_repository_deploys_its_own_project_only() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    world.builder.next(Ok(built("blog", &[("post", "1")])));
    let id = accepted(&deliver(&world, "push", "bbbbbbbb-0001", &body).await);
    assert_eq!(ended(&world, &id).await, failed("OTHER_PROJECT"));
    assert_eq!(world.get("/post").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_stopping_gateway_reports_to_github() {
    let github = FakeGithub::start().await;
    let mut world = world(&github).await;
    world.builder.close_gate();
    let (_, first) = pushed(&github, "2");
    let at_work = accepted(&deliver(&world, "push", "cccccccc-0001", &first).await);
    eventually(1, || world.builder.begun()).await;
    let (_, second) = pushed(&github, "3");
    let waits = accepted(&deliver(&world, "push", "cccccccc-0002", &second).await);
    world.drain(Duration::from_millis(50)).await;
    for id in [at_work, waits] {
        assert_eq!(ended(&world, &id).await, failed("DEPLOYMENT_CANCELLED"));
    }
    let lines = github.status_lines();
    assert_eq!(lines.iter().filter(|line| line.contains(" error ")).count(), 2, "{lines:?}");
}

#[tokio::test]
async fn a_late_secret_needs_no_restart() {
    let github = FakeGithub::start().await;
    let world = world(&github).await;
    let (_, body) = pushed(&github, "2");
    let secret = std::fs::read(github.secret_file()).unwrap();
    std::fs::remove_file(github.secret_file()).unwrap();
    let reply = deliver(&world, "push", "dddddddd-0001", &body).await;
    assert_eq!((reply.status, &*reply.code()), (StatusCode::SERVICE_UNAVAILABLE, "HOOK_NOT_READY"));
    assert!(!reply.body.contains("secret\""), "no path in the answer: {reply:?}");
    std::fs::write(github.secret_file(), secret).unwrap();
    world.builder.next(Ok(built("shop", &[("hello", "2")])));
    let id = accepted(&deliver(&world, "push", "dddddddd-0001", &body).await);
    assert_eq!(ended(&world, &id).await, (DeploymentState::Done, None));
}
