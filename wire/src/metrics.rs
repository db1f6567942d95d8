//! A small listener of a member for those who collect metrics, and hold no pass: `GET /metrics`, `GET /healthz`,
//! nothing else. Off unless its address is set; what it tells is no secret, and of no use to a caller.

use crate::door::{Door, Ending, Limits};
use epsilon_api::body::{self, CallBody};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// A collector or two, and a person.
const LIMITS: Limits =
    Limits { connections: 16, head: Duration::from_secs(10), idle: Duration::from_secs(90) };
/// The text format that every collector reads.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

/// A listener that is bound.
#[derive(Debug)]
pub struct Metrics(Door);

impl Metrics {
    /// Binds; port 0 takes any. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(address: SocketAddr, ending: Ending) -> io::Result<Self> {
        Door::bind(address, None, LIMITS, ending).map(Self)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Answers until told to close. `gather` writes all metrics.
    pub async fn serve(self, gather: impl Fn() -> String + Send + Sync + 'static) {
        let gather = Arc::new(gather);
        let handler = move |request: Request<hyper::body::Incoming>| {
            let gather = Arc::clone(&gather);
            async move { answer(&request, &*gather) }
        };
        self.0.serve_anybody(handler).await;
    }
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
        let ending = Ending::default();
        let metrics = Metrics::bind("127.0.0.1:0".parse().unwrap(), ending.clone()).unwrap();
        let address = metrics.address();
        ending.tasks.spawn(metrics.serve(|| "epsilon_up 1\n".into()));
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
}
