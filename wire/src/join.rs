//! A member's side of belonging to a fleet: it joins one of the gateways it was told of, then says each
//! [`BEAT`](epsilon_api::fleet::BEAT) that it is still there, and learns whose passes to take. Agents and builders do this in one
//! task; their own work does not depend on it once they have joined.
//!
//! ```text
//!            ┌────────── 401: the credential is not known any more ─────────┐
//!            ▼                                                               │
//! ─▶ join with the fleet's token ─▶ credential, kept 0600 ─▶ beat each BEAT ─┴─▶ told to end: leave
//!      ▲ a gateway that does not answer: the next one; none does: again, later and later, up to LONGEST_PAUSE
//! ```
//! What is kept in the member's folder: `credential` (its own), `gateways.json` (whose passes it takes, so that
//! a restart while no gateway can be asked does not lock them out).

mod ask;
mod kept;

use crate::{pass::Checker, tls};
use ask::{Ask, Gateway, Heard};
use epsilon_api::{
    chain::Chain,
    fleet::{Join, Joined, MemberKind, Welcome},
    redacted::Secret,
};
use http::StatusCode;
use kept::Kept;
use rand::RngExt;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

pub use ask::{BadGateway, Gateways};

/// Pauses after a round in which no gateway could be joined, doubled each time. A gateway that comes back finds
/// its fleet again within seconds, and is not run over by it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest that a farewell may take: a gateway that does not hear it learns the same from silence.
const FAREWELL: Duration = Duration::from_secs(3);

/// What joining needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Control addresses of gateways, tried in turn. One is enough; others are for when it is down.
    pub gateways: Gateways,
    /// The file with the fleet's token. Read at each joining, so that a new token needs no restart.
    pub token_file: PathBuf,
    /// Where the member keeps what it must not lose.
    pub folder: PathBuf,
    /// For gateways at `https://`.
    pub tls: Option<tls::Client>,
    /// Where gateways reach this member: `host` or `host:port`. `None`: the local address that reaches the
    /// gateway.
    pub advertise: Option<String>,
    /// Where the member listens.
    pub listens: SocketAddr,
    /// How often it beats: [`epsilon_api::fleet::BEAT`], but in tests.
    pub beat: Duration,
}

