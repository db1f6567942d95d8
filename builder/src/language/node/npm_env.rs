//! npm's settings in containers that run npm: which registries, with which credentials, and whom to
//! trust, beside what every container gets that reaches the network ([`EgressEnv`]).

use super::npmrc::Operator;
use crate::{
    cache::{WorkDir, container_user},
    egress_env::{CA_INSIDE, EgressEnv},
    engine::container::Bind,
    error,
};
use epsilon_api::{build::BuildError, ids::InstanceId};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

/// Mount point of the operator's npm settings.
const NPMRC_INSIDE: &str = "/run/epsilon/npmrc";

/// The machine's and the operator's settings for npm.
#[derive(Clone, Debug)]
pub(super) struct NpmEnv {
    egress: EgressEnv,
    npmrc: Option<PathBuf>,
}

impl NpmEnv {
    pub(super) fn new(egress: EgressEnv, npmrc: Option<PathBuf>) -> Self {
        Self { egress, npmrc }
    }

    /// What does not depend on npm.
    pub(super) fn egress(&self) -> &EgressEnv {
        &self.egress
    }

    /// The operator's npm settings, which may hold tokens: only for containers that run nothing but
    /// npm itself. A copy that the container's user can read. Blocking, but short.
    pub(super) fn npmrc(&self, work: &WorkDir) -> Result<Option<Bind>, BuildError> {
        let Some(from) = &self.npmrc else { return Ok(None) };
        let owner = container_user();
        let host = work.file(&format!("npmrc-{}", InstanceId::random()), owner)?;
        let copied = fs::set_permissions(&host, Permissions::from_mode(0o600))
            .and_then(|()| fs::read(from))
            .and_then(|text| fs::write(&host, text));
        copied.map_err(|err| error::file("reading npm's settings", &err))?;
        Ok(Some(Bind { host, inside: NPMRC_INSIDE, writable: false }))
    }

    /// The operator's decisions for npm. Blocking, but short: read for each build, because tokens
    /// change.
    pub(super) fn operator(&self) -> Result<Operator, BuildError> {
        let text = self.npmrc.as_ref().map(fs::read).transpose();
        let text = text.map_err(|err| error::file("reading npm's settings", &err))?;
        let text = text.unwrap_or_default();
        let registry = self.egress.variable("npm_config_registry");
        Ok(Operator::read(&String::from_utf8_lossy(&text), registry))
    }

    /// Variables for every container that runs npm: access to registries, and trust. In npm,
    /// variables take precedence over all files, so each is set, also where the operator has no
    /// value: a project's file can set none of them.
    pub(super) fn env(&self, operator: &Operator) -> Vec<String> {
        let said = |key: &str| operator.connection(key);
        // `null` makes npm read the plain variables, such as `HTTPS_PROXY`.
        let settings = [
            ("npm_config_proxy", said("proxy").unwrap_or("null")),
            ("npm_config_https_proxy", said("https-proxy").unwrap_or("null")),
            (
                "npm_config_noproxy",
                said("noproxy").or_else(|| self.egress.variable("no_proxy")).unwrap_or("localhost"),
            ),
            ("npm_config_strict_ssl", said("strict-ssl").unwrap_or("true")),
            ("npm_config_cafile", CA_INSIDE),
            ("npm_config_userconfig", NPMRC_INSIDE),
            ("npm_config_git", "git"),
            ("npm_config_script_shell", "sh"),
        ];
        let unset = settings.into_iter().filter(|(name, _)| self.egress.variable(name).is_none());
        unset.map(|(name, value)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside() -> NpmEnv {
        let registry = ("NPM_CONFIG_REGISTRY", "https://npm.example");
        NpmEnv::new(EgressEnv::with(&[("no_proxy", "localhost"), registry]), None)
    }

    #[test]
    fn npm_registry_access_is_always_set_by_variables() {
        let silent = outside().env(&Operator::default());
        for variable in [
            "npm_config_proxy=null",
            "npm_config_https_proxy=null",
            "npm_config_noproxy=localhost",
            "npm_config_strict_ssl=true",
            "npm_config_cafile=/run/epsilon/ca.crt",
            "npm_config_userconfig=/run/epsilon/npmrc",
            "npm_config_git=git",
            "npm_config_script_shell=sh",
        ] {
            assert!(silent.iter().any(|set| set == variable), "{variable}: {silent:?}");
        }
        let operator = Operator::read("proxy=http://p:1\nstrict-ssl=false\nnoproxy=x", None);
        let env = outside().env(&operator);
        for variable in
            ["npm_config_proxy=http://p:1", "npm_config_strict_ssl=false", "npm_config_noproxy=x"]
        {
            assert!(env.iter().any(|set| set == variable), "{variable}: {env:?}");
        }
        let egress = EgressEnv::with(&[("NPM_CONFIG_PROXY", "http://p:2")]);
        let env = NpmEnv::new(egress, None).env(&operator);
        assert!(!env.iter().any(|set| set.starts_with("npm_config_proxy")), "{env:?}");
        assert_eq!(outside().operator().unwrap().registry.as_deref(), Some("https://npm.example"));
    }
}
