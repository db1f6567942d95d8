//! One HTTP/1 connection that we opened, and the pool of idle ones. The connection used last is
//! taken first, so that the others age and are closed by us before the server closes them.
//!
//! A connection is driven (read and written) by a task of its own, or by the task that waits for an
//! answer on it ([`Connection::caller_driven`]): then a call costs no task and no hand-over between
//! tasks.

mod coalesce;
mod interim;
mod request_line;

use coalesce::CoalescedStream;
use epsilon_api::body::CallBody;
use epsilon_http_server::DeadlineTimer;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use interim::Interim;
use parking_lot::Mutex;
use request_line::RequestLine;
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How long a connection may take from the last byte of one answer until it accepts the next
/// request. Only a request whose upload was not read to its end takes longer, and then a fresh
/// connection is the better choice.
const READY_TIMEOUT: Duration = Duration::from_millis(2);

/// Maximum number of header fields, in bytes about 400 KiB: hyper's buffer ends there. More than a
/// hundred fields (many cookies) exceed hyper's room on the stack and cost two allocations for each
/// answer.
pub const MAX_HEADERS: usize = 1024;

/// One connection. Dropping it closes it at once, with everything in flight on it.
#[derive(Debug)]
pub struct Connection {
    /// hyper's handle for sending requests.
    pub sender: SendRequest<CallBody>,
    driver: Driver,
    deadline_timer: DeadlineTimer,
    line: Arc<RequestLine>,
    interim: Arc<Interim>,
}

/// What reads and writes the connection. Ends with it; its errors reach the call through the
/// sender.
enum Driver {
    Task(#[allow(dead_code, reason = "held for its drop")] AbortOnDropHandle<()>),
    /// The mutex is only for `Sync`: it is never contended, as only the exclusive owner of the
    /// connection polls it.
    Caller(Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>),
    Over,
}

impl Connection {
    /// HTTP/1 client handshake on a stream, driven by a task. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn handshake<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut connection = Self::caller_driven(stream).await?;
        connection.detach();
        Ok(connection)
    }

    /// HTTP/1 client handshake on a stream that is driven only while a caller is inside
    /// [`Self::send`]. Work that remains after that needs [`Self::detach`].
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn caller_driven<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let line = Arc::<RequestLine>::default();
        let interim = Arc::<Interim>::default();
        let io =
            TokioIo::new(CoalescedStream::new(stream, Arc::clone(&line), Arc::clone(&interim)));
        let mut http = http1::Builder::new();
        http.max_headers(MAX_HEADERS);
        let (sender, connection) = http.handshake(io).await.map_err(io::Error::other)?;
        let driver = Box::pin(async move { drop(connection.with_upgrades().await) });
        let driver = Driver::Caller(Mutex::new(driver));
        Ok(Self { sender, driver, deadline_timer: DeadlineTimer::default(), line, interim })
    }

    /// Hands the connection to a task that drives it from now on. Needs a tokio runtime.
    pub fn detach(&mut self) {
        self.driver = match std::mem::replace(&mut self.driver, Driver::Over) {
            Driver::Caller(driver) => {
                Driver::Task(AbortOnDropHandle::new(tokio::spawn(driver.into_inner())))
            }
            driver @ (Driver::Task(_) | Driver::Over) => driver,
        };
    }

    /// Sends a request and waits for the head of its answer; `None` at the deadline. A connection
    /// whose `send` was dropped halfway is not reusable.
    pub async fn send(
        &mut self,
        request: Request<CallBody>,
        deadline: Instant,
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<CallBody>>>> {
        self.send_with(request, deadline, |_, _| {}).await
    }

    /// [`Self::send`] that also reports interim answers (1xx) as they arrive.
    pub async fn send_with(
        &mut self,
        request: Request<CallBody>,
        deadline: Instant,
        on_interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Option<Result<Response<Incoming>, TrySendError<Request<CallBody>>>> {
        let mut deadline_timer = std::mem::take(&mut self.deadline_timer);
        let answered = {
            let mut answer = pin!(self.send_unlimited(request, on_interim));
            poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => deadline_timer.poll(cx, deadline).map(|()| None),
            })
            .await
        };
        self.deadline_timer = deadline_timer;
        answered
    }

    /// [`Self::send_with`] without a deadline, for callers with one of their own.
    ///
    /// # Errors
    /// When the request could not be sent, or the answer is not valid HTTP.
    pub async fn send_unlimited(
        &mut self,
        request: Request<CallBody>,
        mut on_interim: impl FnMut(StatusCode, HeaderMap),
    ) -> Result<Response<Incoming>, TrySendError<Request<CallBody>>> {
        self.line.set(&request);
        self.interim.expect();
        let Self { sender, driver, interim, .. } = self;
        let mut answer = pin!(sender.try_send_request(request));
        poll_fn(|cx| {
            let answered = match driver {
                Driver::Caller(_) => {
                    driver.poll(cx);
                    // The driver above runs in this task and produces the answer, so no wake-up is
                    // needed for it.
                    answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
                }
                Driver::Task(_) | Driver::Over => {
                    interim.watch(cx);
                    answer.as_mut().poll(cx)
                }
            };
            for (status, headers) in interim.take() {
                on_interim(status, headers);
            }
            answered
        })
        .await
    }

    /// Waits until the connection is ready for a request; `None` when it does not get ready in
    /// [`READY_TIMEOUT`].
    pub async fn ready(mut self) -> Option<Self> {
        if self.sender.is_ready() {
            return Some(self);
        }
        let ready = poll_fn(|cx| {
            self.driver.poll(cx);
            self.sender.poll_ready(cx)
        });
        match timeout(READY_TIMEOUT, ready).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Driver {
    /// Reads and writes what can be, when the caller drives the connection.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Self::Caller(driver) = self
            && driver.get_mut().as_mut().poll(cx).is_ready()
        {
            *self = Self::Over;
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task(_) => "Task",
            Self::Caller(_) => "Caller",
            Self::Over => "Over",
        })
    }
}

/// Connections that wait for their next request.
#[derive(Debug)]
pub struct IdleConnections {
    idle: Mutex<VecDeque<(Connection, Instant)>>,
    max_idle: Duration,
}

impl IdleConnections {
    /// An empty pool; connections idle for longer than `max_idle` are closed.
    pub fn new(max_idle: Duration) -> Self {
        Self { idle: Mutex::default(), max_idle }
    }

    /// Takes the connection used last, if it is still usable.
    pub fn reuse(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        while let Some((_, since)) = idle.back() {
            if now.duration_since(*since) >= self.max_idle {
                idle.clear(); // the newest one is too old, so all are
                return None;
            }
            match idle.pop_back() {
                Some((connection, _)) if !connection.sender.is_closed() => return Some(connection),
                _ => {}
            }
        }
        None
    }

    /// Puts back a connection whose answer was read to the end.
    pub fn keep(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        if !connection.sender.is_ready() {
            connection.detach(); // the server has not read the whole upload yet
        }
        let now = Instant::now();
        let mut idle = self.idle.lock();
        while idle.front().is_some_and(|(_, since)| now.duration_since(*since) >= self.max_idle) {
            idle.pop_front();
        }
        idle.push_back((connection, now));
    }
}

#[cfg(test)]
mod tests;
