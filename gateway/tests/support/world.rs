//! A running gateway, and helpers to send it requests.

use crate::fake::{self, FakeVm};
use epsilon_api::{
    admin::DeployEvent,
    body::{self, CallBody},
    build::{BuildError, BuildEvent, BuildJob, Builder, Built, BuiltFunction},
    function::{ImageLayer, ImageRef, Parts},
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName},
};
use epsilon_gateway::{
    app::{App, Running, Stopped},
    config::{Config, Settings},
};
use epsilon_store::Store;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use prometheus::{Registry, TextEncoder};
use serde_json::Value;
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OnceCell, Semaphore},
};

/// Deadline of each wait of a test.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A running gateway.
pub(crate) struct World {
    running: Option<Running>,
    pub(crate) public: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) key: String,
    pub(crate) vm: Arc<FakeVm>,
    pub(crate) builder: Arc<FakeBuilder>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) registry: Registry,
    client: Client<HttpConnector, CallBody>,
    pub(crate) dir: Arc<TempDir>,
    store_dir: Option<TempDir>,
}

/// The OpenAPI document of this build.
static DOCUMENT: OnceCell<Value> = OnceCell::const_new();

/// An answer whose body was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// The error code of the answer.
    pub(crate) fn code(&self) -> String {
        let error = &self.json()["error"];
        for key in ["type", "code", "message", "request_id"] {
            assert!(error[key].is_string(), "{key} in {self:?}");
        }
        assert_eq!(error["request_id"], self.header("x-epsilon-request-id"));
        error["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl World {
    /// A gateway with these functions of the project `shop`, each at version 1.
    pub(crate) async fn with(functions: &[&str]) -> Self {
        Self::start(functions, Settings::default()).await
    }

    pub(crate) async fn start(functions: &[&str], settings: Settings) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let store = open(&dir).await;
        if !functions.is_empty() {
            serve(&store, functions).await;
        }
        Self::on(dir, store, settings, true).await
    }

    pub(crate) async fn on(
        dir: Arc<TempDir>,
        store: Arc<dyn Store>,
        settings: Settings,
        with_builder: bool,
    ) -> Self {
        Self::build(dir, store, settings, true, with_builder).await
    }

    /// A fleet's gateway without a VM of its own. Creates these functions if the store has none.
    pub(crate) async fn gateway(
        store: Arc<dyn Store>,
        functions: &[&str],
        settings: Settings,
    ) -> Self {
        if store.snapshot().await.unwrap().is_empty() && !functions.is_empty() {
            serve(&store, functions).await;
        }
        Self::build(Arc::new(tempfile::tempdir().unwrap()), store, settings, false, true).await
    }

    /// The same, with a new store in a directory of its own.
    pub(crate) async fn fleet(functions: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir).await;
        let mut world = Self::gateway(store, functions, Settings::default()).await;
        world.store_dir = Some(dir);
        world
    }

    async fn build(
        dir: Arc<TempDir>,
        store: Arc<dyn Store>,
        settings: Settings,
        with_vm: bool,
        with_builder: bool,
    ) -> Self {
        let listen = SocketAddr::new(settings.listen.ip(), 0);
        let control = SocketAddr::new(settings.control.ip(), 0);
        let settings = Settings { listen, control, ..settings };
        let config = Config::new(settings, dir.path()).unwrap();
        let vm = FakeVm::new("vm-1");
        let builder = FakeBuilder::new();
        let registry = Registry::new();
        let given = with_builder.then(|| Arc::clone(&builder) as Arc<dyn Builder>);
        let local = with_vm.then(|| Arc::clone(&vm) as _);
        let app = App::build(config, Arc::clone(&store), local, given, &registry).await;
        let app = app.unwrap();
        let (public, control) = (app.public_addr(), app.control_addr());
        let key = std::fs::read_to_string(dir.path().join("admin.key")).unwrap();
        Self {
            running: Some(app.spawn()),
            public,
            control,
            key: key.trim().to_owned(),
            vm,
            builder,
            store,
            registry,
            client: Client::builder(TokioExecutor::new()).build_http(),
            dir,
            store_dir: None,
        }
    }

    /// A new gateway on the same data, as after a restart.
    pub(crate) async fn restarted(self) -> Self {
        let dir = Arc::clone(&self.dir);
        drop(self);
        let store = open(&dir).await;
        Self::on(dir, store, Settings::default(), true).await
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub(crate) fn drain(&mut self, grace: Duration) -> impl Future<Output = Stopped> + use<> {
        self.running.take().unwrap().drain(grace)
    }

    /// Sends a request to the public listener; the answer's body is still to come.
    pub(crate) async fn send(&self, request: Request<CallBody>) -> Response<Incoming> {
        let (mut head, body) = request.into_parts();
        head.uri = format!("http://{}{}", self.public, head.uri).parse().unwrap();
        patient(self.client.request(Request::from_parts(head, body))).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.call(Method::GET, path, "").await
    }

    pub(crate) async fn call(&self, method: Method, path: &str, text: &str) -> Reply {
        let body = if text.is_empty() { body::empty() } else { body::full(text.to_owned()) };
        read(self.send(Request::builder().method(method).uri(path).body(body).unwrap()).await).await
    }

    /// Sends a request with the admin key to the control API.
    pub(crate) async fn ask(&self, method: Method, path: &str, text: &str) -> Reply {
        self.ask_with(&format!("Bearer {}", self.key), method, path, text).await
    }

    pub(crate) async fn ask_with(
        &self,
        key: &str,
        method: Method,
        path: &str,
        text: &str,
    ) -> Reply {
        let request = self.control_request(method.clone(), path).header("authorization", key);
        let request = request.body(body::full(text.to_owned())).unwrap();
        let reply = read(patient(self.client.request(request)).await.unwrap()).await;
        self.check_documented(&method, path, &reply).await;
        reply
    }

    /// Fails if the OpenAPI document does not know this status of this route.
    async fn check_documented(&self, method: &Method, path: &str, reply: &Reply) {
        let document = DOCUMENT.get_or_try_init(async || {
            let request = self.control_request(Method::GET, "/v1/openapi.json");
            let request = request.body(body::empty()).unwrap();
            let document = read(patient(self.client.request(request)).await.unwrap()).await;
            // A gateway that starts has no document yet.
            if document.status == StatusCode::OK { Ok(document.json()) } else { Err(()) }
        });
        let Ok(document) = document.await else { return };
        if reply.status == StatusCode::BAD_REQUEST && reply.code() == "TLS_REQUIRED" {
            return; // the listener's own, before any route
        }
        let paths = document["paths"].as_object().unwrap();
        let (path, _) = path.split_once('?').unwrap_or((path, ""));
        let Some((_, route)) = paths.iter().find(|(template, _)| is_of(path, template)) else {
            return;
        };
        let operation = &route[method.as_str().to_lowercase()];
        let answer = &operation["responses"][reply.status.as_str()];
        assert!(
            operation.is_null() || answer.is_object(),
            "undocumented: {method} {path} {reply:?}"
        );
    }

    pub(crate) fn control_request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(format!("http://{}{path}", self.control))
    }

    /// Starts a deployment; the answer's body is its event stream.
    pub(crate) async fn push(&self) -> Response<Incoming> {
        let request = self
            .control_request(Method::POST, "/v1/deployments?folder=shop")
            .header("authorization", format!("Bearer {}", self.key))
            .body(body::full("a tar.gz, says the builder"))
            .unwrap();
        // A new client per push, so that dropping the answer closes the connection.
        let client: Client<_, CallBody> = Client::builder(TokioExecutor::new()).build_http();
        patient(client.request(request)).await.unwrap()
    }

    /// Runs a deployment with this answer of the builder; returns its events.
    pub(crate) async fn deploy(&self, owner: &str, work: &[(&str, &str)]) -> Vec<DeployEvent> {
        self.builder.next(Ok(built(owner, work)));
        events(self.push().await).await
    }

    /// Writes bytes to the public listener and reads until it closes.
    pub(crate) async fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.public).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        read_to_close(&mut stream).await
    }

    /// The VM as the control API shows it.
    pub(crate) async fn vm(&self, id: &str) -> Option<Value> {
        let vms = self.ask(Method::GET, "/v1/vms", "").await.json();
        vms["data"].as_array().unwrap().iter().find(|vm| vm["id"] == id).cloned()
    }

    /// Waits until a VM has this state.
    pub(crate) async fn wait_for_standing(&self, id: &str, standing: &str) {
        let began = Instant::now();
        loop {
            let seen = self.vm(id).await;
            if seen.as_ref().is_some_and(|vm| vm["standing"] == standing) {
                return;
            }
            assert!(began.elapsed() < TEST_TIMEOUT, "{id} shall be {standing}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }
}

/// Whether a path is one of a route such as `/v1/functions/{name}`.
fn is_of(path: &str, template: &str) -> bool {
    path.split('/').count() == template.split('/').count()
        && path.split('/').zip(template.split('/')).all(|(a, b)| a == b || b.starts_with('{'))
}

/// An address of this machine other than loopback; connections to it have it as their source.
/// Nothing is sent to find it.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("this test needs a network interface");
    socket.local_addr().unwrap().ip()
}

/// Creates these functions of the project `shop` as active at version 1.
async fn serve(store: &Arc<dyn Store>, functions: &[&str]) {
    let work: Vec<_> = functions.iter().map(|name| (*name, "1")).collect();
    let id = DeploymentId::random();
    store.begin_deployment(&id, &GatewayId::random(), Timestamp::now()).await.unwrap();
    store.prepare(&id, &built("shop", &work), Timestamp::now()).await.unwrap();
    store.activate(&id, Timestamp::now()).await.unwrap();
}

pub(crate) async fn open(dir: &TempDir) -> Arc<dyn Store> {
    epsilon_store::open(dir.path().join("epsilon.db").to_str().unwrap()).await.unwrap()
}

pub(crate) async fn read(response: Response<Incoming>) -> Reply {
    let (head, body) = response.into_parts();
    let bytes = patient(body.collect()).await.unwrap().to_bytes();
    let body = String::from_utf8(bytes.to_vec()).unwrap();
    Reply { status: head.status, headers: head.headers, body }
}

/// The events of a deployment, read to the end.
pub(crate) async fn events(response: Response<Incoming>) -> Vec<DeployEvent> {
    let reply = read(response).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer counts as its end.
    let _ = patient(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until the text has arrived.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut buffer = [0; 4096];
        let n = patient(stream.read(&mut buffer)).await.unwrap();
        assert_ne!(n, 0, "closed after {seen:?}, waiting for {text:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    seen
}

/// Panics after [`TEST_TIMEOUT`].
pub(crate) async fn patient<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("the test timed out")
}

/// Waits until the value is as wanted; panics with the last one otherwise.
pub(crate) async fn eventually<T: std::fmt::Debug + PartialEq>(want: T, now: impl Fn() -> T) {
    let began = Instant::now();
    loop {
        let seen = now();
        if seen == want {
            return;
        }
        assert!(began.elapsed() < TEST_TIMEOUT, "still {seen:?}, wanted {want:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The layers that an image of this digest is split into.
pub(crate) fn parts(digest: &str) -> Parts {
    let base =
        ImageRef { reference: "epsilon/runtime-node:1".into(), digest: "sha256:ba5e".into() };
    Parts { base, layers: vec![ImageLayer { diff_id: format!("sha256:c0de{digest}"), blob: None }] }
}

/// The result of a build of these `(function, digest)` pairs.
pub(crate) fn built(owner: &str, work: &[(&str, &str)]) -> Built {
    let functions = work
        .iter()
        .map(|(function, digest)| BuiltFunction {
            name: FunctionName::parse(function).unwrap(),
            spec: fake::spec(function),
            image: ImageRef {
                reference: format!("epsilon/{function}:{digest}"),
                digest: format!("sha256:{digest}"),
            },
            parts: Some(parts(digest)),
        })
        .collect();
    Built { project: ProjectName::parse(owner).unwrap(), functions }
}

/// A builder that returns the prepared answers in order.
#[derive(Debug)]
pub(crate) struct FakeBuilder {
    answers: Mutex<VecDeque<Result<Built, BuildError>>>,
    /// Log lines sent before the answer.
    pub(crate) lines: Mutex<Vec<String>>,
    /// Number of started builds.
    pub(crate) begun: Mutex<usize>,
    /// Number of builds that were dropped before their end.
    pub(crate) cancelled: Arc<Mutex<usize>>,
    /// One permit lets one build finish.
    pub(crate) gate: Semaphore,
}

impl FakeBuilder {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::default(),
            lines: Mutex::default(),
            begun: Mutex::default(),
            cancelled: Arc::default(),
            gate: Semaphore::new(1000),
        })
    }

    pub(crate) fn next(&self, answer: Result<Built, BuildError>) {
        self.answers.lock().unwrap().push_back(answer);
    }

    pub(crate) fn close_gate(&self) {
        self.gate.forget_permits(1000);
    }

    pub(crate) fn begun(&self) -> usize {
        *self.begun.lock().unwrap()
    }
}

/// Counts the build as cancelled unless it ended.
struct Working(Arc<Mutex<usize>>, bool);

impl Drop for Working {
    fn drop(&mut self) {
        if !self.1 {
            *self.0.lock().unwrap() += 1;
        }
    }
}

impl Builder for FakeBuilder {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        Box::pin(async move {
            *self.begun.lock().unwrap() += 1;
            let mut working = Working(Arc::clone(&self.cancelled), false);
            let source = job.archive.collect().await.map_err(|err| BuildError {
                code: "SOURCE_REFUSED".into(),
                status: StatusCode::UNPROCESSABLE_ENTITY,
                message: err.to_string(),
                hint: None,
            })?;
            if source.to_bytes().is_empty() {
                return Err(BuildError {
                    code: "SOURCE_REFUSED".into(),
                    status: StatusCode::UNPROCESSABLE_ENTITY,
                    message: "the archive is empty".into(),
                    hint: None,
                });
            }
            for line in self.lines.lock().unwrap().iter() {
                job.log.report(BuildEvent::Line(line.clone()));
            }
            self.gate.acquire().await.unwrap().forget();
            working.1 = true;
            let answer = self.answers.lock().unwrap().pop_front();
            answer.expect("an unexpected build")
        })
    }
}
