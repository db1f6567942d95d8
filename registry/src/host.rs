//! The registry of an image's name. As Docker reads names: the part before the first `/` is a host
//! when it has a dot or a port, or is `localhost`; any other image is on Docker Hub. Pure.

use std::fmt;

/// `host` or `host:port` of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// Docker Hub, the default registry of names without a host.
const DOCKER_HUB: &str = "docker.io";

impl Host {
    /// The host of an image's name: `host/path@sha256:…`, `host/path:tag`, `path:tag`.
    pub fn of(image: &str) -> Self {
        Self::named_in(image).unwrap_or_else(|| Self(DOCKER_HUB.into()))
    }

    /// The host in an image's name, if there is one. Images that a builder loaded into an engine
    /// have names without a host: pulling them from Docker Hub would disclose the names, and run
    /// whatever was pushed there.
    pub fn named_in(image: &str) -> Option<Self> {
        let (first, _) = image.split_once('/')?;
        let is_host = first == "localhost" || first.contains(['.', ':']);
        is_host.then(|| Self::of_registry(first))
    }

    /// The host of a registry's name: `host[:port][/prefix]`.
    pub fn of_registry(name: &str) -> Self {
        Self(name.split('/').next().unwrap_or_default().to_ascii_lowercase())
    }

    /// `host` or `host:port` as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is on this machine: such registries use plain HTTP, as engines assume too.
    pub fn is_loopback(&self) -> bool {
        let name = match self.0.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &self.0,
        };
        let is_local_ip = name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        name == "localhost" || name == "[::1]" || is_local_ip
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Host;

    #[test]
    fn a_name_leads_to_a_host() {
        for (name, want) in [
            ("registry.example/shop/pay@sha256:00", "registry.example"),
            ("registry.example:5000/shop/pay:1", "registry.example:5000"),
            ("Registry.Example/shop", "registry.example"),
            ("127.0.0.1:5000/e2e", "127.0.0.1:5000"),
            ("localhost/pay", "localhost"),
            ("[::1]:5000/pay", "[::1]:5000"),
            ("epsilon/pay:1", "docker.io"),
            ("node:24", "docker.io"),
            ("node", "docker.io"),
        ] {
            assert_eq!(Host::of(name).as_str(), want, "{name}");
            let named = Host::named_in(name);
            assert_eq!(named.is_some(), want != "docker.io", "{name}");
        }
    }

    #[test]
    fn a_registry_s_name_begins_with_its_host() {
        for (name, want) in [
            ("registry.example", "registry.example"),
            ("Registry.example:5000/team/x", "registry.example:5000"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(Host::of_registry(name).as_str(), want, "{name}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, want) in [
            ("localhost:5000", true),
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("registry.example", false),
            ("127.0.0.1.example:5000", false),
            ("localhost.example:5000", false),
        ] {
            assert_eq!(Host::of_registry(host).is_loopback(), want, "{host}");
        }
    }
}
