//! One build by a builder on another machine: `POST /v1/builds`, and its news as they come. The builder says 200
//! before it gets a byte of the archive; whatever goes wrong before that leaves the archive whole.

use super::archive::promise;
use crate::fleet::{
    link::{self, Kept, Link, Sent},
    trouble::Trouble,
};
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

/// Longest error that a builder says instead of a build.
const LONGEST_REFUSAL: usize = 64 << 10;

/// Longest wait for an answer about how it is: a person waits for it.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// A builder that joined.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) id: VmId,
    pub(super) link: Arc<Link>,
    /// Longest that it may say nothing.
    pub(super) silence: Duration,
}

/// Why a builder did not take a build. The archive is still whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// It cannot be asked.
    #[error("it cannot be asked")]
    Trouble(#[source] Trouble),
    /// It said no: it is full, or it ends.
    #[error("it refused: {0}")]
    Refused(BuildError),
}

impl Remote {
    /// Hands the archive over and relays what happens; dropping this hangs up, which cancels the build there.
    /// The archive is taken out of `archive` at the handover.
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
        // A receiver that is gone means that the connection is; the reader below sees that.
        let _ = handover.send(lent);
        let told = self.follow(answer, log).await;
        Ok(told.unwrap_or_else(|trouble| {
            Err(match failed.take() {
                Some(err) => archive_failed(&*err),
                None => self.lost(&trouble),
            })
        }))
    }

    /// Has it take an image away from where it put it. Bounded by its silence.
    pub(super) async fn remove(&self, image: &ImageRef) -> Result<(), Trouble> {
        self.link.renew_pass();
        let work = async {
            let order = serde_json::to_vec(image).map_err(|err| Trouble::Odd(err.to_string()))?;
            let answer = self.link.ask(Method::POST, REMOVE_PATH, order).await?;
            match answer.status() {
                status if status.is_success() => Ok(()),
                status => Err(Trouble::Odd(format!("{status} to {REMOVE_PATH}"))),
            }
        };
        timeout(self.silence, work).await.unwrap_or(Err(Trouble::Silent(self.silence)))
    }

    /// How it is. `None`: it is there, and older than the question.
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
        self.link.renew_pass(); // builds are rare; nobody else keeps it fresh
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
        let (status, link) = (response.status(), Arc::clone(&self.link));
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

    /// Reads the news to the last word. The error is trouble with the builder, not with the project.
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
                line.ok_or_else(|| Trouble::Odd("its answer ended in the middle".into()))??;
            match link::parsed(&line)? {
                BuildNews::Alive => {}
                BuildNews::Event(event) => log.tell(event),
                BuildNews::Built(built) => return Ok(Ok(built)),
                BuildNews::Failed(error) => return Ok(Err(error)),
            }
        }
    }

    fn lost(&self, trouble: &Trouble) -> BuildError {
        tracing::warn!(builder = %self.id, error = %Chain(trouble), "A builder was lost in a build.");
        BuildError {
            code: "BUILDER_LOST".into(),
            status: StatusCode::BAD_GATEWAY,
            message: format!("the builder `{}` was lost while it built", self.id),
            hint: Some("nothing was changed; deploy again".into()),
        }
    }
}

fn odd(what: &str) -> NotTaken {
    NotTaken::Trouble(Trouble::Odd(what.to_owned()))
}

/// What the developer's side did to the archive on its way.
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
