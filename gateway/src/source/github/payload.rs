//! Reads the body of a delivery before its sender is authenticated: the signature covers the whole
//! body. So its cost is limited in three ways: the size and the time of each body, and a memory
//! budget for all of them, from which each body takes for the bytes received, not for those
//! announced.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use epsilon_api::units;
use http_body::Body as _;
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit of the memory budget.
const PERMIT_BYTES: usize = 4 << 10;

/// Reads bodies within the limits.
#[derive(Debug)]
pub(crate) struct Payloads {
    largest: units::Bytes,
    limit: Duration,
    budget: Arc<Semaphore>,
}

/// A body in memory, with its part of the budget.
#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("the payload is larger than {0}")]
    TooLarge(units::Bytes),
    #[error("the payload was not received within {}", humantime::format_duration(*.0))]
    TooSlow(Duration),
    #[error("too many payloads are being received")]
    Busy,
    #[error("the payload was cut before its end")]
    Cut,
}

impl Payloads {
    /// Bodies of at most `largest`, each within `limit`, with `memory` for all together.
    pub(crate) fn new(largest: units::Bytes, limit: Duration, memory: units::Bytes) -> Self {
        let permits = usize::try_from(memory.get()).unwrap_or(usize::MAX) / PERMIT_BYTES;
        let budget = Arc::new(Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)));
        Self { largest, limit, budget }
    }

    /// Reads a body. If its announced length is too large, nothing is read.
    pub(crate) async fn read(&self, body: Body) -> Result<Payload, PayloadError> {
        if body.size_hint().lower() > self.largest.get() {
            return Err(PayloadError::TooLarge(self.largest));
        }
        match tokio::time::timeout(self.limit, self.whole(body)).await {
            Ok(read) => read,
            Err(_) => Err(PayloadError::TooSlow(self.limit)),
        }
    }

    async fn whole(&self, mut body: Body) -> Result<Payload, PayloadError> {
        let mut bytes = BytesMut::new();
        let mut permit = None::<OwnedSemaphorePermit>;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| PayloadError::Cut)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length as u64 > self.largest.get() {
                return Err(PayloadError::TooLarge(self.largest));
            }
            let has = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let missing = u32::try_from(length.div_ceil(PERMIT_BYTES).saturating_sub(has));
            let more = Arc::clone(&self.budget).try_acquire_many_owned(missing.unwrap_or(u32::MAX));
            let more = more.map_err(|_| PayloadError::Busy)?;
            match &mut permit {
                Some(permit) => permit.merge(more),
                None => permit = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Payload { bytes: bytes.freeze(), _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use std::convert::Infallible;

    const LIMIT: Duration = Duration::from_secs(10);

    fn payloads(largest: u64, memory: u64) -> Payloads {
        Payloads::new(units::Bytes(largest), LIMIT, units::Bytes(memory))
    }

    /// A body of unknown length.
    fn pieces(count: usize, of: usize) -> Body {
        let piece = move |_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; of]));
        Body::from_stream(stream::iter(0..count).map(piece))
    }

    #[tokio::test]
    async fn a_body_is_read_and_releases_its_memory() {
        let payloads = payloads(1 << 20, 1 << 20);
        let read = payloads.read(pieces(10, 1000)).await.unwrap();
        assert_eq!(read.bytes.len(), 10_000);
        assert_eq!(payloads.budget.available_permits(), (1 << 20) / PERMIT_BYTES - 3);
        drop(read);
        assert_eq!(payloads.budget.available_permits(), (1 << 20) / PERMIT_BYTES);
        assert!(payloads.read(Body::empty()).await.unwrap().bytes.is_empty());
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_announced_or_not() {
        let payloads = payloads(10_000, 1 << 20);
        for body in [pieces(11, 1000), Body::from(vec![0; 10_001])] {
            assert_eq!(
                payloads.read(body).await.unwrap_err(),
                PayloadError::TooLarge(units::Bytes(10_000))
            );
        }
        assert_eq!(payloads.read(pieces(10, 1000)).await.unwrap().bytes.len(), 10_000);
        assert_eq!(payloads.budget.available_permits(), (1 << 20) / PERMIT_BYTES);
    }

    #[tokio::test]
    async fn many_at_once_share_one_purse() {
        let payloads = payloads(1 << 20, 1 << 20);
        let first = payloads.read(pieces(8, 100 << 10)).await.unwrap();
        assert_eq!(payloads.read(pieces(8, 100 << 10)).await.unwrap_err(), PayloadError::Busy);
        drop(first);
        assert!(payloads.read(pieces(8, 100 << 10)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(
            payloads(1 << 20, 1 << 20).read(body).await.unwrap_err(),
            PayloadError::TooSlow(LIMIT)
        );
    }

    #[tokio::test]
    async fn a_cut_body_is_reported() {
        let body = Body::from_stream(stream::iter([Ok(Bytes::from_static(b"{")), Err("gone")]));
        assert_eq!(payloads(1 << 20, 1 << 20).read(body).await.unwrap_err(), PayloadError::Cut);
    }
}
