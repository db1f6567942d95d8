//! Environment and mounts with which a container reaches the network as this machine does: proxy
//! variables, the certificates that the machine trusts (a company's own authority included),
//! settings of npm and pip.
//!
//! Only for containers that install something. Functions get none of this.

use crate::{
    cache::{WorkDir, container_user},
    config::Config,
    dependencies::npmrc::Operator,
    engine::container::Bind,
    error,
};
use epsilon_api::{build::BuildError, ids::InstanceId};
use std::{
    collections::HashMap,
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

/// Mount point of the machine's certificates. Not over the base's own bundle, which stays as the
/// distribution made it.
const CA_INSIDE: &str = "/run/epsilon/ca.crt";
/// Mount point of the operator's npm settings.
const NPMRC_INSIDE: &str = "/run/epsilon/npmrc";
/// Variables that name a bundle of trusted certificates, each for some tool.
const CA_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];
/// Proxy variables in lower case; the upper-case forms are passed on as well.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];
/// Variables of the package managers that name origins of packages, in lower case.
const PACKAGE_VARIABLES: [&str; 7] = [
    "npm_config_registry",
    "npm_config_proxy",
    "npm_config_https_proxy",
    "npm_config_noproxy",
    "pip_index_url",
    "pip_extra_index_url",
    "pip_trusted_host",
];

/// The machine's settings, as found at start.
#[derive(Clone, Debug)]
pub(crate) struct EgressEnv {
    variables: Vec<(String, String)>,
    ca_bundle: Option<PathBuf>,
    npmrc: Option<PathBuf>,
    network: String,
}

impl EgressEnv {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            variables: relevant(env::vars()),
            ca_bundle: config.ca_bundle.clone(),
            npmrc: config.npmrc.clone(),
            network: config.install_network.clone().unwrap_or_else(|| "bridge".into()),
        }
    }

    /// The engine's network for our own commands.
    pub(crate) fn network(&self) -> Option<String> {
        Some(self.network.clone())
    }

    /// Variables for a container, as `NAME=value`.
    pub(crate) fn env(&self) -> Vec<String> {
        let passed = self.variables.iter().map(|(name, value)| format!("{name}={value}"));
        let bundle = self.ca_bundle.iter();
        let ours = bundle.flat_map(|_| CA_VARIABLES.map(|name| format!("{name}={CA_INSIDE}")));
        passed.chain(ours).collect()
    }

    /// The files that [`Self::env`] refers to.
    pub(crate) fn mounts(&self) -> Vec<Bind> {
        self.ca_bundle.iter().map(|host| read_only(host, CA_INSIDE)).collect()
    }

    /// The operator's npm settings, which may hold tokens: only for containers that run nothing but
    /// npm itself. A copy that the container's user can read. Blocking, but short.
    pub(crate) fn npmrc(&self, work: &WorkDir) -> Result<Option<Bind>, BuildError> {
        let Some(from) = &self.npmrc else { return Ok(None) };
        let owner = container_user();
        let host = work.file(&format!("npmrc-{}", InstanceId::random()), owner)?;
        let copied = fs::set_permissions(&host, Permissions::from_mode(0o600))
            .and_then(|()| fs::read(from))
            .and_then(|text| fs::write(&host, text));
        copied.map_err(|err| error::file("reading npm's settings", &err))?;
        Ok(Some(read_only(&host, NPMRC_INSIDE)))
    }

    /// The operator's decisions for npm. Blocking, but short: read for each build, because tokens
    /// change.
    pub(crate) fn operator(&self) -> Result<Operator, BuildError> {
        let text = self.npmrc.as_ref().map(fs::read).transpose();
        let text = text.map_err(|err| error::file("reading npm's settings", &err))?;
        let text = text.unwrap_or_default();
        let registry = self.variable("npm_config_registry");
        Ok(Operator::read(&String::from_utf8_lossy(&text), registry))
    }

    /// Variables for every container that runs npm: access to registries, and trust. In npm,
    /// variables take precedence over all files, so each is set, also where the operator has no
    /// value: a project's file can set none of them.
    pub(crate) fn npm_env(&self, operator: &Operator) -> Vec<String> {
        let said = |key: &str| operator.connection(key);
        // `null` makes npm read the plain variables, such as `HTTPS_PROXY`.
        let settings = [
            ("npm_config_proxy", said("proxy").unwrap_or("null")),
            ("npm_config_https_proxy", said("https-proxy").unwrap_or("null")),
            (
                "npm_config_noproxy",
                said("noproxy").or_else(|| self.variable("no_proxy")).unwrap_or("localhost"),
            ),
            ("npm_config_strict_ssl", said("strict-ssl").unwrap_or("true")),
            ("npm_config_cafile", CA_INSIDE),
            ("npm_config_userconfig", NPMRC_INSIDE),
            ("npm_config_git", "git"),
            ("npm_config_script_shell", "sh"),
        ];
        let unset = settings.into_iter().filter(|(name, _)| self.variable(name).is_none());
        unset.map(|(name, value)| format!("{name}={value}")).collect()
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The proxies alone, as arguments of a Dockerfile: the engine predefines them without an
    /// `ARG`, and keeps them out of the image.
    pub(crate) fn build_arguments(&self) -> HashMap<String, String> {
        let is_proxy = |name: &str| PROXY_VARIABLES.contains(&name.to_ascii_lowercase().as_str());
        self.variables.iter().filter(|(name, _)| is_proxy(name)).cloned().collect()
    }
}

