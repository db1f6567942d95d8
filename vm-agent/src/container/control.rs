//! The agent's own requests to a runtime wrapper, over `control.sock`: load this code, health,
//! warm-up. No byte of a caller is sent here. A cell's connection stays open from its boot to its
//! only load.

use super::sockets::{CONTROL, SocketDir, is_not_listening};
use bytes::Bytes;
use epsilon_api::{
    function::{EventVersion, Signature, Version},
    ids::InstanceId,
};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};
use tokio::{net::UnixStream, time::sleep};

/// Size limit of a wrapper's response: a message and a stack.
const ANSWER_MAX: usize = 1 << 20;
/// Size limit of a health response, which many calls may request at once: a thousand ids.
const HEALTH_MAX: usize = 80 << 10;
/// First pause between two connection attempts; doubled up to [`LONGEST_PAUSE`]. A wrapper needs
/// about 40 ms to listen.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
/// Error code of a wrapper whose code directory is empty.
const NOT_MOUNTED: &str = "NOT_MOUNTED";

/// Body of `POST /init`: the function as the image's `EPSILON_FUNCTION` describes it, with version
/// and instance.
#[derive(Debug, Serialize)]
pub(crate) struct Init<'a> {
    function: &'a str,
    entry: &'a str,
    export: &'a str,
    signature: Signature,
    #[serde(skip_serializing_if = "EventVersion::is_default")]
    event: EventVersion,
    timeout_ms: u64,
    body_limit_bytes: u64,
    concurrency: u32,
    version: u32,
    instance: &'a str,
    env: &'a BTreeMap<String, String>,
    root: &'a str,
}

impl<'a> Init<'a> {
    pub(crate) fn new(version: &'a Version, instance: &'a InstanceId, root: &'a str) -> Self {
        let spec = &version.spec;
        Self {
            function: version.function.as_str(),
            entry: &spec.entry,
            export: &spec.export,
            signature: spec.signature,
            event: spec.event,
            timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
            body_limit_bytes: spec.body_limit().0,
            concurrency: spec.concurrency.get(),
            version: version.number.get(),
            instance: instance.as_str(),
            env: &spec.env,
            root,
        }
    }
}

/// Body of the response to `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Health {
    pub(crate) state: String,
    /// Number of calls whose handler has not ended.
    pub(crate) active: u32,
    /// Their ids. Absent: the wrapper only counts them.
    #[serde(default)]
    pub(crate) calls: Option<Vec<String>>,
}

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The wrapper does not listen (yet, or any more). Nothing was sent.
    #[error("the wrapper does not listen")]
    NotListening(#[source] io::Error),
    /// The connection broke, or the response cannot be parsed.
    #[error("the wrapper did not answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The code threw while loading, or its export is missing.
    #[error("{message}")]
    Failed { message: String, stack: Option<String> },
    /// The directory where the code was expected is empty.
    #[error("the wrapper sees no code")]
    NotMounted,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Failure {
    error: FailureBody,
}

#[derive(Deserialize)]
struct FailureBody {
    #[serde(default)]
    code: String,
    message: String,
    #[serde(default)]
    stack: Option<String>,
}

/// Requests the wrapper's health, over a connection of its own.
pub(crate) async fn health(folder: &SocketDir) -> Result<Health, ControlError> {
    let mut control = ControlConnection::open(folder).await?;
    let (_, answer) = control.request(Method::GET, "/health", Vec::new(), HEALTH_MAX).await?;
    let health: Data<Health> =
        serde_json::from_slice(&answer).map_err(|err| ControlError::NoAnswer(err.into()))?;
    Ok(health.data)
}

/// A connection to a wrapper's control socket. It is driven only while a request is under way.
pub(crate) struct ControlConnection {
    sender: SendRequest<Full<Bytes>>,
    /// The same socket, for `poll`.
    socket: OwnedFd,
    /// `None` once it broke.
    connection: Option<Connection<TokioIo<UnixStream>, Full<Bytes>>>,
}

impl ControlConnection {
    pub(crate) async fn open(folder: &SocketDir) -> Result<Self, ControlError> {
        let stream = folder.connect(CONTROL).await.map_err(|err| {
            if is_not_listening(&err) {
                ControlError::NotListening(err)
            } else {
                ControlError::NoAnswer(err.into())
            }
        })?;
        let socket = stream.as_fd().try_clone_to_owned();
        let socket = socket.map_err(|err| ControlError::NoAnswer(err.into()))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
        Ok(Self { sender, socket, connection: Some(connection) })
    }

    /// Connects as soon as the wrapper listens. Has no time limit of its own.
    pub(crate) async fn wait(folder: &SocketDir) -> Self {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Ok(control) = Self::open(folder).await {
                return control;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether the wrapper still holds its end: polls the socket, because hyper notices a close
    /// only while it is driven. Between two requests a wrapper sends nothing, so anything to be
    /// read is the close.
    pub(crate) fn is_open(&self) -> bool {
        let mut looked_at = [PollFd::new(&self.socket, PollFlags::IN)];
        matches!(poll(&mut looked_at, Some(&Timespec::default())), Ok(0))
    }

    /// Returns when the wrapper has prepared all that it can without code. A wrapper without this
    /// endpoint prepares nothing.
    pub(crate) async fn warm(&mut self) -> Result<(), ControlError> {
        match self.request(Method::GET, "/warm", Vec::new(), ANSWER_MAX).await? {
            (StatusCode::OK | StatusCode::NOT_FOUND, _) => Ok(()),
            (status, _) => Err(ControlError::NoAnswer(format!("it answered {status}").into())),
        }
    }

    /// Loads the code. Returns when it is loaded.
    pub(crate) async fn init(&mut self, init: &Init<'_>) -> Result<(), ControlError> {
        let body = serde_json::to_vec(init).map_err(|err| ControlError::NoAnswer(err.into()))?;
        let (status, answer) = self.request(Method::POST, "/init", body, ANSWER_MAX).await?;
        if status == StatusCode::OK {
            return Ok(());
        }
        let failure: Failure =
            serde_json::from_slice(&answer).map_err(|err| ControlError::NoAnswer(err.into()))?;
        let FailureBody { code, message, stack } = failure.error;
        if code == NOT_MOUNTED {
            return Err(ControlError::NotMounted);
        }
        Err(ControlError::Failed { message, stack })
    }

    async fn request(
        &mut self,
        method: Method,
        path: &'static str,
        body: Vec<u8>,
        limit: usize,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "wrapper")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|err| ControlError::NoAnswer(err.into()))?;
        let Some(connection) = &mut self.connection else {
            return Err(ControlError::NoAnswer("the wrapper hung up before".into()));
        };
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await.map_err(no_answer)?;
            let answer = sender.send_request(request).await.map_err(no_answer)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), limit)
                .collect()
                .await
                .map_err(ControlError::NoAnswer)?;
            Ok((status, body.to_bytes()))
        };
        let mut exchange = std::pin::pin!(exchange);
        // Both on this task: when the request is dropped, its connection is closed with it.
        tokio::select! {
            // The response first: the connection may well end in the same moment.
            biased;
            answer = &mut exchange => answer,
            _ = connection => {
                let answer = exchange.await;
                self.connection = None;
                answer
            }
        }
    }
}

pub(crate) fn no_answer(err: hyper::Error) -> ControlError {
    ControlError::NoAnswer(err.into())
}
