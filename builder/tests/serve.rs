//! The builder's listener over real sockets, with a scripted builder. No engine is needed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use epsilon_api::{
    admin::Step,
    body::{self, CallBody},
    build::{
        BuildError, BuildEvent, BuildJob, BuildMessage, BuildOrder, Builder, BuilderStatus, Built,
        STATUS_PATH,
    },
    error::ErrorEnvelope,
    headers,
    ids::{DeploymentId, FunctionName, ProjectName, VmId},
    units,
};
use epsilon_builder::{
    error,
    serve::{BoundListener, Limits, Running},
};
use epsilon_fleet_link::authenticated_listener;
use epsilon_fleet_link::connection::Connection;
use epsilon_fleet_link::gateway_token::{Signer, Verifier};
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use jiff::Timestamp;
use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc},
};

/// Upper bound for any wait of a test.
const LIMIT: Duration = Duration::from_secs(20);

/// Reads the archive, reports its length, and ends when the test permits it.
#[derive(Debug)]
struct Scripted {
    orders: Mutex<Vec<BuildOrder>>,
    /// Running builds.
    at_work: Arc<AtomicUsize>,
    /// One permit ends one build.
    gate: Semaphore,
}

struct Working(Arc<AtomicUsize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Builder for Scripted {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        Box::pin(async move {
            self.at_work.fetch_add(1, SeqCst);
            let _working = Working(Arc::clone(&self.at_work));
            let BuildJob { deployment, archive, folder, only, log } = job;
            self.orders.lock().unwrap().push(BuildOrder { deployment, folder, only });
            let archive = archive.collect().await;
            let archive =
                archive.map_err(|_| error::source_incomplete("the upload was cut"))?.to_bytes();
            log.report(BuildEvent::StepStarted {
                step: Step::Source,
                detail: format!("{} bytes", archive.len()),
            });
            self.gate.acquire().await.unwrap().forget();
            assert_ne!(&archive[..], b"bug", "as the test wants it");
            Ok(Built { project: ProjectName::parse("shop").unwrap(), functions: Vec::new() })
        })
    }
}

/// A listening builder, and a gateway that it trusts.
struct Site {
    address: SocketAddr,
    running: Running,
    builder: Arc<Scripted>,
    signer: Signer,
    id: VmId,
}

impl Site {
    /// With slots for two builds.
    fn open() -> Self {
        Self::with_head_limit(LIMIT)
    }

    fn with_head_limit(head: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
        let id = VmId::parse("builder-1").unwrap();
        let verifier = Arc::new(Verifier::new(id.clone()));
        verifier.trust(&[signer.key()]);
        let builder = Arc::new(Scripted {
            orders: Mutex::default(),
            at_work: Arc::default(),
            gate: Semaphore::new(0),
        });
        let limits = Limits {
            connections: authenticated_listener::Limits { connections: 8, head, idle: head },
            builds: 2,
            archive: units::Bytes(1000),
        };
        let any = "127.0.0.1:0".parse().unwrap();
        let serving =
            BoundListener::bind(any, None, limits, verifier, Arc::clone(&builder) as _).unwrap();
        let address = serving.address();
        Self { address, running: serving.spawn(), builder, signer, id }
    }

    async fn connect(&self) -> Connection {
        Connection::handshake(TcpStream::connect(self.address).await.unwrap()).await.unwrap()
    }

    fn token(&self) -> String {
        self.signer.token(&self.id, Timestamp::now())
    }

    /// Requests a build. It runs as long as both return values are held.
    async fn ask(&self, archive: CallBody) -> (Connection, Response<Incoming>) {
        self.send(&order().uri(), &self.token(), archive).await
    }

    async fn send(
        &self,
        uri: &str,
        pass: &str,
        archive: CallBody,
    ) -> (Connection, Response<Incoming>) {
        let mut connection = self.connect().await;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("host", "builder")
            .header(headers::GATEWAY_TOKEN, pass)
            .body(archive)
            .unwrap();
        let response = in_time(connection.sender.send_request(request)).await.unwrap();
        (connection, response)
    }

