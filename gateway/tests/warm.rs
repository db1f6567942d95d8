//! The cost of a warm call in numbers that do not depend on the machine's load: allocations, and
//! connections to the instance. Gateway and agent are complete and run in one process, as in
//! `epsilon up`; only the container engine is scripted. Caller and instance are threads with
//! sockets and fixed buffers, so every counted allocation belongs to the platform.
//!
//! A binary of its own, because the profiler counts the allocations of all threads. `WARM_DHAT=1
//! cargo test -p epsilon-gateway --test warm` writes `dhat-heap.json` with the call sites.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use epsilon_api::{
    build::{Built, BuiltFunction},
    function::{FunctionSpec, ImageRef, Runtime},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName},
};
use epsilon_gateway::{
    app::{App, Running},
    config,
};
use epsilon_vm_agent::{
    app::Agent,
    config as agent_config,
    engine::fake::{FakeEngine, Process, Program},
};
use jiff::Timestamp;
use prometheus::Registry;
use std::{
    future::pending,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Number of measured calls.
const CALLS: u64 = 500;
/// Number of calls before the measurement, until all buffers have their final size.
const WARMING: u64 = 100;

/// Maximum allocations of one call. A call makes 15 to 17, most of them hyper's
/// (`docs/decisions/0023-warm-path.md`); the rest allows for background work during the
/// measurement.
const MOST: u64 = 28;

/// The request of a browser or `curl`.
const GET: &str =
    "GET /hello HTTP/1.1\r\nhost: localhost:8080\r\nuser-agent: curl/8.5.0\r\naccept: */*\r\n\r\n";
const POST: &str = "POST /hello HTTP/1.1\r\nhost: localhost:8080\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nHello";

/// The answer of the Node wrapper with Express.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: 5\r\n\
                      etag: W/\"5-9/+ei3uy4Jtwk1pdeF4MxdnQq/A\"\r\ndate: Sat, 21 Nov 2026 12:35:49 GMT\r\n\
                      connection: keep-alive\r\nkeep-alive: timeout=72\r\n\r\nHello";

/// Deadline of each wait in this file.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A platform with one function, `hello`, concurrency 32.
struct World {
    agent: Agent,
    running: Running,
    public: SocketAddr,
    /// Number of connections that the instance accepted.
    accepted: Arc<AtomicU32>,
    _folder: TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = FakeEngine::new();
        let accepted = Arc::new(AtomicU32::new(0));
        engine.add_image("hello", program(&accepted));
        let registry = Registry::new();
        let agent_config = agent_config::Settings::default().check(folder.path()).unwrap();
        let agent = Agent::with_engine(agent_config, Arc::new(engine), &registry).await.unwrap();

        let database = folder.path().join("epsilon.db");
        let store = epsilon_store::open(database.to_str().unwrap()).await.unwrap();
        let id = DeploymentId::random();
        let now = Timestamp::now();
        store.begin_deployment(&id, &GatewayId::random(), now).await.unwrap();
        store.prepare(&id, &hello(), now).await.unwrap();
        store.activate(&id, now).await.unwrap();

        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = config::Settings { listen: any, control: any, ..Default::default() };
        let config = config::Config::new(settings, folder.path()).unwrap();
        let app = App::build(config, store, Some(agent.vm()), None, &registry);
        let app = Box::pin(app).await.unwrap();
        let public = app.public_addr();
        Self { agent, running: app.spawn(), public, accepted, _folder: folder }
    }

    async fn end(self) {
        self.running.drain(TEST_TIMEOUT).await;
        self.agent.shutdown(TEST_TIMEOUT).await;
    }
}

fn hello() -> Built {
    let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
    spec.concurrency = 32.try_into().unwrap();
    let function = BuiltFunction {
        name: FunctionName::parse("hello").unwrap(),
        spec,
        image: ImageRef { reference: "hello".into(), digest: "sha256:hello".into() },
        parts: None,
    };
    Built { project: ProjectName::parse("shop").unwrap(), functions: vec![function] }
}

/// The control socket and the call socket of the wrapper.
fn program(accepted: &Arc<AtomicU32>) -> Program {
    let accepted = Arc::clone(accepted);
    Arc::new(move |process: Process| {
        let folder = process.spec.sockets.unwrap();
        let control = UnixListener::bind(folder.join("control.sock")).unwrap();
        let calls = UnixListener::bind(folder.join("calls.sock")).unwrap();
        let accepted = Arc::clone(&accepted);
        thread::spawn(move || {
            for stream in control.incoming() {
                let text = r#"{"data":{"state":"waiting","active":0,"signature":"express","load_ms":1.0}}"#;
                let length = text.len();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
                answer_all(stream.unwrap(), head);
            }
        });
        thread::spawn(move || {
            for stream in calls.incoming() {
                accepted.fetch_add(1, SeqCst);
                answer_all(stream.unwrap(), ANSWER.to_owned());
            }
        });
        Box::pin(pending())
    })
}

/// Answers each request with the same text; a small request arrives in one read.
fn answer_all(mut stream: UnixStream, text: String) {
    thread::spawn(move || {
        let mut request = [0; 8192];
        while stream.read(&mut request).is_ok_and(|n| n > 0) {
            if stream.write_all(text.as_bytes()).is_err() {
                break;
            }
        }
    });
}

/// A caller with its own connection.
struct Caller {
    stream: TcpStream,
    answer: [u8; 4096],
}

impl Caller {
    fn new(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        Self { stream, answer: [0; 4096] }
    }

    fn call(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut at = 0;
        while !self.answer[..at].ends_with(b"\r\n\r\nHello") {
            let n = self.stream.read(&mut self.answer[at..]).unwrap();
            assert_ne!(n, 0, "closed after {:?}", String::from_utf8_lossy(&self.answer[..at]));
            at += n;
        }
        assert!(self.answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }

    fn calls(&mut self, request: &str, count: u64) {
        for _ in 0..count {
            self.call(request);
        }
    }
}

/// Runs blocking work outside of the runtime that runs the platform.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn profiler() -> dhat::Profiler {
    if std::env::var_os("WARM_DHAT").is_some() {
        return dhat::Profiler::builder().trim_backtraces(Some(40)).build();
    }
    dhat::Profiler::builder().testing().build()
}

/// GET and POST are in one test because the profiler is global to the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_warm_call_allocates_little_and_opens_no_connection() {
    let world = World::start().await;
    let to = world.public;
    for (what, request) in [("GET", GET), ("POST", POST)] {
        let (blocks, bytes) = aside(move || {
            let mut caller = Caller::new(to);
            caller.calls(request, WARMING);
            let _profiler = profiler();
            caller.calls(request, CALLS);
            let seen = dhat::HeapStats::get();
            (seen.total_blocks / CALLS, seen.total_bytes / CALLS)
        })
        .await;
        eprintln!("a warm {what}: {blocks} allocations, {bytes} bytes");
        assert!(blocks <= MOST, "{what}: {blocks} allocations for each call, {MOST} at most");
    }
    assert_eq!(world.accepted.load(SeqCst), 1, "one call at a time needs one connection");

    let callers: Vec<_> =
        (0..8).map(|_| aside(move || Caller::new(to).calls(GET, CALLS))).collect();
    for caller in callers {
        caller.await;
    }
    let accepted = world.accepted.load(SeqCst);
    assert!(accepted <= 8, "{accepted} connections for 8 calls at a time");
    world.end().await;
}
