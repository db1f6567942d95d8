//! What a connection's requests and its transport share about the exchange that runs: whether an
//! answer is pending, the target as it was received, interim answers, a caller that half-closed.
//! Written by one task at a time: the connection's.

use crate::{
    interim::InterimQueue,
    target::{self, Replaced, Upload},
};
use http::{Request, StatusCode};
use http_body::Body;
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// State shared by the connection's exchanges and its transport.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Bytes of a call's answer may still have to be written.
    is_answer_pending: AtomicBool,
    /// The connection no longer speaks HTTP.
    is_upgraded: AtomicBool,
    /// Body length of the last request: 0 for none, `UNKNOWN` if chunked.
    upload: AtomicU64,
    has_replaced: AtomicBool,
    replaced: Mutex<Vec<Replaced>>,
    /// Interim answers of the running call.
    pub(crate) interims: InterimQueue,
    is_half_closed: AtomicBool,
    /// When the caller closed its sending half, or when bytes were last sent to it after that.
    progress: Mutex<Option<Instant>>,
    half_closed: Notify,
}

const UNKNOWN: u64 = u64::MAX;

impl Exchange {
    /// A request begins. `false`: its target is not the one that was received, and it must be
    /// refused.
    pub(crate) fn begin<B: Body>(&self, request: &mut Request<B>) -> bool {
        let body = request.body();
        let upload = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        self.upload.store(upload.unwrap_or(UNKNOWN), Relaxed);
        self.interims.begin(request.version());
        if !self.has_replaced.swap(false, Relaxed) {
            return true;
        }
        target::restore(request, &std::mem::take(&mut *self.replaced.lock()))
    }

    /// Bytes of the head that is being received were replaced.
    pub(crate) fn add_replaced(&self, replaced: Vec<Replaced>) {
        if !replaced.is_empty() {
            self.replaced.lock().extend(replaced);
            self.has_replaced.store(true, Relaxed);
        }
    }

    /// The final answer is about to be written.
    pub(crate) fn begin_answer(&self, status: StatusCode) {
        self.is_answer_pending.store(true, Relaxed);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.is_upgraded.store(true, Relaxed);
        }
    }

    /// Whether a call's answer may still have to be written.
    pub(crate) fn has_pending_answer(&self) -> bool {
        self.is_answer_pending.load(Relaxed)
    }

    /// Everything is written.
    pub(crate) fn answer_written(&self) {
        self.is_answer_pending.store(false, Relaxed);
    }

    /// Whether the connection left HTTP.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Relaxed)
    }

    /// What is known of the last request's body.
    pub(crate) fn upload(&self) -> Upload {
        match self.upload.load(Relaxed) {
            0 => Upload::None,
            UNKNOWN => Upload::Unknown,
            size => Upload::Sized(size),
        }
    }

    /// Resolves when the caller closes its sending half.
    pub(crate) async fn half_closed(&self) {
        self.half_closed.notified().await;
    }

    /// Whether the caller has closed its sending half.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.is_half_closed.load(Relaxed)
    }

    /// The caller closed its sending half.
    pub(crate) fn note_half_closed(&self) {
        if !self.is_half_closed.swap(true, Relaxed) {
            *self.progress.lock() = Some(Instant::now());
            self.half_closed.notify_one();
        }
    }

    /// Bytes were sent.
    pub(crate) fn note_progress(&self) {
        if self.is_half_closed() {
            *self.progress.lock() = Some(Instant::now());
        }
    }

    /// Whether the caller closed its sending half and then received nothing for `after`: it may be
    /// gone.
    pub(crate) fn is_abandoned(&self, after: Duration, now: Instant) -> bool {
        self.is_half_closed()
            && self.progress.lock().is_some_and(|last| now.duration_since(last) >= after)
    }
}
