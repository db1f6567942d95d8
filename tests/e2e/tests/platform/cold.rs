//! First calls of functions without an instance: served by a cell if the function fits one, else
//! from its image, and the same for the code inside. Platforms of their own: on the shared one,
//! other tests take the cells.

use epsilon_e2e::{
    engine::Container,
    http::{Answer, Call},
    project,
    project::Project,
    up::{Epsilon, Settings},
    wait::{LONG, SOON, until},
};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Reports what the code sees of its environment. `/exit` ends the instance. In each project one
/// function fits a cell, and one has a variable that only works when a process starts.
const INSIDE: &str = r#"
const fs = require("fs");
const tried = (work) => { try { work(); return "done"; } catch (err) { return err.code; } };
const status = (name) => fs.readFileSync("/proc/self/status", "utf8").match(new RegExp(`^${name}:\\s*(.*)$`, "m"))[1];
const inside = (req, res) => {
  if (req.path === "/exit") process.exit();
  console.log("seen from inside");
  res.json({
    user: status("Uid"), group: status("Gid"), capabilities: status("CapEff"), bounds: status("CapBnd"),
    noNewPrivileges: status("NoNewPrivs"), seccomp: status("Seccomp"), groups: status("Groups"),
    folder: process.cwd(), main: require.main === undefined ? null : require.main.filename,
    writes: ["/app/index.js", "/app/new", "/new", "/epsilon/new"].map((path) => tried(() => fs.writeFileSync(path, ""))),
    temporary: tried(() => fs.writeFileSync("/tmp/new", "")),
    devices: tried(() => fs.statSync("/dev/sda")),
    files: fs.readdirSync("/app").sort(), network: fs.readdirSync("/sys/class/net").sort(),
    word: process.env.WORD, environment: Object.keys(process.env).filter((name) => name !== "NODE_OPTIONS").sort(),
  });
};
const config = { memory: "300MiB", env: { WORD: "read" } };
exports.celled = { config, func: inside };
exports.imaged = { config: { ...config, env: { ...config.env, NODE_OPTIONS: "--no-deprecation" } }, func: inside };
"#;

/// The same project for each test, except for a comment: a platform that ends removes the images
/// that it made, and another one may be serving from an image of the same source.
fn inside(test: &str) -> Project {
    project!("inside", { "index.js" => format!("// {test}\n{INSIDE}") })
}

/// The first call after the instance ended, with a cell ready.
async fn first_call(up: &Epsilon, function: &str) -> Answer {
    let _ = Call::get(&format!("/{function}/exit")).try_send(up.public()).await;
    up.is_cold(function).await;
    up.cells_are_ready(1).await;
    let answer = up.get(&format!("/{function}")).await.expect(200);
    assert!(has(&answer, "start"), "a cold start: {answer}");
    answer
}

/// Whether the answer's timing has this phase.
fn has(answer: &Answer, phase: &str) -> bool {
    answer.header("server-timing").split(", ").any(|one| one.starts_with(&format!("{phase};")))
}

/// What the code saw, except for the user and groups, which differ per instance.
fn without_user_ids(answer: &Answer) -> Value {
    let mut seen = answer.json();
    for who in ["user", "group", "groups"] {
        assert!(
            seen[who].take().as_str().is_some_and(|ids| !ids.starts_with('0')),
            "{who}: {answer}"
        );
    }
    seen
}

