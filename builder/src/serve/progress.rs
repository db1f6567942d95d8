//! Sends the progress of one build to the gateway. The reader may be slow or gone: steps always
//! find room, lines of tools are dropped when there is none, and the build never waits. During
//! silence the reader gets heartbeats.

use crate::error;
use bytes::Bytes;
use epsilon_api::{
    body::{self, CallBody},
    build::{BuildEvent, BuildLog, BuildMessage, HEARTBEAT},
};
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Messages queued for the reader. npm prints some hundreds of lines; each is about 100 bytes.
const DEPTH: usize = 1024;
/// Queue slots reserved for steps.
const RESERVED_FOR_STEPS: usize = 64;
/// How long the final message waits for a slow reader.
const FINAL_MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The sender's end.
#[derive(Debug)]
pub(super) struct Progress {
    progress_log: Arc<ProgressLog>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct ProgressLog {
    messages: Sender<BuildMessage>,
    lost: AtomicU64,
}

/// A progress channel and the response body that carries it. `stop` cancels the build; so does
/// dropping the body before the final message.
pub(super) fn channel(stop: &CancellationToken) -> (Progress, CallBody) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    let stop = stop.child_token();
    let reader =
        ProgressReader { messages: receiver, ended: false, _hung_up: stop.clone().drop_guard() };
    let lines = stream::unfold(reader, |mut reader| async {
        let line = Bytes::from(reader.next().await?.to_line());
        Some((Ok::<_, Infallible>(Frame::data(line)), reader))
    });
    let progress_log = Arc::new(ProgressLog { messages: sender, lost: AtomicU64::new(0) });
    (Progress { progress_log, stop }, body::boxed(StreamBody::new(lines)))
}

impl Progress {
    /// For the build.
    pub(super) fn as_build_log(&self) -> Arc<dyn BuildLog> {
        Arc::clone(&self.progress_log) as _
    }

    /// Waits until the build is cancelled.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Sends the final message: waits for a slow reader, within a limit. Does nothing when the
    /// reader is gone.
    pub(super) async fn end(self, last: BuildMessage) {
        let _ = self.progress_log.messages.send_timeout(last, FINAL_MESSAGE_TIMEOUT).await;
    }
}

impl BuildLog for ProgressLog {
    fn report(&self, event: BuildEvent) {
        if matches!(event, BuildEvent::Line(_)) {
            if self.messages.capacity() <= RESERVED_FOR_STEPS {
                self.lost.fetch_add(1, Relaxed);
                return;
            }
            match self.lost.swap(0, Relaxed) {
                0 => {}
                lost => self.send(error::note(format!("{lost} lines of output were lost"))),
            }
        }
        self.send(event);
    }
}

impl ProgressLog {
    fn send(&self, event: BuildEvent) {
        // A reader that is gone needs nothing; for a slow one there are reserved slots.
        let _ = self.messages.try_send(BuildMessage::Event(event));
    }
}

/// The receiver's end. Dropping it cancels the build.
#[derive(Debug)]
struct ProgressReader {
    messages: Receiver<BuildMessage>,
    ended: bool,
    _hung_up: DropGuard,
}

impl ProgressReader {
    async fn next(&mut self) -> Option<BuildMessage> {
        if self.ended {
            return None;
        }
        let message = match timeout(HEARTBEAT, self.messages.recv()).await {
            Ok(message) => message?,
            Err(_) => BuildMessage::Alive,
        };
        self.ended = match message {
            BuildMessage::Built(_) | BuildMessage::Failed(_) => true,
            BuildMessage::Alive | BuildMessage::Event(_) => false,
        };
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::admin::Step;
    use http_body_util::BodyExt;

    async fn next(body: &mut CallBody) -> BuildMessage {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        serde_json::from_slice(&frame).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_build_sends_heartbeats() {
        let (progress, mut lines) = channel(&CancellationToken::new());
        for _ in 0..3 {
            assert_eq!(next(&mut lines).await, BuildMessage::Alive);
        }
        let failed = BuildMessage::Failed(error::internal("x"));
        progress.end(failed.clone()).await;
        assert_eq!(next(&mut lines).await, failed);
        assert!(lines.frame().await.is_none(), "nothing comes after the final message");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_loses_lines_and_never_a_step() {
        let (progress, mut lines) = channel(&CancellationToken::new());
        let log = progress.as_build_log();
        for n in 0..2 * DEPTH {
            log.report(BuildEvent::Line(n.to_string()));
        }
        let step = BuildEvent::StepStarted { step: Step::Ship, detail: String::new() };
        log.report(step.clone());
        for n in 0..DEPTH - RESERVED_FOR_STEPS {
            assert_eq!(
                next(&mut lines).await,
                BuildMessage::Event(BuildEvent::Line(n.to_string()))
            );
        }
        assert_eq!(next(&mut lines).await, BuildMessage::Event(step));
        log.report(BuildEvent::Line("read again".into()));
        let lost = format!("note: {} lines of output were lost", DEPTH + RESERVED_FOR_STEPS);
        assert_eq!(next(&mut lines).await, BuildMessage::Event(BuildEvent::Line(lost)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_leaves_stops_the_build() {
        let (progress, lines) = channel(&CancellationToken::new());
        drop(lines);
        progress.stopped().await;
        progress.end(BuildMessage::Alive).await; // does not wait
    }
}
