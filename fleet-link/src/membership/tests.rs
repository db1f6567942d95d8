//! Fleet membership against a gateway whose answers the test scripts.

use super::*;
use crate::gateway_token::Signer;
use bytes::Bytes;
use epsilon_api::{
    fleet::{MemberKind, PROTOCOL},
    ids::VmId,
    units::{Bytes as Size, MilliCores},
};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{convert::Infallible, fs, os::unix::fs::PermissionsExt};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

const LIMIT: Duration = Duration::from_secs(10);
const TOKEN: &str = "epsilon_fleet_1_secret";

/// A gateway that knows one token and hands out numbered credentials.
struct FakeGateway {
    address: SocketAddr,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

struct Script {
    signer: Signer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `verb id address` of each accepted request.
    requests: Vec<String>,
    /// The only valid credential.
    credential: Option<String>,
    given: u32,
    /// Answers everything with this status, when set.
    answers: Option<StatusCode>,
    clock: Option<&'static str>,
    /// The clock of its tokens, if it sends one.
    now: Option<Timestamp>,
}

impl FakeGateway {
    async fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), None).await
    }

    async fn at(address: SocketAddr, tls: Option<tls::Server>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
        let script = Arc::new(Script { signer, state: Mutex::default() });
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answering = Arc::clone(&script);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, tls) = (Arc::clone(&answering), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| script.answer(request));
                    if let Some(tls) = tls {
                        let stream = TokioIo::new(tls.accept(stream).await.unwrap());
                        drop(http1::Builder::new().serve_connection(stream, service).await);
                        return;
                    }
                    drop(
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await,
                    );
                });
            }
        });
        Self { address, script, task }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.script.state.lock())
    }

    async fn has_received(&self, what: &str) {
        until(
            || self.set(|state| state.requests.clone()),
            |requests| requests.iter().any(|line| line.starts_with(what)),
        )
        .await;
    }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Script {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let verb = request.uri().path().strip_prefix("/v1/fleet/").unwrap().to_owned();
        let key = request.headers()[header::AUTHORIZATION].to_str().unwrap();
        let key = key.strip_prefix("Bearer ").unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut state = self.state.lock();
        let wanted = if verb == "join" { Some(TOKEN) } else { state.credential.as_deref() };
        let refused = state.answers.or((wanted != Some(&key)).then_some(StatusCode::UNAUTHORIZED));
        if let Some(status) = refused {
            let response = Response::builder().status(status);
            return Ok(response.body(Full::from("the test says so")).unwrap());
        }
        let who = serde_json::from_slice::<Join>(&body)
            .map_or_else(|_| String::new(), |me| format!("{} {}", me.id, me.address));
        state.requests.push(format!("{verb} {who}"));
        let welcome = Welcome { gateways: vec![self.signer.key()], now: state.now };
        let text = match verb.as_str() {
            "join" => {
                state.given += 1;
                let credential = format!("credential-{}", state.given);
                state.credential = Some(credential.clone());
                let joined = Joined { credential: Secret::new(credential), welcome };
                serde_json::to_value(joined).unwrap()
            }
            "beat" => serde_json::to_value(welcome).unwrap(),
            _ => {
                state.credential = None;
                let response = Response::builder().status(StatusCode::NO_CONTENT);
                return Ok(response.body(Full::default()).unwrap());
            }
        };
        let mut response =
            Response::new(Full::from(serde_json::json!({ "data": text }).to_string()));
        if let Some(clock) = state.clock {
            response.headers_mut().insert(header::DATE, clock.parse().unwrap());
        }
        Ok(response)
    }
}

/// A member and its folder.
struct Member {
    folder: TempDir,
    verifier: Arc<Verifier>,
}

struct Life {
    end: CancellationToken,
    task: JoinHandle<()>,
    joined: watch::Receiver<Option<String>>,
}

impl Member {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self { folder, verifier: Arc::new(Verifier::new(id())) }
    }

    fn settings(&self, gateways: &str) -> Settings {
        Settings {
            gateways: gateways.parse().unwrap(),
            token_file: self.folder.path().join("token"),
            folder: self.folder.path().to_owned(),
            tls: None,
            advertise: None,
            listens: "0.0.0.0:8082".parse().unwrap(),
            heartbeat: Duration::from_millis(20),
        }
    }

    fn live(&self, gateways: &str) -> Life {
        self.live_with(self.settings(gateways))
    }

    fn live_with(&self, settings: Settings) -> Life {
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Vm,
            id: id(),
            address: String::new(),
            tls: false,
            memory_bytes: Size::mib(1),
            cpu: MilliCores::ONE,
        };
        let membership = Membership::new(settings, me, Arc::clone(&self.verifier)).unwrap();
        let (end, joined) = (CancellationToken::new(), membership.joined());
        let task = tokio::spawn(membership.run(end.clone()));
        Life { end, task, joined }
    }

    fn verify(&self, gateway: &FakeGateway) -> bool {
        self.verifier.verify_now(&gateway.script.signer.token(&id(), Timestamp::now()))
    }

    fn credential(&self) -> Option<String> {
        fs::read_to_string(self.folder.path().join("credential")).ok()
    }
}

