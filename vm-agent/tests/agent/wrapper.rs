//! A runtime wrapper in a task: the contract of `wrapper-image`, with a handler whose path says
//! what it does.

use bytes::Bytes;
use epsilon_api::{body, body::CallBody, headers};
use epsilon_vm_agent::engine::fake::{Process, Program};
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

/// What happens when the code is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Works,
    /// Only once the gate opens.
    Gated,
    Throws,
    Hangs,
    Exits,
    /// Then the process ends.
    WorksThenExits,
    /// Logs SIGTERM, and ends once the gate opens.
    CleansUp,
}

/// All wrappers of one image, and their state for the test.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) load: Load,
    /// `/gate` takes a permit of it before it answers; so does [`Load::Gated`].
    pub(crate) gate: Semaphore,
    pub(crate) calls: AtomicUsize,
    /// How often the agent requested its health.
    pub(crate) health: AtomicUsize,
    pub(crate) starts: AtomicUsize,
    pub(crate) connections: AtomicUsize,
    /// Calls that run now, over all instances, and the maximum in any one instance.
    pub(crate) running: AtomicU32,
    pub(crate) most_in_one: AtomicU32,
}

impl Image {
    pub(crate) fn new(load: Load) -> Arc<Self> {
        Arc::new(Self {
            load,
            gate: Semaphore::new(0),
            calls: AtomicUsize::new(0),
            health: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            running: AtomicU32::new(0),
            most_in_one: AtomicU32::new(0),
        })
    }

    pub(crate) fn program(self: &Arc<Self>) -> Program {
        let image = Arc::clone(self);
        Arc::new(move |process| Box::pin(run(Arc::clone(&image), process)))
    }
}

/// One container.
struct Wrapper {
    image: Arc<Image>,
    process: Process,
    active: AtomicU32,
    /// Ids of the calls whose handler has not ended.
    calls: Mutex<Vec<String>>,
    /// The agent's connection for reports of calls that outlast their answers.
    unsettled: Mutex<Option<Unsettled>>,
    exit: watch::Sender<Option<i64>>,
    state: watch::Sender<&'static str>,
}

async fn run(image: Arc<Image>, process: Process) -> i64 {
    image.starts.fetch_add(1, Ordering::SeqCst);
    let folder = process.spec.sockets.clone().expect("a Node function has sockets");
    let control = UnixListener::bind(folder.join("control.sock")).unwrap();
    let image_load = image.load;
    let image_handle = Arc::clone(&image);
    let process_handle = process.clone();
    let wrapper = Arc::new(Wrapper {
        image,
        process,
        active: AtomicU32::new(0),
        calls: Mutex::default(),
        unsettled: Mutex::default(),
        exit: watch::Sender::new(None),
        state: watch::Sender::new("waiting"),
    });
    let mut exit = wrapper.exit.subscribe();
    let exit_handle = wrapper.exit.clone();
    let mut state = wrapper.state.subscribe();
    let mut tasks = JoinSet::new();
    let control_wrapper = Arc::clone(&wrapper);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = control.accept().await.unwrap();
            let wrapper = Arc::clone(&control_wrapper);
            connections.spawn(async move {
                let service =
                    service_fn(move |request| answer_control(Arc::clone(&wrapper), request));
                let server = hyper::server::conn::http1::Builder::new();
                let connection = server.serve_connection(TokioIo::new(stream), service);
                drop(connection.with_upgrades().await);
            });
        }
    });
    tasks.spawn(async move {
        state.wait_for(|state| *state == "loading").await.unwrap();
        let calls = UnixListener::bind(folder.join("calls.sock")).unwrap();
        wrapper.state.send_replace("ready");
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = calls.accept().await.unwrap();
            wrapper.image.connections.fetch_add(1, Ordering::SeqCst);
            let wrapper = Arc::clone(&wrapper);
            connections.spawn(async move {
                let service = service_fn(move |request| answer_call(Arc::clone(&wrapper), request));
                let server = hyper::server::conn::http1::Builder::new();
                let connection = server.serve_connection(TokioIo::new(stream), service);
                drop(connection.with_upgrades().await);
            });
        }
    });
    if image_load == Load::CleansUp {
        let mut sigterm = process_handle.on_sigterm();
        let image = Arc::clone(&image_handle);
        let exit = exit_handle.clone();
        tasks.spawn(async move {
            sigterm.wait_for(|came| *came).await.unwrap();
            process_handle.print("sigterm\n");
            image.gate.acquire().await.unwrap().forget();
            process_handle.print("cleanup done\n");
            exit.send_replace(Some(0));
        });
    }
    let code = exit.wait_for(Option::is_some).await.unwrap().unwrap();
    drop(tasks);
    code
}

