//! Deployments under traffic, prebuilt images, and retention.

use crate::up;
use epsilon_e2e::{
    engine::{ask, docker},
    http::Call,
    load::Load,
    project,
    project::Project,
    up::{Epsilon, Settings},
    wait::{LONG, SOON, until},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Two functions that answer the number of their deployment.
fn tide(project: &Project, n: u64) {
    let config = "config: { memory: '128MiB', concurrency: 8, maxInstances: 2 }";
    let function = |name: &str| {
        format!("exports.{name} = {{ {config}, func: (req, res) => res.send('{n}') }};\n")
    };
    project.write("index.js", function("tideA") + &function("tideB"));
}

/// Calls one function after the other until stopped: the number never decreases, whichever function
/// is called, because both are activated in one step. Returns the number of calls.
async fn sequential(
    to: SocketAddr,
    begun: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<u64, String> {
    let (mut seen, mut calls) = (1, 0);
    while !stop.load(Ordering::Relaxed) {
        for name in ["tideA", "tideB"] {
            let answer = Call::get(&format!("/{name}")).try_send(to).await;
            let answer = answer.map_err(|broken| format!("{name}: {broken}"))?;
            let newest = begun.load(Ordering::SeqCst);
            let n: u64 = match (answer.status, answer.text().parse()) {
                (200, Ok(n)) => n,
                _ => return Err(format!("{name}: {answer}")),
            };
            if n < seen || n > newest {
                return Err(format!("{name} answered {n} after {seen}, newest {newest}"));
            }
            (seen, calls) = (n, calls + 1);
        }
    }
    Ok(calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_under_traffic_lose_no_call_or_order() {
    let up = up().await;
    let project = project!("tide", {});
    tide(&project, 1);
    up.deploy(&project).await;
    let (begun, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
    let load = Load::start(up.public(), "/tideA", 2);
    let callers: Vec<_> = (0..2)
        .map(|_| tokio::spawn(sequential(up.public(), Arc::clone(&begun), Arc::clone(&stop))))
        .collect();
    // As many as fit into the time, on a machine that has other work too.
    let (began, mut last) = (Instant::now(), 1);
    while last < 21 && (last < 5 || began.elapsed() < Duration::from_secs(35)) {
        last += 1;
        tide(&project, last);
        begun.store(last, Ordering::SeqCst);
        let deployment = up.deploy(&project).await;
        assert_eq!(deployment.changed().len(), 2, "{deployment:?}");
        // Calls after the last event get the new version.
        for name in ["/tideA", "/tideB"] {
            assert_eq!(up.get(name).await.expect(200).text(), last.to_string());
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap().unwrap();
    }
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new(), "{tally:?}");
    assert_eq!((tally.refused, tally.answers()), (0, tally.of(200)), "{tally:?}");
    println!("{} deployments, {} calls, none lost", last - 1, calls + tally.answers());
    until("only the last version's instances are left", SOON, async || {
        let mut old = Vec::new();
        for name in ["tideA", "tideB"] {
            let containers = up.containers(Some(name)).await;
            let versions = containers.iter().map(|one| one.label("epsilon.version").to_owned());
            old.extend(versions.filter(|version| *version != last.to_string()));
        }
        if old.is_empty() { Ok(()) } else { Err(old) }
    })
    .await;
}

/// A document that deploys the newest version of a function unchanged.
async fn document(up: &Epsilon, project: &str, function: &str) -> Value {
    let versions = up.admin(&format!("/v1/functions/{function}/versions")).await;
    let newest = &versions[0];
    json!({ "project": project, "functions": [{
        "name": function,
        "spec": newest["spec"],
        "image": { "reference": newest["image"], "digest": newest["digest"] },
    }]})
}

async fn deploy_built(
    up: &Epsilon,
    document: &Value,
    arguments: &[&str],
) -> epsilon_e2e::cli::Outcome {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document.to_string()).unwrap();
    let mut all = vec!["deploy", "--built", file.path().to_str().unwrap()];
    all.extend(arguments);
    up.cli(&all).await
}

#[tokio::test]
async fn prebuilt_images_deploy_like_built_ones() {
    let up = up().await;
    let text =
        "exports.moved = { config: { memory: '128MiB' }, func: (req, res) => res.send('1') }";
    up.deploy(&project!("mover", { "index.js" => text })).await;
    let mut built = document(up, "mover", "moved").await;
    deploy_built(up, &built, &[]).await.expect(0);
    let numbers = async || {
        let versions = up.admin("/v1/functions/moved/versions").await;
        versions.as_array().unwrap().iter().map(|one| one["version"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(numbers().await, [1], "nothing changed");
    built["functions"][0]["spec"]["timeout_ms"] = json!(5000);
    deploy_built(up, &built, &["--only", "moved"]).await.expect(0);
    assert_eq!(numbers().await, [2, 1]);
    assert_eq!(up.get("/moved").await.expect(200).text(), "1");

    let refused = async |change: &dyn Fn(&mut Value), arguments: &[&str], part: &str| {
        let mut wrong = built.clone();
        change(&mut wrong);
        let outcome = deploy_built(up, &wrong, arguments).await.expect(1);
        assert!(outcome.stderr.contains(part), "{part}: {outcome}");
    };
    refused(&|d| d["functions"][0]["spec"]["timeout_ms"] = json!(3_600_000), &[], "ceiling of 15m")
        .await;
    refused(&|d| d["functions"][0]["image"]["digest"] = json!("latest"), &[], "sha256").await;
    refused(&|d| d["functions"][0]["name"] = json!("9x"), &[], "functions[0].name").await;
    refused(&|d| d["project"] = json!("thief"), &[], "belongs to project `mover`").await;
    refused(&|_| {}, &["--only", "movd"], "it names `moved`").await;
    let gone = |d: &mut Value| {
        d["functions"][0]["image"] = json!({
            "reference": "epsilon/mover/missing:1", "digest": format!("sha256:{}", "0".repeat(64)),
        });
    };
    refused(&gone, &[], "no VM has the image of `moved` in its engine").await;
    let away = |d: &mut Value| {
        let hex = "0".repeat(64);
        let reference = format!("127.0.0.1:9/mover/moved@sha256:{hex}");
        d["functions"][0]["image"] =
            json!({ "reference": reference, "digest": format!("sha256:{hex}") });
    };
    refused(&away, &[], "127.0.0.1:9").await;
    assert_eq!(numbers().await, [2, 1], "none of these changed anything");
    assert_eq!(up.get("/moved").await.expect(200).text(), "1");
}

#[tokio::test]
async fn invalid_prebuilt_document_is_refused() {
    let up = up().await;
    let send = async |body: String| {
        up.send_admin(Call::post("/v1/deployments", "application/json; charset=utf-8", body)).await
    };
    for wrong in ["", "{", "[]", "{\"project\":\"x\"}", "{\"project\":\"x\",\"functions\":[]}"] {
        send(wrong.to_owned()).await.expect_error(422, "BUILT_INVALID");
    }
    let large = format!("{{\"project\":\"{}\"}}", "x".repeat(17 << 20));
    send(large).await.expect_error(413, "BODY_TOO_LARGE");
}

/// The author gets the stack; the version before continues to serve.
#[tokio::test]
async fn version_throwing_at_load_never_serves() {
    let up = up().await;
    let config = "config: { memory: '128MiB' }";
    let well = format!("exports.brittle = {{ {config}, func: (req, res) => res.send('1') }}");
    let project = project!("brittle", { "index.js" => &well });
    up.deploy(&project).await;
    let boom = "function boom() { throw new Error('no licence') }\nboom();\n";
    project.write("index.js", format!("{boom}{well}"));
    let failed = up.try_deploy(&project).await;
    let error = failed.failed();
    assert_eq!(error.code, "LOAD_FAILED", "{error:?}");
    assert!(error.message.contains("no licence") && error.message.contains("boom"), "{error:?}");
    assert_eq!(up.get("/brittle").await.expect(200).text(), "1", "the old one serves");
    let listed = up.admin("/v1/functions/brittle/versions").await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
}

/// It loads at the inspection, with the builder's memory, and throws in an instance, with its own.
#[tokio::test]
async fn version_throwing_only_in_its_instance_never_serves() {
    let up = up().await;
    // As much as a cell has: code that loads in one would otherwise see its own limit only a moment
    // later.
    let config = "config: { memory: '192MiB' }";
    let well = format!("exports.moody = {{ {config}, func: (req, res) => res.send('1') }}");
    let project = project!("moody", { "index.js" => &well });
    up.deploy(&project).await;
    let boom = r#"
        const fs = require('fs');
        const files = ['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'];
        const limits = files.filter((f) => fs.existsSync(f)).map((f) => fs.readFileSync(f, 'utf8').trim());
        function boom() { throw new Error('no licence') }
        if (limits.includes(String(192 << 20))) boom();
    "#;
    project.write("index.js", format!("{boom}{well}"));
    let failed = up.try_deploy(&project).await;
    let error = failed.failed();
    assert_eq!(error.code, "FUNCTION_INIT_FAILED", "{error:?}");
    assert!(error.message.contains("no licence") && error.message.contains("boom"), "{error:?}");
    assert_eq!(up.get("/moody").await.expect(200).text(), "1", "the old one serves");
    until("the stack is in the log", SOON, async || {
        let log = up.cli(&["logs", "moody"]).await.text();
        if log.contains("no licence") && log.contains("boom") { Ok(()) } else { Err(log) }
    })
    .await;
}

/// Names of a project's function images in the engine.
async fn images(project: &str) -> BTreeSet<String> {
    let pattern = format!("reference=epsilon/{project}/*");
    let format = "{{.Repository}}:{{.Tag}}";
    let listed = ask(&["image", "ls", "--filter", &pattern, "--format", format]).await;
    listed.lines().map(str::to_owned).collect()
}

/// Digests of an image's layers, bottom first.
async fn layers(image: &str) -> Vec<String> {
    let text = ask(&["image", "inspect", "-f", "{{json .RootFS.Layers}}", image]).await;
    serde_json::from_str(&text).unwrap()
}

/// Digests of all layers in the engine's store; `None` where the store does not keep them as files.
async fn stored_layers() -> Option<BTreeSet<String>> {
    let root = ask(&["info", "-f", "{{.DockerRootDir}}/image/{{.Driver}}/layerdb/sha256"]).await;
    let entries = std::fs::read_dir(Path::new(&root)).ok()?;
    let diffs = entries.flatten().map(|entry| std::fs::read_to_string(entry.path().join("diff")));
    Some(diffs.flatten().collect())
}

#[tokio::test]
async fn old_versions_are_removed_without_leftovers() {
    let config = "gateway: { keep_versions: 4, image_grace: 1s }";
    let up = Epsilon::start_with(Settings::config(config)).await;
    // Its images are counted by name, in an engine that others use too.
    let name = format!("tidy-{}", up.vm().to_ascii_lowercase());
    let project = project!(&name, {});
    let mut made = Vec::new();
    let deploy = async |n: u32| {
        let config = "config: { memory: '128MiB' }";
        let nonce = up.vm();
        let text = format!(
            "// {nonce}\nexports.tidy = {{ {config}, func: (req, res) => res.send('{n}') }}"
        );
        project.write("index.js", text);
        up.deploy(&project).await;
        let versions = up.admin("/v1/functions/tidy/versions").await;
        let image = versions[0]["image"].as_str().unwrap().to_owned();
        // As `docker image inspect` returns it: removed ones cannot be queried later.
        let code = layers(&image).await.pop().unwrap();
        (image, code)
    };
    for n in 1..=3 {
        made.push(deploy(n).await);
    }
    up.cli(&["rollback", "tidy", "2"]).await.expect(0);
    let listed = async || {
        let versions = up.admin("/v1/functions/tidy/versions").await;
        let numbers = versions.as_array().unwrap().iter().map(|one| one["version"].as_u64());
        numbers.map(Option::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [3, 2, 1]);
    for n in 4..=15 {
        made.push(deploy(n).await);
    }
    until("the newest four are listed", SOON, async || {
        let listed = listed().await;
        if listed == [15, 14, 13, 12] { Ok(()) } else { Err(listed) }
    })
    .await;
    let retained: BTreeSet<String> = made[11..].iter().map(|one| one.0.clone()).collect();
    until("the engine has the images of these", LONG, async || {
        let there = images(&name).await;
        if there == retained { Ok(()) } else { Err(there) }
    })
    .await;
    // An image loses its name before its layers are removed.
    until("their layers go too", LONG, async || {
        let Some(stored) = stored_layers().await else { return Ok(()) };
        let left: Vec<_> = made[..11].iter().filter(|one| stored.contains(&one.1)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    if let Some(stored) = stored_layers().await {
        assert!(
            made[11..].iter().all(|one| stored.contains(&one.1)),
            "retained images are complete"
        );
    }

    let outcome = up.cli(&["rollback", "tidy", "3"]).await.expect(1);
    assert!(outcome.stderr.contains("version 3") && outcome.stderr.contains("12"), "{outcome}");
    up.cli(&["rollback", "tidy", "12"]).await.expect(0);
    assert_eq!(up.get("/tidy").await.expect(200).text(), "12", "retained versions can serve");
    // A source whose version was removed is built again.
    deploy(5).await;
    assert_eq!(up.get("/tidy").await.expect(200).text(), "5");

    up.cli(&["delete", "tidy"]).await.expect(0);
    until("a deleted function leaves no image", LONG, async || {
        let there = images(&name).await;
        if there.is_empty() { Ok(()) } else { Err(there) }
    })
    .await;
    until("and no log", SOON, async || {
        if up.data().join("vm/logs/tidy").exists() { Err("it is there") } else { Ok(()) }
    })
    .await;
    let base = docker(&["image", "ls", "-q", "--filter", "label=epsilon.image=runtime"]).await;
    assert!(!base.expect(0).stdout.trim().is_empty(), "the runtime's base stays");
}
