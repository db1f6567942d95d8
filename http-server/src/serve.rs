//! One connection from its first byte to its end. hyper reads and writes HTTP/1.1. This file adds
//! the limits that hyper leaves open: how long a connection may be idle or unread, and how one is
//! closed.
//!
//! ```text
//! Head ─whole head─▶ Busy ─last byte out─▶ Idle ─next byte in─▶ Head
//!   └ header_timeout: closed  │ past its deadline: cut   └ idle_timeout: closed
//! ```

use crate::{
    activity::Check,
    connection::{Busy, Connection},
    handler::{Handler, Refused},
    limiter::{Occupant, Slot},
    limits::Limits,
    refusal,
    socket::{Socket, Watched},
    transport::Transport,
};
use epsilon_api::chain::Chain;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::StatusCode;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long a drain keeps a connection open that has sent no request yet: it was opened a moment
/// ago and its first request is probably on its way. hyper alone would close it at once.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// The number of headers that hyper parses on its stack. Any other number costs two allocations for
/// each head.
const HYPER_STACK_HEADERS: usize = 100;

/// Serves one connection until either side closes it, a limit is exceeded, or a token is cancelled:
/// `close` lets the running answer finish, `cut` does not.
pub(crate) async fn serve_connection<S: Socket>(
    stream: S,
    connection: Arc<Connection>,
    handler: impl Handler,
    limits: Limits,
    close: CancellationToken,
    cut: CancellationToken,
) {
    let service = {
        let connection = Arc::clone(&connection);
        let handler = handler.clone();
        service_fn(move |mut request| {
            let handler = handler.clone();
            let connection = Arc::clone(&connection);
            async move {
                let busy = Busy::new(Arc::clone(&connection));
                if !connection.exchange.begin(&mut request) {
                    return Err(io::Error::other(
                        "the parsed target differs from the one that was read",
                    ));
                }
                let response = handler.handle(request, Arc::clone(&connection)).await;
                connection.exchange.begin_answer(response.status());
                Ok(response.map(|body| busy.until_end_of(body)))
            }
        })
    };
    // These futures are polled only when one of them is woken: bytes arrive some thousand times as
    // often.
    let mut events = FuturesUnordered::<BoxFuture<'_, ConnectionEvent>>::new();
    events.push(cut.cancelled().map(|()| ConnectionEvent::Cut).boxed());
    events.push(close.cancelled().map(|()| ConnectionEvent::Close).boxed());
    events.push(connection.exchange.half_closed().map(|()| ConnectionEvent::HalfClosed).boxed());
    let must_close =
        || connection.activity.close_requested().map(|()| ConnectionEvent::MakeRoom).boxed();
    events.push(must_close());
    let check_after = |after| sleep(after).map(|()| ConnectionEvent::CheckLimits).boxed();
    events.push(check_after(limits.header_timeout.min(limits.idle_timeout)));

    let detects_half_close = S::DETECTS_HALF_CLOSE && limits.half_close_timeout.is_some();
    let watched = Watched { stream, connection: Arc::clone(&connection) };
    let mut transport = Transport::new(watched, detects_half_close);
    let mut max_headers = limits.max_headers.min(HYPER_STACK_HEADERS);
    let mut is_closing = false;
    // The head is parsed by one parser, and by a second, larger one if it has more fields than the
    // first parses without an allocation.
    loop {
        let mut http = http1::Builder::new();
        // `activity` enforces this limit without a timer per request, and distinguishes idle from
        // slow.
        http.header_read_timeout(None).max_header_size(limits.max_header);
        http.half_close(detects_half_close).keep_alive(!is_closing && !connection.is_reserve());
        if max_headers != HYPER_STACK_HEADERS {
            http.max_headers(max_headers);
        }
        let io = TokioIo::new(transport);
        let mut http = http.serve_connection(io, service.clone()).with_upgrades();
        // The status to answer before closing, if any: that of a request that could not be read.
        let ended = loop {
            // The connection first: it is nearly always what woke the task. Cancel-safe: `http`
            // lives outside the loop and the other futures stay in `events`.
            let event = tokio::select! {
                biased;
                ended = &mut http => {
                    let Err(error) = ended else {
                        if !limits.counts_tunnels {
                            connection.release_slot(); // what lives on is a tunnel
                        }
                        return;
                    };
                    tracing::debug!(error = %Chain(&error), "Connection ended with an error.");
                    break error.is_parse().then_some(StatusCode::BAD_REQUEST);
                }
                Some(event) = events.next() => event,
            };
            match event {
                ConnectionEvent::Cut => return,
                ConnectionEvent::Close if !is_closing && !connection.has_received_request() => {
                    is_closing = true;
                    events.push(sleep(FIRST_REQUEST).map(|()| ConnectionEvent::Close).boxed());
                }
                ConnectionEvent::Close => {
                    is_closing = true;
                    Pin::new(&mut http).graceful_shutdown();
                }
                ConnectionEvent::MakeRoom => {
                    let is_idle = connection.activity.idle_for().is_some();
                    if is_idle || connection.with_slot(Slot::keep).is_none() {
                        return;
                    }
                    events.push(must_close()); // a request arrived in the meantime
                }
                ConnectionEvent::HalfClosed => {
                    events.extend(limits.half_close_timeout.map(check_after));
                }
                ConnectionEvent::CheckLimits => {
                    let now = Instant::now();
                    let is_abandoned = |after| connection.exchange.is_abandoned(after, now);
                    if limits.half_close_timeout.is_some_and(is_abandoned) {
                        tracing::debug!(
                            "Connection closed: the caller half-closed it and made no progress."
                        );
                        return;
                    }
                    match connection.check(&limits, now) {
                        Check::WithinLimits { next_check } => events.push(check_after(next_check)),
                        Check::Exceeded(why) => {
                            tracing::debug!(why, "Connection closed.");
                            break Some(StatusCode::REQUEST_TIMEOUT);
                        }
                    }
                }
            }
        };
        let (Some(status), Some(parts)) = (ended, http.into_parts()) else { return };
        let unread = parts.read_buf;
        let transport_then = parts.io.into_inner();
        // No error is sent in the middle of an answer, nor on a connection that received nothing.
        let is_answering =
            connection.activity.is_busy() || connection.exchange.has_pending_answer();
        let status = match transport_then.refused {
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                if max_headers < limits.max_headers =>
            {
                max_headers = limits.max_headers;
                transport = transport_then.again(unread);
                continue;
            }
            Some(status) => status,
            None if is_answering => return,
            None if status == StatusCode::REQUEST_TIMEOUT && unread.is_empty() => return,
            None => status,
        };
        let Some(answer) = handler.refuse(Refused::of(status)) else { return };
        return refusal::answer(transport_then.watched, &answer).await;
    }
}

/// Events that end or change a connection, other than its own bytes.
enum ConnectionEvent {
    /// Abort at once.
    Cut,
    /// Close after the running answer.
    Close,
    /// The caller closed its sending half.
    HalfClosed,
    /// Another connection needs the slot: close, unless busy.
    MakeRoom,
    /// Time to check the limits.
    CheckLimits,
}
