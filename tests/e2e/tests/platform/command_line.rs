//! The command line: every command with its output, its JSON and its exit code.

use crate::{probe, up};
use epsilon_e2e::{
    cli::run,
    http::Call,
    project,
    up::{Epsilon, Settings, binary},
    wait::{SOON, until},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

#[tokio::test]
async fn init_deploy_invoke_logs_change_deploy_again() {
    let up = up().await;
    let place = TempDir::new().unwrap();
    let folder = place.path().join("tour");
    up.cli_in(place.path(), &["init", "tour"]).await.expect(0);
    assert!(folder.join("index.js").is_file());
    let deployed = up.cli_in(&folder, &["deploy", "--json"]).await.expect(0);
    let name = deployed
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|event| event["deployment"]["functions"][0]["name"].as_str().map(str::to_owned))
        .unwrap_or_else(|| panic!("no function in {deployed}"));
    up.cli(&["invoke", &name]).await.expect(0);
    let again = up.cli_in(place.path(), &["deploy", "tour"]).await.expect(0);
    assert!(again.stdout.contains(&name), "{again}");
    up.cli(&["logs", &name]).await.expect(0);
    let outcome = up.cli_in(place.path(), &["init", "tour"]).await.expect(2);
    assert!(outcome.stderr.contains("tour"), "{outcome}");
}

#[tokio::test]
async fn deploy_in_a_pipe_prints_steps_and_url() {
    let up = up().await;
    let project =
        project!("piped", { "index.js" => "exports.piped = (req, res) => res.send('x')" });
    let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(0);
    let text = outcome.text();
    assert!(!text.contains('\u{1b}'), "no colour, no cursor moves: {text:?}");
    assert!(text.contains(&format!("http://{}/piped", up.public())), "{outcome}");
}

#[tokio::test]
async fn failed_deploy_shows_error_and_hint() {
    let up = up().await;
    let project = project!("wrong", {
        "index.js" => "exports.wrong = (req, res) => res.send('x')",
        "epsilon.yaml" => "functions: { wrong: { timout: 1s } }",
    });
    let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(1);
    assert!(outcome.stderr.contains("timout") && outcome.stderr.contains("`timeout`"), "{outcome}");
}

#[tokio::test]
async fn invoke_sends_data_and_prints_the_body_unchanged() {
    let up = probe().await;
    let outcome = up
        .cli(&["invoke", "echo", "-X", "PUT", "-H", "X-A: b", "--path", "/p?q=1", "-d", "text"])
        .await
        .expect(0);
    let seen = outcome.json();
    assert_eq!(seen["method"], "PUT");
    assert_eq!(seen["url"], "/p?q=1");
    assert_eq!(seen["headers"]["x-a"], "b");
    assert_eq!(seen["raw"].as_str().unwrap_or("text"), "text");
    let place = TempDir::new().unwrap();
    std::fs::write(place.path().join("body.json"), r#"{"from":"a file"}"#).unwrap();
    let outcome = up.cli_in(place.path(), &["invoke", "echo", "-d", "@body.json"]).await.expect(0);
    assert_eq!(outcome.json()["body"], json!({ "from": "a file" }));
}

#[tokio::test]
async fn exit_codes_distinguish_function_and_usage() {
    let up = probe().await;
    up.cli(&["invoke", "echo"]).await.expect(0);
    let outcome = up.cli(&["invoke", "missing"]).await.expect(1);
    assert!(outcome.stderr.contains("missing"), "{outcome}");
    let outcome = up
        .cli(&["invoke", "probe", "-d", "throw new Error('x')", "-H", "content-type: text/plain"])
        .await
        .expect(1);
    assert!(outcome.stderr.contains("epsilon logs probe"), "{outcome}");
    for usage in [
        &["invoke"][..],
        &["deploy", "--onyl", "x"],
        &["frobnicate"],
        &["rollback", "echo", "x"],
        &["invoke", "echo", "-H", "no colon"],
    ] {
        let outcome = up.cli(usage).await.expect(2);
        assert!(!outcome.stderr.is_empty(), "{outcome}");
    }
    up.cli(&["--help"]).await.expect(0);
    up.cli(&["--version"]).await.expect(0);
}

#[tokio::test]
async fn a_platform_that_does_not_run_is_said_so() {
    let mut command = Command::new(binary());
    let place = TempDir::new().unwrap();
    command.args(["functions", "--gateway", "http://127.0.0.1:9", "--key", "x"]);
    command.current_dir(place.path());
    let outcome = run(command).await.expect(1);
    assert!(outcome.stderr.contains("epsilon up"), "{outcome}");
}

#[tokio::test]
async fn key_and_address_are_found_in_the_data_folder() {
    let up = probe().await;
    let mut command = Command::new(binary());
    command.args(["functions", "--json", "--data-dir"]).arg(up.data());
    let listed = run(command).await.expect(0).json();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|f| &f["name"]).collect();
    assert!(names.contains(&&json!("echo")), "{names:?}");
}

#[tokio::test]
async fn a_wrong_key_is_reported() {
    let up = up().await;
    let outcome = up.cli(&["functions", "--key", "wrong"]).await.expect(1);
    assert!(outcome.stderr.contains("key"), "{outcome}");
}

