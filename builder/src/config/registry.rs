//! The registry settings, checked together. Logins are parsed by the `registry` crate; the rest is
//! specific to a builder.

use super::{ConfigError, Settings, check, existing, limits};
use epsilon_registry::{Access, RegistrySettings, Retention};
use std::{fs, path::Path, time::Duration};

/// A registry that images are pushed to.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    /// `host[:port][/prefix]`.
    pub(crate) name: String,
    /// The logins for it.
    pub(crate) access: Access,
    /// Authorities that its certificate may be signed by, in PEM.
    pub(crate) authorities: Vec<String>,
    pub(crate) plain_http: bool,
    pub(crate) keep: Retention,
    pub(crate) timeout: Duration,
}

/// Takes the registry keys out of the settings.
pub(super) fn read(s: &mut Settings) -> Result<Option<Registry>, ConfigError> {
    let written = RegistrySettings {
        registry: s.registry.take(),
        user: s.registry_user.take(),
        password: s.registry_password.take(),
        password_file: s.registry_password_file.take(),
        docker_config: s.registry_docker_config.take(),
    };
    let (name, access) = written.check()?;
    let authorities = match existing("registry_ca", s.registry_ca.take())? {
        Some(path) => certificates(&path)?,
        None => Vec::new(),
    };
    check(s.registry_keep_images >= 1, "registry_keep_images", "0", "it must be at least 1")?;
    Ok(name.map(|name| Registry {
        name,
        access,
        authorities,
        plain_http: s.dangerous_registry_plain_http,
        keep: Retention { images: s.registry_keep_images, untagged: limits::KEEP_UNTAGGED },
        timeout: s.registry_timeout,
    }))
}

/// The certificates of a PEM file, one text each.
fn certificates(path: &Path) -> Result<Vec<String>, ConfigError> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = fs::read_to_string(path).unwrap_or_default();
    let found: Vec<String> = text
        .split_inclusive(END)
        .filter_map(|part| Some(part[part.find("-----BEGIN CERTIFICATE-----")?..].to_owned()))
        .filter(|part| part.ends_with(END))
        .collect();
    let rule = "it must hold certificates in PEM";
    check(!found.is_empty(), "registry_ca", &path.to_string_lossy(), rule)?;
    Ok(found)
}

impl From<epsilon_registry::Invalid> for ConfigError {
    fn from(epsilon_registry::Invalid { key, value, rule }: epsilon_registry::Invalid) -> Self {
        Self { key, value, rule }
    }
}