type Answer = Result<Response<CallBody>, Infallible>;

fn json(status: u16, text: impl Into<Bytes>) -> Answer {
    Ok(Response::builder().status(status).body(body::full(text)).unwrap())
}

/// A line, and the waiter for its write.
type Unsettled = mpsc::UnboundedSender<(String, oneshot::Sender<()>)>;

async fn answer_control(wrapper: Arc<Wrapper>, mut request: Request<Incoming>) -> Answer {
    if request.uri().path() == "/health" {
        wrapper.image.health.fetch_add(1, Ordering::SeqCst);
        let state = *wrapper.state.borrow();
        let active = wrapper.active.load(Ordering::SeqCst);
        let calls = wrapper.calls.lock().clone();
        let data = serde_json::json!({"data": {"state": state, "active": active, "calls": calls}});
        return json(200, data.to_string());
    }
    if request.uri().path() == "/unsettled" {
        let upgrade = hyper::upgrade::on(&mut request);
        let (to, mut lines) = mpsc::unbounded_channel::<(String, oneshot::Sender<()>)>();
        *wrapper.unsettled.lock() = Some(to);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            while let Some((line, written)) = lines.recv().await {
                stream.write_all(line.as_bytes()).await.unwrap();
                let _gone = written.send(());
            }
        });
        let answer = Response::builder().status(101).header(header::CONNECTION, "upgrade");
        return Ok(answer.header(header::UPGRADE, "unsettled").body(body::empty()).unwrap());
    }
    let init: serde_json::Value =
        serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(init["root"], "/app");
    assert_eq!(init["instance"], wrapper.process.spec.labels.instance.as_str());
    match wrapper.image.load {
        Load::Works | Load::WorksThenExits | Load::CleansUp => {}
        Load::Gated => wrapper.image.gate.acquire().await.unwrap().forget(),
        Load::Throws => {
            let text = r#"{"error":{"code":"FUNCTION_INIT_FAILED","message":"no such thing","stack":"Error: no such thing\n    at /app/index.js:1"}}"#;
            return json(422, text);
        }
        Load::Hangs => pending().await,
        Load::Exits => {
            wrapper.process.print_error("giving up\n");
            wrapper.exit.send_replace(Some(3));
            pending::<()>().await;
        }
    }
    let mut state = wrapper.state.subscribe();
    wrapper.state.send_replace("loading");
    state.wait_for(|state| *state == "ready").await.unwrap();
    if wrapper.image.load == Load::WorksThenExits {
        let exit = wrapper.exit.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            exit.send_replace(Some(7));
        });
    }
    json(200, r#"{"data":{"signature":"express","load_ms":1.0}}"#)
}

/// Counts a handler that has not ended.
struct Active(Arc<Wrapper>, String);

