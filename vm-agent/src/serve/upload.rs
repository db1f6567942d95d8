//! A request's body from a gateway. When the rest of it is not wanted, it is drained in the
//! background for a moment: closing a connection with unread bytes resets it, and the answer on it
//! is lost.

use crate::vm::LocalVm;
use bytes::Bytes;
use epsilon_api::body::{BodyError, BodyProgress};
use epsilon_http_server::observed::{Observed, Observer};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long the rest is drained. A gateway that read our answer closes the connection before that.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A body that a gateway sends.
pub(super) type Upload = Observed<Incoming, Drained>;

/// Notes how far the upload is, and drains the rest of it.
pub(super) struct Drained {
    /// `None`: the body was complete at once.
    progress: Option<BodyProgress>,
    vm: Arc<LocalVm>,
}

/// Observes the body of a request.
pub(super) fn upload(incoming: Incoming, vm: &Arc<LocalVm>) -> Upload {
    let progress = (!incoming.is_end_stream()).then(BodyProgress::default);
    Observed::over(incoming, Drained { progress, vm: Arc::clone(vm) })
}

impl Drained {
    /// The progress of the upload, unless the body was complete at once.
    pub(super) fn progress(&self) -> Option<BodyProgress> {
        self.progress.clone()
    }

    fn awaits(&self, awaits: bool) {
        if let Some(progress) = &self.progress {
            progress.awaits(awaits);
        }
    }
}

impl Observer<Incoming> for Drained {
    fn frame(&mut self, _: &mut Frame<Bytes>, _is_last: bool) -> Result<(), BodyError> {
        self.awaits(false);
        Ok(())
    }

    fn pending(&mut self, _: &mut Context<'_>) -> Poll<BodyError> {
        self.awaits(true);
        Poll::Pending
    }

    fn end(&mut self) {
        if let Some(progress) = &self.progress {
            progress.completed();
        }
    }

    fn failed(&mut self, err: hyper::Error) -> BodyError {
        self.awaits(false);
        err.into()
    }

    fn unread(&mut self, mut rest: Incoming) {
        self.vm.spawn(timeout(DRAIN_TIMEOUT, async move {
            while let Some(Ok(_)) = rest.frame().await {}
        }));
    }
}
