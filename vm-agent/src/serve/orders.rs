//! Orders: everything that gateways request of this VM except calls. Small JSON in; nothing, a
//! refusal or lines out.

use super::{Server, refused, status, upload::Upload};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, CallBody},
    chain::Chain,
    error::VmError,
    fleet::Refusal,
    function::{ImageRef, Version},
    ids::{FunctionName, RequestId, VersionId},
    log::LogQuery,
    vm::Vm,
};
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use serde::de::DeserializeOwned;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Size limit of an order: a version with all its environment.
const MAX_SIZE: usize = 1 << 20;
/// Longest that an order may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

impl Server {
    pub(super) async fn order(&self, request: Request<Upload>) -> Response<CallBody> {
        let (head, body) = request.into_parts();
        let done = match (&head.method, head.uri.path()) {
            (&Method::PUT, "/v1/version") => self.version(body).await.map(drop),
            (&Method::POST, "/v1/ready") => self.ready(body).await,
            (&Method::POST, "/v1/fetch") => self.fetch(body).await,
            (&Method::POST, "/v1/retire") => self.retire(body).await,
            (&Method::POST, "/v1/forget") => self.forget(body).await,
            (&Method::POST, "/v1/images/remove") => return self.remove_image(body).await,
            (&Method::POST, "/v1/drain") => self.drain(true),
            (&Method::POST, "/v1/undrain") => self.drain(false),
            (&Method::GET, "/v1/reports") => {
                return Response::new(self.reports.stream(&self.shutdown.close));
            }
            (&Method::GET, path) => match path.strip_prefix("/v1/logs/") {
                Some(function) => return self.logs(function, &head.uri),
                None => return status(StatusCode::NOT_FOUND),
            },
            _ => return status(StatusCode::NOT_FOUND),
        };
        match done {
            Ok(()) => status(StatusCode::NO_CONTENT),
            Err(refusal) => refused(&refusal),
        }
    }

    async fn version(&self, body: Upload) -> Result<Arc<Version>, Refusal> {
        Ok(self.versions.insert(read(body).await?))
    }

    async fn ready(&self, body: Upload) -> Result<(), Refusal> {
        let version = self.version(body).await?;
        self.service.ensure_ready(version).await.map_err(refusal)
    }

    async fn fetch(&self, body: Upload) -> Result<(), Refusal> {
        let version = self.version(body).await?;
        self.service.fetch(version).await.map_err(refusal)
    }

    async fn retire(&self, body: Upload) -> Result<(), Refusal> {
        let id: VersionId = read(body).await?;
        self.versions.forget(&id);
        self.service.retire(&id);
        Ok(())
    }

    async fn forget(&self, body: Upload) -> Result<(), Refusal> {
        let function: FunctionName = read(body).await?;
        self.service.forget(&function);
        Ok(())
    }

    async fn remove_image(&self, body: Upload) -> Response<CallBody> {
        let removed = async {
            let image: ImageRef = read(body).await?;
            self.service.remove_image(image).await.map_err(refusal)
        };
        match removed.await {
            // Our own types always serialize; a gateway takes an empty body for an error.
            Ok(removal) => {
                Response::new(body::full(serde_json::to_vec(&removal).unwrap_or_default()))
            }
            Err(refusal) => refused(&refusal),
        }
    }

    fn drain(&self, draining: bool) -> Result<(), Refusal> {
        self.service.drain(draining);
        Ok(())
    }

    fn logs(&self, function: &str, uri: &Uri) -> Response<CallBody> {
        let query = uri.query().unwrap_or_default();
        let (Ok(function), Some(query)) = (FunctionName::parse(function), log_query(query)) else {
            return refused(&Refusal::BadRequest);
        };
        let lines = self.service.logs(&function, query).map(|record| {
            let mut line = serde_json::to_vec(&record)?;
            line.push(b'\n');
            Ok::<_, BodyError>(Frame::data(Bytes::from(line)))
        });
        let close = self.shutdown.close.clone().cancelled_owned();
        Response::new(body::boxed(StreamBody::new(Box::pin(lines.take_until(close)))))
    }
}

fn refusal(err: VmError) -> Refusal {
    Refusal::of(&err)
}

async fn read<T: DeserializeOwned>(body: Upload) -> Result<T, Refusal> {
    let text = timeout(READ_TIMEOUT, Limited::new(body, MAX_SIZE).collect()).await;
    let text = text.map_err(|_| Refusal::BadRequest)?.map_err(|_| Refusal::BadRequest)?;
    serde_json::from_slice(&text.to_bytes()).map_err(|err| {
        tracing::warn!(error = %Chain(&err), "Order of a gateway cannot be parsed; refusing it.");
        Refusal::BadRequest
    })
}

/// `follow=true&request_id=…&tail=100&after=…`, each of them optional; `None` for anything else.
fn log_query(text: &str) -> Option<LogQuery> {
    let mut query = LogQuery::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("follow", value) => query.follow = value.parse().ok()?,
            ("request_id", value) => query.request_id = Some(RequestId::parse(value).ok()?),
            ("tail", value) => query.tail = Some(value.parse().ok()?),
            ("after", value) => query.after = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_log_readers_are_parsed() {
        let id = || RequestId::parse("12345678").ok();
        for (text, want) in [
            ("", Some(LogQuery::default())),
            ("follow=false", Some(LogQuery::default())),
            (
                "follow=true&request_id=12345678&tail=7",
                Some(LogQuery { request_id: id(), follow: true, tail: Some(7), after: None }),
            ),
            ("after=3-512", Some(LogQuery { after: "3-512".parse().ok(), ..LogQuery::default() })),
            ("after=3", None),
            ("follow=yes", None),
            ("follow", None),
            ("tail=-1", None),
            ("request_id=x", None),
            ("since=1", None),
        ] {
            assert_eq!(log_query(text), want, "{text}");
        }
    }
}
