//! The agent on this machine's Docker with the real runtime image: from the first call to the
//! removal of everything, a crash of the agent in the middle, and every network mode.
//!
//! Needs `epsilon/runtime-node:current`, which `epsilon up` and the builder's tests make.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use epsilon_api::{
    body,
    error::VmError,
    function::{FunctionSpec, ImageRef, Network, Runtime, Version},
    ids::{DeploymentId, FunctionName, InstanceId, ProjectName, RequestId, VersionNumber},
    log::{LogQuery, LogRecord},
    units::Bytes,
    vm::{Answer, Call},
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_vm_agent::{app::Agent, config::Settings};
use futures_util::{StreamExt, future::join_all};
use http::Request;
use http_body_util::BodyExt;
use prometheus::Registry;
use std::{num::NonZeroU32, path::Path, process::Command, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

const LIMIT: Duration = Duration::from_secs(60);
const RUNTIME: &str = "epsilon/runtime-node:current";

const CODE: &str = r#"
let calls = 0;
const { execSync } = require('node:child_process');
exports.hello = (req, res) => {
  const path = req.path;
  if (path === '/count') return res.send(String(++calls));
  if (path === '/forever') return;
  if (path === '/spin') for (;;);
  if (path === '/crash') process.exit(7);
  if (path === '/throw') throw new Error('on purpose');
  if (path === '/log') { console.warn('said', 'this'); return res.send('logged'); }
  if (path === '/echo') return res.send(req.body);
  if (path === '/eat') { const all = []; for (;;) all.push(Buffer.alloc(1 << 24, 1)); }
  if (path === '/write') { try { require('fs').writeFileSync('/app/x', ''); } catch (e) { return res.send(e.code); } }
  if (path === '/fork') { try { for (;;) require('child_process').spawn('sleep', ['1000']).on('error', () => {}); } catch (e) { return res.send(e.code); } }
  if (path === '/addresses') return res.send(Object.keys(require('os').networkInterfaces()).sort().join());
  if (path === '/metadata') {
    const socket = require('net').connect(80, '169.254.169.254');
    socket.setTimeout(3000, () => socket.destroy(new Error('silence')));
    socket.on('connect', () => res.send('open')).on('error', (e) => res.send('closed ' + (e.code ?? e.message)));
    return;
  }
  if (path === '/stream') {
    res.write('first ');
    return setTimeout(() => res.end('second'), 50);
  }
  res.send('hello');
};
"#;

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}: {text}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image of the runtime with this code on top; removed on drop.
struct Image(ImageRef);

impl Image {
    fn new(code: &str) -> Self {
        let known = Command::new("docker").args(["image", "inspect", RUNTIME]).output().unwrap();
        assert!(known.status.success(), "there is no {RUNTIME}; `epsilon up` makes it");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("index.js"), code).unwrap();
        let name = format!("epsilon-test-{}", InstanceId::random());
        docker(&["create", "--name", &name, RUNTIME]);
        docker(&["cp", &format!("{}/.", folder.path().display()), &format!("{name}:/app")]);
        let reference = format!("{name}:1");
        let digest = docker(&["commit", &name, &reference]);
        docker(&["rm", &name]);
        Self(ImageRef { reference, digest })
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rmi", "-f", &self.0.reference]).output());
    }
}

async fn agent(folder: &Path) -> Agent {
    let settings = Settings::read("{start_timeout: 20s, memory: 4GiB}").unwrap();
    Agent::build(settings.check(folder).unwrap(), &Registry::new()).await.unwrap()
}

fn version(image: &Image, change: impl FnOnce(&mut FunctionSpec)) -> Arc<Version> {
    let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
    spec.network = Network::None;
    spec.timeout = Duration::from_secs(20);
    change(&mut spec);
    Arc::new(Version {
        parts: None,
        function: FunctionName::parse("hello").unwrap(),
        number: VersionNumber::FIRST,
        project: ProjectName::parse("test").unwrap(),
        deployment: DeploymentId::random(),
        image: image.0.clone(),
        spec,
        created_at: jiff::Timestamp::now(),
    })
}