fn read_only(host: &std::path::Path, inside: &'static str) -> Bind {
    Bind { host: host.to_owned(), inside, writable: false }
}

fn relevant(all: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut found: Vec<_> = all
        .filter(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let known = PROXY_VARIABLES.iter().chain(&PACKAGE_VARIABLES).any(|k| *k == name);
            known && !value.is_empty()
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside() -> EgressEnv {
        let variables = [
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("no_proxy", "localhost"),
            ("all_proxy", ""),
            ("NPM_CONFIG_REGISTRY", "https://npm.example"),
            ("npm_config_prefix", "/usr"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
        ];
        let pairs = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        EgressEnv {
            variables: relevant(pairs),
            ca_bundle: Some("/ca.crt".into()),
            npmrc: None,
            network: "bridge".into(),
        }
    }

    #[test]
    fn only_what_leads_outside_is_passed_on() {
        let env = outside().env();
        assert_eq!(
            env[..3],
            [
                "HTTPS_PROXY=http://proxy:3128",
                "NPM_CONFIG_REGISTRY=https://npm.example",
                "no_proxy=localhost"
            ]
        );
        assert!(env[3..].iter().all(|variable| variable.ends_with("=/run/epsilon/ca.crt")));
        assert!(
            !env.iter().any(|variable| variable.contains("AWS") || variable.contains("prefix"))
        );
    }

    #[test]
    fn npm_registry_access_is_always_set_by_variables() {
        let silent = outside().npm_env(&Operator::default());
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
        let env = outside().npm_env(&operator);
        for variable in
            ["npm_config_proxy=http://p:1", "npm_config_strict_ssl=false", "npm_config_noproxy=x"]
        {
            assert!(env.iter().any(|set| set == variable), "{variable}: {env:?}");
        }
        let variables =
            relevant([("NPM_CONFIG_PROXY".to_owned(), "http://p:2".to_owned())].into_iter());
        let env = EgressEnv { variables, ..outside() }.npm_env(&operator);
        assert!(!env.iter().any(|set| set.starts_with("npm_config_proxy")), "{env:?}");
        assert_eq!(outside().operator().unwrap().registry.as_deref(), Some("https://npm.example"));
    }

    #[test]
    fn a_dockerfile_gets_the_proxies_only() {
        let arguments = outside().build_arguments();
        assert_eq!(arguments.len(), 2);
        assert!(arguments.contains_key("HTTPS_PROXY") && arguments.contains_key("no_proxy"));
    }
}
