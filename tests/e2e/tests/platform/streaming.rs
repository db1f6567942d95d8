//! Bodies stream both ways, server-sent events and WebSockets pass through, and a caller that
//! disconnects frees its slot.

use crate::up;
use bytes::Bytes;
use epsilon_e2e::{
    http::Call,
    project,
    up::Epsilon,
    wait::{SOON, until, within},
    websocket::WebSocket,
    wire::Wire,
};
use futures_util::stream;
use http::Method;
use tokio::sync::{OnceCell, mpsc};

async fn streams() -> &'static Epsilon {
    static READY: OnceCell<()> = OnceCell::const_new();
    let up = up().await;
    READY
        .get_or_init(|| async {
            up.deploy(&project!("streams", {
                "package.json" => r#"{ "type": "module", "dependencies": { "ws": "^8.0.0" } }"#,
                "index.js" => STREAMS,
            }))
            .await;
        })
        .await;
    up
}

const STREAMS: &str = r#"
import { WebSocketServer } from "ws";

const config = { memory: "128MiB", maxInstances: 1, timeout: 15_000 };

// One event, then the next one only after the other end requested it by `/next`.
let next;
export const events = {
  config: { ...config, concurrency: 10 },
  func: async (req, res) => {
    if (req.path === "/next") { next(); return res.send("ok"); }
    res.set("content-type", "text/event-stream");
    res.write("data: one\n\n");
    await new Promise((resolve) => { next = resolve; });
    res.end("data: two\n\n");
  },
};

// Answers with each piece of the body as it comes.
export const mirror = { config, fetch: (request) => new Response(request.body) };

// Two functions that send without end.
const endless = (req, res) => {
  if (req.path === "/well") return res.send("well");
  const piece = Buffer.alloc(65536, "x");
  const more = () => { while (!res.destroyed && res.write(piece)); };
  res.on("drain", more);
  more();
};
export const flood = { config, func: endless };
export const tap = { config, func: endless };

// Reads its body to the end, however long that takes.
export const swallow = {
  config,
  parseBody: false,
  func: async (req, res) => {
    let bytes = 0;
    for await (const piece of req) bytes += piece.length;
    res.json({ bytes });
  },
};

const sockets = new WebSocketServer({ noServer: true });
export const chat = {
  config: { ...config, concurrency: 10 },
  func: (req, res) => res.status(426).send("speak WebSocket"),
  upgrade: (req, socket, head) => sockets.handleUpgrade(req, socket, head, (socket) => {
    socket.on("message", (data) => socket.send(`echo ${data}`));
  }),
};
"#;

#[tokio::test]
async fn an_event_arrives_before_the_answer_ends() {
    let up = streams().await;
    let mut events = Call::get("/events").open(up.public()).await;
    let kind = events.headers()["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let first = within("the first event", SOON, events.piece()).await.unwrap().unwrap();
    assert_eq!(&first[..], b"data: one\n\n");
    // Only now the function may continue: no part waited for the end of the body.
    up.get("/events/next").await.expect(200);
    let second = within("the second event", SOON, events.piece()).await.unwrap().unwrap();
    assert_eq!(&second[..], b"data: two\n\n");
    assert!(events.piece().await.unwrap().is_none());
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let up = streams().await;
    let (pieces, source) = mpsc::unbounded_channel::<Bytes>();
    let source = stream::unfold(source, |mut source| async move {
        source.recv().await.map(|piece| (piece, source))
    });
    pieces.send(Bytes::from_static(b"ping 0")).unwrap();
    let call = Call::new(Method::POST, "/mirror").stream(source);
    let mut answer = call.open(up.public()).await;
    for n in 1..4 {
        let seen = within("the mirrored piece", SOON, answer.piece()).await.unwrap().unwrap();
        assert_eq!(seen, format!("ping {}", n - 1));
        pieces.send(format!("ping {n}").into()).unwrap();
    }
    drop(pieces);
    assert_eq!(answer.piece().await.unwrap().unwrap(), "ping 3");
    assert!(answer.piece().await.unwrap().is_none());
}

#[tokio::test]
async fn a_function_may_read_its_body_as_a_stream() {
    let up = streams().await;
    let pieces = stream::iter((0..64).map(|_| Bytes::from(vec![7; 65536])));
    let call = Call::new(Method::POST, "/swallow").header("content-type", "video/mp4");
    let answer = call.stream(pieces).send(up.public()).await.expect(200);
    assert_eq!(answer.json()["bytes"], 64 * 65536);
}

#[tokio::test]
async fn websockets_pass_through() {
    let up = streams().await;
    let mut one = WebSocket::connect(up.public(), "/chat/room").await.unwrap();
    let mut two = WebSocket::connect(up.public(), "/chat/room").await.unwrap();
    for n in 0..3 {
        one.send(&format!("a{n}")).await;
        two.send(&format!("b{n}")).await;
        assert_eq!(one.text().await, format!("echo a{n}"));
        assert_eq!(two.text().await, format!("echo b{n}"));
    }
}

#[tokio::test]
async fn a_refused_handshake_is_an_answer_like_any_other() {
    let up = streams().await;
    let head = WebSocket::connect(up.public(), "/flood/well").await.unwrap_err();
    assert!(head.starts_with("HTTP/1.1 200"), "a function without WebSockets just answers: {head}");
    up.get("/chat").await.expect(426);
}

#[tokio::test]
async fn caller_gone_during_upload_frees_the_slot() {
    let up = streams().await;
    for _ in 0..3 {
        let mut wire = Wire::connect(up.public()).await;
        wire.send(
            "POST /swallow HTTP/1.1\r\nhost: a\r\ncontent-type: video/mp4\r\n\
             content-length: 1000000\r\n\r\n",
        )
        .await
        .unwrap();
        // So much that the call starts before all of it has arrived.
        wire.send("x".repeat(300_000)).await.unwrap();
        until("the upload reaches the instance", SOON, async || {
            let busy = up.admin("/v1/vms").await.to_string();
            if busy.contains(r#""state":"busy""#) { Ok(()) } else { Err(busy) }
        })
        .await;
        drop(wire);
    }
    let answer = Call::post("/swallow", "video/mp4", "abc").send(up.public()).await;
    assert_eq!(answer.expect(200).json()["bytes"], 3);
}

#[tokio::test]
async fn caller_gone_during_download_frees_the_slot() {
    let up = streams().await;
    for _ in 0..3 {
        let mut open = Call::get("/flood").open(up.public()).await;
        assert_eq!(open.status(), 200);
        let mut bytes = 0;
        while bytes < 1 << 20 {
            bytes += within("more of the flood", SOON, open.piece()).await.unwrap().unwrap().len();
        }
        drop(open);
    }
    up.get("/flood/well").await.expect(200);
}

#[tokio::test]
async fn slow_reader_applies_backpressure_to_the_function() {
    let up = streams().await;
    let before = resident(up.pid());
    let mut wire = Wire::connect(up.public()).await;
    wire.send("GET /tap HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(wire.head().await.starts_with("HTTP/1.1 200"));
    // Nothing more is read; while other calls go on, the platform must not buffer the flood.
    for _ in 0..200 {
        up.get("/").await.expect(200);
    }
    let grown = resident(up.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the process grew by {grown} bytes");
}

fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