/// Belongs to a fleet as long as [`Belonging::run`] runs.
#[derive(Debug)]
pub struct Belonging {
    settings: Settings,
    /// What the member says of itself; its address is filled in.
    me: Join,
    checker: Arc<Checker>,
    kept: Kept,
    credential: Option<Secret<String>>,
    /// The gateway that answered last: asked first.
    favourite: usize,
    /// Told once, until it is something else.
    trouble: Option<String>,
    joined: watch::Sender<Option<String>>,
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
enum Refused {
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
    Stranger { gateway: Gateway, path: PathBuf, kind: MemberKind },
    #[error("the gateway at `{gateway}` does not let this member in: {text}")]
    Turned { gateway: Gateway, text: String },
    #[error(
        "`{gateway}` is no control address of a gateway; its `ready` line names that one after `control`, port 8081 unless set otherwise (it said: {text})"
    )]
    Elsewhere { gateway: Gateway, text: String },
    #[error("no gateway can be reached")]
    Nobody(#[source] ask::AskError),
    #[error("what the gateway said cannot be kept")]
    Folder(#[source] io::Error),
}

/// A member that has never joined needs the token.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be read from `{}`; copy the file `{}` of a gateway's data folder there", path.display(), kind.token_file())]
struct NoToken {
    path: PathBuf,
    kind: MemberKind,
    #[source]
    source: io::Error,
}

impl Belonging {
    /// Reads what an earlier life has kept: gateways that it knew get in from now on. Asks nobody yet.
    ///
    /// # Errors
    /// When the token's file, or the folder, cannot be read.
    pub fn new(settings: Settings, me: Join, checker: Arc<Checker>) -> io::Result<Self> {
        let kept = Kept::new(settings.folder.clone());
        let credential = kept.credential()?;
        if credential.is_none() {
            let path = &settings.token_file;
            std::fs::read_to_string(path).map_err(|source| {
                let kind = me.kind;
                io::Error::new(source.kind(), NoToken { path: path.clone(), kind, source })
            })?;
        }
        if let Some(Welcome { gateways, .. }) = kept.gateways() {
            checker.trust(&gateways);
        }
        let joined = watch::Sender::new(None);
        Ok(Self { settings, me, checker, kept, credential, favourite: 0, trouble: None, joined })
    }

    /// The address under which the fleet knows this member, once it does.
    pub fn joined(&self) -> watch::Receiver<Option<String>> {
        self.joined.subscribe()
    }

    /// Joins and stays until `end`; then says farewell.
    pub async fn run(mut self, end: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Ending first. A round that is dropped may have reached a gateway; the farewell makes up for it.
            let round = tokio::select! {
                biased;
                () = end.cancelled() => break,
                round = self.round() => round,
            };
            let rest = match round {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    self.told(None);
                    self.settings.beat
                }
                Err(refused) => {
                    self.told(Some(Chain(&refused).to_string()));
                    let rest = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    rest
                }
            };
            // A fleet that started together must not speak together.
            let rest = rest.mul_f64(rand::rng().random_range(0.9..1.1));
            if timeout(rest, end.cancelled()).await.is_ok() {
                break;
            }
        }
        if !timeout(FAREWELL, self.leave()).await.unwrap_or(false) {
            tracing::warn!("No gateway heard the farewell; they will notice.");
        }
    }

    /// Once around all gateways, until one answers.
    async fn round(&mut self) -> Result<(), Refused> {
        let mut last = None;
        let gateways = self.settings.gateways.as_slice().len();
        for offset in 0..gateways {
            let at = (self.favourite + offset) % gateways;
            let gateway = self.settings.gateways.as_slice()[at].clone();
            match self.say_hello(&gateway).await {
                Ok(heard) => {
                    self.favourite = at;
                    return heard;
                }
                Err(unreachable) => last = Some(unreachable),
            }
        }
        match last {
            Some(unreachable) => Err(Refused::Nobody(unreachable)),
            None => Ok(()), // `Gateways` is never empty
        }
    }

    /// A beat, or a joining where there is no credential (any more). The outer error: try another gateway.
    async fn say_hello(&mut self, gateway: &Gateway) -> Result<Result<(), Refused>, ask::AskError> {
        if let Some(credential) = self.credential.clone() {
            let heard: Heard<Welcome> = self.ask(gateway, "beat", &credential).await?;
            match heard.answer {
                Ok(welcome) => return Ok(self.welcomed(welcome, heard.date, heard.local)),
                Err((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, why)) => {
                    tracing::info!(why, "The credential is not taken; joining again.");
                    self.credential = None;
                }
                Err((status, text)) => return Ok(Err(turned(gateway, status, text))),
            }
        }
        let path = self.settings.token_file.clone();
        let token = match std::fs::read_to_string(&path) {
            Ok(token) => Secret::new(token.trim().to_owned()),
            Err(source) => return Ok(Err(Refused::Token { path, source })),
        };
        let heard: Heard<Joined> = self.ask(gateway, "join", &token).await?;
        Ok(match heard.answer {
            Ok(Joined { credential, welcome }) => {
                let kept = self.kept.keep_credential(&credential).map_err(Refused::Folder);
                self.credential = Some(credential);
                kept.and_then(|()| self.welcomed(welcome, heard.date, heard.local))
            }
            Err((StatusCode::UNAUTHORIZED, _)) => {
                let kind = self.me.kind;
                Err(Refused::Stranger { gateway: gateway.clone(), path, kind })
            }
            Err((status, text)) => Err(turned(gateway, status, text)),
        })
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        gateway: &Gateway,
        verb: &str,
        key: &Secret<String>,
    ) -> Result<Heard<T>, ask::AskError> {
        let me = |local: IpAddr| Join { address: self.address(local), ..self.me.clone() };
        Ask { gateway, tls: self.settings.tls.as_ref(), verb, key }.send(Some(&me)).await
    }

    fn welcomed(
        &mut self,
        welcome: Welcome,
        date: Option<jiff::Timestamp>,
        local: IpAddr,
    ) -> Result<(), Refused> {
        let Welcome { gateways, now } = welcome;
        if let Some(now) = now.or(date) {
            self.checker.hear_time(now);
        }
        // What time it was is no use to a later life.
        let welcome = Welcome { gateways, now: None };
        self.checker.trust(&welcome.gateways);
        self.kept.keep_gateways(&welcome).map_err(Refused::Folder)?;
        let address = self.address(local);
        if self
            .joined
            .send_if_modified(|now| now.replace(address.clone()).as_ref() != Some(&address))
        {
            tracing::info!(id = %self.me.id, address, "Joined the fleet.");
        }
        Ok(())
    }

    /// Where gateways reach us, when we reach them from `local`.
    fn address(&self, local: IpAddr) -> String {
        let listens = self.settings.listens;
        match &self.settings.advertise {
            Some(told) if has_port(told) => told.clone(),
            Some(told) => format!("{told}:{}", listens.port()),
            None if listens.ip().is_unspecified() => {
                SocketAddr::new(local.to_canonical(), listens.port()).to_string()
            }
            None => listens.to_string(),
        }
    }

    /// Says what is wrong once, and that it is over.
    fn told(&mut self, trouble: Option<String>) {
        if self.trouble == trouble {
            return;
        }
        match &trouble {
            Some(trouble) => tracing::warn!(trouble, "Not in touch with the fleet; trying on."),
            None => tracing::info!("In touch with the fleet again."),
        }
        self.trouble = trouble;
    }

    /// Says whether that is known now.
    async fn leave(&mut self) -> bool {
        let Some(credential) = self.credential.take() else { return true };
        let gateways = self.settings.gateways.as_slice();
        for offset in 0..gateways.len() {
            let gateway = &gateways[(self.favourite + offset) % gateways.len()];
            let ask =
                Ask { gateway, tls: self.settings.tls.as_ref(), verb: "leave", key: &credential };
            if ask.farewell().await.is_ok() {
                tracing::info!(id = %self.me.id, "Left the fleet.");
                self.kept.forget_credential();
                return true;
            }
        }
        false
    }
}

/// A gateway's control address knows what is asked; where callers reach functions, there is none of that name.
fn turned(gateway: &Gateway, status: StatusCode, text: String) -> Refused {
    let gateway = gateway.clone();
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Refused::Elsewhere { gateway, text }
        }
        _ => Refused::Turned { gateway, text },
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
