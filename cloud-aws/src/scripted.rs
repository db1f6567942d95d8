//! An AWS for tests: counts requests, and answers as scripted or as moto does.

#![allow(clippy::unwrap_used, reason = "only tests use this, and they may panic")]

use crate::moto::Moto;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A fake AWS before moto; ends when it is dropped.
#[derive(Debug)]
pub struct Aws {
    endpoint: String,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Script {
    /// The address that answers unscripted requests.
    upstream: Option<String>,
    answers: Mutex<HashMap<String, (u16, String)>>,
    requests: Mutex<HashMap<String, usize>>,
    gives_tokens: AtomicBool,
}

impl Aws {
    /// Passes unscripted requests on to moto.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn before(moto: &Moto) -> Self {
        Self::start(Script { upstream: Some(moto.endpoint().to_owned()), ..Script::default() })
            .await
    }

    /// Answers 500 to everything that is not scripted.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn scripted() -> Self {
        Self::start(Script::default()).await
    }

    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(script);
        let serving = Arc::clone(&script);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let script = Arc::clone(&script);
                    async move { Ok::<_, Infallible>(script.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { endpoint, script, task }
    }

    /// The address that it listens on.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Scripts the answer of this operation from now on.
    ///
    /// # Panics
    /// Never in practice.
    pub fn answers(&self, operation: &str, status: u16, body: &str) {
        let mut answers = self.script.answers.lock().unwrap();
        answers.insert(operation.to_owned(), (status, body.to_owned()));
    }

    /// Provides `token-1`, `token-2`…, each for twelve hours.
    pub fn gives_tokens(&self) {
        self.script.gives_tokens.store(true, Ordering::Relaxed);
    }

    /// How often this operation was requested.
    ///
    /// # Panics
    /// Never in practice.
    pub fn requests(&self, operation: &str) -> usize {
        self.script.requests.lock().unwrap().get(operation).copied().unwrap_or_default()
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Script {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let target = request.headers().get("x-amz-target").and_then(|t| t.to_str().ok());
        let operation = target.and_then(|t| t.rsplit('.').next()).unwrap_or_default().to_owned();
        let number = {
            let mut requests = self.requests.lock().unwrap();
            let count = requests.entry(operation.clone()).or_default();
            *count += 1;
            *count
        };
        let scripted = self.answers.lock().unwrap().get(&operation).cloned();
        let gives_tokens = self.gives_tokens.load(Ordering::Relaxed);
        let (status, body) = match scripted {
            Some(answer) => answer,
            None if operation == "GetAuthorizationToken" && gives_tokens => (200, token(number)),
            None if self.upstream.is_some() => return self.forward(request).await,
            None => (500, format!(r#"{{"__type":"NotScripted","message":"{operation}"}}"#)),
        };
        let mut answer = Response::new(Full::from(body));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer.headers_mut().insert("content-type", "application/x-amz-json-1.1".parse().unwrap());
        answer
    }

    async fn forward(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (mut head, body) = request.into_parts();
        let upstream = self.upstream.as_deref().unwrap_or_default();
        head.uri = format!("{upstream}{}", head.uri.path()).parse::<Uri>().unwrap();
        let body = Full::from(body.collect().await.unwrap().to_bytes());
        let client: Client<HttpConnector, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        let (head, body) =
            client.request(Request::from_parts(head, body)).await.unwrap().into_parts();
        Response::from_parts(head, Full::from(body.collect().await.unwrap().to_bytes()))
    }
}

fn token(number: usize) -> String {
    let token = BASE64_STANDARD.encode(format!("AWS:token-{number}"));
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
        + Duration::from_secs(12 * 3600);
    format!(
        r#"{{"authorizationData":[{{"authorizationToken":"{token}","expiresAt":{}}}]}}"#,
        expires.as_secs()
    )
}
