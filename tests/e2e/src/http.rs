//! One call over one connection of its own: nothing is shared between tests, nothing is retried,
//! and the target is sent as written. For bytes that are not HTTP, see [`crate::wire`].

use crate::wait::{LONG, within};
use bytes::Bytes;
use epsilon_api::body::{self, CallBody};
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};

/// Destination of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A listener of the platform, or a published port.
    Tcp(SocketAddr),
    /// An instance's own socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

/// A call that was not sent yet.
#[derive(Debug)]
pub struct Call {
    request: Request<CallBody>,
    limit: Duration,
}

impl Call {
    /// A call without a body. `target` is path and query.
    ///
    /// # Panics
    /// When `target` is invalid.
    pub fn new(method: Method, target: &str) -> Self {
        let uri: Uri = target.parse().expect("a valid path");
        let mut request = Request::new(body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("localhost"));
        Self { request, limit: LONG }
    }

    /// `GET`.
    pub fn get(target: &str) -> Self {
        Self::new(Method::GET, target)
    }

    /// `POST` of an unchanged text.
    pub fn post(target: &str, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, target).header("content-type", content_type).body(body)
    }

    /// `POST` of JSON.
    pub fn post_json(target: &str, value: &Value) -> Self {
        Self::post(target, "application/json", value.to_string())
    }

    /// Adds a header, replacing one of the same name.
    ///
    /// # Panics
    /// When it is not a valid header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        self.request.headers_mut().insert(name, value.parse().expect("a header value"));
        self
    }

    /// Sets the body, with `content-length`.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = body::full(bytes);
        self
    }

    /// Sets a streamed body of unknown length.
    #[must_use]
    pub fn stream(mut self, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        use futures_util::StreamExt;
        let frames = pieces.map(|piece| Ok::<_, io::Error>(Frame::data(piece)));
        *self.request.body_mut() = body::boxed(StreamBody::new(frames));
        self
    }

    /// Longest time for the answer before the test fails.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Errors
    /// When the connection broke before the answer was complete.
    pub async fn try_send(self, to: impl Into<Target>) -> Result<Answer, CallBroken> {
        let limit = self.limit;
        let what = format!("{} {}", self.request.method(), self.request.uri());
        within(&what, limit, async {
            let began = Instant::now();
            let open = self.open_inner(&to.into()).await?;
            open.whole(began).await
        })
        .await
    }

    /// Sends it and reads the whole answer.
    ///
    /// # Panics
    /// When the connection broke.
    pub async fn send(self, to: impl Into<Target>) -> Answer {
        let what = format!("{} {}", self.request.method(), self.request.uri());
        match self.try_send(to).await {
            Ok(answer) => answer,
            Err(broken) => panic!("{what}: {broken}"),
        }
    }

    /// Sends it and returns the answer's head; the body can be read piece by piece.
    ///
    /// # Panics
    /// When the connection broke before the head.
    pub async fn open(self, to: impl Into<Target>) -> Open {
        let limit = self.limit;
        let to = to.into();
        match within("the head of an answer", limit, self.open_inner(&to)).await {
            Ok(open) => open,
            Err(broken) => panic!("{broken}"),
        }
    }

    async fn open_inner(self, to: &Target) -> Result<Open, CallBroken> {
        let mut connection = Connection::open(to).await?;
        let response =
            connection.sender.send_request(self.request).await.map_err(CallBroken::http)?;
        Ok(Open { response, connection })
    }
}

/// A connection for consecutive calls.
#[derive(Debug)]
pub struct Connection {
    sender: hyper::client::conn::http1::SendRequest<CallBody>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When no process listens.
    pub async fn open(to: &Target) -> Result<Self, CallBroken> {
        match to {
            Target::Tcp(addr) => {
                let stream = TcpStream::connect(addr).await.map_err(CallBroken::Connect)?;
                stream.set_nodelay(true).map_err(CallBroken::Connect)?;
                Self::over(TokioIo::new(stream)).await
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(CallBroken::Connect)?;
                Self::over(TokioIo::new(stream)).await
            }
        }
    }

    async fn over<I>(io: I) -> Result<Self, CallBroken>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(CallBroken::http)?;
        let task = tokio::spawn(async move {
            // A broken connection is reported to the caller that waits for the answer.
            let _ = connection.await;
        });
        Ok(Self { sender, task })
    }

    /// Makes a call and reads its whole answer.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn call(&mut self, call: Call) -> Result<Answer, CallBroken> {
        let began = Instant::now();
        self.sender.ready().await.map_err(CallBroken::http)?;
        let response = self.sender.send_request(call.request).await.map_err(CallBroken::http)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(CallBroken::http)?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            took: began.elapsed(),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closes the socket at once, whatever is in flight.
        self.task.abort();
    }
}

/// An answer whose body is still arriving. Dropping it hangs up.
#[derive(Debug)]
pub struct Open {
    response: http::Response<Incoming>,
    connection: Connection,
}

impl Open {
    /// The status.
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, CallBroken> {
        loop {
            match self.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(err)) => return Err(CallBroken::http(err)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailers) => {}
                },
            }
        }
    }

    async fn whole(self, began: Instant) -> Result<Answer, CallBroken> {
        let Self { response, connection } = self;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(CallBroken::http)?.to_bytes();
        drop(connection);
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            took: began.elapsed(),
        })
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From connecting to the last byte.
    pub took: Duration,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|err| panic!("{err}: {self}"))
    }

    /// A header as text; empty when it does not exist.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(not text)"))
    }

    /// This answer, if it has this status.
    ///
    /// # Panics
    /// When it has another one, with the whole answer.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks that this is an error of the platform, in the common format and with its request id,
    /// and that it leaks no internals.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{self}");
        for key in ["type", "message"] {
            assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {self}");
        }
        assert!(error.get("hint").is_some(), "hint: {self}");
        assert_eq!(error["request_id"], self.header("x-epsilon-request-id"), "{self}");
        assert!(self.header("content-type").starts_with("application/json"), "{self}");
        if status == 429 || status == 503 {
            let seconds: u32 = self.header("retry-after").parse().unwrap_or(0);
            assert!(seconds > 0, "Retry-After: {self}");
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {:?}, {:?}: ", self.status, self.took, self.headers)?;
        f.write_str(&self.text().chars().take(2000).collect::<String>())
    }
}

/// Why there is no complete answer.
#[derive(Debug)]
pub enum CallBroken {
    /// No process listened: the call was never sent.
    Connect(io::Error),
    /// The connection ended too early or was not HTTP.
    Http(hyper::Error),
}

impl CallBroken {
    fn http(err: hyper::Error) -> Self {
        Self::Http(err)
    }

    /// The listener was gone before anything was sent.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(_))
    }
}

impl fmt::Display for CallBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(err) => write!(f, "no connection: {err}"),
            Self::Http(err) => write!(f, "the answer was cut: {err:?}"),
        }
    }
}

impl std::error::Error for CallBroken {}
