//! Settings of the two listeners: how many connections, how slow a peer may be, and TLS.

use super::Settings;
use super::invalid::{ConfigError, rule};
use crate::call::relay::pace::PaceLimits;
use epsilon_fleet_link::{limiter::Exempt, tls};
use std::time::Duration;

/// Limits for connections.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) max_connections: usize,
    pub(crate) max_per_address: usize,
    /// Addresses that stand for many callers: this machine's own, and trusted proxies.
    pub(crate) exempt: Exempt,
    pub(crate) max_header: usize,
    pub(crate) max_headers: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// How slowly an answer may be read.
    pub(crate) pace: PaceLimits,
    pub(crate) half_close_timeout: Duration,
}

/// The default for one address: this part of all connections.
const SHARE_OF_ADDRESS: usize = 8;

impl ConnectionLimits {
    pub(super) fn new(settings: &Settings) -> Result<Self, ConfigError> {
        rule(settings.max_connections > 0, "max_connections", "must be at least 1")?;
        let per_ip = settings.max_connections_per_ip;
        rule(per_ip != Some(0), "max_connections_per_ip", "must be at least 1")?;
        for (key, value) in [
            ("header_timeout", settings.header_timeout),
            ("body_timeout", settings.body_timeout),
            ("idle_timeout", settings.idle_timeout),
        ] {
            rule(!value.is_zero(), key, "must be longer than `0s`")?;
        }
        let trusted = settings.trusted_proxies.clone();
        Ok(Self {
            max_connections: settings.max_connections,
            max_per_address: per_ip
                .unwrap_or_else(|| (settings.max_connections / SHARE_OF_ADDRESS).max(1)),
            exempt: Exempt::new(move |address| address.is_loopback() || trusted.contains(address)),
            max_header: settings.limits.max_header.get() as usize,
            max_headers: settings.limits.max_headers,
            header_timeout: settings.header_timeout,
            idle_timeout: settings.idle_timeout,
            pace: PaceLimits::waiting(settings.body_timeout),
            half_close_timeout: settings.limits.half_close_timeout,
        })
    }
}

/// The files for TLS with members, and for the public listener.
pub(super) fn tls(
    settings: &Settings,
) -> Result<(Option<tls::Files>, Option<tls::Files>), ConfigError> {
    let tls = tls::Files::from_settings(
        settings.tls_certificate.clone(),
        settings.tls_key.clone(),
        settings.tls_authority.clone(),
    )
    .map_err(|_| ConfigError {
        key: "tls_certificate",
        rule: "must be set together with `tls_key` and `tls_authority`, or none of them".into(),
    })?;
    let public_tls = tls.clone().filter(|_| settings.listen_tls);
    rule(
        public_tls.is_some() || !settings.listen_tls,
        "listen_tls",
        "needs `tls_certificate`, `tls_key` and `tls_authority`",
    )?;
    Ok((tls, public_tls))
}
