//! A GitHub push is deployed: from the signed delivery to the function's answer, with git, the
//! builder and Docker, and across a killed gateway. Authentication and stored deliveries are tested
//! in the gateway.

use crate::fake_github::{self, Behaviour, FakeGithub, File, SECRET, TOKEN};
use epsilon_e2e::{
    http::{Answer, Call},
    up::{Epsilon, Settings},
    wait::{LONG, SOON, until},
};
use serde_json::{Value, json};

const REPOSITORY: &str = "octo/hooked";
const MAIN: &str = "refs/heads/main";

fn commit(github: &FakeGithub, text: &str) -> (String, Vec<u8>) {
    let code = format!("exports.hooked = (req, res) => res.send({text:?});\n");
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(&code))]);
    let body = fake_github::push(REPOSITORY, MAIN, &id, &id).to_string().into_bytes();
    (id, body)
}

async fn deliver(up: &Epsilon, delivery: &str, body: &[u8]) -> Answer {
    let mut call = Call::post("/v1/hooks/github/hooked", "application/json", body.to_vec());
    for (name, value) in fake_github::headers("push", delivery, body) {
        call = call.header(name, &value);
    }
    call.limit(SOON).send(up.control()).await
}

/// Result of the deployment that a delivery started.
async fn deployed(up: &Epsilon, answer: Answer) -> Value {
    let id = answer.expect(202).json()["data"]["deployment"].as_str().unwrap().to_owned();
    until("the deployment ends", LONG, async || {
        let deployment = up.admin(&format!("/v1/deployments/{id}")).await;
        if deployment["state"] == "running" { Err(deployment) } else { Ok(deployment) }
    })
    .await
}

#[tokio::test]
async fn github_push_is_deployed_across_a_kill() {
    let github = FakeGithub::start().await;
    let hook = github.hook(REPOSITORY, &json!({"token_file": github.token_file()}));
    let config = json!({
        "gateway": {"hooks": {"private_hosts": ["127.0.0.1"]}, "github": {"hooked": hook}},
    });
    let mut up = Epsilon::start_with(Settings::config(&config.to_string())).await;

    github.behave(Behaviour::Privately);
    let (first, body) = commit(&github, "one");
    let deployment =
        deployed(&up, deliver(&up, "11111111-0000-4000-8000-000000000001", &body).await).await;
    assert_eq!(deployment["state"], "done", "{deployment}");
    assert_eq!(deployment["source"], format!("github {REPOSITORY} main {}", &first[..7]));
    assert_eq!(up.get("/hooked").await.expect(200).text(), "one");

    // The fake GitHub does not answer while a commit is fetched; then all is killed. The accepted
    // delivery is not lost.
    github.behave(Behaviour::Silent);
    let requests = github.shown().len();
    let (_, second) = commit(&github, "two");
    let second_id = "11111111-0000-4000-8000-000000000002";
    deliver(&up, second_id, &second).await.expect(202);
    until("the commit is being fetched", SOON, async || {
        if github.shown().len() > requests { Ok(()) } else { Err(up.log()) }
    })
    .await;
    up.kill().await;
    up.start_again().await;
    assert_eq!(up.get("/hooked").await.expect(200).text(), "one");
    let replayed = deliver(&up, "11111111-0000-4000-8000-000000000001", &body).await;
    assert_eq!(replayed.expect(409).json()["error"]["code"], "DELIVERY_REPLAYED");

    // The start has failed its deployment, so GitHub may deliver it again.
    github.behave(Behaviour::Privately);
    let deployment = deployed(&up, deliver(&up, second_id, &second).await).await;
    assert_eq!(deployment["state"], "done", "{deployment}");
    assert_eq!(up.get("/hooked").await.expect(200).text(), "two");

    // Code that throws when it is loaded never serves, and GitHub gets the reason.
    let broken = "throw new Error('no such luck');\n";
    let id = github.commit(REPOSITORY, MAIN, &[("index.js", File::Text(broken))]);
    let body = fake_github::push(REPOSITORY, MAIN, &id, &id).to_string().into_bytes();
    let deployment =
        deployed(&up, deliver(&up, "11111111-0000-4000-8000-000000000003", &body).await).await;
    assert_eq!(deployment["state"], "failed", "{deployment}");
    assert_eq!(up.get("/hooked").await.expect(200).text(), "two");
    until("the status is reported to GitHub", SOON, async || {
        let lines = github.status_lines();
        let want = format!("{} failure ", &id[..7]);
        if lines.iter().any(|line| line.starts_with(&want)) { Ok(()) } else { Err(lines) }
    })
    .await;

    let log = up.log();
    assert!(log.contains("Webhook delivery was handled."), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(TOKEN), "a secret is in the log");
}
