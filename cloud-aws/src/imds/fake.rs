//! A metadata service for tests: requires a token as IMDSv2 does, reports its life, and serves
//! scripted values.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{collections::HashMap, convert::Infallible, io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};

/// A running service; ends when it is dropped.
#[derive(Debug)]
pub struct FakeImds {
    endpoint: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    ttl_seconds: Option<u64>,
    token: u64,
    tokens_given: usize,
    values: HashMap<String, String>,
    requests: HashMap<String, usize>,
    is_broken: bool,
    refused: usize,
}

impl FakeImds {
    /// Starts a service on a free port that knows `instance_id` and nothing else.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn start(instance_id: &str) -> io::Result<Self> {
        Self::start_at(([127, 0, 0, 1], 0).into(), instance_id).await
    }

    /// The same at this address.
    ///
    /// # Errors
    /// When the address is in use.
    pub async fn start_at(address: SocketAddr, instance_id: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State {
            ttl_seconds: Some(21_600),
            token: 0,
            tokens_given: 0,
            values: [("instance-id".to_owned(), instance_id.to_owned())].into(),
            requests: HashMap::new(),
            is_broken: false,
            refused: 0,
        }));
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let answer = state.lock().answer(&request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self { endpoint, state, task })
    }

    /// For `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Serves `text` at a path under `meta-data`, such as `spot/instance-action`.
    pub fn show(&self, path: &str, text: &str) {
        self.state.lock().values.insert(path.to_owned(), text.to_owned());
    }

    /// Answers 404 at this path from now on.
    pub fn hide(&self, path: &str) {
        self.state.lock().values.remove(path);
    }

    /// Sets the life of tokens from now on, in seconds; `None`: it is not reported.
    pub fn tokens_live(&self, seconds: Option<u64>) {
        self.state.lock().ttl_seconds = seconds;
    }

    /// Invalidates all tokens.
    pub fn forget_tokens(&self) {
        self.state.lock().token += 1;
    }

    /// Answers 503 to everything, or no longer.
    pub fn break_down(&self, is_broken: bool) {
        self.state.lock().is_broken = is_broken;
    }

    /// How often it answered 503.
    pub fn refused(&self) -> usize {
        self.state.lock().refused
    }

    /// Number of tokens that it issued.
    pub fn tokens_given(&self) -> usize {
        self.state.lock().tokens_given
    }

    /// How often this path was requested, with a valid token.
    pub fn requests(&self, path: &str) -> usize {
        self.state.lock().requests.get(path).copied().unwrap_or_default()
    }
}

impl Drop for FakeImds {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn answer(&mut self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let answer = |status: StatusCode, text: String| {
            let mut answer = Response::new(Full::from(text));
            *answer.status_mut() = status;
            answer
        };
        if self.is_broken {
            self.refused += 1;
            return answer(StatusCode::SERVICE_UNAVAILABLE, String::new());
        }
        let headers = request.headers();
        if request.uri().path() == "/latest/api/token" {
            let asks_for_life = headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds");
            if request.method() != Method::PUT || !asks_for_life {
                return answer(StatusCode::BAD_REQUEST, String::new());
            }
            self.tokens_given += 1;
            let mut given = answer(StatusCode::OK, format!("token-{}", self.token));
            if let Some(seconds) = self.ttl_seconds {
                given.headers_mut().insert("x-aws-ec2-metadata-token-ttl-seconds", seconds.into());
            }
            return given;
        }
        let token = headers.get("x-aws-ec2-metadata-token").and_then(|t| t.to_str().ok());
        if token != Some(&format!("token-{}", self.token)) {
            return answer(StatusCode::UNAUTHORIZED, String::new());
        }
        let path = request.uri().path().trim_start_matches("/latest/meta-data/");
        *self.requests.entry(path.to_owned()).or_default() += 1;
        match self.values.get(path) {
            Some(text) => answer(StatusCode::OK, text.clone()),
            None => answer(StatusCode::NOT_FOUND, String::new()),
        }
    }
}