impl Active {
    fn begin(wrapper: &Arc<Wrapper>, request: &Request<Incoming>) -> Self {
        let id = request.headers()[headers::REQUEST_ID].to_str().unwrap().to_owned();
        wrapper.calls.lock().push(id.clone());
        let now = wrapper.active.fetch_add(1, Ordering::SeqCst) + 1;
        wrapper.image.most_in_one.fetch_max(now, Ordering::SeqCst);
        wrapper.image.running.fetch_add(1, Ordering::SeqCst);
        wrapper.image.calls.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(wrapper), id)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
        self.0.calls.lock().retain(|id| *id != self.1);
        self.0.image.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer_call(wrapper: Arc<Wrapper>, mut request: Request<Incoming>) -> Answer {
    let active = Active::begin(&wrapper, &request);
    let id = wrapper.process.spec.labels.instance.clone();
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/echo" => {
            let body = request.into_body().map_frame(move |frame| {
                let _still = &active;
                frame
            });
            Ok(Response::new(body::boxed(body)))
        }
        "/headers" => {
            let of = |name| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
            json(200, format!("{} {}", of(&headers::REQUEST_ID), of(&headers::DEADLINE_MS)))
        }
        "/header-names" => {
            let mut names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
            names.sort();
            json(200, names.join(" "))
        }
        // It sends a header that only the agent may send.
        "/forge" => {
            let answer = Response::builder().header(headers::REFUSAL, "1");
            Ok(answer.header(headers::SPENT, "1;1").body(body::full("forged")).unwrap())
        }
        "/gate" => {
            wrapper.image.gate.acquire().await.unwrap().forget();
            json(200, id.to_string())
        }
        // Its handler runs on after its answer, until the gate opens.
        "/after" => {
            let (written, is_written) = oneshot::channel();
            let line = format!("{}\n", active.1);
            let unsettled = wrapper.unsettled.lock().clone().expect("the agent requested it");
            unsettled.send((line, written)).unwrap();
            is_written.await.unwrap();
            tokio::spawn(async move {
                wrapper.image.gate.acquire().await.unwrap().forget();
                drop(active);
            });
            json(200, id.to_string())
        }
        // Its code runs forever, whether or not the connection is open.
        "/forever" => {
            std::mem::forget(active);
            pending().await
        }
        // Its code ends when the connection closes.
        "/while-listened-to" => {
            if request.into_body().collect().await.is_err() {
                return json(400, "the body broke off");
            }
            pending().await
        }
        "/crash" => {
            wrapper.exit.send_replace(Some(9));
            pending().await
        }
        "/hang-up" => {
            // The head of an answer promises more bytes than are sent.
            let cut = stream::iter([Err(std::io::Error::other("hangs up"))]);
            let frames = cut.map(|piece: Result<Bytes, _>| piece.map(Frame::data));
            Ok(Response::new(body::boxed(StreamBody::new(frames))))
        }
        "/crash-midway" => {
            let frames = stream::once(async { Ok(Frame::data(Bytes::from("first"))) }).chain(
                stream::once(async move {
                    // Long enough for the first piece to be sent.
                    wrapper.image.gate.acquire().await.unwrap().forget();
                    wrapper.exit.send_replace(Some(9));
                    pending::<Result<Frame<Bytes>, Infallible>>().await
                }),
            );
            Ok(Response::new(body::boxed(StreamBody::new(frames))))
        }
        // Two pieces, the second once the gate opens.
        "/stream" => {
            let frames = stream::once(async { Ok(Frame::data(Bytes::from("first "))) }).chain(
                stream::once(async move {
                    wrapper.image.gate.acquire().await.unwrap().forget();
                    drop(active);
                    Ok::<_, Infallible>(Frame::data(Bytes::from("second")))
                }),
            );
            Ok(Response::new(body::boxed(StreamBody::new(frames))))
        }
        "/throw" => {
            let answer = Response::builder().status(500).header(headers::OUTCOME, "threw");
            Ok(answer.body(body::full("the stack")).unwrap())
        }
        "/log" => {
            wrapper.process.print(&format!(
                "raw line\n\u{1e}{{\"time\":\"2026-01-01T00:00:00Z\",\"level\":\"warn\",\"request_id\":\"{}\",\"message\":\"said\"}}\n",
                request.headers()[headers::REQUEST_ID].to_str().unwrap()
            ));
            json(200, "logged")
        }
        // Faster than anyone can read, let alone store.
        "/flood" => {
            let lines: String = (0..2000).map(|n| format!("flood {n}\n")).collect();
            for _ in 0..50 {
                wrapper.process.print(&lines);
                tokio::task::yield_now().await;
            }
            json(200, id.to_string())
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut piece = [0; 5];
                while stream.read_exact(&mut piece).await.is_ok() {
                    stream.write_all(&piece).await.unwrap();
                }
                drop(active);
            });
            let answer = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "echo");
            Ok(answer.body(body::empty()).unwrap())
        }
        _ => json(200, id.to_string()),
    }
}
