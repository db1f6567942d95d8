//! Projects that cannot be deployed: each gets an error that names the problem and the next step,
//! and nothing of it serves. The builder's texts for manifest errors are in golden files of its
//! own.

use crate::up;
use epsilon_e2e::{
    deploy::Deployment,
    project,
    project::Project,
    wait::{SOON, until},
};

/// Deploys and checks that it fails with this code, names these things, and leaks no path of the
/// machine.
async fn refused(project: &Project, code: &str, says: &[&str]) -> Deployment {
    let up = up().await;
    let deployment = up.try_deploy(project).await;
    let error = deployment.failed();
    assert_eq!(error.code, code, "{error:?}");
    let text = format!("{} {}", error.message, error.hint.as_deref().unwrap_or_default());
    for part in says {
        assert!(text.contains(part), "`{part}` in `{text}`");
    }
    assert!(!text.contains("/tmp/") && !text.contains("builder/"), "{text}");
    deployment
}

#[tokio::test]
async fn an_empty_folder() {
    refused(&project!("empty", {}), "NO_FUNCTIONS", &["index.js"]).await;
}

#[tokio::test]
async fn a_project_that_exports_nothing() {
    let project =
        project!("nothing", { "index.js" => "const hidden = (req, res) => res.send('x')" });
    refused(&project, "NO_FUNCTIONS", &["export"]).await;
}

#[tokio::test]
async fn a_syntax_error_is_shown_with_its_place() {
    let project =
        project!("syntax", { "index.js" => "exports.a = (req, res) => {\n  res.send('x'\n};" });
    let deployment = refused(&project, "LOAD_FAILED", &["index.js"]).await;
    let output = format!("{:?}", deployment.failed()) + &deployment.log();
    assert!(output.contains("SyntaxError"), "{output}");
    assert!(output.contains("index.js:"), "file and line: {output}");
}

#[tokio::test]
async fn code_that_throws_while_loading() {
    let project = project!("thrower", { "index.js" => "throw new Error('no database here')" });
    let deployment = refused(&project, "LOAD_FAILED", &["index.js"]).await;
    let output = format!("{:?}", deployment.failed()) + &deployment.log();
    assert!(output.contains("no database here"), "{output}");
}

#[tokio::test]
async fn code_that_hangs_while_loading() {
    refused(&project!("hanger", { "index.js" => "for (;;);" }), "LOAD_FAILED", &["did not finish"])
        .await;
    let awaits = project!("awaiter", {
        "package.json" => r#"{ "type": "module" }"#,
        "index.js" => "setInterval(() => {}, 1000); await new Promise(() => {}); export const a = () => {}",
    });
    refused(&awaits, "LOAD_FAILED", &["index.js"]).await;
}

#[tokio::test]
async fn code_that_exits_while_loading() {
    refused(&project!("leaver", { "index.js" => "process.exit(0)" }), "LOAD_FAILED", &["exit"])
        .await;
}

#[tokio::test]
async fn code_that_eats_its_memory_while_loading() {
    let text = "const all = []; for (;;) all.push(Buffer.alloc(1 << 24, 'x'))";
    refused(&project!("glutton", { "index.js" => text }), "LOAD_FAILED", &["memory"]).await;
}

#[tokio::test]
async fn a_named_export_that_is_not_there() {
    let project = project!("absent", {
        "index.js" => "exports.checkout = (req, res) => res.send('x')",
        "epsilon.yaml" => "functions: { pay: { export: chekout } }",
    });
    refused(&project, "EXPORT_NOT_FOUND", &["chekout", "`checkout`"]).await;
}

#[tokio::test]
async fn a_named_entry_that_is_not_there() {
    let project = project!("lost", {
        "index.js" => "exports.a = (req, res) => res.send('x')",
        "epsilon.yaml" => "functions: { a: { entry: src/missing.js } }",
    });
    let up = up().await;
    let deployment = up.try_deploy(&project).await;
    assert!(deployment.failed().message.contains("src/missing.js"), "{deployment:?}");
}

#[tokio::test]
async fn an_entry_outside_of_the_project() {
    let project = project!("escape", {
        "index.js" => "exports.a = (req, res) => res.send('x')",
        "epsilon.yaml" => "functions: { a: { entry: ../../etc/passwd } }",
    });
    refused(&project, "MANIFEST_INVALID", &["entry"]).await;
}

#[tokio::test]
async fn an_export_with_a_name_that_cannot_be_called() {
    let project =
        project!("names", { "index.js" => "exports['a b'] = (req, res) => res.send('x')" });
    let up = up().await;
    let deployment = up.try_deploy(&project).await;
    assert!(format!("{:?}", deployment.failed()).contains("`a b`"), "{deployment:?}");
}

#[tokio::test]
async fn code_that_requires_what_is_not_there() {
    let project = project!("requirer", { "index.js" => "require('left-out-of-package-json')" });
    let deployment = refused(&project, "LOAD_FAILED", &[]).await;
    let output = format!("{:?}", deployment.failed()) + &deployment.log();
    assert!(output.contains("left-out-of-package-json"), "{output}");
}

/// Manifests with one mistake each: the error names the key, and the nearest known one if there is
/// one.
macro_rules! bad_manifests {
    ($($test:ident: $yaml:expr => $says:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let project = project!("manifest", {
                "index.js" => "exports.a = (req, res) => res.send('x')",
                "epsilon.yaml" => $yaml,
            });
            refused(&project, "MANIFEST_INVALID", &$says).await;
        }
    )*};
}

