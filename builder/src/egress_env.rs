//! Environment and mounts with which a container reaches the network as this machine does: proxy
//! variables, the certificates that the machine trusts (a company's own authority included), the
//! package managers' own variables.
//!
//! Only for containers that install something. Functions get none of this.

use crate::{config::Config, engine::container::Bind};
use std::{collections::HashMap, env, path::PathBuf};

/// Mount point of the machine's certificates. Not over the base's own bundle, which stays as the
/// distribution made it.
pub(crate) const CA_INSIDE: &str = "/run/epsilon/ca.crt";
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
    network: String,
}

impl EgressEnv {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            variables: relevant(env::vars()),
            ca_bundle: config.ca_bundle.clone(),
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

    /// The value of a variable that is passed on, whatever the case of its name.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
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

impl EgressEnv {
    /// With these variables of a machine and a bundle of certificates.
    #[cfg(test)]
    pub(crate) fn with(variables: &[(&str, &str)]) -> Self {
        let pairs = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Self {
            variables: relevant(pairs),
            ca_bundle: Some("/ca.crt".into()),
            network: "bridge".into(),
        }
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
        EgressEnv::with(&[
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("no_proxy", "localhost"),
            ("all_proxy", ""),
            ("NPM_CONFIG_REGISTRY", "https://npm.example"),
            ("npm_config_prefix", "/usr"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
        ])
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
    fn a_dockerfile_gets_the_proxies_only() {
        let arguments = outside().build_arguments();
        assert_eq!(arguments.len(), 2);
        assert!(arguments.contains_key("HTTPS_PROXY") && arguments.contains_key("no_proxy"));
    }
}
