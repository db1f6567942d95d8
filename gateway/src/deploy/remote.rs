//! One build on another machine: `POST /v1/builds`, and its events as they arrive. The builder
//! answers 200 before it receives a byte of the archive; a failure before that leaves the archive
//! complete.

use super::archive::deferred;
use crate::fleet::link;
use crate::fleet::link::error::LinkError;
use crate::fleet::link::{Link, PooledBody, Sent, pooled};
use epsilon_api::{
    body::{BodyTooLarge, CallBody},
    build::{
        BuildError, BuildLog, BuildMessage, BuildOrder, BuilderStatus, Built, REMOVE_PATH,
        STATUS_PATH,
    },
    chain::Chain,
    error::ErrorEnvelope,
    function::ImageRef,
    ids::VmId,
};
use futures_util::StreamExt;
use http::{Method, Request, StatusCode, header::HOST};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest body of a builder's error.
const MAX_REFUSAL: usize = 64 << 10;

/// Longest wait for a builder's status: a person waits for it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// A builder that joined.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) id: VmId,
    pub(super) link: Arc<Link>,
    /// How long it may send nothing.
    pub(super) silence: Duration,
}

/// Why a builder did not accept a build. The archive is still complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAccepted {
    /// It cannot be reached.
    #[error("the builder cannot be reached")]
    LinkError(#[source] LinkError),
    /// It refused: it is full, or it is shutting down.
    #[error("the builder refused the build: {0}")]
    Refused(BuildError),
}

impl Remote {
    /// Hands over the archive and relays the events. Dropping this future hangs up, which cancels
    /// the build. `archive` is emptied at the release.
    pub(super) async fn build(
        &self,
        order: &BuildOrder,
        archive: &mut Option<CallBody>,
        log: &dyn BuildLog,
    ) -> Result<Result<Built, BuildError>, NotAccepted> {
        let held = archive.take().ok_or_else(|| protocol_error("the archive is gone"))?;
        let (promised, release, failed) = deferred(&held);
        let opened = timeout(self.silence, self.open(order, promised)).await;
        let answer = match opened
            .unwrap_or(Err(NotAccepted::LinkError(LinkError::TimedOut(self.silence))))
        {
            Ok(answer) => answer,
            Err(not_accepted) => {
                *archive = Some(held);
                return Err(not_accepted);
            }
        };
        // If the receiver is gone, so is the connection; the reader below sees that.
        let _ = release.send(held);
        let outcome = self.follow(answer, log).await;
        Ok(outcome.unwrap_or_else(|link_error| {
            Err(match failed.take() {
                Some(err) => archive_failed(&*err),
                None => self.lost(&link_error),
            })
        }))
    }

    /// Has it remove an image from its storage. Bounded by `silence`.
    pub(super) async fn remove(&self, image: &ImageRef) -> Result<(), LinkError> {
        self.link.renew_token();
        let work = async {
            let order =
                serde_json::to_vec(image).map_err(|err| LinkError::Protocol(err.to_string()))?;
            let answer = self.link.ask(Method::POST, REMOVE_PATH, order).await?;
            match answer.status() {
                status if status.is_success() => Ok(()),
                status => Err(LinkError::Protocol(format!("status {status} for {REMOVE_PATH}"))),
            }
        };
        timeout(self.silence, work).await.unwrap_or(Err(LinkError::TimedOut(self.silence)))
    }

    /// Its status. `None`: it runs, but is too old to know the request.
    pub(super) async fn status(&self) -> Result<Option<BuilderStatus>, LinkError> {
        self.link.renew_token();
        let work = async {
            let answer = self.link.ask(Method::GET, STATUS_PATH, "").await?;
            if !answer.status().is_success() {
                return Ok(None);
            }
            let text = link::text(answer.into_body(), MAX_REFUSAL).await?;
            let status = serde_json::from_slice(&text);
            status.map(Some).map_err(|err| LinkError::Protocol(err.to_string()))
        };
        timeout(STATUS_TIMEOUT, work).await.unwrap_or(Err(LinkError::TimedOut(STATUS_TIMEOUT)))
    }

    async fn open(&self, order: &BuildOrder, body: CallBody) -> Result<PooledBody, NotAccepted> {
        self.link.renew_token(); // builds are rare, and the token is not renewed elsewhere
        let request = Request::builder()
            .method(Method::POST)
            .uri(order.uri())
            .header(HOST, self.link.address())
            .body(body)
            .map_err(|err| protocol_error(&err.to_string()))?;
        let (response, connection) = match self.link.send(request, None).await {
            Sent::Answered(response, connection) => (response, connection),
            Sent::Unsent(link_error) | Sent::Lost(link_error) => {
                return Err(NotAccepted::LinkError(link_error));
            }
            Sent::BadBody(err) => {
                return Err(NotAccepted::LinkError(LinkError::Disconnected(err.into())));
            }
        };
        let status = response.status();
        let link = Arc::clone(&self.link);
        let answer = pooled(response.into_body(), connection, link);
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let text = link::text(answer, MAX_REFUSAL).await.map_err(NotAccepted::LinkError)?;
        let envelope: ErrorEnvelope = serde_json::from_slice(&text)
            .map_err(|_| protocol_error(&format!("status {status} without an error")))?;
        let ErrorEnvelope { error } = envelope;
        Err(NotAccepted::Refused(BuildError {
            code: error.code.into(),
            status,
            message: error.message,
            hint: error.hint,
        }))
    }

    /// Reads the events to the result. The error is one of the builder, not of the project.
    async fn follow(
        &self,
        answer: PooledBody,
        log: &dyn BuildLog,
    ) -> Result<Result<Built, BuildError>, LinkError> {
        let mut lines = link::lines(answer, BuildMessage::LONGEST_LINE);
        loop {
            let line = timeout(self.silence, lines.next()).await;
            let line = line.map_err(|_| LinkError::TimedOut(self.silence))?;
            let line = line.ok_or_else(|| {
                LinkError::Protocol("the answer ended before the result".into())
            })??;
            match link::parsed(&line)? {
                BuildMessage::Alive => {}
                BuildMessage::Event(event) => log.report(event),
                BuildMessage::Built(built) => return Ok(Ok(built)),
                BuildMessage::Failed(error) => return Ok(Err(error)),
            }
        }
    }

    fn lost(&self, link_error: &LinkError) -> BuildError {
        tracing::warn!(builder = %self.id, error = %Chain(link_error), "Builder was lost during a build; the deployment fails.");
        BuildError {
            code: "BUILDER_LOST".into(),
            status: StatusCode::BAD_GATEWAY,
            message: format!("the builder `{}` was lost during the build", self.id),
            hint: Some("nothing was changed; deploy again".into()),
        }
    }
}

fn protocol_error(what: &str) -> NotAccepted {
    NotAccepted::LinkError(LinkError::Protocol(what.to_owned()))
}

/// The error for an archive that broke off on the developer's side.
fn archive_failed(err: &(dyn std::error::Error + Send + Sync + 'static)) -> BuildError {
    let (code, status, message) = match err.downcast_ref() {
        Some(BodyTooLarge { limit }) => (
            "SOURCE_TOO_LARGE",
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the archive is larger than {limit}"),
        ),
        None => (
            "SOURCE_INCOMPLETE",
            StatusCode::BAD_REQUEST,
            "the upload was cut before the archive's end".to_owned(),
        ),
    };
    BuildError { code: code.into(), status, message, hint: None }
}