impl Life {
    async fn joined(&mut self) -> String {
        let joined = timeout(LIMIT, self.joined.wait_for(Option::is_some)).await;
        joined.expect("it joins in time").unwrap().clone().unwrap()
    }

    async fn end(self) {
        self.end.cancel();
        timeout(LIMIT, self.task).await.expect("it ends in time").unwrap();
    }
}

fn id() -> VmId {
    VmId::parse("vm-1").unwrap()
}

async fn until<T: std::fmt::Debug>(look: impl Fn() -> T, good: impl Fn(&T) -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let seen = look();
        if good(&seen) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "last seen: {seen:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_member_joins_sends_heartbeats_and_leaves() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    assert!(!member.verify(&gateway));
    let mut life = member.live(&gateway.url());
    assert_eq!(life.joined().await, "127.0.0.1:8082", "the address that reaches the gateway");
    assert!(member.verify(&gateway));
    assert_eq!(member.credential().unwrap(), "credential-1\n");
    let mode = fs::metadata(member.folder.path().join("credential")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    gateway.has_received("beat vm-1 127.0.0.1:8082").await;
    life.end().await;
    gateway.has_received("leave").await;
    assert_eq!(member.credential(), None);
}

#[tokio::test]
async fn a_restart_needs_neither_the_token_nor_a_gateway() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    let mut life = member.live(&gateway.url());
    life.joined().await;
    life.task.abort(); // as kill -9
    fs::remove_file(member.folder.path().join("token")).unwrap();
    gateway.set(|state| {
        state.requests.clear();
        state.answers = Some(StatusCode::SERVICE_UNAVAILABLE);
    });

    let member = Member { verifier: Arc::new(Verifier::new(id())), ..member };
    let mut life = member.live(&gateway.url());
    assert!(member.verify(&gateway), "it knows the gateway from before");
    gateway.set(|state| state.answers = None);
    life.joined().await;
    assert_eq!(gateway.set(|state| state.given), 1, "it came back with its credential");
    life.end().await;
}

#[tokio::test]
async fn a_member_that_the_fleet_forgot_joins_again() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    let mut life = member.live(&gateway.url());
    life.joined().await;
    gateway.set(|state| state.credential = None);
    until(|| member.credential(), |credential| credential.as_deref() == Some("credential-2\n"))
        .await;
    life.end().await;
}

#[tokio::test]
async fn next_gateway_is_tried_when_one_fails() {
    let (down, well) = (FakeGateway::new().await, FakeGateway::new().await);
    let (unwell, full) = (FakeGateway::new().await, FakeGateway::new().await);
    unwell.set(|state| state.answers = Some(StatusCode::SERVICE_UNAVAILABLE));
    full.set(|state| state.answers = Some(StatusCode::TOO_MANY_REQUESTS));
    let urls = [down.url(), unwell.url(), full.url(), well.url()].join(",");
    drop(down);
    let member = Member::new();
    let mut life = member.live(&urls);
    life.joined().await;
    assert!(member.verify(&well) && !member.verify(&unwell));
    life.end().await;
    well.has_received("leave").await;
}

#[tokio::test]
async fn a_gateway_that_comes_late_is_joined() {
    let gateway = FakeGateway::new().await;
    let (address, url) = (gateway.address, gateway.url());
    drop(gateway);
    until(|| std::net::TcpStream::connect(address).is_err(), |gone| *gone).await;
    let member = Member::new();
    let mut life = member.live(&url);
    assert!(timeout(2 * FIRST_PAUSE, life.joined.changed()).await.is_err());
    let _gateway = FakeGateway::at(address, None).await;
    life.joined().await;
    life.end().await;
}

#[tokio::test]
async fn corrected_token_is_read_without_restart() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    let token = member.folder.path().join("token");
    fs::write(&token, "epsilon_fleet_1_wrong").unwrap();
    let mut life = member.live(&gateway.url());
    assert!(timeout(FIRST_PAUSE, life.joined.changed()).await.is_err());
    fs::write(&token, TOKEN).unwrap();
    life.joined().await;
    life.end().await;
}

