//! A scripted agent: a [`FakeVm`] with a real listener, which joins a gateway as agents do. It
//! accepts only the requests of the contract (`epsilon_api::fleet`).

use crate::{
    fake::FakeVm,
    world::{World, patient},
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, CallBody},
    fleet::{HEARTBEAT_INTERVAL, Join, MemberKind, PROTOCOL, Refusal, write_spent},
    function::Version,
    headers,
    ids::{FunctionName, RequestId, VersionId, VmId},
    units::{Bytes as Size, MilliCores},
    vm::{Call, Vm, VmStatus},
};
use epsilon_fleet_link::authenticated_listener::{AuthenticatedListener, Limits};
use epsilon_fleet_link::gateway_token::Verifier;
use epsilon_fleet_link::membership::Membership;
use epsilon_fleet_link::{membership, tls};
use epsilon_http_server::Shutdown;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Shorter than the interval of real agents, so that tests are quick.
const REPORT: Duration = Duration::from_millis(50);

/// A running scripted agent.
pub(crate) struct Agent {
    pub(crate) id: VmId,
    pub(crate) vm: Arc<FakeVm>,
    pub(crate) address: SocketAddr,
    site: Arc<Site>,
    shutdown: Shutdown,
    leave: CancellationToken,
    dir: TempDir,
}

struct Site {
    vm: Arc<FakeVm>,
    versions: Mutex<HashMap<String, Arc<Version>>>,
    /// Received requests other than calls and reports, such as `PUT /v1/version pay@1`.
    orders: Mutex<Vec<String>>,
    boot: AtomicU64,
    silenced: AtomicBool,
    /// Delay of each order in milliseconds, and whether orders fail.
    slow: AtomicU64,
    refuses: AtomicBool,
}

impl Agent {
    /// Joins this gateway and waits until the gateway has a report.
    pub(crate) async fn join(id: &str, world: &World) -> Self {
        let agent = Self::start(id, world, ([127, 0, 0, 1], 0).into(), None).await;
        world.wait_for_standing(id, "ready").await;
        agent
    }

    /// Joins without waiting for a report.
    pub(crate) async fn start(
        id: &str,
        world: &World,
        address: SocketAddr,
        tls: Option<&tls::Files>,
    ) -> Self {
        let id = VmId::parse(id).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let vm = FakeVm::new(id.as_str());
        let shutdown = Shutdown::default();
        let second = Duration::from_secs(10);
        let limits = Limits { connections: 1000, head: second, idle: 60 * second };
        let server = tls.map(|files| files.server().unwrap());
        let listener =
            AuthenticatedListener::bind(address, server, limits, shutdown.clone()).unwrap();
        let address = listener.address();
        let site = Arc::new(Site {
            vm: Arc::clone(&vm),
            versions: Mutex::default(),
            orders: Mutex::default(),
            boot: AtomicU64::new(rand::random()),
            silenced: AtomicBool::new(false),
            slow: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
        });
        let verifier = Arc::new(Verifier::new(id.clone()));
        let served = Arc::clone(&site);
        let handler = move |request, _| Arc::clone(&served).answer(request);
        tokio::spawn(listener.serve(Arc::clone(&verifier), handler));
        let token_file = dir.path().join("token");
        std::fs::copy(world.dir.path().join("fleet.token"), &token_file).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let settings = membership::Settings {
            gateways: format!("{scheme}://{}", world.control).parse().unwrap(),
            token_file,
            folder: dir.path().to_owned(),
            tls: tls.map(|files| files.client().unwrap()),
            advertise: None,
            listens: address,
            heartbeat: HEARTBEAT_INTERVAL,
        };
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Vm,
            id: id.clone(),
            address: String::new(),
            tls: tls.is_some(),
            memory_bytes: Size::mib(4096),
            cpu: MilliCores(2000),
        };
        let leave = CancellationToken::new();
        let membership = Membership::new(settings, me, verifier).unwrap();
        let mut joined = membership.joined();
        tokio::spawn(membership.run(leave.clone()));
        patient(joined.wait_for(Option::is_some)).await.unwrap();
        Self { id, vm, address, site, shutdown, leave, dir }
    }

    /// Like `kill -9`: all sockets are closed, and the gateway gets no message.
    pub(crate) async fn kill(&self) {
        self.shutdown.close.cancel();
        self.shutdown.cut.cancel();
        self.shutdown.tasks.close();
        patient(self.shutdown.tasks.wait()).await;
    }

    /// Stops or resumes reports and answers; connections stay open.
    pub(crate) fn silence(&self, silenced: bool) {
        self.site.silenced.store(silenced, SeqCst);
    }

    /// Delays every order from now on.
    pub(crate) fn slow_orders(&self, time: Duration) {
        self.site.slow.store(time.as_millis() as u64, SeqCst);
    }

    /// Orders fail with 500, or succeed again.
    pub(crate) fn refuse_orders(&self, refuses: bool) {
        self.site.refuses.store(refuses, SeqCst);
    }

    /// Reports a new start of the agent.
    pub(crate) fn boot_again(&self) {
        self.site.versions.lock().unwrap().clear();
        self.site.boot.fetch_add(1, SeqCst);
    }

    /// Drops all versions without reporting it.
    pub(crate) fn forget_silently(&self) {
        self.site.versions.lock().unwrap().clear();
    }

    /// Leaves the fleet, then ends.
    pub(crate) async fn leave(&self) {
        self.leave.cancel();
        self.kill().await;
    }

    /// Requests received so far.
    pub(crate) fn orders(&self) -> Vec<String> {
        self.site.orders.lock().unwrap().clone()
    }

    pub(crate) fn has_received(&self, order: &str) -> bool {
        self.orders().iter().any(|one| one == order)
    }

    /// Number of open connections from gateways.
    pub(crate) fn connections(&self) -> usize {
        self.shutdown.tasks.len()
    }

    /// The agent's credential.
    pub(crate) fn credential(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("credential")).unwrap().trim().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.close.cancel();
        self.shutdown.cut.cancel();
    }
}

