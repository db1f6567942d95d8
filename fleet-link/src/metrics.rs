//! A member's metrics listener, for collectors, which have no gateway token: `GET /metrics`, `GET
//! /healthz`, nothing else. Off unless its address is set. Metrics contain names and load, so they
//! are served to this machine only, and to clients with the key that the operator has set; health
//! is served without authentication.

use crate::authenticated_listener::{AuthenticatedListener, Limits};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use epsilon_api::{
    body::{self, CallBody},
    redacted::Secret,
};
use epsilon_http_server::{Connection as Peer, Shutdown};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// One or two collectors, and a person.
const LIMITS: Limits =
    Limits { connections: 16, head: Duration::from_secs(10), idle: Duration::from_secs(90) };
/// The Prometheus text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// A bound listener.
#[derive(Debug)]
pub struct Metrics {
    listener: AuthenticatedListener,
    /// Bearer key that collectors on other machines send.
    key: Option<Secret<String>>,
}

impl Metrics {
    /// Binds the address; port 0 picks a free one. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is in use or not one of this machine.
    pub fn bind(
        address: SocketAddr,
        key: Option<Secret<String>>,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        Ok(Self { listener: AuthenticatedListener::bind(address, None, LIMITS, shutdown)?, key })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Serves until `close`. `gather` renders all metrics.
    pub async fn serve(self, gather: impl Fn() -> String + Send + Sync + 'static) {
        let gather = Arc::new(gather);
        let handler = move |request: Request<hyper::body::Incoming>, _| {
            let gather = Arc::clone(&gather);
            async move { answer(&request, &*gather) }
        };
        let key = self.key.map(Arc::new);
        let admits = move |request: &Request<hyper::body::Incoming>, from: &Peer| {
            from.peer.is_loopback() || key.as_ref().is_some_and(|key| has_key(request, key))
        };
        self.listener.serve_authorized(admits, handler).await;
    }
}

/// Whether the request carries the key.
fn has_key<B>(request: &Request<B>, key: &Secret<String>) -> bool {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.split_once(' '));
    shown.is_some_and(|(scheme, shown)| {
        scheme.eq_ignore_ascii_case("bearer")
            && verify_slices_are_equal(shown.trim().as_bytes(), key.reveal().as_bytes()).is_ok()
    })
}

fn answer<B>(request: &Request<B>, gather: &dyn Fn() -> String) -> Response<CallBody> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, gather()),
        (&Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;
    use http_body_util::BodyExt;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn metrics_and_health_and_nothing_else() {
        let shutdown = Shutdown::default();
        let metrics =
            Metrics::bind("127.0.0.1:0".parse().unwrap(), None, shutdown.clone()).unwrap();
        let address = metrics.address();
        shutdown.tasks.spawn(metrics.serve(|| "epsilon_up 1\n".into()));
        let stream = TcpStream::connect(address).await.unwrap();
        let mut connection = Connection::handshake(stream).await.unwrap();
        for (method, path, status, text) in [
            (Method::GET, "/metrics", 200, "epsilon_up 1\n"),
            (Method::GET, "/healthz", 200, "ok\n"),
            (Method::POST, "/metrics", 404, ""),
            (Method::GET, "/v1/reports", 404, ""),
        ] {
            let request = Request::builder().method(method).uri(path).header("host", "x");
            let request = request.body(body::empty()).unwrap();
            let response = connection.sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), status, "{path}");
            let read = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(read, text, "{path}");
        }
    }

    #[tokio::test]
    async fn remote_metrics_need_the_key_health_does_not() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.0.2.1:9").expect("this test needs a network interface");
        let own = SocketAddr::new(socket.local_addr().unwrap().ip(), 0);
        for (key, shown, path, status) in [
            (None, "", "/metrics", 401),
            (None, "Bearer ", "/metrics", 401),
            (None, "", "/healthz", 200),
            (Some("secret"), "Bearer wrong!", "/metrics", 401),
            (Some("secret"), "Basic secret", "/metrics", 401),
            (Some("secret"), "bearer secret", "/metrics", 200),
        ] {
            let shutdown = Shutdown::default();
            let key = key.map(|key| Secret::new(key.to_owned()));
            let metrics = Metrics::bind(own, key, shutdown.clone()).unwrap();
            let address = metrics.address();
            shutdown.tasks.spawn(metrics.serve(|| "epsilon_up 1\n".into()));
            let stream = TcpStream::connect(address).await.unwrap();
            let mut connection = Connection::handshake(stream).await.unwrap();
            let request = Request::get(path).header("host", "x").header("authorization", shown);
            let request = request.body(body::empty()).unwrap();
            let response = connection.sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), status, "{shown} {path}");
            shutdown.cut.cancel();
            shutdown.close.cancel();
        }
    }
}