#[test]
fn without_a_token_there_is_no_start() {
    let member = Member::new();
    fs::remove_file(member.folder.path().join("token")).unwrap();
    let me = Join {
        protocol: PROTOCOL,
        kind: MemberKind::Builder,
        id: id(),
        address: String::new(),
        tls: false,
        memory_bytes: Size(0),
        cpu: MilliCores::ONE,
    };
    let membership =
        Membership::new(member.settings("http://127.0.0.1:1"), me, Arc::clone(&member.verifier));
    assert_eq!(membership.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn the_gateways_clock_counts() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    gateway.set(|state| state.clock = Some("Tue, 01 Jan 2097 00:00:00 GMT"));
    let mut life = member.live(&gateway.url());
    life.joined().await;
    let then: Timestamp = "2097-01-01T00:00:01Z".parse().unwrap();
    assert!(member.verifier.verify_now(&gateway.script.signer.token(&id(), then)));
    assert!(!member.verify(&gateway), "a token of our own time has long expired");
    life.end().await;
}

#[tokio::test]
async fn token_clock_precedes_date_and_is_not_stored() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    let then: Timestamp = "2050-01-01T00:00:01Z".parse().unwrap();
    gateway.set(|state| {
        state.clock = Some("Tue, 01 Jan 2097 00:00:00 GMT"); // its wall clock was set
        state.now = Some(then);
    });
    let mut life = member.live(&gateway.url());
    life.joined().await;
    assert!(member.verifier.verify_now(&gateway.script.signer.token(&id(), then)));
    let stored = fs::read_to_string(member.folder.path().join("gateways.json")).unwrap();
    assert!(!stored.contains("now"), "{stored}");
    life.end().await;
}

fn says(err: &(dyn std::error::Error + 'static), error_message: &[&str]) {
    let text = Chain(err).to_string();
    assert!(error_message.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let gateway: Gateways = "http://10.0.0.4:8080".parse().unwrap();
    let text = rejection(
        &gateway.as_slice()[0],
        StatusCode::NOT_FOUND,
        "no function is named `v1`".into(),
    );
    says(&text, &["http://10.0.0.4:8080", "not the control address", "8081", "is named `v1`"]);
    let text = rejection(&gateway.as_slice()[0], StatusCode::CONFLICT, "too old".into());
    says(&text, &["refused this member: too old"]);

    let me = || Join {
        protocol: PROTOCOL,
        kind: MemberKind::Vm,
        id: id(),
        address: String::new(),
        tls: false,
        memory_bytes: Size::mib(1),
        cpu: MilliCores::ONE,
    };
    let member = Member::new();
    fs::remove_file(member.folder.path().join("token")).unwrap();
    let settings = member.settings("http://10.0.0.4:8081");
    let none = Membership::new(settings, me(), Arc::clone(&member.verifier)).unwrap_err();
    says(&none, &["/token", "copy the file `fleet.token`"]);
    fs::create_dir(member.folder.path().join("credential")).unwrap();
    let settings = member.settings("http://10.0.0.4:8081");
    let none = Membership::new(settings, me(), Arc::clone(&member.verifier)).unwrap_err();
    says(&none, &["/credential` cannot be read"]);
}

#[tokio::test]
async fn unreachable_gateways_do_not_delay_shutdown() {
    let (gateway, member) = (FakeGateway::new().await, Member::new());
    let mut life = member.live(&gateway.url());
    life.joined().await;
    drop(gateway);
    life.end().await;
    assert!(
        member.credential().is_some(),
        "no gateway received the leave request; it is still valid"
    );
}

#[test]
fn addresses_are_what_was_said_or_what_was_seen() {
    let member = Member::new();
    let me = |advertise: Option<&str>, listens: &str, local: &str| {
        let settings = Settings {
            advertise: advertise.map(str::to_owned),
            listens: listens.parse().unwrap(),
            ..member.settings("http://127.0.0.1:1")
        };
        let me = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Vm,
            id: id(),
            address: String::new(),
            tls: false,
            memory_bytes: Size(0),
            cpu: MilliCores::ONE,
        };
        let membership = Membership::new(settings, me, Arc::clone(&member.verifier)).unwrap();
        membership.address(local.parse().unwrap())
    };
    assert_eq!(me(None, "0.0.0.0:8082", "10.0.0.9"), "10.0.0.9:8082");
    assert_eq!(me(None, "[::]:8082", "::ffff:10.0.0.9"), "10.0.0.9:8082");
    assert_eq!(me(None, "[::]:8082", "fd00::9"), "[fd00::9]:8082");
    assert_eq!(me(None, "127.0.0.1:8082", "10.0.0.9"), "127.0.0.1:8082");
    assert_eq!(me(Some("vm.internal"), "0.0.0.0:8082", "10.0.0.9"), "vm.internal:8082");
    assert_eq!(me(Some("vm.internal:9"), "0.0.0.0:8082", "10.0.0.9"), "vm.internal:9");
    assert_eq!(me(Some("[fd00::9]"), "0.0.0.0:8082", "10.0.0.9"), "[fd00::9]:8082");
    assert_eq!(me(Some("[fd00::9]:9"), "0.0.0.0:8082", "10.0.0.9"), "[fd00::9]:9");
}

#[tokio::test]
async fn a_gateway_behind_tls_is_joined_with_a_certificate() {
    let fleet = tls::tests::Authority::new();
    let files = fleet.files("127.0.0.1");
    let server = Some(files.server().unwrap());
    let gateway = FakeGateway::at("127.0.0.1:0".parse().unwrap(), server).await;
    let member = Member::new();
    let settings = member.settings(&format!("https://{}", gateway.address));
    let client = Some(files.client().unwrap());
    let mut life = member.live_with(Settings { tls: client, ..settings });
    life.joined().await;
    life.end().await;
}
