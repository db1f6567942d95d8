//! The settings of an agent that joins a fleet: the half of the section that `epsilon up` does not
//! use.

use super::invalid::ConfigError;
use super::{Settings, limits};
use epsilon_fleet_link::authenticated_listener::Limits;
use epsilon_fleet_link::membership::Gateways;
use epsilon_fleet_link::tls::{Files, TlsError};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Checked settings of a fleet's member.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// Listener for gateways' calls.
    pub listen: SocketAddr,
    /// Listener for metrics; `None`: no such listener.
    pub metrics: Option<SocketAddr>,
    /// File with the collectors' key; `None`: metrics answer this machine only.
    pub metrics_key_file: Option<PathBuf>,
    /// Host, or host and port, under which gateways reach this VM.
    pub advertise: Option<String>,
    /// Control addresses of the gateways.
    pub gateways: Gateways,
    /// File with the fleet's token.
    pub token_file: PathBuf,
    /// Files of the certificate; `None`: plain HTTP.
    pub tls: Option<Files>,
    /// Limits of connections and of their idle time.
    pub limits: Limits,
    /// Longest that running calls may go on after the first signal.
    pub drain_grace: Duration,
}

/// Reads the member's settings; `None` without gateways.
pub(super) fn read(s: &Settings) -> Result<Option<MemberConfig>, ConfigError> {
    let files = (s.tls_certificate.clone(), s.tls_key.clone(), s.tls_authority.clone());
    let tls = Files::from_settings(files.0, files.1, files.2)?;
    let Some(text) = &s.gateways else { return Ok(None) };
    let gateways: Gateways = text.parse()?;
    if gateways.need_tls() && tls.is_none() {
        return Err(TlsError::Needed.into());
    }
    Ok(Some(MemberConfig {
        listen: s.listen,
        metrics: s.metrics,
        metrics_key_file: s.metrics_key_file.clone(),
        advertise: s.advertise.clone(),
        gateways,
        token_file: s.token_file.clone().ok_or(ConfigError::NoToken)?,
        tls,
        limits: Limits {
            connections: limits::MAX_CONNECTIONS,
            head: limits::HEAD_TIMEOUT,
            idle: limits::IDLE_TIMEOUT,
        },
        drain_grace: s.drain_grace,
    }))
}
