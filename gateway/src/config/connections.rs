//! Settings of the two listeners: how many connections, how slow a peer may be, and TLS.

use super::Settings;
use epsilon_bootstrap::settings::invalid::{ConfigError, rule};
use epsilon_fleet_link::tls;
use epsilon_http_server::{Limits, limiter::Exempt, pace::PaceLimits};
use std::time::Duration;

/// The default for one address: this part of all connections.
const SHARE_OF_ADDRESS: usize = 8;

/// How long a connection may be idle when its listener is nearly full.
const CROWDED_IDLE: Duration = Duration::from_secs(5);

/// The limits of connections; this machine's own addresses and trusted proxies stand for many
/// callers.
pub(super) fn limits(settings: &Settings) -> Result<Limits, ConfigError> {
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
    Ok(Limits {
        max_connections: settings.max_connections,
        max_per_address: per_ip
            .unwrap_or_else(|| (settings.max_connections / SHARE_OF_ADDRESS).max(1)),
        exempt: Exempt::new(move |address| address.is_loopback() || trusted.contains(address)),
        max_header: settings.limits.max_header.get() as usize,
        max_headers: settings.limits.max_headers,
        header_timeout: settings.header_timeout,
        idle_timeout: settings.idle_timeout,
        pace: PaceLimits::waiting(settings.body_timeout),
        half_close_timeout: Some(settings.limits.half_close_timeout),
        has_reserve: true,
        counts_tunnels: true,
        crowded_idle_timeout: CROWDED_IDLE,
        unread_end_timeout: None, // `pace` is shorter
    })
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