/// The limits and privileges that the engine gave a container.
fn rights(container: &Container) -> Value {
    let host = &container.inspect["HostConfig"];
    let same = [
        "ReadonlyRootfs",
        "Privileged",
        "CapAdd",
        "CapDrop",
        "SecurityOpt",
        "PidsLimit",
        "Memory",
        "MemorySwap",
        "NanoCpus",
        "CpuQuota",
        "CpuPeriod",
        "Init",
        "NetworkMode",
        "Tmpfs",
        "Ulimits",
        "PortBindings",
        "Devices",
        "Runtime",
    ];
    same.iter()
        .map(|key| ((*key).to_owned(), host[*key].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn code_sees_the_same_in_cell_and_image() {
    let up = Epsilon::start().await;
    up.deploy(&inside("place")).await;
    let in_cell = until("a first call is served by a cell", LONG, async || {
        let answer = first_call(&up, "celled").await;
        if has(&answer, "cell") { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await;
    assert!(!has(&in_cell, "create") && !has(&in_cell, "pull"), "{in_cell}");
    assert!(has(&in_cell, "init"), "{in_cell}");
    let from_image = first_call(&up, "imaged").await;
    assert!(has(&from_image, "create") && !has(&from_image, "cell"), "{from_image}");

    assert_eq!(without_user_ids(&in_cell), without_user_ids(&from_image));
    assert_ne!(in_cell.json()["user"], from_image.json()["user"], "each is a user of its own");
    assert_eq!(in_cell.json()["word"], "read");
    assert_eq!(in_cell.json()["capabilities"], "0000000000000000");
    assert_eq!(in_cell.json()["writes"], json!(["EROFS", "EROFS", "EROFS", "EROFS"]));
    let want = rights(&up.container("imaged").await);
    assert_eq!(want["Memory"], 300 << 20);
    // The cell was created with less memory; the engine raises it while the code loads.
    until("the cell has the same rights and limits", SOON, async || {
        let rights = rights(&up.container("celled").await);
        if rights == want { Ok(()) } else { Err(format!("{rights} instead of {want}")) }
    })
    .await;
    // Mounted files cannot carry privileges.
    let pid = up.container("celled").await.pid();
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let app: Vec<_> =
        mounts.lines().filter(|line| line.split(' ').nth(1) == Some("/app")).collect();
    let options = app.last().expect("something is mounted at /app").split(' ').nth(3).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|one| one == option), "{option}: {app:?}");
    }

    let id = in_cell.header("x-epsilon-request-id");
    until("what it logged has the id of the call", SOON, async || {
        let log = up.cli(&["logs", "celled", "--request", id]).await.text();
        if log.contains("seen from inside") { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn cell_serves_one_version_and_is_never_reused() {
    let up = Epsilon::start().await;
    let project = project!("handed", {});
    let mut seen = HashSet::new();
    for n in 1..=3 {
        project.write("index.js", format!("exports.handed = (req, res) => res.send('{n}')"));
        up.deploy(&project).await;
        assert_eq!(up.get("/handed").await.expect(200).text(), n.to_string());
        let containers = up.containers(Some("handed")).await;
        let its = containers.iter().find(|one| one.label("epsilon.version") == n.to_string());
        let its = its.unwrap_or_else(|| panic!("no container of version {n}: {containers:?}"));
        assert!(seen.insert(its.id.clone()), "version {n} has a container of its own");
    }
    project.write("index.js", "exports.other = (req, res) => res.send('other')");
    up.deploy(&project).await;
    up.get("/other").await.expect(200);
    assert!(!seen.contains(&up.container("other").await.id), "nor to another function");
}

#[tokio::test]
async fn without_cells_functions_come_from_their_images() {
    let up = Epsilon::start_with(Settings::config("vm_agent: { cells_max: 0 }")).await;
    up.deploy(&inside("images")).await;
    let _ = Call::get("/celled/exit").try_send(up.public()).await;
    up.is_cold("celled").await;
    let answer = up.get("/celled").await.expect(200);
    assert!(has(&answer, "create") && !has(&answer, "cell"), "{answer}");
    assert_eq!(up.admin("/v1/vms").await[0]["cells"]["ready"], 0);
}

#[tokio::test]
async fn isolation_call_shares_nothing_between_calls() {
    let up = Epsilon::start().await;
    up.deploy(&project!("alone", { "index.js" => r#"
        let count = 0;
        const fs = require("fs");
        exports.alone = { config: { isolation: "call" }, func: (req, res) => {
          const left = fs.existsSync("/tmp/left");
          fs.writeFileSync("/tmp/left", "");
          res.json({ count: ++count, left, host: require("os").hostname() });
        } };"# }))
        .await;
    let mut hosts = HashSet::new();
    let mut check = |answer: Answer| {
        let seen = answer.expect(200).json();
        assert_eq!((&seen["count"], &seen["left"]), (&json!(1), &json!(false)), "{seen}");
        assert!(hosts.insert(seen["host"].to_string()), "a container of its own: {seen}");
    };
    for _ in 0..6 {
        check(up.get("/alone").await);
    }
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let public = up.public();
        calls.spawn(async move { Call::get("/alone").send(public).await });
    }
    while let Some(answer) = calls.join_next().await {
        check(answer.unwrap());
    }
    until("each has gone after its call", SOON, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
}

#[tokio::test]
async fn a_platform_that_ends_leaves_nothing_of_its_cells() {
    let mut up = Epsilon::start().await;
    up.deploy(&inside("end")).await;
    first_call(&up, "celled").await;
    assert_ne!(mounts(&up), Vec::<String>::new(), "code is mounted");
    let status = up.terminate().await;
    assert!(status.success(), "{status}: {}", up.log());
    let containers = up.containers_and_cells().await;
    assert!(containers.is_empty(), "{containers:?}");
    assert_eq!(mounts(&up), Vec::<String>::new());
    for folder in ["cells", "sockets"] {
        let left = std::fs::read_dir(up.data().join("vm").join(folder)).into_iter().flatten();
        let left = left.map(|entry| entry.unwrap().path());
        // Layers below code of a single layer, the same for all.
        let left: Vec<_> = left.filter(|path| !path.ends_with("cells/empty")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Mounts below its data folder.
fn mounts(up: &Epsilon) -> Vec<String> {
    let data = up.data().display().to_string();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(&data)).map(str::to_owned).collect()
}