    fn at_work(&self) -> usize {
        self.builder.at_work.load(SeqCst)
    }
}

fn order() -> BuildOrder {
    BuildOrder {
        deployment: DeploymentId::parse("d-0123456789abcdef").unwrap(),
        folder: Some("my shop & café".into()),
        only: vec![FunctionName::parse("pay").unwrap()],
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// All lines of an answer.
async fn messages(response: Response<Incoming>) -> Vec<BuildMessage> {
    assert_eq!(response.status(), 200);
    let text = in_time(response.into_body().collect()).await.unwrap().to_bytes();
    let lines = std::str::from_utf8(&text).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn code(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let text = in_time(response.into_body().collect()).await.unwrap().to_bytes();
    let envelope: ErrorEnvelope = serde_json::from_slice(&text).unwrap();
    (status, envelope.error.code)
}

fn last_code(messages: &[BuildMessage]) -> &str {
    match messages.last() {
        Some(BuildMessage::Failed(error)) => &error.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn build_progress_is_streamed_line_by_line() {
    let site = Site::open();
    let (_connection, response) = site.ask(body::full("archive")).await;
    site.builder.gate.add_permits(1);
    let messages = messages(response).await;
    let step = BuildEvent::StepStarted { step: Step::Source, detail: "7 bytes".into() };
    assert_eq!(messages[0], BuildMessage::Event(step));
    assert!(matches!(messages[1], BuildMessage::Built(_)) && messages.len() == 2, "{messages:?}");
    assert_eq!(*site.builder.orders.lock().unwrap(), [order()]);
}

/// The 200 comes before the archive is read: that lets a gateway choose another builder with all of
/// it.
#[tokio::test]
async fn head_is_sent_before_the_archive_is_read() {
    let site = Site::open();
    let (archive, pieces) = mpsc::channel(1);
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let (_connection, response) = site.ask(body::boxed(StreamBody::new(pieces))).await;
    let piece: Result<_, std::io::Error> = Ok(Frame::data(Bytes::from_static(b"late")));
    archive.send(piece).await.unwrap();
    drop(archive);
    site.builder.gate.add_permits(1);
    assert!(matches!(messages(response).await.last(), Some(BuildMessage::Built(_))));
}

#[tokio::test]
async fn a_gateway_that_hangs_up_cancels_the_build() {
    let site = Site::open();
    for read_archive in [true, false] {
        let (archive, pieces) = mpsc::channel(1);
        let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
        let request = site.ask(body::boxed(StreamBody::new(pieces))).await;
        let piece: Result<_, std::io::Error> = Ok(Frame::data(Bytes::from_static(b"half")));
        archive.send(piece).await.unwrap();
        if read_archive {
            drop(archive);
        }
        eventually("the build begins", || site.at_work() == 1).await;
        drop(request);
        eventually("the build is dropped", || site.at_work() == 0).await;
        eventually("its place is free", || site.running.builds() == 0).await;
    }
}

#[tokio::test]
async fn third_build_is_refused_while_two_run() {
    let site = Site::open();
    let (_one, first) = site.ask(body::full("1")).await;
    let (_two, second) = site.ask(body::full("2")).await;
    eventually("both run", || site.at_work() == 2).await;
    let (_three, third) = site.ask(body::full("3")).await;
    assert_eq!(code(third).await, (503, "BUILDER_BUSY".into()));
    site.builder.gate.add_permits(2);
    for response in [first, second] {
        assert!(matches!(messages(response).await.last(), Some(BuildMessage::Built(_))));
    }
    eventually("the places are free", || site.running.builds() == 0).await;
    site.builder.gate.add_permits(1);
    let (_four, fourth) = site.ask(body::full("4")).await;
    assert!(matches!(messages(fourth).await.last(), Some(BuildMessage::Built(_))));
}

#[tokio::test]
async fn without_a_good_token_nothing_is_answered() {
    let site = Site::open();
    let folder = tempfile::tempdir().unwrap();
    let stranger = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
    let other = VmId::parse("builder-2").unwrap();
    for pass in [
        String::new(),
        "eps1.x".into(),
        stranger.token(&site.id, Timestamp::now()),
        site.signer.token(&other, Timestamp::now()),
    ] {
        for uri in [order().uri().as_str(), "/", "/metrics"] {
            let (_connection, response) = site.send(uri, &pass, body::full("archive")).await;
            assert_eq!(response.status(), 401, "{pass} {uri}");
            let empty = ["connection", "content-length", "date"];
            assert!(response.headers().keys().all(|name| empty.contains(&name.as_str())));
            assert!(in_time(response.collect()).await.unwrap().to_bytes().is_empty());
        }
    }
    assert!(site.builder.orders.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_build_is_refused_before_its_body() {
    let site = Site::open();
    for (uri, archive, want) in [
        ("/v1/build".to_owned(), 1, (404, "NOT_FOUND")),
        ("/v1/builds".to_owned(), 1, (400, "INVALID_PARAMETER")),
        ("/v1/builds?deployment=1".to_owned(), 1, (400, "INVALID_PARAMETER")),
        (order().uri(), 1001, (413, "SOURCE_TOO_LARGE")),
    ] {
        let archive = body::full(vec![0; archive]);
        let (_connection, response) = site.send(&uri, &site.token(), archive).await;
        assert_eq!(code(response).await, (want.0, want.1.into()), "{uri}");
    }
    assert_eq!(site.running.builds(), 0);
}

#[tokio::test]
async fn panic_in_a_build_is_reported_and_isolated() {
    let site = Site::open();
    site.builder.gate.add_permits(2);
    let (_connection, response) = site.ask(body::full("bug")).await;
    assert_eq!(last_code(&messages(response).await), "INTERNAL");
    let (_connection, response) = site.ask(body::full("fine")).await;
    assert!(matches!(messages(response).await.last(), Some(BuildMessage::Built(_))));
}

#[tokio::test]
async fn shutdown_refuses_new_builds_and_waits_for_running() {
    let site = Site::open();
    let (_connection, response) = site.ask(body::full("1")).await;
    eventually("it runs", || site.at_work() == 1).await;
    let Site { address, running, builder, .. } = site;
    let draining = tokio::spawn(running.drain(LIMIT));
    let began = Instant::now();
    while TcpStream::connect(address).await.is_ok() {
        assert!(began.elapsed() < LIMIT, "the listener stays open");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    builder.gate.add_permits(1);
    assert!(matches!(messages(response).await.last(), Some(BuildMessage::Built(_))));
    assert_eq!(in_time(draining).await.unwrap(), 0);
}

#[tokio::test]
async fn a_grace_that_is_over_cuts_and_says_so() {
    let site = Site::open();
    let (_connection, response) = site.ask(body::full("1")).await;
    eventually("it runs", || site.at_work() == 1).await;
    let Site { running, builder, .. } = site;
    let draining = tokio::spawn(running.drain(Duration::ZERO));
    assert_eq!(last_code(&messages(response).await), "BUILDER_STOPPED");
    assert_eq!(in_time(draining).await.unwrap(), 1);
    assert_eq!(builder.at_work.load(SeqCst), 0);
}

/// Neither a silent connection nor half a head may occupy a slot for ever.
#[tokio::test]
async fn silent_connections_are_closed() {
    let site = Site::with_head_limit(Duration::from_millis(50));
    for said in ["", "POST /v1/builds HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        in_time(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("200"), "{said}");
    }
}

#[tokio::test]
async fn the_status_has_version_and_builds() {
    let site = Site::open();
    let _build = site.ask(body::full("archive")).await;
    eventually("a build", || site.at_work() == 1).await;
    let mut connection = site.connect().await;
    let request = Request::get(STATUS_PATH).header("host", "builder");
    let request = request.header(headers::GATEWAY_TOKEN, site.token()).body(body::empty()).unwrap();
    let response = in_time(connection.sender.send_request(request)).await.unwrap();
    let text = in_time(response.into_body().collect()).await.unwrap().to_bytes();
    let status: BuilderStatus = serde_json::from_slice(&text).unwrap();
    assert_eq!(status, BuilderStatus { version: env!("CARGO_PKG_VERSION").into(), builds: 1 });
}
