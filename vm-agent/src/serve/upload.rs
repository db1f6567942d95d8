//! A request's body from a gateway. When the rest of it is not wanted, it is drained in the
//! background for a moment: closing a connection with unread bytes resets it, and the answer on it
//! is lost.

use crate::vm::LocalVm;
use bytes::Bytes;
use epsilon_api::body::{BodyError, BodyProgress};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long the rest is drained. A gateway that read our answer closes the connection before that.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Upload {
    /// `None` once it was read to its end, or is being drained.
    incoming: Option<Incoming>,
    progress: Option<BodyProgress>,
    vm: Arc<LocalVm>,
}

impl Upload {
    pub(super) fn new(incoming: Incoming, vm: &Arc<LocalVm>) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        let progress = incoming.is_some().then(BodyProgress::default);
        Self { incoming, progress, vm: Arc::clone(vm) }
    }

    /// The progress of the upload, unless the body was complete at once.
    pub(super) fn progress(&self) -> Option<BodyProgress> {
        self.progress.clone()
    }

    fn completed(&self) {
        if let Some(progress) = &self.progress {
            progress.completed();
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *incoming).poll_frame(cx).map_err(Into::into);
        let is_over = incoming.is_end_stream();
        if let Some(progress) = &self.progress {
            progress.awaits(frame.is_pending());
        }
        match &frame {
            Poll::Ready(None) => {
                self.completed();
                self.incoming = None;
            }
            Poll::Ready(Some(Err(_))) => self.incoming = None,
            Poll::Ready(Some(Ok(_))) if is_over => self.completed(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut rest) = self.incoming.take().filter(|rest| !rest.is_end_stream()) {
            self.vm.spawn(timeout(DRAIN_TIMEOUT, async move {
                while let Some(Ok(_)) = rest.frame().await {}
            }));
        }
    }
}