impl Site {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<CallBody> {
        match request.headers_mut().remove(headers::VERSION) {
            Some(version) => self.call(version, request).await,
            None => self.order(request).await,
        }
    }

    async fn call(
        &self,
        version: HeaderValue,
        mut request: Request<Incoming>,
    ) -> Response<CallBody> {
        let version = self.versions.lock().unwrap().get(version.to_str().unwrap()).cloned();
        let Some(version) = version else { return refused(&Refusal::UnknownVersion) };
        let upgrade = hyper::upgrade::on(&mut request);
        let head = request.headers_mut();
        assert!(head.remove(headers::GATEWAY_TOKEN).is_some());
        let request_id = head.remove(headers::REQUEST_ID).unwrap();
        let may_wait = head.remove(headers::MAY_WAIT).is_none_or(|value| value != "0");
        let request_id = RequestId::parse(request_id.to_str().unwrap()).unwrap();
        let request = request.map(body::boxed);
        let call = Call { version, request_id, may_wait, request, upload: None, interim: None };
        match self.vm.call(call).await {
            Ok(answer) => {
                let mut response = answer.response;
                let spent = HeaderValue::try_from(write_spent(&answer.spent)).unwrap();
                response.headers_mut().insert(headers::SPENT, spent);
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    tokio::spawn(shout(upgrade));
                }
                response
            }
            Err(err) => refused(&Refusal::of(&err)),
        }
    }

    async fn order(self: Arc<Self>, request: Request<Incoming>) -> Response<CallBody> {
        let (head, body) = request.into_parts();
        let method = head.method.clone();
        let path = head.uri.path().to_owned();
        let note =
            |what: String| self.orders.lock().unwrap().push(format!("{method} {path} {what}"));
        match (&head.method, head.uri.path()) {
            (&Method::GET, "/v1/reports") => return Response::new(Arc::clone(&self).reports()),
            (&Method::PUT, "/v1/version") => note(self.learn(body).await.id().to_string()),
            (&Method::POST, "/v1/ready") => {
                let version = self.learn(body).await;
                note(version.id().to_string());
                if let Err(err) = self.vm.ensure_ready(version).await {
                    return refused(&Refusal::of(&err));
                }
            }
            (&Method::POST, "/v1/fetch") => note(self.learn(body).await.id().to_string()),
            (&Method::POST, "/v1/retire") => {
                let version: VersionId = read(body).await;
                self.vm.retire(&version);
                note(version.to_string());
            }
            (&Method::POST, "/v1/forget") => note(read::<FunctionName>(body).await.to_string()),
            (&Method::POST, "/v1/drain") => self.vm.drain(true),
            (&Method::POST, "/v1/undrain") => self.vm.drain(false),
            (&Method::GET, path) if path.starts_with("/v1/logs/") => {
                note(head.uri.query().unwrap_or_default().to_owned());
                let lines = self
                    .vm
                    .log
                    .lock()
                    .unwrap()
                    .clone()
                    .into_iter()
                    .map(|record| Ok::<_, Infallible>(Frame::data(line(&record))));
                return Response::new(body::boxed(StreamBody::new(stream::iter(lines))));
            }
            (method, path) => panic!("no gateway asks {method} {path}"),
        }
        tokio::time::sleep(Duration::from_millis(self.slow.load(SeqCst))).await;
        if self.refuses.load(SeqCst) {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        }
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    }

    async fn learn(&self, body: Incoming) -> Arc<Version> {
        let version: Arc<Version> = Arc::new(read(body).await);
        self.versions.lock().unwrap().insert(version.id().to_string(), Arc::clone(&version));
        version
    }

    fn reports(self: Arc<Self>) -> CallBody {
        let lines = stream::unfold(tokio::time::interval(REPORT), move |mut each| {
            let site = Arc::clone(&self);
            async move {
                loop {
                    each.tick().await;
                    if !site.silenced.load(SeqCst) {
                        let boot = site.boot.load(SeqCst);
                        let status = VmStatus { boot, ..site.vm.status() };
                        return Some((Ok::<_, Infallible>(Frame::data(line(&status))), each));
                    }
                }
            }
        });
        body::boxed(StreamBody::new(lines.boxed()))
    }
}

/// Echoes the input in capitals.
async fn shout(upgrade: OnUpgrade) {
    let mut stream = TokioIo::new(upgrade.await.unwrap());
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        stream.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> T {
    let text = body.collect().await.unwrap().to_bytes();
    serde_json::from_slice(&text).unwrap_or_else(|err| panic!("{err}: {text:?}"))
}

fn line<T: serde::Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap();
    line.push(b'\n');
    line.into()
}

fn refused(refusal: &Refusal) -> Response<CallBody> {
    let mut response = Response::new(body::full(serde_json::to_vec(refusal).unwrap()));
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(headers::REFUSAL, HeaderValue::from_static("1"));
    response
}