#[tokio::test]
async fn lists_are_tables_for_people_and_json_for_programs() {
    let up = probe().await;
    let table = up.cli(&["functions"]).await.expect(0).stdout;
    assert!(table.lines().any(|line| line.contains("echo")), "{table}");
    let json = up.cli(&["functions", "--json"]).await.expect(0).json();
    let echo = json.as_array().unwrap().iter().find(|f| f["name"] == "echo").unwrap();
    assert_eq!(echo["active_version"], 1);
    let json = up.cli(&["versions", "echo", "--json"]).await.expect(0).json();
    assert_eq!(json[0]["version"], 1);
    assert_eq!(json[0]["active"], true);
    assert!(json[0]["image"].as_str().is_some_and(|image| !image.is_empty()));
    let table = up.cli(&["versions", "echo"]).await.expect(0).stdout;
    assert!(table.contains('1'), "{table}");
    let json = up.cli(&["vms", "--json"]).await.expect(0).json();
    assert_eq!(json[0]["id"], up.vm());
    assert!(up.cli(&["vms"]).await.expect(0).stdout.contains(up.vm()));
    let json = up.cli(&["invoke", "echo", "--json"]).await.expect(0).json();
    assert_eq!(json["status"], 200);
    let log = up.cli(&["logs", "echo", "--json"]).await.expect(0).stdout;
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn bad_setting_is_wrong_usage_naming_the_key() {
    for (yaml, says) in [
        ("gateway: { max_bdy: 1MiB }", "`max_body`"),
        ("gatewy: {}", "`gateway`"),
        ("vm_agent: { queue_wait: soon }", "queue_wait"),
        ("builder: [", ""),
    ] {
        let place = TempDir::new().unwrap();
        std::fs::write(place.path().join("c.yaml"), yaml).unwrap();
        let mut command = Command::new(binary());
        command.current_dir(place.path());
        command.args(["up", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]);
        command.args(["--data-dir", "data", "--config", "c.yaml"]);
        let outcome = run(command).await.expect(2);
        assert!(outcome.stderr.contains(says), "{yaml}: {outcome}");
    }
}

#[tokio::test]
async fn settings_come_from_file_and_environment() {
    let settings = Settings {
        config: Some("gateway: { domain: fn.test, max_body: 1MiB }".into()),
        env: vec![("EPSILON_GATEWAY_MAX_BODY".into(), "2KiB".into())],
        ..Settings::default()
    };
    let up = Epsilon::start_with(settings).await;
    let project =
        project!("hosted", { "index.js" => "exports.hosted = (req, res) => res.send(req.url)" });
    up.deploy(&project).await;
    let call = |path: &str, host: &str| Call::get(path).header("host", host);
    let answer = call("/a/b?c=d", "hosted.fn.test").send(up.public()).await.expect(200);
    assert_eq!(answer.text(), "/a/b?c=d", "the whole path is the function's");
    let answer = call("/hosted/a", "localhost").send(up.public()).await.expect(200);
    assert_eq!(answer.text(), "/a");
    call("/a", "missing.fn.test").send(up.public()).await.expect_error(404, "FUNCTION_NOT_FOUND");
    call("/a", "hosted.other.test").send(up.public()).await.expect_error(404, "FUNCTION_NOT_FOUND");
    let large = Call::post("/hosted", "text/plain", "x".repeat(3000)).send(up.public()).await;
    large.expect_error(413, "BODY_TOO_LARGE");
}

#[tokio::test]
async fn two_platforms_never_share_a_data_folder() {
    let up = up().await;
    let mut command = Command::new(binary());
    command.args(["up", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data-dir"]);
    command.arg(up.data());
    let outcome = run(command).await.expect(1);
    assert!(outcome.stderr.contains("data"), "{outcome}");
    up.get("/").await.expect(200);
}

#[tokio::test]
async fn an_address_in_use_is_said_with_its_flag() {
    let up = up().await;
    let place = TempDir::new().unwrap();
    let mut command = Command::new(binary());
    command.args(["up", "--control", "127.0.0.1:0", "--listen", &up.public().to_string()]);
    command.arg("--data-dir").arg(place.path());
    let outcome = run(command).await.expect(1);
    assert!(outcome.stderr.contains(&up.public().to_string()), "{outcome}");
}

#[tokio::test]
async fn drained_vm_gets_no_calls_until_undrained() {
    // A platform of its own: other tests must not call meanwhile.
    let up = Epsilon::start_with(Settings::default()).await;
    let project = project!("drained", { "index.js" => r#"
        exports.drained = { config: { memory: "128MiB" }, func: (req, res) => {
          if (req.path !== "/long") return res.send("quick");
          res.write("begun "); setTimeout(() => res.end("ended"), 1500); } };"# });
    up.deploy(&project).await;
    let mut long = epsilon_e2e::http::Call::get("/drained/long").open(up.public()).await;
    assert_eq!(long.piece().await.unwrap().unwrap(), "begun ");
    up.cli(&["drain", up.vm()]).await.expect(0);
    up.get("/drained").await.expect_error(503, "NO_CAPACITY");
    assert_eq!(long.piece().await.unwrap().unwrap(), "ended", "a running call ends in peace");
    until("its instances are removed", SOON, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    assert_eq!(up.admin("/v1/vms").await[0]["state"], "draining");
    up.cli(&["undrain", up.vm()]).await.expect(0);
    up.get("/drained").await.expect(200);
    up.cli(&["drain", "missing"]).await.expect(1);
}
