//! The way to the engine's socket: HTTP/1.1 over a unix socket with connections that are kept, because
//! bollard's own client dials anew for every request. Also repairs one header on its way out.
//!
//! Knows nothing of containers or images; called only by `engine.rs`.

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error};
use hyper::{Uri, header::HeaderValue};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::UnixStream;
use tower_service::Service;

/// Connections kept for the next request. A build has few requests under way at once.
const IDLE_CONNECTIONS: usize = 4;
/// dockerd itself never closes an idle connection; this only frees descriptors between builds.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// A client of the engine behind `socket`. `head_limit` bounds the wait for the head of an answer.
///
/// # Errors
/// None in practice: nothing is dialled yet.
pub(super) fn connect(socket: PathBuf, head_limit: Duration) -> Result<Docker, Error> {
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_LIMIT)
        .build(Dial { socket: Arc::new(socket) });
    let client = Arc::new(client);
    let transport = move |request: BollardRequest| {
        let client = Arc::clone(&client);
        async move { client.request(request).await.map_err(Error::from) }
    };
    let docker = Docker::connect_with_custom_transport(
        transport,
        Some("http://engine"),
        head_limit.as_secs().max(1),
        API_DEFAULT_VERSION,
    )?;
    Ok(docker.with_request_modifier(repair))
}

/// bollard writes registry credentials in standard base64; the engine reads the URL-safe alphabet.
fn repair(mut request: BollardRequest) -> BollardRequest {
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

/// Dials the one socket, whatever the URI says.
#[derive(Clone)]
struct Dial {
    socket: Arc<PathBuf>,
}

impl Service<Uri> for Dial {
    type Response = Socket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let socket = Arc::clone(&self.socket);
        Box::pin(
            async move { UnixStream::connect(&*socket).await.map(|s| Socket(TokioIo::new(s))) },
        )
    }
}

/// A connection, as hyper-util's pool wants it.
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