async fn get(agent: &Agent, version: &Arc<Version>, path: &str) -> Result<Answer, VmError> {
    let request = Request::builder().uri(path).header("host", "test").body(body::empty()).unwrap();
    let call = Call {
        version: Arc::clone(version),
        request_id: RequestId::random(),
        may_wait: true,
        request,
        upload: None,
        interim: None,
    };
    timeout(LIMIT, agent.vm().call(call)).await.unwrap()
}

async fn text(agent: &Agent, version: &Arc<Version>, path: &str) -> String {
    let answer = get(agent, version, path).await.unwrap();
    let bytes = answer.response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(answer: &Result<Answer, VmError>) -> &'static str {
    answer.as_ref().err().map_or("OK", |err| err.verdict().code)
}

/// Waits for a line of the log that contains the text.
async fn line(agent: &Agent, version: &Version, part: &str) -> LogRecord {
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut lines = agent.vm().logs(&version.function, query);
    let find = async {
        loop {
            let line = lines.next().await.unwrap();
            if line.message.contains(part) {
                return line;
            }
        }
    };
    timeout(LIMIT, find).await.unwrap_or_else(|_| panic!("no line with `{part}`"))
}

/// Shuts the agent down; nothing of its VM is left in the engine or on disk.
async fn end(agent: Agent, folder: &TempDir) {
    let vm = agent.vm().status().id;
    agent.shutdown(Duration::from_secs(5)).await;
    let label = format!("label=epsilon.vm={vm}");
    assert_eq!(docker(&["ps", "-aq", "--filter", &label]), "");
    assert_eq!(docker(&["network", "ls", "-q", "--filter", &label]), "");
    assert_eq!(std::fs::read_dir(folder.path().join("vm/sockets")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_life_without_a_network() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let one = version(&image, |spec| spec.max_instances = NonZeroU32::MIN);

    let first = get(&agent, &one, "/count").await.unwrap();
    let phases = first.spent.start.unwrap();
    println!("cold start: {phases:?}");
    assert!(!phases.create.is_zero() && !phases.start.is_zero() && !phases.init.is_zero());
    drop(first.response.into_body().collect().await.unwrap());
    assert_eq!(text(&agent, &one, "/count").await, "2", "state survives between calls");
    assert_eq!(text(&agent, &one, "/addresses").await, "lo");
    assert_eq!(text(&agent, &one, "/write").await, "EROFS");
    assert_eq!(text(&agent, &one, "/stream").await, "first second");

    assert_eq!(text(&agent, &one, "/log").await, "logged");
    assert!(line(&agent, &one, "said this").await.request_id.is_some());
    assert_eq!(code(&get(&agent, &one, "/throw").await), "FUNCTION_ERROR");
    assert!(line(&agent, &one, "on purpose").await.request_id.is_some());
    assert_eq!(text(&agent, &one, "/count").await, "3", "a throw does not end the instance");

    assert_eq!(code(&get(&agent, &one, "/crash").await), "FUNCTION_CRASHED");
    assert!(line(&agent, &one, "exit status 7").await.request_id.is_some());
    assert_eq!(text(&agent, &one, "/count").await, "1", "a new instance");
    end(agent, &folder).await;
}

#[tokio::test]
async fn disconnected_caller_and_timeout() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let one = version(&image, |spec| {
        spec.max_instances = NonZeroU32::MIN;
        spec.timeout = Duration::from_secs(2);
    });
    assert_eq!(text(&agent, &one, "/count").await, "1");
    for path in ["/forever", "/spin"] {
        let began = Instant::now();
        assert_eq!(code(&get(&agent, &one, path).await), "FUNCTION_TIMEOUT");
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(text(&agent, &one, "/count").await, "1", "a new instance after {path}");
    }
    // A caller who disconnects while the code computes: the slot is taken until the deadline kills
    // it.
    drop(timeout(Duration::from_millis(200), get(&agent, &one, "/spin")).await);
    assert_eq!(text(&agent, &one, "/count").await, "1");
    end(agent, &folder).await;
}

#[tokio::test]
async fn code_that_is_hungry() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let one = version(&image, |spec| spec.memory = Bytes::mib(128));
    assert_eq!(code(&get(&agent, &one, "/eat").await), "FUNCTION_CRASHED");
    line(&agent, &one, "out of memory").await;
    let answer = get(&agent, &one, "/fork").await;
    assert!(["OK", "FUNCTION_CRASHED", "FUNCTION_TIMEOUT"].contains(&code(&answer)), "{answer:?}");
    drop(answer);
    assert_eq!(text(&agent, &one, "/").await, "hello");
    end(agent, &folder).await;
}

