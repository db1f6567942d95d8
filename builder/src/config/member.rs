//! The settings of a builder in a fleet: the half of the section that `epsilon up` does not use.

use super::{ConfigError, Settings, check, limits};
use crate::serve::Limits;
use epsilon_fleet_link::authenticated_listener;
use epsilon_fleet_link::membership::Gateways;
use epsilon_fleet_link::tls::{Files, TlsError};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Checked settings of fleet membership.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) gateways: Gateways,
    pub(crate) token_file: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) tls: Option<Files>,
    /// Address of the metrics listener.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) metrics_key_file: Option<PathBuf>,
    pub(crate) limits: Limits,
    /// How long running builds may go on after the first signal.
    pub drain_grace: Duration,
}

impl MemberConfig {
    /// The scheme of gateways' requests to this builder.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// `None` where no fleet is named.
pub(super) fn read(s: &Settings, folder: &Path) -> Result<Option<MemberConfig>, ConfigError> {
    let files = (s.tls_certificate.clone(), s.tls_key.clone(), s.tls_authority.clone());
    let tls = Files::from_settings(files.0, files.1, files.2).map_err(|err| incomplete(s, &err))?;
    let Some(gateways) = &s.gateways else { return Ok(None) };
    let rule = "write URLs such as `http://10.0.0.4:8081`, with commas between them";
    let wrong = || ConfigError { key: "gateways", value: gateways.clone(), rule };
    let known: Gateways = gateways.parse().map_err(|_| wrong())?;
    let rule = "`https://` needs `tls_certificate`, `tls_key` and `tls_authority`";
    check(tls.is_some() || !known.need_tls(), "gateways", gateways, rule)?;
    let rule = "it must name the file with the token (the gateway's DATA/builder.token)";
    check(s.token_file.is_some(), "token_file", "", rule)?;
    Ok(Some(MemberConfig {
        listen: s.listen,
        advertise: s.advertise.clone(),
        gateways: known,
        token_file: s.token_file.clone().unwrap_or_default(),
        folder: folder.to_owned(),
        tls,
        metrics: s.metrics,
        metrics_key_file: s.metrics_key_file.clone(),
        limits: Limits {
            connections: authenticated_listener::Limits {
                connections: limits::MAX_CONNECTIONS,
                head: limits::HEAD_TIMEOUT,
                idle: limits::IDLE_TIMEOUT,
            },
            builds: s.builds.saturating_add(limits::BUILDS_WAITING),
            archive: s.source_archive,
        },
        drain_grace: s.drain_grace,
    }))
}

fn incomplete(s: &Settings, _: &TlsError) -> ConfigError {
    let (key, rule) = match s.tls_certificate {
        Some(_) => ("tls_certificate", "`tls_key` and `tls_authority` go with it"),
        None => ("tls_key", "`tls_certificate`, `tls_key` and `tls_authority` go together"),
    };
    ConfigError { key, value: String::new(), rule }
}