bad_manifests! {
    unknown_key_of_the_project: "projet: x" => ["projet", "`project`"];
    unknown_key_of_a_function: "functions: { a: { timout: 1s } }" => ["timout", "`timeout`"];
    unknown_key_far_from_all: "functions: { a: { xyzzy: 1 } }" => ["xyzzy"];
    key_in_snake_case: "functions: { a: { max_instances: 2 } }" => ["max_instances", "`maxInstances`"];
    timeout_of_zero: "functions: { a: { timeout: 0 } }" => ["timeout", "1ms"];
    timeout_without_end: "functions: { a: { timeout: 999h } }" => ["timeout"];
    timeout_in_words: "functions: { a: { timeout: soon } }" => ["timeout", "soon"];
    memory_too_small: "functions: { a: { memory: 1KiB } }" => ["memory", "32MiB"];
    memory_too_large: "functions: { a: { memory: 900GiB } }" => ["memory"];
    memory_without_unit: "functions: { a: { memory: 256 } }" => ["memory", "MiB"];
    no_concurrency: "functions: { a: { concurrency: 0 } }" => ["concurrency"];
    no_instances: "functions: { a: { maxInstances: 0 } }" => ["maxInstances"];
    more_minimum_than_maximum: "functions: { a: { minInstances: 3, maxInstances: 2 } }"
        => ["minInstances", "maxInstances"];
    no_processor: "functions: { a: { cpu: 0 } }" => ["cpu"];
    unknown_network: "functions: { a: { network: ful } }" => ["network", "egress"];
    unknown_runtime: "runtime: nod" => ["runtime", "`node`"];
    python_is_not_there_yet: "runtime: python" => ["python"];
    secrets_are_not_there_yet: "functions: { a: { secrets: [KEY] } }" => ["secrets"];
    auth_is_not_there_yet: "functions: { a: { auth: jwt } }" => ["auth"];
    name_of_a_function: "functions: { 'a b': { export: a } }" => ["a b"];
    name_of_a_project: "project: ../x" => ["project"];
    not_yaml: "functions: { a: [" => ["epsilon.yaml:"];
    a_list: "- a" => ["epsilon.yaml"];
    a_function_twice: "functions:\n  a: { timeout: 1s }\n  a: { timeout: 2s }" => ["a"];
}

#[tokio::test]
async fn an_unknown_key_in_code_is_an_error_too() {
    let text = "exports.a = { config: { timout: 5 }, func: (req, res) => res.send('x') }";
    refused(
        &project!("incode", { "index.js" => text }),
        "MANIFEST_INVALID",
        &["timout", "`timeout`"],
    )
    .await;
}

#[tokio::test]
async fn missing_npm_package_shows_npms_output() {
    let project = project!("typo", {
        "index.js" => "exports.a = (req, res) => res.send('x')",
        "package.json" =>
            r#"{ "dependencies": { "@epsilon-e2e-missing/this-package-does-not-exist": "1.0.0" } }"#,
    });
    let deployment = refused(&project, "DEPENDENCIES_FAILED", &["npm"]).await;
    let output = format!("{:?}", deployment.failed()) + &deployment.log();
    assert!(output.contains("this-package-does-not-exist"), "{output}");
    assert!(output.contains("404") || output.contains("E40"), "{output}");
}

#[tokio::test]
async fn a_package_json_that_is_none() {
    let project = project!("broken", {
        "index.js" => "exports.a = (req, res) => res.send('x')",
        "package.json" => "{ not json",
    });
    let up = up().await;
    let deployment = up.try_deploy(&project).await;
    assert!(deployment.failed().message.contains("package.json"), "{deployment:?}");
}

#[tokio::test]
async fn a_failed_deployment_leaves_no_container_and_changes_nothing() {
    let up = up().await;
    let project =
        project!("steady", { "index.js" => "exports.steady = (req, res) => res.send('1')" });
    up.deploy(&project).await;
    project.write("index.js", "exports.steady = (req, res) => {");
    up.try_deploy(&project).await.failed();
    assert_eq!(up.get("/steady").await.expect(200).text(), "1");
    let listed = up.admin("/v1/deployments").await;
    let newest = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|d| d["state"] == "failed" && d["error"]["code"] == "LOAD_FAILED");
    assert!(newest.is_some(), "{listed}");
}

#[tokio::test]
async fn a_developer_who_hangs_up_cancels_the_build() {
    let up = up().await;
    let project = project!("quitter", { "index.js" => "for (;;);" });
    let archive = project.archive();
    let call = epsilon_e2e::http::Call::post(
        "/v1/deployments?folder=quitter",
        "application/gzip",
        archive,
    )
    .header("authorization", &format!("Bearer {}", up.key()));
    let mut open = call.open(up.control()).await;
    let mut output = String::new();
    while !output.contains("inspect") {
        output += &String::from_utf8_lossy(&open.piece().await.unwrap().expect("more events"));
    }
    drop(open);
    until("the deployment has ended", SOON, async || {
        let listed = up.admin("/v1/deployments").await;
        let running =
            listed.as_array().unwrap().iter().any(|d| {
                d["state"] == "running" && output.contains(d["id"].as_str().unwrap_or("-"))
            });
        if running { Err("running") } else { Ok(()) }
    })
    .await;
}
