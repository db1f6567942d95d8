//! The server's side of TLS. Certificates and their files are `epsilon_fleet_link::tls`'s.
//!
//! Handshakes have no time limit here: callers put their own around them.

use rustls::ServerConfig;
use std::{fmt, io, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server};

/// Whether the peer presented a certificate. It is one of the authority then: the handshake, also
/// the one that this connection resumes, fails with any other.
pub fn shows_certificate<S>(stream: &server::TlsStream<S>) -> bool {
    stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty())
}

/// Accepts TLS connections. Cheap to clone.
#[derive(Clone)]
pub struct Server(TlsAcceptor);

impl Server {
    /// A server with this configuration: its certificate, and which clients it lets in.
    pub fn new(config: ServerConfig) -> Self {
        Self(TlsAcceptor::from(Arc::new(config)))
    }

    /// TLS handshake with a client.
    ///
    /// # Errors
    /// When it has no certificate that is accepted, or hangs up.
    pub async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.accept(stream).await
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls::Server")
    }
}
