//! One build on another machine: `POST /v1/builds`, and its events as they arrive. The builder
//! answers 200 before it receives a byte of the archive; a failure before that leaves the archive
//! complete.

use super::archive::promise;
use crate::fleet::link;
use crate::fleet::link::error::Trouble;
use crate::fleet::link::{Kept, Link, Sent};
use epsilon_api::{
    body::{BodyTooLarge, CallBody},
    build::{
        BuildError, BuildLog, BuildNews, BuildOrder, BuilderStatus, Built, REMOVE_PATH, STATUS_PATH,
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
const LONGEST_REFUSAL: usize = 64 << 10;

/// Longest wait for a builder's status: a person waits for it.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

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
pub(super) enum NotTaken {
    /// It cannot be reached.
    #[error("the builder cannot be reached")]
    Trouble(#[source] Trouble),
    /// It refused: it is full, or it is shutting down.
    #[error("the builder refused the build: {0}")]
    Refused(BuildError),
}

impl Remote {
    /// Hands over the archive and relays the events. Dropping this future hangs up, which cancels
    /// the build. `archive` is emptied at the handover.
    pub(super) async fn build(
        &self,
        order: &BuildOrder,
        archive: &mut Option<CallBody>,
        log: &dyn BuildLog,
    ) -> Result<Result<Built, BuildError>, NotTaken> {
        let lent = archive.take().ok_or_else(|| odd("the archive is gone"))?;
        let (promised, handover, failed) = promise(&lent);
        let opened = timeout(self.silence, self.open(order, promised)).await;
        let answer = match opened.unwrap_or(Err(NotTaken::Trouble(Trouble::Silent(self.silence)))) {
            Ok(answer) => answer,
            Err(not_taken) => {
                *archive = Some(lent);
                return Err(not_taken);
            }
        };
        // If the receiver is gone, so is the connection; the reader below sees that.
        let _ = handover.send(lent);
        let told = self.follow(answer, log).await;
        Ok(told.unwrap_or_else(|trouble| {
            Err(match failed.take() {
                Some(err) => archive_failed(&*err),
                None => self.lost(&trouble),
            })
        }))
    }

    /// Has it remove an image from its storage. Bounded by `silence`.
    pub(super) async fn remove(&self, image: &ImageRef) -> Result<(), Trouble> {
        self.link.renew_pass();
        let work = async {
            let order = serde_json::to_vec(image).map_err(|err| Trouble::Odd(err.to_string()))?;
            let answer = self.link.ask(Method::POST, REMOVE_PATH, order).await?;
            match answer.status() {
                status if status.is_success() => Ok(()),
                status => Err(Trouble::Odd(format!("status {status} for {REMOVE_PATH}"))),
            }
        };
        timeout(self.silence, work).await.unwrap_or(Err(Trouble::Silent(self.silence)))
    }

    /// Its status. `None`: it runs, but is too old to know the request.
    pub(super) async fn status(&self) -> Result<Option<BuilderStatus>, Trouble> {
        self.link.renew_pass();
        let work = async {
            let answer = self.link.ask(Method::GET, STATUS_PATH, "").await?;
            if !answer.status().is_success() {
                return Ok(None);
            }
            let text = link::text(answer.into_body(), LONGEST_REFUSAL).await?;
            let status = serde_json::from_slice(&text);
            status.map(Some).map_err(|err| Trouble::Odd(err.to_string()))
        };
        timeout(STATUS_WITHIN, work).await.unwrap_or(Err(Trouble::Silent(STATUS_WITHIN)))
    }

    async fn open(&self, order: &BuildOrder, body: CallBody) -> Result<Kept, NotTaken> {
        self.link.renew_pass(); // builds are rare, and the pass is not renewed elsewhere
        let request = Request::builder()
            .method(Method::POST)
            .uri(order.uri())
            .header(HOST, self.link.address())
            .body(body)
            .map_err(|err| odd(&err.to_string()))?;
        let (response, connection) = match self.link.send(request, None).await {
            Sent::Answered(response, connection) => (response, connection),
            Sent::Unsent(trouble) | Sent::Lost(trouble) => return Err(NotTaken::Trouble(trouble)),
            Sent::BadBody(err) => return Err(NotTaken::Trouble(Trouble::Broke(err.into()))),
        };
        let status = response.status();
        let link = Arc::clone(&self.link);
        let answer = Kept::new(response.into_body(), connection, link);
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let text = link::text(answer, LONGEST_REFUSAL).await.map_err(NotTaken::Trouble)?;
        let said: ErrorEnvelope = serde_json::from_slice(&text)
            .map_err(|_| odd(&format!("status {status} without an error")))?;
        let ErrorEnvelope { error } = said;
        Err(NotTaken::Refused(BuildError {
            code: error.code.into(),
            status,
            message: error.message,
            hint: error.hint,
        }))
    }

    /// Reads the events to the result. The error is one of the builder, not of the project.
    async fn follow(
        &self,
        answer: Kept,
        log: &dyn BuildLog,
    ) -> Result<Result<Built, BuildError>, Trouble> {
        let mut lines = link::lines(answer, BuildNews::LONGEST_LINE);
        loop {
            let line = timeout(self.silence, lines.next()).await;
            let line = line.map_err(|_| Trouble::Silent(self.silence))?;
            let line =
                line.ok_or_else(|| Trouble::Odd("the answer ended before the result".into()))??;
            match link::parsed(&line)? {
                BuildNews::Alive => {}
                BuildNews::Event(event) => log.tell(event),
                BuildNews::Built(built) => return Ok(Ok(built)),
                BuildNews::Failed(error) => return Ok(Err(error)),
            }
        }
    }

    fn lost(&self, trouble: &Trouble) -> BuildError {
        tracing::warn!(builder = %self.id, error = %Chain(trouble), "Builder was lost during a build; the deployment fails.");
        BuildError {
            code: "BUILDER_LOST".into(),
            status: StatusCode::BAD_GATEWAY,
            message: format!("the builder `{}` was lost during the build", self.id),
            hint: Some("nothing was changed; deploy again".into()),
        }
    }
}

fn odd(what: &str) -> NotTaken {
    NotTaken::Trouble(Trouble::Odd(what.to_owned()))
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
