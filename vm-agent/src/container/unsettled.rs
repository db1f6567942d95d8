//! Calls whose answer is out while their handler, or a promise given to `ctx.waitUntil`, still
//! runs. The wrapper reports the id of each on a connection of its own (`GET /unsettled` on the
//! control socket), written before the answer's last byte.
//!
//! Both sockets are local, so when the last byte of an answer was read its id can be read here,
//! without blocking. `instance/lease.rs` checks at the end of each answer;
//! `instance/lease/abandoned.rs` then waits for the end of the call. A wrapper without this
//! endpoint has no such calls.

use super::{
    control::{self, ControlError},
    sockets::{CONTROL, SocketDir},
};
use bytes::Bytes;
use epsilon_api::{chain::Chain, ids::RequestId};
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::{client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::{collections::VecDeque, os::fd::OwnedFd, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// Timeout of the wrapper's response: it waits for code to yield, and computes nothing.
const OPEN: Duration = Duration::from_secs(5);
/// The protocol's name in the upgrade.
const PROTOCOL: &str = "unsettled";
/// Bytes per read: some sixty ids.
const READ_SIZE: usize = 2048;
/// Reads at the end of one answer. The function's code controls the other end and may write without
/// end; only its own calls suffer then.
const MAX_READS: usize = 4;
/// Longest request id, as `epsilon_api::ids` checks it.
const LONGEST_ID: usize = 64;
/// Limit of stored ids. Ids of calls that end otherwise than with their answer are never taken.
const MAX_IDS: usize = 1024;

/// The agent's end of the connection.
#[derive(Debug)]
pub(crate) struct Unsettled {
    /// Non-blocking.
    socket: OwnedFd,
    received: Mutex<Received>,
}

#[derive(Debug, Default)]
struct Received {
    ids: VecDeque<String>,
    /// The beginning of a line.
    partial: Vec<u8>,
    is_closed: bool,
}

impl Unsettled {
    /// Connects, before the wrapper has code. `None`: it lacks the endpoint or does not respond;
    /// its calls end with their answers.
    pub(crate) async fn open(folder: &SocketDir) -> Option<Self> {
        let opened = timeout(OPEN, Self::connect(folder)).await;
        let opened = opened.unwrap_or_else(|elapsed| Err(ControlError::NoAnswer(elapsed.into())));
        opened.unwrap_or_else(|err| {
            let folder = folder.path().display();
            tracing::warn!(%folder, error = %Chain(&err), "Wrapper does not report work after its answers; calls end with their answers.");
            None
        })
    }

    async fn connect(folder: &SocketDir) -> Result<Option<Self>, ControlError> {
        let broken = |err: std::io::Error| ControlError::NoAnswer(err.into());
        let stream = folder.connect(CONTROL).await.map_err(broken)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(control::no_answer)?;
        let request = Request::get("/unsettled")
            .header(header::HOST, "wrapper")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(|err| ControlError::NoAnswer(err.into()))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(control::no_answer)?;
            match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => {
                    hyper::upgrade::on(response).await.map(Some).map_err(control::no_answer)
                }
                _ => Ok(None),
            }
        };
        let mut answer = std::pin::pin!(answer);
        let upgraded = tokio::select! {
            biased;
            answer = &mut answer => answer,
            // It ends with the upgrade; the result is in `answer`.
            _ = connection.with_upgrades() => answer.await,
        };
        upgraded?.map(Self::of).transpose()
    }

    fn of(upgraded: Upgraded) -> Result<Self, ControlError> {
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| ControlError::NoAnswer("an upgrade of another kind".into()))?;
        let mut received = Received::default();
        received.push(&parts.read_buf);
        // Without a reactor: it is only read when an answer has ended.
        let socket = parts.io.into_inner().into_std();
        let socket = OwnedFd::from(socket.map_err(|err| ControlError::NoAnswer(err.into()))?);
        Ok(Self { socket, received: Mutex::new(received) })
    }

    /// Whether the call of this answer, whose last byte was just read, still runs. True once for
    /// each report of the wrapper.
    pub(crate) fn take(&self, call: &RequestId) -> bool {
        let mut received = self.received.lock();
        received.read(&self.socket);
        received.take(call.as_str())
    }
}

impl Received {
    fn read(&mut self, socket: &OwnedFd) {
        let mut piece = [0; READ_SIZE];
        for _ in 0..MAX_READS {
            if self.is_closed {
                return;
            }
            match rustix::io::read(socket, &mut piece) {
                Ok(0) => self.is_closed = true,
                Ok(bytes) => {
                    self.push(&piece[..bytes]);
                    if bytes < READ_SIZE {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_closed = true,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut self.partial);
                    if let Ok(id) = String::from_utf8(line) {
                        if self.ids.len() == MAX_IDS {
                            self.ids.pop_front();
                        }
                        self.ids.push_back(id);
                    }
                }
                byte if self.partial.len() < LONGEST_ID => self.partial.push(*byte),
                _ => {} // longer than any id
            }
        }
    }

    fn take(&mut self, id: &str) -> bool {
        let at = self.ids.iter().rposition(|known| known == id);
        at.is_some_and(|at| self.ids.remove(at).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_ids_also_in_pieces() {
        let mut received = Received::default();
        received.push(b"first\nsec");
        assert!(received.take("first") && !received.take("first"), "once");
        assert!(!received.take("sec") && !received.take("second"));
        received.push(b"ond\n");
        assert!(received.take("second"));
    }

    #[test]
    fn endless_output_is_bounded() {
        let mut received = Received::default();
        received.push(&[b'x'; 100_000]);
        assert!(received.partial.len() <= LONGEST_ID);
        received.push(b"\n");
        for number in 0..3 * MAX_IDS {
            received.push(format!("{number}\n").as_bytes());
        }
        assert_eq!(received.ids.len(), MAX_IDS);
        assert!(received.take(&(3 * MAX_IDS - 1).to_string()) && !received.take("0"));
    }
}