#[tokio::test]
async fn code_that_cannot_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    for (code, expected) in [
        ("throw new Error('bad luck')", "bad luck"),
        ("exports.other = () => {}", "hello"),
        ("process.exit(4)", "exit status 4"),
        ("syntax error here", "SyntaxError"),
    ] {
        let image = Image::new(code);
        let version = version(&image, |_| {});
        let Err(VmError::InitFailed { detail, .. }) =
            timeout(LIMIT, agent.vm().ensure_ready(Arc::clone(&version))).await.unwrap()
        else {
            panic!("`{code}` was ready");
        };
        assert!(detail.contains(expected), "{code}: {detail}");
        agent.vm().retire(&version.id());
    }
    end(agent, &folder).await;
}

#[tokio::test]
async fn egress_without_the_metadata_service() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let version = version(&image, |spec| spec.network = Network::Egress);
    assert_eq!(text(&agent, &version, "/addresses").await, "eth0,lo");
    let metadata = text(&agent, &version, "/metadata").await;
    assert!(metadata.starts_with("closed ECONNREFUSED"), "{metadata}");
    end(agent, &folder).await;
}

#[tokio::test]
async fn any_image_that_listens_on_its_port() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let version = version(&image, |spec| {
        spec.runtime = Runtime::Container;
        spec.network = Network::Egress;
        let function = r#"{"function":"hello","entry":"index.js","export":"hello","signature":"auto","timeout_ms":60000,"concurrency":1}"#;
        spec.env.insert("EPSILON_FUNCTION".into(), function.into());
    });
    assert_eq!(text(&agent, &version, "/").await, "hello");
    assert_eq!(text(&agent, &version, "/count").await, "1");
    assert_eq!(code(&get(&agent, &version, "/crash").await), "FUNCTION_CRASHED");
    assert_eq!(text(&agent, &version, "/count").await, "1");
    end(agent, &folder).await;
}

#[tokio::test]
async fn agent_after_a_killed_one_adopts_its_instances() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let version = version(&image, |_| {});
    // The first one runs in a runtime that is dropped: none of its destructors runs.
    let path = folder.path().to_owned();
    let first = Arc::clone(&version);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let agent = runtime.block_on(async {
            let agent = agent(&path).await;
            assert_eq!(text(&agent, &first, "/count").await, "1");
            agent
        });
        runtime.shutdown_background();
        drop(agent);
    })
    .join()
    .unwrap();
    let agent = agent(folder.path()).await;
    assert_eq!(text(&agent, &version, "/count").await, "2", "the same instance");
    text(&agent, &version, "/log").await;
    line(&agent, &version, "said this").await;
    end(agent, &folder).await;
}

#[tokio::test]
async fn many_concurrent_calls_to_few_slots() {
    let image = Image::new(CODE);
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path()).await;
    let two = version(&image, |spec| spec.max_instances = NonZeroU32::MIN.saturating_add(1));
    let codes = join_all((0..1000).map(|_| async {
        match get(&agent, &two, "/").await {
            Ok(answer) => {
                drop(answer.response.into_body().collect().await.unwrap());
                "OK"
            }
            Err(err) => err.verdict().code,
        }
    }))
    .await;
    assert!(codes.iter().all(|code| ["OK", "CONCURRENCY_LIMIT"].contains(code)));
    assert!(codes.iter().filter(|code| **code == "OK").count() > 100);
    end(agent, &folder).await;
}
