//! Versions: made only by a change, stored, activated, rolled back and deleted, without any effect
//! on running calls.

use crate::up;
use epsilon_e2e::{
    http::Call,
    load::Load,
    project,
    wait::{SOON, until},
};
use serde_json::json;

#[tokio::test]
async fn deploying_again_without_a_change_makes_no_version() {
    let up = up().await;
    let project = project!("same", { "index.js" => "exports.same = (req, res) => res.send('1')" });
    assert_eq!(up.deploy(&project).await.changed(), [("same".into(), 1)]);
    for _ in 0..2 {
        let again = up.deploy(&project).await;
        assert_eq!(again.changed(), []);
        assert_eq!(again.function("same").version.get(), 1);
    }
    assert_eq!(up.admin("/v1/functions/same/versions").await.as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_touched_file_or_another_order_is_no_change() {
    let up = up().await;
    let files = [("index.js", "exports.touched = (req, res) => res.send('1')"), ("lib/a.js", "1")];
    let archive = |order: &[usize], time: u64| {
        epsilon_e2e::project::archive(|tar| {
            for &at in order {
                let (path, text) = files[at];
                let mut header = tar::Header::new_gnu();
                header.set_size(text.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(time);
                tar.append_data(&mut header, path, text.as_bytes()).unwrap();
            }
        })
    };
    up.deploy_archive("folder=touched", archive(&[0, 1], 1)).await.done();
    let again = up.deploy_archive("folder=touched", archive(&[1, 0], 1_700_000_000)).await;
    assert_eq!(again.changed(), []);
}

#[tokio::test]
async fn change_in_one_function_makes_one_version() {
    let up = up().await;
    let project = project!("pair", {
        "a.js" => "exports.pairA = (req, res) => res.send(require('./lib/alpha').text)",
        "b.js" => "exports.pairB = (req, res) => res.send(require('./lib/beta').text)",
        "lib/alpha.js" => "exports.text = 'a1'",
        "lib/beta.js" => "exports.text = 'b1'",
        "epsilon.yaml" => "
functions:
  pairA: { entry: a.js, memory: 128MiB }
  pairB: { entry: b.js, memory: 128MiB }
",
    });
    assert_eq!(up.deploy(&project).await.changed(), [("pairA".into(), 1), ("pairB".into(), 1)]);
    project.write("lib/beta.js", "exports.text = 'b2'");
    let second = up.deploy(&project).await;
    assert_eq!(second.changed(), [("pairB".into(), 2)]);
    assert_eq!(up.get("/pairA").await.expect(200).text(), "a1");
    assert_eq!(up.get("/pairB").await.expect(200).text(), "b2");
}

#[tokio::test]
async fn a_changed_setting_makes_a_version() {
    let up = up().await;
    let project = project!("tuned", {
        "index.js" => "exports.tuned = (req, res) => res.send(process.env.COLOUR)",
        "epsilon.yaml" => "functions: { tuned: { env: { COLOUR: red }, memory: 128MiB } }",
    });
    up.deploy(&project).await;
    assert_eq!(up.get("/tuned").await.expect(200).text(), "red");
    project
        .write("epsilon.yaml", "functions: { tuned: { env: { COLOUR: blue }, memory: 128MiB } }");
    assert_eq!(up.deploy(&project).await.changed(), [("tuned".into(), 2)]);
    assert_eq!(up.get("/tuned").await.expect(200).text(), "blue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_loses_no_call_and_switches_at_once() {
    let up = up().await;
    let text = |n: u32| {
        format!(
            "exports.seam = {{ config: {{ memory: '128MiB', maxInstances: 3 }},
        func: (req, res) => setTimeout(() => res.send('{n}'), 5) }}"
        )
    };
    let project = project!("seam", { "index.js" => text(1) });
    up.deploy(&project).await;
    let load = Load::start(up.public(), "/seam", 2);
    for n in 2..=3 {
        project.write("index.js", text(n));
        up.deploy(&project).await;
        assert_eq!(up.get("/seam").await.expect(200).text(), n.to_string());
    }
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new());
    assert_eq!(tally.answers(), tally.of(200), "{tally:?}");
    until("the old versions' instances are removed", SOON, async || {
        let containers = up.containers(Some("seam")).await;
        let old: Vec<_> =
            containers.iter().map(|c| c.label("epsilon.version")).filter(|v| *v != "3").collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{old:?}")) }
    })
    .await;
}

#[tokio::test]
async fn running_call_of_an_old_version_finishes() {
    let up = up().await;
    let text = |n: u32| {
        format!(
            "exports.elder = {{ config: {{ memory: '128MiB' }}, func: (req, res) => {{
        if (req.path === '/long') {{ res.write('begun '); setTimeout(() => res.end('{n}'), 3000) }}
        else res.send('{n}') }} }}"
        )
    };
    let project = project!("elder", { "index.js" => text(1) });
    up.deploy(&project).await;
    let mut long = Call::get("/elder/long").open(up.public()).await;
    assert_eq!(long.piece().await.unwrap().unwrap(), "begun ");
    project.write("index.js", text(2));
    up.deploy(&project).await;
    assert_eq!(up.get("/elder").await.expect(200).text(), "2");
    assert_eq!(long.piece().await.unwrap().unwrap(), "1");
    assert!(long.piece().await.unwrap().is_none());
}

