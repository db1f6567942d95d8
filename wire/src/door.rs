//! A member's own door: the listener where the gateways of its fleet come in, and nobody else. A request without
//! a good pass is answered 401 with nothing told; its body is not read.
//!
//! ```text
//! accept ─▶ TLS, if set (limit: head) ─▶ head (limit: head) ─▶ pass? ─▶ the member's own work
//! ```
//! One task per connection. What is done with a request is the handler's business; a handler is dropped when the
//! gateway hangs up. Used by agents and builders.

use crate::{pass::Checker, tls};
use epsilon_api::{
    body::{self, CallBody},
    headers,
};
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use std::{
    convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that the kernel keeps while all ours are taken.
const BACKLOG: u32 = 1024;
/// Pauses after an error that will come again at once, such as a lack of file descriptors.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Longest wait for a TLS handshake, and for a whole head, the silence before it included: so it also ends a
    /// connection on which nothing is asked.
    pub head: Duration,
}

/// How a door is told to end.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Accept nothing more; finish what runs.
    pub close: CancellationToken,
    /// Let go of everything.
    pub cut: CancellationToken,
    /// All connections.
    pub tasks: TaskTracker,
}

/// A listener that is bound.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    tls: Option<tls::Server>,
    limits: Limits,
    ending: Ending,
}

impl Door {
    /// Binds; port 0 takes any. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(
        address: SocketAddr,
        tls: Option<tls::Server>,
        limits: Limits,
        ending: Ending,
    ) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for connections of the last run.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, tls, limits, ending })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's own.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until told to close. An error never ends it.
    pub async fn serve<H, F>(self, checker: Arc<Checker>, handler: H)
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<CallBody>> + Send + 'static,
    {
        let Self { listener, tls, limits, ending } = self;
        let places = Arc::new(Semaphore::new(limits.connections));
        let mut pause = FIRST_PAUSE;
        loop {
            // Closing first: a flood of connections must not keep the door open. Both may be dropped at any
            // point; a connection that was accepted is never lost in between.
            let (stream, place) = tokio::select! {
                biased;
                () = ending.close.cancelled() => return,
                accepted = accept(&listener, &places) => match accepted {
                    Ok(accepted) => accepted,
                    Err(err) if is_of_one_connection(&err) => continue,
                    Err(error) => {
                        tracing::warn!(%error, ?pause, "Cannot accept connections; trying again.");
                        // Cut short by closing: the loop's first arm sees it next.
                        let _ = timeout(pause, ending.close.cancelled()).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                },
            };
            pause = FIRST_PAUSE;
            let (tls, ending_of_one) = (tls.clone(), ending.clone());
            let (checker, handler) = (Arc::clone(&checker), handler.clone());
            ending.tasks.spawn(async move {
                let _place = place;
                // Small messages must not wait for acknowledgements. A dead socket says so when it is read.
                let _ = stream.set_nodelay(true);
                let ended = match tls {
                    None => speak(stream, limits, &ending_of_one, checker, handler).await,
                    Some(tls) => match timeout(limits.head, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            speak(stream, limits, &ending_of_one, checker, handler).await
                        }
                        Ok(Err(err)) => Err(err),
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    },
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "Connection ended.");
                }
            });
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    // The place first: who cannot be served yet waits in the kernel, unaccepted.
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// The other side gave up before it was accepted; nothing is wrong with us.
fn is_of_one_connection(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

/// Serves one connection to its end.
async fn speak<S, H, F>(
    stream: S,
    limits: Limits,
    ending: &Ending,
    checker: Arc<Checker>,
    handler: H,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<CallBody>> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let work = admits(&checker, &request).then(|| handler(request));
        async move {
            Ok::<_, Infallible>(match work {
                Some(work) => work.await,
                None => unknown_caller(),
            })
        }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let (mut http, mut closing) = (pin!(http), pin!(ending.close.cancelled()));
    let mut is_closing = false;
    loop {
        // Nothing is lost by any of these being polled again: they are pinned outside of the loop, and a
        // token that was cancelled stays so.
        tokio::select! {
            biased; // the connection is nearly always the reason for waking up
            ended = http.as_mut() => return ended.map_err(io::Error::other),
            () = ending.cut.cancelled() => return Ok(()),
            () = closing.as_mut(), if !is_closing => {
                is_closing = true;
                http.as_mut().graceful_shutdown();
            }
        }
    }
}

fn admits(checker: &Checker, request: &Request<Incoming>) -> bool {
    let pass = request.headers().get(headers::PASS).and_then(|pass| pass.to_str().ok());
    pass.is_some_and(|pass| checker.admits(pass, Timestamp::now()))
}

/// Whoever has no pass learns nothing, not even what kind of member this is.
fn unknown_caller() -> Response<CallBody> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}
