//! The authenticated listener over real sockets: who is served, what others see, when a connection
//! ends.

use super::*;
use crate::connection::Connection;
use crate::gateway_token::Signer;
use epsilon_api::ids::VmId;
use http::HeaderMap;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use std::convert::Infallible;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Upper bound for anything that has to happen.
const LIMIT: Duration = Duration::from_secs(10);

struct Site {
    address: SocketAddr,
    signer: Signer,
    shutdown: Shutdown,
}

impl Site {
    /// A listener whose handler echoes, or does what the path says.
    fn open(limits: Limits) -> Self {
        Self::open_with(None, limits)
    }

    fn open_with(tls: Option<tls::Server>, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::load_or_create(&folder.path().join("gateway.key")).unwrap();
        let verifier = Arc::new(Verifier::new(member()));
        verifier.trust(&[signer.key()]);
        let shutdown = Shutdown::default();
        let listener = AuthenticatedListener::bind(
            "127.0.0.1:0".parse().unwrap(),
            tls,
            limits,
            shutdown.clone(),
        )
        .unwrap();
        let address = listener.address();
        shutdown.tasks.spawn(listener.serve(verifier, |request, interim| async move {
            match request.uri().path() {
                "/hints" => {
                    let link = HeaderValue::from_static("</s.css>");
                    let hints = HeaderMap::from_iter([(header::LINK, link)]);
                    interim.interim(StatusCode::EARLY_HINTS, hints);
                    std::future::pending().await
                }
                "/stuck" => std::future::pending().await,
                "/tunnel" => {
                    let mut request = request;
                    let tunnel = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        let _held = tunnel.await.unwrap();
                        std::future::pending::<()>().await;
                    });
                    let mut response = Response::new(body::empty());
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("x"));
                    response
                }
                "/endless" => {
                    let piece =
                        || Ok::<_, Infallible>(hyper::body::Frame::data(vec![0; 1 << 16].into()));
                    let pieces = futures_util::stream::repeat_with(piece);
                    let mut response = Response::new(body::boxed(StreamBody::new(pieces)));
                    response.extensions_mut().insert(AnswerWithin(Duration::from_millis(50)));
                    response
                }
                _ => Response::new(body::boxed(request.into_body())),
            }
        }));
        Self { address, signer, shutdown }
    }

    fn token(&self) -> String {
        self.signer.token(&member(), Timestamp::now())
    }

    async fn connect(&self) -> Connection {
        Connection::handshake(TcpStream::connect(self.address).await.unwrap()).await.unwrap()
    }

    fn request(&self, path: &str, body: CallBody) -> Request<CallBody> {
        let request = Request::builder().uri(path).header("host", "x");
        request.header(headers::GATEWAY_TOKEN, self.token()).body(body).unwrap()
    }

    /// Everything that the listener sends until it closes the connection.
    async fn raw(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(LIMIT, stream.read_to_end(&mut answer)).await;
        read.expect("the listener ends the connection").unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn member() -> VmId {
    VmId::parse("vm-1").unwrap()
}

fn limits() -> Limits {
    Limits { connections: 100, head: LIMIT, idle: LIMIT }
}

#[tokio::test]
async fn a_gateway_gets_in_and_keeps_its_connection() {
    let site = Site::open(limits());
    let mut connection = site.connect().await;
    for text in ["one", "two"] {
        let request = site.request("/echo", body::full(text));
        let response = connection.sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
    }
}

/// A call that became a tunnel may live for hours; it is limited as a call, not as a connection.
#[tokio::test]
async fn a_tunnel_leaves_its_slot_to_the_next_connection() {
    let site = Site::open(Limits { connections: 1, ..limits() });
    let token = site.token();
    let mut tunnel = TcpStream::connect(site.address).await.unwrap();
    let text = format!(
        "GET /tunnel HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\nx-epsilon-pass: {token}\r\n\r\n"
    );
    tunnel.write_all(text.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    timeout(LIMIT, tunnel.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let mut next = site.connect().await;
    let request = site.request("/echo", body::full("served"));
    let response = timeout(LIMIT, next.sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn without_a_token_the_listener_reveals_nothing() {
    let site = Site::open(limits());
    let good = site.token();
    let last = if good.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{last}", &good[..good.len() - 1]);
    for token in [String::new(), format!("x-epsilon-pass: {forged}\r\n")] {
        let answer = site
            .raw(&format!("POST /v1/drain HTTP/1.1\r\nhost: x\r\n{token}content-length: 9\r\n\r\n"))
            .await;
        let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(
                "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\ndate: "
            ),
            "{head}"
        );
        assert_eq!(rest, "");
    }
    let health = site.raw("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(
        health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nok\n"),
        "{health}"
    );
}

#[tokio::test]
async fn what_is_no_request_gets_a_bare_status() {
    let site = Site::open(limits());
    let fields = "a: b\r\n".repeat(MAX_HEADERS + GATEWAY_HEADERS + 1);
    let large = format!("GET /echo HTTP/1.1\r\n{fields}\r\n");
    for (bytes, status) in [("nonsense\r\n\r\n", "400 Bad Request"), (&large, "431 Request")] {
        let answer = site.raw(bytes).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.ends_with("connection: close\r\n\r\n"), "{answer}");
    }
}

/// The first parser refuses them, the second one takes them.
#[tokio::test]
async fn many_fields_pass() {
    let site = Site::open(limits());
    let mut connection = site.connect().await;
    let mut request = site.request("/echo", body::full("one"));
    for _ in 0..500 {
        request.headers_mut().append("cookie", HeaderValue::from_static("a=b"));
    }
    let response = connection.sender.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "one");
}

#[tokio::test]
async fn incomplete_head_is_closed_at_its_limit() {
    let site = Site::open(Limits { head: Duration::from_millis(50), ..limits() });
    assert_eq!(site.raw("").await, "");
    assert_eq!(site.raw("GET /echo HTTP/1.1\r\nhost:").await, "");
}

#[tokio::test]
async fn idle_connection_outlives_head_limit_then_ends() {
    let (head, idle) = (Duration::from_millis(20), Duration::from_millis(200));
    let site = Site::open(Limits { head, idle, ..limits() });
    let mut connection = site.connect().await;
    let ask = |text| site.request("/echo", body::full(text));
    let response = connection.sender.send_request(ask("x")).await.unwrap();
    response.into_body().collect().await.unwrap();
    let since = std::time::Instant::now();
    timeout(LIMIT, async {
        while !connection.sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    assert!(since.elapsed() >= idle - head, "{:?}", since.elapsed());
}

#[tokio::test]
async fn running_request_has_no_time_limit() {
    let site = Site::open(Limits {
        head: Duration::from_millis(20),
        idle: Duration::from_millis(20),
        ..limits()
    });
    let mut connection = site.connect().await;
    let request = site.request("/stuck", body::empty());
    let answer = timeout(Duration::from_millis(200), connection.sender.send_request(request)).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn unread_answer_is_cut_at_its_limit() {
    let site = Site::open(Limits { head: Duration::from_millis(20), ..limits() });
    let mut connection = site.connect().await;
    let request = site.request("/endless", body::empty());
    let response = connection.sender.send_request(request).await.unwrap();
    site.shutdown.close.cancel();
    site.shutdown.tasks.close();
    // Its body is held but not read.
    timeout(LIMIT, site.shutdown.tasks.wait()).await.expect("the connection ends");
    drop(response);
}

#[tokio::test]
async fn closing_finishes_requests_and_refuses_new_connections() {
    let site = Site::open(limits());
    let mut connection = site.connect().await;
    let request = site.request("/stuck", body::empty());
    let stuck = tokio::spawn(async move { connection.sender.send_request(request).await });
    let mut idle = site.connect().await;
    idle.sender.ready().await.unwrap();
    site.shutdown.close.cancel();
    site.shutdown.tasks.close();
    timeout(LIMIT, async {
        while !idle.sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("idle connections end");
    assert!(!stuck.is_finished());
    site.shutdown.cut.cancel();
    assert!(timeout(LIMIT, stuck).await.unwrap().unwrap().is_err());
    assert!(TcpStream::connect(site.address).await.is_err());
}

#[tokio::test]
async fn tls_listener_refuses_plain_connections() {
    let fleet = crate::tls::tests::Authority::new();
    let files = fleet.files("127.0.0.1");
    let site = Site::open_with(Some(files.server().unwrap()), limits());
    let stream = TcpStream::connect(site.address).await.unwrap();
    let stream = files.client().unwrap().connect("127.0.0.1", stream).await.unwrap();
    let mut connection = Connection::handshake(stream).await.unwrap();
    let request = site.request("/echo", body::full("sealed"));
    let response = connection.sender.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "sealed");

    let mut plain = site.connect().await;
    let request = site.request("/echo", body::full("open"));
    assert!(timeout(LIMIT, plain.sender.send_request(request)).await.unwrap().is_err());
}

#[tokio::test]
async fn who_does_not_finish_a_handshake_is_let_go() {
    let fleet = crate::tls::tests::Authority::new();
    let files = fleet.files("127.0.0.1");
    let limits = Limits { head: Duration::from_millis(50), ..limits() };
    let site = Site::open_with(Some(files.server().unwrap()), limits);
    assert_eq!(site.raw("").await, "");
}

/// Written before the answer, to a gateway whose connection is driven by a task.
#[tokio::test]
async fn interim_answers_go_out_before_the_answer() {
    let site = Site::open(limits());
    let mut connection = site.connect().await;
    let (hints, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let request = site.request("/hints", body::empty());
    let waiting = tokio::spawn(async move {
        let on_interim = |status, headers: HeaderMap| {
            let _ = hints.send((status, headers["link"].clone()));
        };
        drop(connection.send_unlimited(request, on_interim).await);
    });
    let hint = timeout(LIMIT, seen.recv()).await.unwrap().unwrap();
    assert_eq!(hint, (StatusCode::EARLY_HINTS, HeaderValue::from_static("</s.css>")));
    waiting.abort();
}
