//! The platform ends, gracefully or killed, while calls and deployments run; and starts again on
//! the same data. Each test has a platform of its own.

use epsilon_e2e::{
    engine::ask,
    http::Call,
    load::Load,
    project,
    project::Project,
    up::Epsilon,
    wait::{SOON, until, within},
};
use rustix::process::Signal;
use serde_json::json;
use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A different source each time: consecutive platforms share the engine, and so would share its
/// image.
fn hardy() -> Project {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    project!("hardy", { "index.js" => format!(r#"
        // Number {count}.
        exports.hardy = {{ config: {{ memory: "128MiB", concurrency: 4, maxInstances: 3, timeout: 20_000 }},
          func: (req, res) => {{
            if (req.path !== "/long") return setTimeout(() => res.send("1"), 5);
            res.write("begun "); setTimeout(() => res.end("ended"), 2000); }} }};"#) })
}

/// Waits until Docker has exactly the containers that the platform knows as its instances.
async fn nothing_is_leaked(up: &Epsilon) {
    until("containers are instances and instances are containers", SOON, async || {
        let containers = up.containers(None).await;
        let there: HashSet<_> =
            containers.iter().map(|c| c.label("epsilon.instance").to_owned()).collect();
        let vms = up.admin("/v1/vms").await;
        let instances = vms[0]["instances"].as_array().unwrap();
        let known: HashSet<_> =
            instances.iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect();
        if there == known && there.len() == containers.len() {
            Ok(())
        } else {
            Err(format!("containers {there:?}, instances {known:?}"))
        }
    })
    .await;
    assert!(up.networks().await.len() <= 1);
}

/// The next call succeeds: the platform is back.
async fn answers(up: &Epsilon, path: &str) {
    until("calls are answered", SOON, async || match Call::get(path).try_send(up.public()).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_function() {
    let mut up = Epsilon::start().await;
    let project = hardy();
    up.deploy(&project).await;
    let load = Load::start(up.public(), "/hardy", 4);
    until("calls run", SOON, async || {
        let tally = load.tally();
        if tally.of(200) > 50 { Ok(()) } else { Err(tally) }
    })
    .await;
    let key = std::fs::read(up.data().join("admin.key")).unwrap();
    let versions = up.admin("/v1/functions/hardy/versions").await;

    for _ in 0..2 {
        up.kill().await;
        up.start_again().await;
        answers(&up, "/hardy").await;
    }
    let before = load.tally();
    until("calls go on as before", SOON, async || {
        let tally = load.tally();
        if tally.of(200) > before.of(200) + 50 { Ok(()) } else { Err(tally) }
    })
    .await;
    let tally = load.stop().await;
    assert_eq!(tally.broken.len(), before.broken.len(), "none is lost after the start: {tally:?}");
    // Two kills, four callers: each can lose its current call, and one more that the kernel
    // accepted for a listener that was about to end.
    assert!(tally.broken.len() <= 16, "{tally:?}");
    assert_eq!(tally.answers(), tally.of(200), "{tally:?}");

    assert_eq!(std::fs::read(up.data().join("admin.key")).unwrap(), key, "the same key");
    assert_eq!(up.admin("/v1/functions/hardy/versions").await, versions);
    assert_eq!(up.deploy(&project).await.changed(), [], "what was deployed is still known");
    nothing_is_leaked(&up).await;
}

#[tokio::test]
async fn kill_9_in_a_deployment_changes_nothing() {
    let mut up = Epsilon::start().await;
    let project = hardy();
    up.deploy(&project).await;
    project.write("slow.js", "const end = Date.now() + 5000; while (Date.now() < end);");
    project.write("index.js", "require('./slow'); exports.hardy = (req, res) => res.send('2')");
    let call = Call::post("/v1/deployments?folder=hardy", "application/gzip", project.archive())
        .header("authorization", &format!("Bearer {}", up.key()));
    let mut open = call.open(up.control()).await;
    let mut events = String::new();
    while !events.contains("inspect") {
        events += &String::from_utf8_lossy(&open.piece().await.unwrap().expect("more events"));
    }
    up.kill().await;
    drop(open);
    up.start_again().await;
    answers(&up, "/hardy").await;
    assert_eq!(up.get("/hardy").await.expect(200).text(), "1");
    let deployments = up.admin("/v1/deployments").await;
    let states: Vec<_> =
        deployments.as_array().unwrap().iter().map(|d| d["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["failed", "done"], "the broken one does not run for ever");
    until("temporary containers of the build are removed", SOON, async || {
        let data = up.data().display().to_string();
        let list = ask(&["ps", "-aq", "--filter", "label=epsilon.builder"]).await;
        let mut left = Vec::new();
        for id in list.split_whitespace() {
            let inspected = epsilon_e2e::engine::docker(&["inspect", id]).await;
            if inspected.stdout.contains(&data) {
                left.push(id.to_owned());
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    project.write("slow.js", "");
    assert_eq!(up.deploy(&project).await.changed().len(), 1);
    assert_eq!(up.get("/hardy").await.expect(200).text(), "2");
    nothing_is_leaked(&up).await;
}

/// Two functions of one project that answer the number of their deployment.
fn twins(project: &Project, n: u32) {
    let config = "config: { memory: '128MiB' }";
    let function = |name: &str| {
        format!("exports.{name} = {{ {config}, func: (req, res) => res.send('{n}') }};\n")
    };
    project.write("index.js", function("twinA") + &function("twinB"));
}

/// What both answer, which is the same.
async fn twins_serve(up: &Epsilon) -> u32 {
    answers(up, "/twinA").await;
    let [one, two] = ["/twinA", "/twinB"].map(async |path| up.get(path).await.expect(200).text());
    let (one, two) = (one.await, two.await);
    assert_eq!(one, two, "both or none");
    one.parse().unwrap()
}

#[tokio::test]
async fn kill_9_in_an_activation_is_atomic() {
    let mut up = Epsilon::start().await;
    let project = project!("twins", {});
    twins(&project, 1);
    up.deploy(&project).await;
    let mut serves = 1;
    // While instances start, during the activation, and after it was reported.
    let moments = [r#""step":"start""#, r#""step":"activate""#, r#""event":"done""#];
    for (n, moment) in (2..).zip(moments) {
        twins(&project, n);
        let call =
            Call::post("/v1/deployments?folder=twins", "application/gzip", project.archive())
                .header("authorization", &format!("Bearer {}", up.key()));
        let mut open = call.open(up.control()).await;
        let mut events = String::new();
        while !events.contains(moment) {
            events += &String::from_utf8_lossy(&open.piece().await.unwrap().expect("more events"));
        }
        up.kill().await;
        drop(open);
        up.start_again().await;
        let now = twins_serve(&up).await;
        assert!(now == serves || now == n, "{now} after {serves} and {n}");
        assert!(now == n || !moment.contains("done"), "a deployment reported as done is done");
        let newest = up.admin("/v1/deployments").await[0]["state"].clone();
        assert_eq!(newest, if now == n { "done" } else { "failed" });
        serves = now;
        nothing_is_leaked(&up).await;
    }
    twins(&project, 9);
    up.deploy(&project).await;
    assert_eq!(twins_serve(&up).await, 9, "the next deployment works");
}

#[tokio::test]
async fn kill_9_in_a_rollback_is_atomic() {
    let mut up = Epsilon::start().await;
    let project = project!("twins", {});
    for n in 1..=2 {
        twins(&project, n);
        up.deploy(&project).await;
    }
    let mut serves = 2;
    for pause in [0, 1, 3] {
        let to = 3 - serves;
        let call = Call::post_json("/v1/functions/twinA/rollback", &json!({ "version": to }))
            .header("authorization", &format!("Bearer {}", up.key()));
        let control = up.control();
        let rollback = tokio::spawn(async move { call.try_send(control).await });
        // Not a wait for a condition: the kill has to come before, during and after the change.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        up.kill().await;
        let answer = rollback.await.unwrap();
        up.start_again().await;
        answers(&up, "/twinA").await;
        let now: u32 = up.get("/twinA").await.expect(200).text().parse().unwrap();
        assert!(now == serves || now == to, "{now} after {serves} and {to}");
        if answer.is_ok_and(|answer| answer.status == 200) {
            assert_eq!(now, to, "what was answered is so");
        }
        let listed = up.admin("/v1/functions/twinA/versions").await;
        let active = listed.as_array().unwrap().iter().find(|one| one["active"] == true).unwrap();
        assert_eq!(active["version"], now);
        serves = now;
        nothing_is_leaked(&up).await;
    }
}

/// The other half of the origin's defect 14: all state was in memory.
#[tokio::test]
async fn defect_14_functions_and_warm_instances_survive_a_restart() {
    let mut up = Epsilon::start().await;
    up.deploy(&hardy()).await;
    up.get("/hardy").await.expect(200);
    let before: Vec<_> = up.containers(Some("hardy")).await.into_iter().map(|c| c.id).collect();
    up.kill().await;
    up.start_again().await;
    let answer = up.get("/hardy").await.expect(200);
    let after: Vec<_> = up.containers(Some("hardy")).await.into_iter().map(|c| c.id).collect();
    assert_eq!(before, after, "healthy containers are adopted, not started again");
    assert!(!answer.header("server-timing").contains("start"), "{answer}");
    nothing_is_leaked(&up).await;
}

#[tokio::test]
async fn a_container_that_died_unwatched_is_replaced() {
    let mut up = Epsilon::start().await;
    up.deploy(&hardy()).await;
    up.get("/hardy").await.expect(200);
    let container = up.container("hardy").await;
    up.kill().await;
    ask(&["kill", &container.id]).await;
    up.start_again().await;
    up.get("/hardy").await.expect(200);
    nothing_is_leaked(&up).await;
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_noticed_and_replaced() {
    let up = Epsilon::start().await;
    up.deploy(&hardy()).await;
    for verb in ["kill", "rm -f", "pause"] {
        up.get("/hardy").await.expect(200);
        let container = up.container("hardy").await;
        let mut command: Vec<_> = verb.split(' ').collect();
        command.push(&container.id);
        ask(&command).await;
        if verb == "pause" {
            // The old instance does not answer any more; the call's own timeout ends it, and the
            // next one succeeds.
            up.get("/hardy").await.expect_error(504, "FUNCTION_TIMEOUT");
        }
        answers(&up, "/hardy").await;
    }
    nothing_is_leaked(&up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_no_call_or_resource() {
    let mut up = Epsilon::start().await;
    up.deploy(&hardy()).await;
    let load = Load::start(up.public(), "/hardy", 4);
    until("calls run", SOON, async || {
        let tally = load.tally();
        if tally.of(200) > 50 { Ok(()) } else { Err(tally) }
    })
    .await;
    let mut long = Call::get("/hardy/long").open(up.public()).await;
    assert_eq!(long.piece().await.unwrap().unwrap(), "begun ");

    up.signal(Signal::TERM);
    assert_eq!(long.piece().await.unwrap().unwrap(), "ended", "a running call ends in peace");
    let status = up.ended(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}: {}", up.log());
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new(), "{tally:?}");
    assert_eq!(tally.answers(), tally.of(200), "{tally:?}");

    assert_eq!(up.containers_and_cells().await.len(), 0);
    assert_eq!(up.networks_left().await, Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&up.data().display().to_string()), "{mounts}");
    let sockets = std::fs::read_dir(up.data().join("vm/sockets"));
    assert_eq!(sockets.map_or(0, Iterator::count), 0, "folders of sockets");

    up.start_again().await;
    up.get("/hardy").await.expect(200);
}

#[tokio::test]
async fn second_sigterm_cuts_calls_and_reports_them() {
    let mut up = Epsilon::start().await;
    up.deploy(&project!("endless", { "index.js" => r#"
        exports.endless = { config: { memory: "128MiB", timeout: 60_000 },
          func: (req, res) => { res.write("begun") } };"# }))
        .await;
    let mut open = Call::get("/endless").open(up.public()).await;
    assert_eq!(open.piece().await.unwrap().unwrap(), "begun");
    up.signal(Signal::TERM);
    until("new callers are refused", SOON, async || {
        match Call::get("/").try_send(up.public()).await {
            Err(broken) if broken.is_refused() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    up.signal(Signal::TERM);
    let status = up.ended(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(1), "{}", up.log());
    assert_eq!(up.containers_and_cells().await.len(), 0, "also then nothing is left");
}

#[tokio::test]
async fn sigterm_while_it_starts_ends_it_cleanly() {
    let mut up = Epsilon::start().await;
    up.terminate().await;
    up.start_again().await;
    let status = within("the end", SOON, up.terminate()).await;
    assert!(status.success(), "{status}");
    assert_eq!(up.networks_left().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_second_start_makes_no_base_and_is_quick() {
    let mut up = Epsilon::start().await;
    up.terminate().await;
    within("the second start", Duration::from_secs(15), up.start_again()).await;
}
