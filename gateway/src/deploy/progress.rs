//! The progress of a deployment, as events from the workers to one reader. If the reader is slow or
//! gone, events of steps still fit into the queue, lines of tool output are dropped, and the work
//! never waits.

use super::Began;
use crate::observe::metrics::Metrics;
use epsilon_api::{
    admin::{DeployEvent, Step},
    build::{BuildEvent, BuildLog},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Events that wait for the reader. npm prints some hundreds of lines of about 100 bytes each.
const QUEUE_LEN: usize = 1024;
/// Queue slots that lines leave free for events of steps.
const RESERVED_FOR_STEPS: usize = 64;
/// How long the last event waits for a slow reader.
const FINAL_EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The sending end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    events: mpsc::Sender<DeployEvent>,
    lost: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Progress {
    /// A new queue of events: both ends.
    pub(crate) fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<DeployEvent>) {
        let (events, reader) = mpsc::channel(QUEUE_LEN);
        (Self { events, lost: Arc::default(), metrics }, reader)
    }

    /// Sends an event that must not be dropped. There is room for some dozens of these.
    pub(crate) fn send(&self, event: DeployEvent) {
        // If the reader is gone, the event is dropped.
        let _ = self.events.try_send(event);
    }

    /// Sends a line of output if there is room.
    pub(crate) fn line(&self, line: String) {
        if self.events.capacity() <= RESERVED_FOR_STEPS {
            self.lost.fetch_add(1, Relaxed);
            self.metrics.lost_lines.inc();
            return;
        }
        match self.lost.swap(0, Relaxed) {
            0 => {}
            lost => {
                self.send(DeployEvent::Log { line: format!("… {lost} lines were dropped …") });
            }
        }
        self.send(DeployEvent::Log { line });
    }

    /// Reports the start of a step.
    pub(crate) fn begin(&self, step: Step, detail: String) -> Began {
        self.send(DeployEvent::StepStarted { step, detail });
        Instant::now()
    }

    /// Reports the success of a step.
    pub(crate) fn done(&self, step: Step, detail: String, began: Began) {
        self.send(step_done(step, detail, began.elapsed()));
    }

    /// Sends the last event; waits for a slow reader within a limit.
    pub(crate) async fn end(self, last: DeployEvent) {
        // If the reader is gone, it can still find the deployment in the list.
        let _ = self.events.send_timeout(last, FINAL_EVENT_TIMEOUT).await;
    }

    /// The interface for the builder.
    pub(crate) fn as_build_log(&self) -> Arc<dyn BuildLog> {
        Arc::new(self.clone())
    }
}

fn step_done(step: Step, detail: String, took: Duration) -> DeployEvent {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    DeployEvent::StepDone { step, detail, took_ms }
}

impl BuildLog for Progress {
    fn report(&self, event: BuildEvent) {
        match event {
            BuildEvent::StepStarted { step, detail } => {
                Self::send(self, DeployEvent::StepStarted { step, detail });
            }
            BuildEvent::StepDone { step, detail, took } => {
                Self::send(self, step_done(step, detail, took));
            }
            BuildEvent::Line(line) => self.line(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_loses_lines_and_never_a_step() {
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let (progress, mut reader) = Progress::new(metrics);
        for n in 0..2 * QUEUE_LEN {
            progress.line(n.to_string());
        }
        progress.begin(Step::Ship, "1 image".into());
        for _ in 0..QUEUE_LEN {
            if matches!(reader.try_recv().unwrap(), DeployEvent::StepStarted { .. }) {
                break;
            }
        }
        progress.line("received again".into());
        let lost = QUEUE_LEN + RESERVED_FOR_STEPS;
        let Ok(DeployEvent::Log { line }) = reader.try_recv() else { panic!("no line") };
        assert_eq!(line, format!("… {lost} lines were dropped …"));
    }
}
