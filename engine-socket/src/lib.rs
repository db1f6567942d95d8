//! Connects to a container engine's unix socket: HTTP/1.1 over pooled connections, because
//! bollard's own constructors open one for every request. Also repairs one request header.
//!
//! Knows nothing of containers or images. Called by the engine modules of `vm-agent` and `builder`,
//! which share nothing else.

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error};
use http::{HeaderValue, Uri};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use std::{
    env, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::UnixStream;

/// Limit of idle connections; more are needed only while many instances start at once.
const MAX_IDLE: usize = 8;
/// Age of an idle connection. Well below the minutes after which an engine closes idle ones itself.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Docker's default socket.
const DOCKER: &str = "/var/run/docker.sock";

/// The socket that `DOCKER_HOST` names (`unix://PATH`), else Docker's default. Other kinds of
/// address are ignored: instances are reached through directories of this machine, so a remote
/// engine cannot be used.
pub fn default_path() -> PathBuf {
    env::var("DOCKER_HOST")
        .ok()
        .and_then(|host| host.strip_prefix("unix://").map(PathBuf::from))
        .unwrap_or_else(|| DOCKER.into())
}

/// A client of the engine at `socket`. `head_limit` bounds the wait for the head of an answer, in
/// whole seconds; streams that follow have no limit.
///
/// # Errors
/// None in practice: no connection is opened yet.
pub fn connect(socket: &Path, head_limit: Duration) -> Result<Docker, Error> {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build(SocketConnector(Arc::new(socket.to_owned())));
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { Ok(answer.await?) }
    };
    let docker = Docker::connect_with_custom_transport(
        transport,
        Some("http://localhost"),
        head_limit.as_secs().max(1),
        API_DEFAULT_VERSION,
    )?;
    Ok(docker.with_request_modifier(url_safe_credentials))
}

/// bollard 0.21 encodes registry credentials in base64's standard alphabet; engines decode the
/// URL-safe one.
fn url_safe_credentials(mut request: BollardRequest) -> BollardRequest {
    for name in ["x-registry-auth", "x-registry-config"] {
        let Some(value) = request.headers().get(name).and_then(|v| v.to_str().ok()) else {
            continue;
        };
        let safe = value.replace('+', "-").replace('/', "_");
        if let Ok(mut value) = HeaderValue::from_str(&safe) {
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
    }
    request
}

/// Connects to the one socket, whatever the URI says.
#[derive(Clone)]
struct SocketConnector(Arc<PathBuf>);

impl tower_service::Service<Uri> for SocketConnector {
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = Arc::clone(&self.0);
        Box::pin(async move { Ok(Socket(TokioIo::new(UnixStream::connect(&*path).await?))) })
    }
}

/// A connection that hyper-util's client can pool.
struct Socket(TokioIo<UnixStream>);

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Socket {
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    #[test]
    fn credentials_are_written_url_safe() {
        let request = http::Request::builder()
            .header("x-registry-auth", "ab+/=")
            .body(body_full("".into()))
            .unwrap();
        let repaired = url_safe_credentials(request);
        assert_eq!(repaired.headers()["x-registry-auth"], "ab-_=");
        assert!(repaired.headers()["x-registry-auth"].is_sensitive());
    }

    #[tokio::test]
    async fn one_connection_carries_many_requests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let engine = tokio::spawn(async move {
            // Only the first connection is ever served: a second one would wait forever.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            while stream.read(&mut head).await.unwrap() > 0 {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";
                stream.write_all(answer).await.unwrap();
            }
        });
        let docker = connect(&path, Duration::from_secs(5)).unwrap();
        for _ in 0..5 {
            docker.ping().await.unwrap();
        }
        drop(docker);
        engine.abort();
    }
}
