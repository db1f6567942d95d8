//! The settings of an agent that belongs to a fleet: the same section, the half that `epsilon up` has no use for.

use super::{ConfigError, Settings};
use epsilon_wire::{
    door::Limits,
    join::Gateways,
    tls::{Files, TlsError},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The port of an agent's listener unless another is set.
const PORT: u16 = 8082;

/// How an agent belongs to a fleet, checked.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// See [`Settings::listen`].
    pub listen: SocketAddr,
    /// See [`Settings::metrics`].
    pub metrics: Option<SocketAddr>,
    /// See [`Settings::metrics_key_file`].
    pub metrics_key_file: Option<PathBuf>,
    /// See [`Settings::advertise`].
    pub advertise: Option<String>,
    /// See [`Settings::gateways`].
    pub gateways: Gateways,
    /// See [`Settings::token_file`].
    pub token_file: PathBuf,
    /// See [`Settings::tls_certificate`].
    pub tls: Option<Files>,
    /// Connections, and how long they may be silent.
    pub limits: Limits,
    /// See [`Settings::drain_grace`].
    pub drain_grace: Duration,
}

/// `None` where no fleet is named.
pub(super) fn read(s: &Settings) -> Result<Option<MemberConfig>, ConfigError> {
    let seconds = Duration::from_secs;
    let limits = Limits {
        connections: s.max_connections.unwrap_or(4096),
        head: s.head_timeout.unwrap_or(seconds(10)),
        idle: s.idle_timeout.unwrap_or(seconds(60)),
    };
    let least = Duration::from_millis(1);
    for (key, good, least) in [
        ("max_connections", limits.connections >= 1, "1"),
        ("head_timeout", limits.head >= least, "1ms"),
        ("idle_timeout", limits.idle >= least, "1ms"),
    ] {
        if !good {
            return Err(ConfigError::TooSmall { key, least });
        }
    }
    let files = (s.tls_certificate.clone(), s.tls_key.clone(), s.tls_authority.clone());
    let tls = Files::from_settings(files.0, files.1, files.2)?;
    let Some(text) = &s.gateways else { return Ok(None) };
    let gateways: Gateways = text.parse()?;
    if gateways.need_tls() && tls.is_none() {
        return Err(TlsError::Needed.into());
    }
    Ok(Some(MemberConfig {
        listen: s.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, PORT).into()),
        metrics: s.metrics,
        metrics_key_file: s.metrics_key_file.clone(),
        advertise: s.advertise.clone(),
        gateways,
        token_file: s.token_file.clone().ok_or(ConfigError::NoToken)?,
        tls,
        limits,
        drain_grace: s.drain_grace.unwrap_or(seconds(90)),
    }))
}
