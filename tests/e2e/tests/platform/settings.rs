//! Settings from the file, from the code, from both; names from the folder and the package.

use crate::up;
use epsilon_e2e::project;
use serde_json::json;

#[tokio::test]
async fn the_file_wins_over_the_code_key_by_key() {
    let up = up().await;
    up.deploy(&project!("both", {
        "index.js" => "exports.both = {
            config: { timeout: 5_000, memory: '192MiB', concurrency: 4, env: { A: 'code', B: 'code' } },
            func: (req, res) => res.json([process.env.A, process.env.B]) }",
        "epsilon.yaml" => "functions: { both: { timeout: 7s, env: { A: file } } }",
    }))
    .await;
    let spec = up.admin("/v1/functions/both").await["spec"].clone();
    assert_eq!(spec["timeout_ms"], 7000);
    assert_eq!(spec["memory_bytes"], 192 << 20);
    assert_eq!(spec["concurrency"], 4);
    assert_eq!(up.get("/both").await.expect(200).json()[0], "file");
}

#[tokio::test]
async fn every_setting_arrives() {
    let up = up().await;
    up.deploy(&project!("every", {
        "src/work.js" => "exports.labour = (req, res) => res.send(process.env.CURRENCY)",
        "epsilon.yaml" => "
project: everything
runtime: node
functions:
  every:
    entry: src/work.js
    export: labour
    timeout: 1500ms
    memory: 128MiB
    cpu: 0.5
    concurrency: 2
    minInstances: 1
    maxInstances: 3
    idleTimeout: 2m
    env: { CURRENCY: EUR, NUMBER: 5 }
    network: none
    auth: public
",
    }))
    .await;
    let function = up.admin("/v1/functions/every").await;
    assert_eq!(function["project"], "everything");
    let spec = &function["spec"];
    for (key, wanted) in [
        ("entry", json!("src/work.js")),
        ("export", json!("labour")),
        ("timeout_ms", json!(1500)),
        ("memory_bytes", json!(128 << 20)),
        ("cpu_millicores", json!(500)),
        ("concurrency", json!(2)),
        ("min_instances", json!(1)),
        ("max_instances", json!(3)),
        ("idle_timeout_ms", json!(120_000)),
        ("env", json!({ "CURRENCY": "EUR", "NUMBER": "5" })),
        ("network", json!("none")),
    ] {
        assert_eq!(spec[key], wanted, "{key} in {spec}");
    }
    assert_eq!(up.get("/every").await.expect(200).text(), "EUR");
}

#[tokio::test]
async fn the_defaults_are_the_documented_ones() {
    let up = up().await;
    up.deploy(&project!("plain", { "index.js" => "exports.plain = (req, res) => res.send('x')" }))
        .await;
    let function = up.admin("/v1/functions/plain").await;
    assert_eq!(function["project"], "plain", "the folder's name");
    let spec = &function["spec"];
    for (key, wanted) in [
        ("entry", json!("index.js")),
        ("export", json!("plain")),
        ("timeout_ms", json!(60_000)),
        ("memory_bytes", json!(256 << 20)),
        ("cpu_millicores", json!(1000)),
        ("concurrency", json!(1)),
        ("min_instances", json!(0)),
        ("max_instances", json!(20)),
        ("idle_timeout_ms", json!(null)),
        ("network", json!("egress")),
    ] {
        assert_eq!(spec[key], wanted, "{key} in {spec}");
    }
}

#[tokio::test]
async fn package_json_gives_project_name_and_entry() {
    let up = up().await;
    up.deploy(&project!("whatever", {
        "package.json" => r#"{ "name": "@shop/till", "main": "lib/start.cjs" }"#,
        "lib/start.cjs" => "exports.ring = (req, res) => res.send('ring')",
    }))
    .await;
    let function = up.admin("/v1/functions/ring").await;
    assert_eq!(function["project"], "till");
    assert_eq!(up.get("/ring").await.expect(200).text(), "ring");
}

#[tokio::test]
async fn a_default_export_takes_the_projects_name() {
    let up = up().await;
    up.deploy(&project!("greeter", {
        "package.json" => r#"{ "name": "greeter", "type": "module" }"#,
        "index.js" => "export default (req, res) => res.send('hi')",
    }))
    .await;
    assert_eq!(up.get("/greeter").await.expect(200).text(), "hi");
}

#[tokio::test]
async fn exported_functions_deploy_other_exports_not() {
    let up = up().await;
    let deployment = up
        .deploy(&project!("many", { "index.js" => "
            exports.manyA = (req, res) => res.send('a');
            exports.manyB = { func: async (req, res) => res.send('b') };
            exports.manyC = { definition: async (req, res) => res.send('c') };
            exports.number = 5; exports.text = 'x'; exports.table = { a: 1 };" }))
        .await;
    let mut names: Vec<_> = deployment.changed().into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["manyA", "manyB", "manyC"]);
    for (name, text) in [("manyA", "a"), ("manyB", "b"), ("manyC", "c")] {
        assert_eq!(up.get(&format!("/{name}")).await.expect(200).text(), text);
    }
}

#[tokio::test]
async fn machine_secrets_never_reach_functions() {
    let environment = crate::run("return process.env").await.expect(200).json();
    for (name, _) in environment.as_object().unwrap() {
        let known = ["NODE_ENV", "PORT", "PATH", "HOME", "HOSTNAME", "PWD", "SHLVL", "_"];
        assert!(known.contains(&name.as_str()) || name.starts_with("EPSILON_"), "{name}");
        assert!(!name.contains("KEY") && !name.contains("TOKEN"), "{name}");
    }
    assert_eq!(environment["NODE_ENV"], "production");
}
