//! The agent's own questions to a runtime wrapper, over `control.sock`: load this code, how are you. One
//! connection per question; no caller's byte ever comes this way.

use super::sockets::{CONTROL, SocketFolder, is_nobody_there};
use bytes::Bytes;
use epsilon_api::{
    function::{Signature, Version},
    ids::InstanceId,
};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io};
use tokio::net::UnixStream;

/// Longest answer of a wrapper: a message and a stack.
const ANSWER_MAX: usize = 1 << 20;

/// What `POST /init` carries: the function as the image's `EPSILON_FUNCTION` describes it, and who asks.
#[derive(Debug, Serialize)]
pub(crate) struct Init<'a> {
    function: &'a str,
    entry: &'a str,
    export: &'a str,
    signature: Signature,
    timeout_ms: u64,
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
            timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
            concurrency: spec.concurrency.get(),
            version: version.number.get(),
            instance: instance.as_str(),
            env: &spec.env,
            root,
        }
    }
}

/// What `GET /health` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Health {
    pub(crate) state: String,
    /// Calls whose handler has not ended.
    pub(crate) active: u32,
}

/// Why a wrapper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody listens there (yet, or any more). Nothing was sent.
    #[error("the wrapper does not listen")]
    NotListening(#[source] io::Error),
    /// The connection broke, or the answer makes no sense.
    #[error("the wrapper gave no answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The code threw while loading, or its export is missing.
    #[error("{message}")]
    Failed { message: String, stack: Option<String> },
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
    message: String,
    #[serde(default)]
    stack: Option<String>,
}

/// Has the code loaded. Answers when it is.
pub(crate) async fn init(stream: UnixStream, init: &Init<'_>) -> Result<(), ControlError> {
    let body = serde_json::to_vec(init).map_err(|err| ControlError::NoAnswer(err.into()))?;
    let (status, answer) = ask(stream, Method::POST, "/init", body).await?;
    if status == StatusCode::OK {
        return Ok(());
    }
    let failure: Failure =
        serde_json::from_slice(&answer).map_err(|err| ControlError::NoAnswer(err.into()))?;
    Err(ControlError::Failed { message: failure.error.message, stack: failure.error.stack })
}

/// Asks how the wrapper is.
pub(crate) async fn health(folder: &SocketFolder) -> Result<Health, ControlError> {
    let stream = folder.connect(CONTROL).await.map_err(|err| match is_nobody_there(&err) {
        true => ControlError::NotListening(err),
        false => ControlError::NoAnswer(err.into()),
    })?;
    let (_, answer) = ask(stream, Method::GET, "/health", Vec::new()).await?;
    let health: Data<Health> =
        serde_json::from_slice(&answer).map_err(|err| ControlError::NoAnswer(err.into()))?;
    Ok(health.data)
}

async fn ask(
    stream: UnixStream,
    method: Method,
    path: &'static str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), ControlError> {
    let no_answer = |err: hyper::Error| ControlError::NoAnswer(err.into());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "wrapper")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(body))
        .map_err(|err| ControlError::NoAnswer(err.into()))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(no_answer)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(ControlError::NoAnswer)?;
        Ok((status, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    // Both on this task: when the question is given up, its connection goes with it.
    tokio::select! {
        // The answer first: the connection may well end in the same moment.
        biased;
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}
