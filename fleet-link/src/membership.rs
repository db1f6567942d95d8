//! A member's side of fleet membership: it registers with one of the configured gateways, sends a
//! heartbeat each [`HEARTBEAT_INTERVAL`](epsilon_api::fleet::HEARTBEAT_INTERVAL), and learns which
//! gateways' tokens to accept. Agents and builders do this in one task; their own work does not
//! depend on it once they have joined.
//!
//! ```text
//!            ┌────────── 401: the gateway rejects the credential ────────┐
//!            ▼                                                           │
//! ─▶ join with the fleet's token ─▶ credential, stored 0600 ─▶ heartbeat ┴─▶ at the end: leave
//!      ▲ no answer: next gateway; none answers: again after a pause, doubled up to LONGEST_PAUSE
//! ```
//! Stored in the member's data folder: `credential` (its own), `gateways.json` (the gateways whose
//! tokens it accepts, so that a restart while no gateway answers does not lock them out).

mod credentials;
mod request;

use crate::gateway_token::Verifier;
use crate::tls;
use credentials::Credentials;
use epsilon_api::{
    chain::Chain,
    fleet::{Join, Joined, MemberKind, Welcome},
    redacted::Secret,
};
use http::StatusCode;
use rand::RngExt;
use request::{Gateway, GatewayRequest, Reply};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

pub use request::{BadGateway, Gateways};

/// Pauses after a round in which no gateway could be joined, doubled each time. A gateway that
/// restarts gets its fleet back within seconds, and is not overrun by it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest that leaving may take: a gateway that does not receive it notices by missing heartbeats.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of membership.
#[derive(Debug)]
pub struct Settings {
    /// Control addresses of gateways, tried in turn. One is enough; the others are for when it is
    /// down.
    pub gateways: Gateways,
    /// The file with the fleet's token. Read at each registration, so that a new token needs no
    /// restart.
    pub token_file: PathBuf,
    /// The folder where the member stores its credential and the gateways' keys.
    pub folder: PathBuf,
    /// TLS client for gateways at `https://`.
    pub tls: Option<tls::Client>,
    /// Address at which gateways reach this member: `host` or `host:port`. `None`: the local
    /// address of the connection to the gateway.
    pub advertise: Option<String>,
    /// Where the member listens.
    pub listens: SocketAddr,
    /// Time between heartbeats: [`epsilon_api::fleet::HEARTBEAT_INTERVAL`], except in tests.
    pub heartbeat: Duration,
}

