//! `epsilon dev`: functions on this machine's Node, without Docker. Each test starts one of its own
//! and needs no other platform.

use epsilon_e2e::{
    http::Call,
    load::Load,
    program,
    project::Project,
    wait::{LONG, SOON, until, within},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

/// The Node that `infra/ensure-tools.sh` installs, else the machine's own.
fn node() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let ours = cache.map(|cache| cache.join("epsilon-tools/node/bin/node"));
    ours.filter(|node| node.exists()).unwrap_or_else(|| "node".into())
}

/// An `epsilon dev` command. The wrapper is cached between tests; Docker is not reachable.
fn command(project: &Project) -> Command {
    let mut command = Command::new(program::binary("epsilon"));
    command
        .args(["dev", "--json", "--port", "0", "--data-dir"])
        .arg(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dev"))
        .arg(project.path())
        .env("EPSILON_NODE", node())
        .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
        .env("ONLY_IN_THE_SHELL", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// A running `epsilon dev`; ended when dropped.
struct Dev {
    process: Child,
    events: Arc<Mutex<Vec<Value>>>,
    calls: SocketAddr,
}

impl Dev {
    async fn start(project: &Project) -> Self {
        Self::start_with(project, &[]).await
    }

    async fn start_with(project: &Project, arguments: &[&str]) -> Self {
        let mut process = command(project).args(arguments).spawn().expect("epsilon");
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let events = Arc::new(Mutex::new(Vec::new()));
        let recorder = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                recorder.lock().unwrap().push(event);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut dev = Self { process, events, calls: nowhere };
        // The first one on a machine fetches Express.
        let ready = until("`epsilon dev` is ready", LONG, async || {
            assert!(
                dev.process.try_wait().unwrap().is_none(),
                "it ended: {:?}",
                dev.events("ready")
            );
            dev.events("ready").pop().ok_or("no `ready`")
        })
        .await;
        let address = ready["calls"].as_str().unwrap().trim_start_matches("http://").parse();
        dev.calls = address.unwrap();
        dev
    }

    /// All events of a kind so far.
    fn events(&self, kind: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event["event"] == kind).cloned().collect()
    }

    /// The first matching event of a kind.
    async fn event(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("an event `{kind}`"), LONG, async || {
            let events = self.events(kind);
            events.iter().find(|event| fits(event)).cloned().ok_or(events)
        })
        .await
    }

    /// Calls until the answer is this text.
    async fn answers(&self, path: &str, text: &str) {
        until(&format!("{path} answers `{text}`"), LONG, async || {
            let answer = Call::get(path).send(self.calls).await.text();
            if answer == text { Ok(()) } else { Err(answer) }
        })
        .await;
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        until("it ends", SOON, async || self.process.try_wait().unwrap().ok_or("runs")).await
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- events: {:#?}", self.events.lock().unwrap());
        }
        if let Ok(None) = self.process.try_wait() {
            self.signal(Signal::TERM); // it removes its folder; all its waits have limits
        }
        let _ = self.process.wait();
    }
}

/// All descendants of a process.
fn descendants(pid: u32) -> BTreeSet<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // After the name in parentheses: state, parent.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse::<u32>().ok()) {
            parents.push((child, parent));
        }
    }
    let mut found = BTreeSet::from([pid]);
    loop {
        let more: Vec<_> = parents
            .iter()
            .filter(|(child, parent)| found.contains(parent) && !found.contains(child))
            .map(|(child, _)| *child)
            .collect();
        if more.is_empty() {
            found.remove(&pid);
            return found;
        }
        found.extend(more);
    }
}

/// Folders that the `epsilon dev` with this id left in the temporary folder.
fn folders(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("epsilon-dev-{pid}-");
    let all = fs::read_dir(std::env::temp_dir()).unwrap().flatten().map(|entry| entry.path());
    let is_one = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    all.filter(is_one).collect()
}

