//! A builder in a fleet: it joins a scripted gateway and builds a real project that arrives at its
//! listener; nothing is left after a gateway hung up.

use super::lab::{Lab, archive, docker, until};
use epsilon_api::{
    body::{self, CallBody},
    build::{BuildEvent, BuildMessage, BuildOrder, Built},
    fleet::{Join, Joined, MemberKind, Welcome},
    headers,
    ids::DeploymentId,
    redacted::Secret,
};
use epsilon_builder::member::Member;
use epsilon_fleet_link::connection::Connection;
use epsilon_fleet_link::gateway_token::Signer;
use http::{Method, Request, Response, header::AUTHORIZATION};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use prometheus::Registry;
use std::{
    convert::Infallible,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const GRACE: Duration = Duration::from_secs(30);

/// A gateway's control listener, as far as members use it, and the gateway's key.
struct Gateway {
    url: String,
    folder: TempDir,
    signer: Signer,
    /// `join`, `beat` and `leave`, each with its key.
    received: Arc<Mutex<Vec<(String, String)>>>,
    joined: Arc<Mutex<Option<Join>>>,
}

impl Gateway {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("fleet.token"), "the-token\n").unwrap();
        let signer = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (received, joined) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<_>>::default());
        let gateway = Self {
            url,
            folder,
            received: Arc::clone(&received),
            joined: Arc::clone(&joined),
            signer,
        };
        let welcome = Welcome { gateways: vec![gateway.signer.key()], now: None };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (received, joined) = (Arc::clone(&received), Arc::clone(&joined));
                let welcome = welcome.clone();
                let service = service_fn(move |request| {
                    answer(request, Arc::clone(&received), Arc::clone(&joined), welcome.clone())
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        gateway
    }

    /// Settings of a builder that joins here.
    fn settings(&self) -> String {
        let token = self.folder.path().join("fleet.token");
        let url = &self.url;
        format!("{{gateways: '{url}', token_file: '{}', listen: '127.0.0.1:0'}}", token.display())
    }

    /// Sends a project to the builder that joined.
    async fn ask(&self, files: &[(&str, &str)]) -> (Connection, Response<Incoming>) {
        let join = self.joined.lock().unwrap().clone().unwrap();
        let stream = TcpStream::connect(&join.address).await.unwrap();
        let mut connection = Connection::handshake(stream).await.unwrap();
        let order = BuildOrder {
            deployment: DeploymentId::random(),
            folder: Some("lab".into()),
            only: Vec::new(),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(order.uri())
            .header("host", &join.address)
            .header(headers::GATEWAY_TOKEN, self.signer.token(&join.id, Timestamp::now()))
            .body(body::full(archive(files)))
            .unwrap();
        let response = connection.sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        (connection, response)
    }

    fn received(&self) -> Vec<(String, String)> {
        self.received.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<(String, String)>>>,
    joined: Arc<Mutex<Option<Join>>>,
    welcome: Welcome,
) -> Result<Response<CallBody>, Infallible> {
    let verb = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let key = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
    let text = request.into_body().collect().await.unwrap().to_bytes();
    let text = match &*verb {
        "join" => {
            *joined.lock().unwrap() = Some(serde_json::from_slice(&text).unwrap());
            let credential = Secret::new("its-own".to_owned());
            serde_json::json!({"data": Joined { credential, welcome }}).to_string()
        }
        "beat" => serde_json::json!({ "data": welcome }).to_string(),
        _ => String::new(),
    };
    received.lock().unwrap().push((verb, key));
    Ok(Response::new(body::full(text)))
}

/// The events of a build and its result.
async fn built(response: Response<Incoming>) -> (Vec<BuildEvent>, Built) {
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let mut events = Vec::new();
    for line in std::str::from_utf8(&text).unwrap().lines() {
        match serde_json::from_str(line).unwrap() {
            BuildMessage::Event(event) => events.push(event),
            BuildMessage::Built(built) => return (events, built),
            BuildMessage::Alive => {}
            BuildMessage::Failed(error) => panic!("{error:?}"),
        }
    }
    panic!("no final message: {events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_builder_builds_for_its_gateway() {
    let gateway = Gateway::open().await;
    let lab = Lab::with(&gateway.settings()).await;
    let member = Member::build(lab.member(), lab.app(), &Registry::new()).unwrap();
    let (id, mut running) = (member.id().clone(), member.spawn());
    let reached = running.joined().await;
    let join = gateway.joined.lock().unwrap().clone().unwrap();
    assert_eq!((join.kind, &join.id, &join.address), (MemberKind::Builder, &id, &reached));
    assert_eq!(id.as_str(), format!("builder-{}", lab.id()));

    let project = [
        ("epsilon.yaml", "project: lab-member\nfunctions: { hello: { idempotent: true } }\n"),
        ("index.js", "exports.hello = (req, res) => res.send('hi');\n"),
    ];
    let (_connection, response) = gateway.ask(&project).await;
    let (events, built) = built(response).await;
    lab.owns(&built);
    assert!(events.iter().any(|event| matches!(event, BuildEvent::StepDone { .. })), "{events:?}");
    let function = &built.functions[0];
    assert!(function.spec.idempotent);
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", &function.image.reference]);
    assert_eq!(id, function.image.digest);

    assert_eq!(running.drain(GRACE).await, 0);
    let received = gateway.received();
    assert_eq!(received.first().unwrap(), &("join".to_owned(), "Bearer the-token".to_owned()));
    assert_eq!(received.last().unwrap(), &("leave".to_owned(), "Bearer its-own".to_owned()));
    assert!(TcpStream::connect(&reached).await.is_err(), "the listener stays open");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_hangs_up_leaves_no_container() {
    let gateway = Gateway::open().await;
    let lab = Lab::with(&gateway.settings()).await;
    let mut running = Member::build(lab.member(), lab.app(), &Registry::new()).unwrap().spawn();
    running.joined().await;
    let project = [
        ("epsilon.yaml", "project: lab-hung-up\n"),
        ("index.js", "while (true) {}\n"), // inspected until the limit
    ];
    let request = gateway.ask(&project).await;
    until("the look begins", || async { !lab.left().is_empty() }).await;
    drop(request);
    until("nothing is left", || async { lab.is_clean() }).await;
    assert_eq!(running.drain(GRACE).await, 0);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builders_metrics_are_read_where_the_settings_say() {
    let gateway = Gateway::open().await;
    let key = gateway.folder.path().join("metrics.key");
    fs::write(&key, "of-the-collector\n").unwrap();
    let settings = gateway.settings();
    let settings = settings.trim_end_matches('}');
    let settings =
        format!("{settings}, metrics: '127.0.0.1:0', metrics_key_file: '{}'}}", key.display());
    let lab = Lab::with(&settings).await;
    let registry = Registry::new();
    registry.register(Box::new(prometheus::IntGauge::new("epsilon_one", "1.").unwrap())).unwrap();
    let member = Member::build(lab.member(), lab.app(), &registry).unwrap();
    let address = member.metrics_address().unwrap();
    let running = member.spawn();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("200 OK") && text.contains("epsilon_one 0"), "{text}");
    assert_eq!(running.drain(GRACE).await, 0);
    assert!(TcpStream::connect(address).await.is_err());
    lab.end().await;
}