/// Membership in a fleet, as long as [`Membership::run`] runs.
#[derive(Debug)]
pub struct Membership {
    settings: Settings,
    /// What the member reports of itself; its address is filled in per request.
    me: Join,
    verifier: Arc<Verifier>,
    stored: Credentials,
    credential: Option<Secret<String>>,
    /// Index of the gateway that answered last: tried first.
    preferred: usize,
    /// The error logged last; logged again only when it changes.
    last_error: Option<String>,
    joined: watch::Sender<Option<String>>,
}

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("the token in `{}` cannot be read", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the gateway at `{gateway}` does not take the token; is `{}` its `{}`?",
        path.display(), kind.token_file()
    )]
    WrongToken { gateway: Gateway, path: PathBuf, kind: MemberKind },
    #[error("the gateway at `{gateway}` refused this member: {text}")]
    Rejected { gateway: Gateway, text: String },
    #[error(
        "`{gateway}` is not the control address of a gateway; its `ready` line names that one after `control`, port 8081 unless set otherwise (it answered: {text})"
    )]
    NotAGateway { gateway: Gateway, text: String },
    #[error("no gateway can be reached")]
    Unreachable(#[source] request::RequestError),
    #[error("the gateway's answer cannot be stored")]
    Folder(#[source] io::Error),
}

/// A member that has never joined needs the fleet's token.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be read from `{}`; copy the file `{}` of a gateway's data folder there", path.display(), kind.token_file())]
struct NoToken {
    path: PathBuf,
    kind: MemberKind,
    #[source]
    source: io::Error,
}

impl Membership {
    /// Reads the state of an earlier run: gateways known then are trusted from now on. Sends
    /// nothing yet.
    ///
    /// # Errors
    /// When the token's file or the folder cannot be read.
    pub fn new(settings: Settings, me: Join, verifier: Arc<Verifier>) -> io::Result<Self> {
        let stored = Credentials::new(settings.folder.clone());
        let credential = stored.credential()?;
        if credential.is_none() {
            let path = &settings.token_file;
            std::fs::read_to_string(path).map_err(|source| {
                let kind = me.kind;
                io::Error::new(source.kind(), NoToken { path: path.clone(), kind, source })
            })?;
        }
        if let Some(Welcome { gateways, .. }) = stored.gateways() {
            verifier.trust(&gateways);
        }
        let joined = watch::Sender::new(None);
        Ok(Self {
            settings,
            me,
            verifier,
            stored,
            credential,
            preferred: 0,
            last_error: None,
            joined,
        })
    }

    /// The address under which the fleet knows this member, once it has joined.
    pub fn joined(&self) -> watch::Receiver<Option<String>> {
        self.joined.subscribe()
    }

    /// Joins and sends heartbeats until `end`; then deregisters.
    pub async fn run(mut self, end: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Shutdown first. A round that is dropped may have reached a gateway; deregistering
            // makes up for it.
            let round = tokio::select! {
                biased;
                () = end.cancelled() => break,
                round = self.round() => round,
            };
            let rest = match round {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    self.log_change(None);
                    self.settings.heartbeat
                }
                Err(error) => {
                    self.log_change(Some(Chain(&error).to_string()));
                    let rest = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    rest
                }
            };
            // Jitter: members that started together must not send together.
            let rest = rest.mul_f64(rand::rng().random_range(0.9..1.1));
            if timeout(rest, end.cancelled()).await.is_ok() {
                break;
            }
        }
        if !timeout(LEAVE_TIMEOUT, self.leave()).await.unwrap_or(false) {
            tracing::warn!(
                "No gateway could be reached to deregister; gateways will notice by missing heartbeats."
            );
        }
    }

    /// Tries all gateways once, until one answers.
    async fn round(&mut self) -> Result<(), JoinError> {
        let mut last = None;
        let gateways = self.settings.gateways.as_slice().len();
        for offset in 0..gateways {
            let at = (self.preferred + offset) % gateways;
            let gateway = self.settings.gateways.as_slice()[at].clone();
            match self.register_or_heartbeat(&gateway).await {
                Ok(reply) => {
                    self.preferred = at;
                    return reply;
                }
                Err(unreachable) => last = Some(unreachable),
            }
        }
        match last {
            Some(unreachable) => Err(JoinError::Unreachable(unreachable)),
            None => Ok(()), // `Gateways` is never empty
        }
    }

    /// Sends a heartbeat, or registers where there is no credential (any more). The outer error
    /// means: try another gateway.
    async fn register_or_heartbeat(
        &mut self,
        gateway: &Gateway,
    ) -> Result<Result<(), JoinError>, request::RequestError> {
        if let Some(credential) = self.credential.clone() {
            let reply: Reply<Welcome> = self.ask(gateway, "beat", &credential).await?;
            match reply.answer {
                Ok(welcome) => return Ok(self.apply_welcome(welcome, reply.date, reply.local)),
                Err((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, why)) => {
                    tracing::info!(
                        why,
                        "Gateway rejected the member's credential; registering again."
                    );
                    self.credential = None;
                }
                Err((status, text)) => return Ok(Err(rejection(gateway, status, text))),
            }
        }
        let path = self.settings.token_file.clone();
        let token = match std::fs::read_to_string(&path) {
            Ok(token) => Secret::new(token.trim().to_owned()),
            Err(source) => return Ok(Err(JoinError::Token { path, source })),
        };
        let reply: Reply<Joined> = self.ask(gateway, "join", &token).await?;
        Ok(match reply.answer {
            Ok(Joined { credential, welcome }) => {
                let stored = self.stored.store_credential(&credential).map_err(JoinError::Folder);
                self.credential = Some(credential);
                stored.and_then(|()| self.apply_welcome(welcome, reply.date, reply.local))
            }
            Err((StatusCode::UNAUTHORIZED, _)) => {
                let kind = self.me.kind;
                Err(JoinError::WrongToken { gateway: gateway.clone(), path, kind })
            }
            Err((status, text)) => Err(rejection(gateway, status, text)),
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        gateway: &Gateway,
        verb: &str,
        key: &Secret<String>,
    ) -> Result<Reply<T>, request::RequestError> {
        let me = |local: IpAddr| Join { address: self.address(local), ..self.me.clone() };
        GatewayRequest { gateway, tls: self.settings.tls.as_ref(), verb, key }.send(Some(&me)).await
    }

    fn apply_welcome(
        &mut self,
        welcome: Welcome,
        date: Option<jiff::Timestamp>,
        local: IpAddr,
    ) -> Result<(), JoinError> {
        let Welcome { gateways, now } = welcome;
        if let Some(now) = now.or(date) {
            self.verifier.note_time(now);
        }
        // The time is of no use to a later run.
        let welcome = Welcome { gateways, now: None };
        self.verifier.trust(&welcome.gateways);
        self.stored.store_gateways(&welcome).map_err(JoinError::Folder)?;
        let address = self.address(local);
        if self
            .joined
            .send_if_modified(|now| now.replace(address.clone()).as_ref() != Some(&address))
        {
            tracing::info!(id = %self.me.id, address, "Member joined the fleet.");
        }
        Ok(())
    }

    /// The address at which gateways reach us, given the local address of our connection to one.
    fn address(&self, local: IpAddr) -> String {
        let listens = self.settings.listens;
        match &self.settings.advertise {
            Some(address) if has_port(address) => address.clone(),
            Some(address) => format!("{address}:{}", listens.port()),
            None if listens.ip().is_unspecified() => {
                SocketAddr::new(local.to_canonical(), listens.port()).to_string()
            }
            None => listens.to_string(),
        }
    }

    /// Logs a change: what is wrong, or that the gateways are reachable again.
    fn log_change(&mut self, error: Option<String>) {
        if self.last_error == error {
            return;
        }
        match &error {
            Some(error) => {
                tracing::warn!(error, "Member has no connection to its fleet; retrying.");
            }
            None => tracing::info!("Member is connected to its fleet again."),
        }
        self.last_error = error;
    }

    /// Deregisters; `false` when no gateway could be reached.
    async fn leave(&mut self) -> bool {
        let Some(credential) = self.credential.take() else { return true };
        let gateways = self.settings.gateways.as_slice();
        for offset in 0..gateways.len() {
            let gateway = &gateways[(self.preferred + offset) % gateways.len()];
            let ask = GatewayRequest {
                gateway,
                tls: self.settings.tls.as_ref(),
                verb: "leave",
                key: &credential,
            };
            if ask.deregister().await.is_ok() {
                tracing::info!(id = %self.me.id, "Member left the fleet.");
                self.stored.remove_credential();
                return true;
            }
        }
        false
    }
}

/// A control listener knows these paths; the public listener answers 404 or 405 to them.
fn rejection(gateway: &Gateway, status: StatusCode, text: String) -> JoinError {
    let gateway = gateway.clone();
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            JoinError::NotAGateway { gateway, text }
        }
        _ => JoinError::Rejected { gateway, text },
    }
}

fn has_port(address: &str) -> bool {
    match address.rsplit_once(':') {
        // `::1` has colons and no port; `[::1]:80` has one.
        Some((host, port)) => {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
