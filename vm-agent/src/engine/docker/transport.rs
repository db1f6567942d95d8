//! Connections to Docker that are kept: bollard's own constructors open one per question. Also repairs the
//! one header that bollard writes in an alphabet that Docker does not read.

use crate::engine::EngineError;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use http::{HeaderName, HeaderValue, Uri};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::UnixStream;

/// Idle connections that are kept; more only come with more starts at once.
const KEPT: usize = 8;
/// Their age. The engine itself closes idle ones after minutes.
const KEPT_FOR: Duration = Duration::from_secs(20);
const REGISTRY_AUTH: HeaderName = HeaderName::from_static("x-registry-auth");

pub(super) fn connect(socket: &Path, timeout: Duration) -> Result<Docker, EngineError> {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT_FOR)
        .pool_max_idle_per_host(KEPT)
        .build(Socket::from(socket));
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { Ok(answer.await?) }
    };
    Docker::connect_with_custom_transport(
        transport,
        Some("http://engine"),
        timeout.as_secs().max(1),
        API_DEFAULT_VERSION,
    )
    .map(|docker| docker.with_request_modifier(url_safe_auth))
    .map_err(|err| EngineError::Down(Box::new(err)))
}

/// bollard 0.21 writes the credentials in base64's standard alphabet; Docker reads the URL-safe one.
fn url_safe_auth(mut request: BollardRequest) -> BollardRequest {
    if let Some(value) = request.headers_mut().get_mut(REGISTRY_AUTH) {
        let repaired: Vec<u8> = value
            .as_bytes()
            .iter()
            .map(|byte| match byte {
                b'+' => b'-',
                b'/' => b'_',
                other => *other,
            })
            .collect();
        if let Ok(mut repaired) = HeaderValue::from_bytes(&repaired) {
            repaired.set_sensitive(true);
            *value = repaired;
        }
    }
    request
}

/// Connects to one unix socket, whatever the URI says.
#[derive(Clone)]
struct Socket(Arc<PathBuf>);

impl From<&Path> for Socket {
    fn from(path: &Path) -> Self {
        Self(Arc::new(path.to_owned()))
    }
}

impl tower_service::Service<Uri> for Socket {
    type Response = Connection;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = Arc::clone(&self.0);
        Box::pin(async move { Ok(Connection(TokioIo::new(UnixStream::connect(&*path).await?))) })
    }
}

/// A connection that hyper-util's client can pool.
struct Connection(TokioIo<UnixStream>);

impl hyper_util::client::legacy::connect::Connection for Connection {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new()
    }
}

impl hyper::rt::Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::body_full;

    #[test]
    fn credentials_are_written_url_safe() {
        let request =
            http::Request::builder().header(REGISTRY_AUTH, "ab+/=").body(body_full("".into()));
        let repaired = url_safe_auth(request.unwrap());
        assert_eq!(repaired.headers()[REGISTRY_AUTH], "ab-_=");
    }
}