/// Waits until none of these processes runs.
async fn gone(pids: &BTreeSet<u32>) {
    until("all processes are gone", SOON, async || {
        let runs = |pid: &&u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start().to_owned();
            !stat.is_empty() && !state.starts_with('Z')
        };
        let left: Vec<_> = pids.iter().filter(runs).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn functions_run_without_docker_like_on_the_platform() {
    let project = epsilon_e2e::project!("local", {
        "index.js" => "
            exports.greet = (req, res) => { console.log('greeting'); res.json({
                path: req.path, env: process.env.COLOUR, shell: process.env.ONLY_IN_THE_SHELL ?? null,
                body: req.body ?? null, cwd: process.cwd() }); };
            exports.slow = () => new Promise(() => {});
            exports.broken = () => { throw new Error('secret'); };
            exports.handler = async (event) => ({ statusCode: 201, body: event.rawPath });",
        "epsilon.yaml" => "
functions:
  greet: { env: { COLOUR: red } }
  slow: { timeout: 300ms }
  broken: {}
  lambda: { export: handler, signature: lambda }",
    });
    let dev = Dev::start(&project).await;
    let serves = dev.event("serves", |_| true).await;
    assert_eq!(serves["functions"].as_array().unwrap().len(), 4, "{serves}");

    let call = Call::post_json("/greet/a?b=1", &serde_json::json!({ "x": 1 }));
    let answer = call.header("x-epsilon-request-id", "my-own-id").send(dev.calls).await.expect(200);
    assert_eq!(answer.header("x-epsilon-request-id"), "my-own-id");
    assert!(answer.header("server-timing").contains("exec"), "{answer:?}");
    let cwd = project.path().canonicalize().unwrap();
    let wanted = serde_json::json!({
        "path": "/a", "env": "red", "shell": null, "body": { "x": 1 }, "cwd": cwd });
    assert_eq!(answer.json(), wanted);
    let line = dev.event("call", |call| call["request_id"] == "my-own-id").await;
    assert_eq!(
        (&line["function"], &line["method"], &line["path"], &line["status"]),
        (&"greet".into(), &"POST".into(), &"/greet/a".into(), &200.into()),
        "{line}"
    );
    dev.event("log", |log| log["request_id"] == "my-own-id" && log["message"] == "greeting").await;

    assert_eq!(Call::get("/lambda/x").send(dev.calls).await.expect(201).text(), "/x");
    Call::get("/slow").send(dev.calls).await.expect_error(504, "FUNCTION_TIMEOUT");
    Call::get("/missing").send(dev.calls).await.expect_error(404, "FUNCTION_NOT_FOUND");
    let answer = Call::get("/broken").send(dev.calls).await;
    answer.expect_error(500, "FUNCTION_ERROR");
    assert!(!answer.text().contains("secret"), "{answer:?}");
    dev.event("log", |log| log["message"].as_str().unwrap().contains("Error: secret\n    at "))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_code_serves_without_losing_a_call() {
    let text =
        |n: u32| format!("exports.live = (req, res) => setTimeout(() => res.send('{n}'), 5)");
    let project = epsilon_e2e::project!("live", { "index.js" => text(1), ".gitignore" => "*.tmp" });
    let dev = Dev::start(&project).await;
    dev.answers("/live", "1").await;
    let load = Load::start(dev.calls, "/live", 2);
    for n in 2..=4 {
        project.write("index.js", text(n));
        dev.answers("/live", &n.to_string()).await;
    }
    let tally = load.stop().await;
    assert_eq!(tally.broken, Vec::<String>::new());
    assert_eq!(tally.answers(), tally.of(200), "{tally:?}");
    // A file outside of the project, then one inside: only the second one is reported.
    project.write("x.tmp", "nothing");
    project.write("note.txt", "something");
    let serves = dev.event("serves", |event| event["files"].to_string().contains("note.txt")).await;
    assert!(!serves["files"].to_string().contains("x.tmp"), "{serves}");
}

#[tokio::test]
async fn code_that_does_not_load_keeps_old_code_serving() {
    let good = "exports.steady = (req, res) => res.send('good')";
    let project = epsilon_e2e::project!("steady", { "index.js" => good });
    let dev = Dev::start(&project).await;
    dev.answers("/steady", "good").await;
    project.write("index.js", "\nexports.steady = (req, res => res.send('bad')");
    let broken = dev.event("broken", |_| true).await;
    assert_eq!(broken["serves"], true);
    let message = broken["error"]["message"].as_str().unwrap();
    assert!(message.contains("index.js:2") && message.contains("SyntaxError"), "{message}");
    assert_eq!(Call::get("/steady").send(dev.calls).await.expect(200).text(), "good");
    dev.event("call", |call| call["stale"] == true).await;
    project.write("index.js", good.replace("good", "better"));
    dev.answers("/steady", "better").await;
}

#[tokio::test]
async fn invalid_project_at_start_reports_deployment_error() {
    let project = epsilon_e2e::project!("fresh", {
        "index.js" => "exports.fresh = (req, res) => res.send('here')",
        "epsilon.yaml" => "functions: { fresh: { memroy: 128MiB } }",
    });
    let dev = Dev::start(&project).await;
    let broken = dev.event("broken", |_| true).await;
    assert_eq!(
        (&broken["serves"], &broken["error"]["code"]),
        (&false.into(), &"MANIFEST_INVALID".into())
    );
    assert!(
        broken["error"]["message"].as_str().unwrap().contains("did you mean `memory`"),
        "{broken}"
    );
    Call::get("/fresh").send(dev.calls).await.expect_error(404, "FUNCTION_NOT_FOUND");
    project.write("epsilon.yaml", "functions: { fresh: { memory: 128MiB } }");
    dev.answers("/fresh", "here").await;
}

#[tokio::test]
async fn no_process_outlives_it_also_when_it_is_killed() {
    let project = epsilon_e2e::project!("mortal", {
        "index.js" => "
            const { spawn } = require('node:child_process');
            exports.mortal = (req, res) => { spawn('sleep', ['600']); res.send('alive'); };
            exports.busy = (req, res) => { res.write('begun'); setImmediate(() => { for (;;); }); };",
    });
    for signal in [Signal::INT, Signal::KILL] {
        let mut dev = Dev::start(&project).await;
        dev.answers("/mortal", "alive").await;
        // A process whose main thread never returns has to end, too.
        let mut busy = Call::get("/busy").open(dev.calls).await;
        assert_eq!(busy.piece().await.unwrap().unwrap(), "begun");
        let processes = descendants(dev.pid());
        assert!(processes.len() >= 3, "two of Node and `sleep`: {processes:?}");
        dev.signal(signal);
        let status = dev.ended().await;
        assert_eq!(status.code(), (signal == Signal::INT).then_some(0), "{status}");
        gone(&processes).await;
        // Leftovers of a kill are removed by the next start; here there may be none.
        let left = folders(dev.pid());
        assert_eq!(left.len(), usize::from(signal == Signal::KILL), "{left:?}");
        for folder in left {
            drop(fs::remove_dir_all(folder));
        }
    }
}

#[tokio::test]
async fn a_debugger_can_attach_before_and_after_a_reload() {
    let text = |n: u32| format!("exports.watched = (req, res) => res.send('{n}')");
    let project = epsilon_e2e::project!("watched", { "index.js" => text(1) });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dev = Dev::start_with(&project, &[&format!("--inspect={}", port.port())]).await;
    for n in 1..=2 {
        project.write("index.js", text(n));
        dev.answers("/watched", &n.to_string()).await;
        until("the debugger's port answers", SOON, async || {
            let answer = Call::get("/json/version").try_send(port).await;
            match answer {
                Ok(answer) if answer.text().contains("node.js") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn without_node_it_is_said_what_to_do() {
    let project = epsilon_e2e::project!("nodeless", { "index.js" => "exports.a = () => {}" });
    let mut command = tokio::process::Command::from(command(&project));
    command.env("EPSILON_NODE", "/nowhere/node").stderr(Stdio::piped());
    let output = within("`epsilon dev` ends", SOON, command.output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("NODE_MISSING") && stderr.contains("--node"), "{stderr}");
}