#[tokio::test]
async fn rollback_goes_to_previous_or_named_version() {
    let up = up().await;
    let project = project!("back", {});
    for n in 1..=3 {
        project.write(
            "index.js",
            format!(
                "exports.back = {{ config: {{ memory: '128MiB' }},
            func: (req, res) => res.send('{n}') }}"
            ),
        );
        up.deploy(&project).await;
    }
    up.cli(&["rollback", "back"]).await.expect(0);
    assert_eq!(up.get("/back").await.expect(200).text(), "2");
    up.cli(&["rollback", "back", "1"]).await.expect(0);
    assert_eq!(up.get("/back").await.expect(200).text(), "1");
    up.cli(&["rollback", "back", "3"]).await.expect(0);
    assert_eq!(up.get("/back").await.expect(200).text(), "3");
    let outcome = up.cli(&["rollback", "back", "9"]).await.expect(1);
    assert!(outcome.stderr.contains('9'), "{outcome}");
    let listed = up.cli(&["versions", "back", "--json"]).await.expect(0).json();
    let numbers: Vec<_> = listed.as_array().unwrap().iter().map(|v| v["version"].clone()).collect();
    assert_eq!(json!(numbers), json!([3, 2, 1]), "newest first");
    let active: Vec<_> = listed.as_array().unwrap().iter().map(|v| v["active"].clone()).collect();
    assert_eq!(json!(active), json!([true, false, false]));
}

#[tokio::test]
async fn the_same_source_after_a_rollback_serves_again() {
    let up = up().await;
    let text = |n: u32| {
        format!(
            "exports.again = {{ config: {{ memory: '128MiB' }},
        func: (req, res) => res.send('{n}') }}"
        )
    };
    let project = project!("again", { "index.js" => text(1) });
    up.deploy(&project).await;
    project.write("index.js", text(2));
    up.deploy(&project).await;
    up.cli(&["rollback", "again"]).await.expect(0);
    assert_eq!(up.get("/again").await.expect(200).text(), "1");
    up.deploy(&project).await;
    assert_eq!(up.get("/again").await.expect(200).text(), "2", "what was deployed last serves");
}

#[tokio::test]
async fn deleted_function_never_reuses_version_numbers() {
    let up = up().await;
    let project = project!("gone", { "index.js" => "exports.gone = (req, res) => res.send('1')" });
    up.deploy(&project).await;
    up.get("/gone").await.expect(200);
    up.cli(&["delete", "gone"]).await.expect(0);
    up.get("/gone").await.expect_error(404, "FUNCTION_NOT_FOUND");
    until("its containers are removed", SOON, async || {
        match up.containers(Some("gone")).await.len() {
            0 => Ok(()),
            left => Err(left),
        }
    })
    .await;
    up.cli(&["delete", "gone"]).await.expect(1);
    assert_eq!(up.deploy(&project).await.changed(), [("gone".into(), 2)]);
    up.get("/gone").await.expect(200);
}

#[tokio::test]
async fn two_deployments_at_once_end_in_one_of_them() {
    let up = up().await;
    let project = |n: u32| {
        project!("race", { "index.js" =>
        format!("exports.race = {{ config: {{ memory: '128MiB' }}, func: (req, res) => res.send('{n}') }}") })
    };
    let (one, two) = (project(1), project(2));
    let (a, b) = tokio::join!(up.try_deploy(&one), up.try_deploy(&two));
    let done = [&a, &b]
        .into_iter()
        .filter(|d| {
            d.events
                .last()
                .is_some_and(|e| matches!(e, epsilon_api::admin::DeployEvent::Done { .. }))
        })
        .count();
    assert!(done >= 1, "{a:?} {b:?}");
    let text = up.get("/race").await.expect(200).text();
    assert!(text == "1" || text == "2", "{text}");
}

#[tokio::test]
async fn only_deploys_only_what_was_named() {
    let up = up().await;
    let text = |n: u32| {
        format!(
            "exports.onlyA = (req, res) => res.send('a{n}');
        exports.onlyB = (req, res) => res.send('b{n}');"
        )
    };
    let project = project!("only", { "index.js" => text(1) });
    up.deploy(&project).await;
    project.write("index.js", text(2));
    up.cli_in(&project.path(), &["deploy", "--only", "onlyB"]).await.expect(0);
    assert_eq!(up.get("/onlyA").await.expect(200).text(), "a1");
    assert_eq!(up.get("/onlyB").await.expect(200).text(), "b2");
    let outcome = up.cli_in(&project.path(), &["deploy", "--only", "onlyC"]).await.expect(1);
    assert!(outcome.stderr.contains("onlyC"), "{outcome}");
}

#[tokio::test]
async fn another_projects_function_is_never_overwritten() {
    let up = up().await;
    let text = "exports.owned = (req, res) => res.send('first')";
    up.deploy(&project!("owner", { "index.js" => text })).await;
    let other =
        up.try_deploy(&project!("thief", { "index.js" => text.replace("first", "second") })).await;
    let error = other.failed();
    assert!(error.message.contains("owned") && error.message.contains("owner"), "{error:?}");
    assert_eq!(up.get("/owned").await.expect(200).text(), "first");
}
