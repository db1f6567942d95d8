//! The VM's reports to every gateway that reads them: one line of JSON each second, and at once
//! when a drain begins or ends or the engine goes down or comes back. Serialized once for all; a
//! gateway that reads slowly misses lines and gets the newest.
//!
//! Inputs of the task: time, [`Drain::changed`](crate::drain::Drain::changed), new readers. Output:
//! the newest line. Ends when the listener closes, and with it all streams.

use crate::service::VmService;
use bytes::Bytes;
use epsilon_api::{
    body::{self, CallBody},
    fleet::REPORT,
    vm::Vm,
};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use std::convert::Infallible;
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Reports {
    newest: watch::Sender<Bytes>,
    /// Signals a new reader.
    new_reader: Notify,
}

impl Reports {
    pub(super) async fn run(&self, service: &VmService, close: &CancellationToken) {
        let mut timer = interval(REPORT);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The shutdown first. All arms may be dropped: a token, stored notifications, a timer.
            tokio::select! {
                biased;
                () = close.cancelled() => return,
                () = service.0.drain.changed.notified() => {}
                () = self.new_reader.notified() => {}
                _ = timer.tick() => {}
            }
            if self.newest.receiver_count() > 0 {
                self.newest.send_replace(line(service));
            }
        }
    }

    pub(super) fn readers(&self) -> usize {
        self.newest.receiver_count()
    }

    /// Streams the lines from now on.
    pub(super) fn stream(&self, close: &CancellationToken) -> CallBody {
        let newest = self.newest.subscribe();
        self.new_reader.notify_one();
        let lines = stream::unfold(newest, |mut newest| async move {
            newest.changed().await.ok()?;
            let line = newest.borrow_and_update().clone();
            Some((Ok::<_, Infallible>(Frame::data(line)), newest))
        });
        body::boxed(StreamBody::new(Box::pin(lines.take_until(close.clone().cancelled_owned()))))
    }
}

fn line(service: &VmService) -> Bytes {
    // Our own types always serialize; a gateway ignores a broken line.
    let mut line = serde_json::to_vec(&service.status()).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
