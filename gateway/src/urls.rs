//! The URLs of functions as shown to people, which may differ from the listener's address.

use crate::{
    call::lookup::{IN_HOST, IN_PATH},
    config::Config,
};
use epsilon_api::ids::{FunctionName, VersionNumber};
use std::net::SocketAddr;

/// Builds URLs of functions.
#[derive(Clone, Debug)]
pub(crate) enum Urls {
    /// `http://host:port/NAME`.
    Path(String),
    /// `http://NAME.domain:port/`.
    Host {
        /// `http` or `https`.
        scheme: &'static str,
        /// What comes after the name.
        rest: String,
    },
}

impl Urls {
    /// For a gateway that listens at `public`.
    pub(crate) fn new(config: &Config, public: SocketAddr) -> Self {
        let (scheme, default_port) = match config.public_tls {
            Some(_) => ("https", 443),
            None => ("http", 80),
        };
        match (&config.public_url, &config.domain) {
            (Some(url), _) => Self::Path(url.clone()),
            (None, Some(domain)) if public.port() == default_port => {
                Self::Host { scheme, rest: domain.clone() }
            }
            (None, Some(domain)) => {
                Self::Host { scheme, rest: format!("{domain}:{}", public.port()) }
            }
            (None, None) if public.ip().is_unspecified() => {
                Self::Path(format!("{scheme}://localhost:{}", public.port()))
            }
            (None, None) => Self::Path(format!("{scheme}://{public}")),
        }
    }

    /// The URL of this function.
    pub(crate) fn of(&self, name: &FunctionName) -> String {
        match self {
            Self::Path(base) => format!("{base}/{name}"),
            Self::Host { scheme, rest } => format!("{scheme}://{name}.{rest}/"),
        }
    }

    /// The URL of this version of the function.
    pub(crate) fn of_version(&self, name: &FunctionName, version: VersionNumber) -> String {
        match self {
            Self::Path(base) => format!("{base}/{name}{IN_PATH}{version}"),
            Self::Host { scheme, rest } => {
                format!("{scheme}://{name}{IN_HOST}{version}.{rest}/")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn addresses() {
        let name = FunctionName::parse("pay").unwrap();
        let url = |settings: Settings, public: &str| {
            let config = Config::new(settings, "/data").unwrap();
            let urls = Urls::new(&config, public.parse().unwrap());
            let version = urls.of_version(&name, VersionNumber::new(3).unwrap());
            let of_version = version.replace("pay@3", "pay").replace("pay--v3", "pay");
            assert!(version != of_version && of_version == urls.of(&name), "{version}");
            urls.of(&name)
        };
        let domain = || Settings { domain: Some("fn.example.org".into()), ..Settings::default() };
        let public = Some("https://api.example.org/".into());
        assert_eq!(url(Settings::default(), "127.0.0.1:8080"), "http://127.0.0.1:8080/pay");
        assert_eq!(url(Settings::default(), "0.0.0.0:8080"), "http://localhost:8080/pay");
        assert_eq!(url(Settings::default(), "[::1]:80"), "http://[::1]:80/pay");
        assert_eq!(url(domain(), "0.0.0.0:80"), "http://pay.fn.example.org/");
        assert_eq!(url(domain(), "0.0.0.0:8080"), "http://pay.fn.example.org:8080/");
        let path = |name: &str| Some(name.into());
        let tls = |settings| Settings {
            tls_certificate: path("own.pem"),
            tls_key: path("own.key"),
            tls_authority: path("ca.pem"),
            listen_tls: true,
            ..settings
        };
        assert_eq!(url(tls(Settings::default()), "0.0.0.0:80"), "https://localhost:80/pay");
        assert_eq!(url(tls(domain()), "0.0.0.0:443"), "https://pay.fn.example.org/");
        assert_eq!(
            url(Settings { public_url: public, ..Settings::default() }, "0.0.0.0:1"),
            "https://api.example.org/pay"
        );
    }
}
