//! The test's gateway: accepts every member, and talks to agents as a gateway does, over real
//! sockets.

use crate::support::config;
use bytes::Bytes;
use epsilon_api::{
    body::{self, CallBody},
    fleet::{GatewayKey, Join, Joined, Refusal, Welcome},
    function::Version,
    headers::{GATEWAY_TOKEN, REFUSAL, REQUEST_ID, VERSION},
    ids::{RequestId, VmId},
    redacted::Secret,
    vm::VmStatus,
};
use epsilon_cloud_aws::imds::Imds;
use epsilon_fleet_link::connection::Connection;
use epsilon_fleet_link::gateway_token::Signer;
use epsilon_vm_agent::{
    app::Agent,
    engine::fake::FakeEngine,
    member::{Member, Running},
};
use http::{Method, Request, Response, request};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use prometheus::Registry;
use serde::Serialize;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Gateway {
    address: SocketAddr,
    signer: Signer,
    /// `verb address` of each request of a member.
    received: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = signer.key();
        let recorder = Arc::clone(&received);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let key = key.clone();
                let received = Arc::clone(&recorder);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(request, key.clone(), &received));
                    drop(
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                    );
                });
            }
        });
        Self { address, signer, received, task }
    }

    pub(crate) fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }
}

/// The control listener's endpoints for members.
async fn answer(
    request: Request<Incoming>,
    key: GatewayKey,
    received: &Mutex<Vec<String>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let verb = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let me = serde_json::from_slice::<Join>(&body).map_or(String::new(), |me| me.address);
    received.lock().unwrap().push(format!("{verb} {me}"));
    let welcome = Welcome { gateways: vec![key], now: None };
    let data = match verb.as_str() {
        "join" => {
            serde_json::json!(Joined { credential: Secret::new("credential".into()), welcome })
        }
        "beat" => serde_json::json!(welcome),
        _ => serde_json::Value::Null,
    };
    Ok(Response::new(Full::from(serde_json::json!({ "data": data }).to_string())))
}

/// A VM of the fleet: an agent on the scripted engine, joined to a gateway.
pub(crate) struct Vm {
    pub(crate) running: Running,
    pub(crate) gateway: Gateway,
    pub(crate) engine: FakeEngine,
    pub(crate) folder: TempDir,
    pub(crate) id: VmId,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Option<SocketAddr>,
}

impl Vm {
    pub(crate) async fn new() -> Self {
        Self::with("").await
    }

    /// `yaml`: more settings, each with a comma before it.
    pub(crate) async fn with(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::on(FakeEngine::new(), Gateway::new().await, folder, yaml, None).await
    }

    pub(crate) async fn on(
        engine: FakeEngine,
        gateway: Gateway,
        folder: TempDir,
        yaml: &str,
        cloud: Option<Imds>,
    ) -> Self {
        let token = folder.path().join("token");
        std::fs::write(&token, "token").unwrap();
        let yaml = format!(
            "{{gateways: 'http://{}', token_file: '{}', listen: '127.0.0.1:0'{yaml}}}",
            gateway.address,
            token.display()
        );
        let config = config(folder.path(), &yaml);
        let member = config.member.clone().unwrap();
        let agent =
            Agent::with_engine(config, Arc::new(engine.clone()), &Registry::new()).await.unwrap();
        let member = Member::build(agent, member, &folder.path().join("vm"), cloud);
        let member = member.map_err(|failed| failed.0).unwrap();
        let (id, address, metrics) = (member.id(), member.address(), member.metrics_address());
        let running = member.spawn();
        assert_eq!(timeout(LIMIT, running.joined()).await.unwrap(), address.to_string());
        Self { running, gateway, engine, folder, id, address, metrics }
    }

    pub(crate) async fn connect(&self) -> Connection {
        connect(self.address).await
    }

    pub(crate) fn token(&self) -> String {
        self.gateway.signer.token(&self.id, Timestamp::now())
    }

    /// A request of this gateway.
    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(path).header("host", "vm");
        request.header(GATEWAY_TOKEN, self.token())
    }

    pub(crate) fn call_of(&self, version: &Version, path: &str) -> request::Builder {
        let request = self.request(Method::GET, path).header(VERSION, version.id().to_string());
        request.header(REQUEST_ID, RequestId::random().as_str())
    }

    /// One request on a connection of its own, answered within the limit.
    pub(crate) async fn send(&self, request: Request<CallBody>) -> Response<Incoming> {
        let mut connection = self.connect().await;
        let response = timeout(LIMIT, connection.sender.send_request(request)).await;
        let mut response = response.expect("an answer in time").unwrap();
        // The connection lives as long as its answer.
        response.extensions_mut().insert(Arc::new(connection));
        response
    }

    pub(crate) async fn get(&self, version: &Version, path: &str) -> Response<Incoming> {
        self.send(self.call_of(version, path).body(body::empty()).unwrap()).await
    }

    pub(crate) async fn order(&self, method: Method, path: &str, what: &impl Serialize) {
        let text = serde_json::to_vec(what).unwrap();
        let request = self.request(method, path).body(body::full(text)).unwrap();
        assert_eq!(self.send(request).await.status(), 204, "{path}");
    }

    /// Sends a version to the agent, as this gateway.
    pub(crate) async fn send_version(&self, version: &Version) {
        self.order(Method::PUT, "/v1/version", version).await;
    }

    pub(crate) async fn reports(&self) -> Lines {
        let request = self.request(Method::GET, "/v1/reports").body(body::empty()).unwrap();
        Lines(self.send(request).await)
    }

    pub(crate) async fn report(&self) -> VmStatus {
        self.reports().await.report().await
    }

    pub(crate) async fn end(self) -> Gateway {
        let Self { running, gateway, engine, .. } = self;
        let cut = timeout(LIMIT, running.drain(std::future::pending::<()>())).await;
        assert_eq!(cut.expect("it ends in time"), 0);
        assert_eq!(engine.containers(), [""; 0]);
        assert_eq!(engine.networks(), [""; 0]);
        gateway
    }
}

pub(crate) async fn connect(address: SocketAddr) -> Connection {
    Connection::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap()
}

/// A stream of lines, one per frame.
pub(crate) struct Lines(Response<Incoming>);

impl Lines {
    /// `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        let frame = timeout(LIMIT, self.0.body_mut().frame()).await.expect("a line in time")?;
        Some(frame.unwrap().into_data().unwrap())
    }

    pub(crate) async fn report(&mut self) -> VmStatus {
        serde_json::from_slice(&self.next().await.expect("a report")).unwrap()
    }
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let (head, body) = response.into_parts();
    let bytes = timeout(LIMIT, body.collect()).await.unwrap().unwrap().to_bytes();
    drop(head);
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Parses the answer as a refusal.
pub(crate) async fn refusal(response: Response<Incoming>) -> Refusal {
    assert!(response.headers().contains_key(REFUSAL), "{response:?}");
    let status = response.status();
    let refusal: Refusal = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(status, refusal.status());
    refusal
}
