//! What is read ahead, and how the rest of a body is sent on.

use super::*;
use epsilon_api::units;
use epsilon_http_server::{limited::BodyLimits, pace::PaceLimits};
use futures_util::{StreamExt, stream};
use http_body_util::{Full, StreamBody};
use prometheus::IntCounter;
use std::convert::Infallible;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

const PACE: PaceLimits = PaceLimits { wait_budget: Duration::from_secs(10), rate: 1024 };

fn limited<B: UploadBody>(body: B) -> Limited<B> {
    let counter = IntCounter::new("bytes", "bytes").unwrap();
    let limits = BodyLimits {
        size: units::Bytes::mib(1),
        linger: Duration::ZERO,
        pace: PACE,
        clean_trailers: |_| {},
    };
    Limited::new(body, limits, false, counter)
}

/// A body that declares its length and sends more slowly than that.
struct Announced<B> {
    body: B,
    length: u64,
}

impl<B: Body<Data = Bytes, Error = Infallible> + Unpin> Body for Announced<B> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.length -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

type Fed = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// A chunked body, and the channel that feeds it.
fn fed() -> (UnboundedSender<Frame<Bytes>>, Fed) {
    let (feed, frames) = unbounded_channel();
    (feed, StreamBody::new(UnboundedReceiverStream::new(frames).map(Ok).boxed()))
}

fn data(size: usize) -> Frame<Bytes> {
    Frame::data(Bytes::from(vec![b'x'; size]))
}

/// Size of the data, and number of trailers.
async fn all(body: CallBody) -> (usize, usize) {
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().map_or(0, HeaderMap::len);
    (collected.to_bytes().len(), trailers)
}

#[tokio::test]
async fn a_small_received_body_is_passed_on_without_copy() {
    let text = Bytes::from_static(b"hello");
    let (body, upload) = Buffers::new().read(limited(Full::new(text.clone()))).await.unwrap();
    assert!(upload.is_none());
    assert_eq!(body.size_hint().exact(), Some(5));
    let seen = body.collect().await.unwrap().to_bytes();
    assert_eq!(seen.as_ptr(), text.as_ptr(), "the body was not copied");
}

#[tokio::test(start_paused = true)]
async fn a_small_declared_body_is_read_completely() {
    let (feed, body) = fed();
    tokio::spawn(async move {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            feed.send(data(5000)).unwrap();
        }
    });
    let buffers = Buffers::new();
    let body = limited(Announced { body, length: 100_000 });
    let (body, upload) = buffers.read(body).await.unwrap();
    assert!(upload.is_none(), "it is complete");
    assert_eq!(body.size_hint().exact(), Some(100_000));
    let taken = MAX_TOTAL / PERMIT_BYTES - buffers.0.available_permits();
    assert_eq!(
        taken,
        100_000_usize.div_ceil(PERMIT_BYTES).min(95_000_usize.div_ceil(PERMIT_BYTES))
    );
    assert_eq!(all(body).await, (100_000, 0));
    assert_eq!(buffers.0.available_permits(), MAX_TOTAL / PERMIT_BYTES, "the memory is given back");
}

#[tokio::test(start_paused = true)]
async fn a_missing_body_is_too_slow_before_any_call() {
    for length in [10, 100_000, 1 << 20] {
        let (feed, body) = fed();
        feed.send(data(9)).unwrap();
        let began = Instant::now();
        let read = Buffers::new().read(limited(Announced { body, length })).await;
        assert!(matches!(read, Err(VmError::BodyTooSlow)), "{length}");
        assert_eq!(began.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_first_bytes_of_large_bodies_are_awaited() {
    let (feed, body) = fed();
    feed.send(data(MAX_BUFFERED - 1)).unwrap();
    feed.send(data(1000)).unwrap();
    let body = limited(Announced { body, length: 600_000 });
    let (mut body, upload) = Buffers::new().read(body).await.unwrap();
    let upload = upload.unwrap();
    assert!(!upload.is_complete());
    assert_eq!(body.size_hint().exact(), Some(600_000));
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first.len(), MAX_BUFFERED + 999);
    feed.send(data(600_000 - first.len())).unwrap();
    body.frame().await.unwrap().unwrap();
    assert!(upload.is_complete() && body.is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn a_pausing_body_of_unknown_length_is_passed_on() {
    for (answered, sent) in [(false, 0), (false, 10), (true, 10)] {
        let (feed, body) = fed();
        if sent > 0 {
            feed.send(data(sent)).unwrap();
        }
        let began = Instant::now();
        let (mut body, upload) = Buffers::new().read(limited(body)).await.unwrap();
        assert_eq!(began.elapsed(), PAUSE);
        assert!(!body.is_end_stream() && body.size_hint().exact().is_none());
        if sent > 0 {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), sent);
        }
        let upload = upload.unwrap();
        if answered {
            upload.answered();
        }
        let waited = tokio::time::timeout(Duration::from_secs(3600), body.frame()).await;
        match waited {
            Ok(frame) => {
                assert!(!answered);
                let err = frame.unwrap().unwrap_err();
                assert!(matches!(broken(&*err), VmError::BodyTooSlow));
                assert_eq!(began.elapsed().as_secs(), 2);
            }
            Err(_) => assert!(answered, "its answer has begun: both may wait"),
        }
        drop(feed);
    }
}

#[tokio::test]
async fn chunks_stay_chunks_and_keep_their_trailers() {
    for (pieces, with_trailers) in [(0, false), (1, false), (3, false), (0, true), (3, true)] {
        let (feed, body) = fed();
        for _ in 0..pieces {
            feed.send(data(10)).unwrap();
        }
        if with_trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().unwrap());
            feed.send(Frame::trailers(trailers)).unwrap();
        }
        drop(feed);
        let (body, upload) = Buffers::new().read(limited(body)).await.unwrap();
        assert!(upload.is_none());
        assert!(!body.is_end_stream() && body.size_hint().exact().is_none(), "still chunked");
        assert_eq!(all(body).await, (10 * pieces, usize::from(with_trailers)));
    }
}

#[tokio::test]
async fn without_memory_bodies_are_passed_on_as_they_come() {
    let buffers = Buffers::new();
    let _all = buffers.0.clone().try_acquire_many_owned((MAX_TOTAL / PERMIT_BYTES) as u32).unwrap();
    let (feed, body) = fed();
    feed.send(data(1000)).unwrap();
    let body = limited(Announced { body, length: 2000 });
    let (body, upload) = buffers.read(body).await.unwrap();
    assert!(!upload.unwrap().is_complete());
    feed.send(data(1000)).unwrap();
    drop(feed);
    assert_eq!(all(body).await, (2000, 0));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_calls() {
    let (feed, body) = fed();
    for _ in 0..3 {
        feed.send(data(700 << 10)).unwrap();
    }
    let mut body = limited(body);
    body.frame().await.unwrap().unwrap();
    let read = Buffers::new().read(body).await;
    assert!(matches!(read, Err(VmError::BodyTooLarge { .. })));
}
