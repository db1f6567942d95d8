//! Guard against server-side request forgery: which hosts a webhook may make the gateway connect
//! to. Only hosts that the operator allows, and only their public Internet addresses. The host is
//! checked when settings are loaded; the address is resolved and checked before each connection and
//! then pinned, so that a name cannot change between check and use.

use http::Uri;
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// The hosts that the operator allows.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    public: Vec<String>,
    /// Hosts that may have private addresses.
    private: Vec<String>,
}

/// A checked URL on one of these hosts.
#[derive(Clone, Debug)]
pub(crate) struct CheckedUrl {
    url: String,
    host: String,
    port: u16,
    may_be_private: bool,
}

/// Why a URL cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAllowed {
    #[error("`{0}` is not a URL such as `https://github.com`")]
    NoUrl(String),
    #[error("`{0}` is not one of `gateway.hooks.hosts` or `gateway.hooks.private_hosts`")]
    Host(String),
    #[error("`{0}` must use https, because it is not one of `gateway.hooks.private_hosts`")]
    PlainHttp(String),
}

/// Why a host cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    #[error("`{host}` has no address")]
    Unknown {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("the name `{host}` was not resolved within {limit:?}")]
    TookTooLong { host: String, limit: Duration },
    #[error(
        "`{host}` has the address {address}, which is not public; `gateway.hooks.private_hosts` can allow it"
    )]
    Private { host: String, address: IpAddr },
}

impl Hosts {
    pub(crate) fn new(public: Vec<String>, private: Vec<String>) -> Self {
        let lower =
            |hosts: Vec<String>| hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { public: lower(public), private: lower(private) }
    }

    /// Checks a URL in the settings.
    pub(crate) fn check(&self, url: &str) -> Result<CheckedUrl, NotAllowed> {
        let no_url = || NotAllowed::NoUrl(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let authority = uri.authority().ok_or_else(no_url)?;
        // A name and password would end up in logs.
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(no_url());
        }
        let usual = match uri.scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => return Err(no_url()),
        };
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let may_be_private = self.private.contains(&host);
        if !may_be_private && !self.public.contains(&host) {
            return Err(NotAllowed::Host(host));
        }
        if !may_be_private && usual != 443 {
            return Err(NotAllowed::PlainHttp(host));
        }
        let port = authority.port_u16().unwrap_or(usual);
        Ok(CheckedUrl { url: url.to_owned(), host, port, may_be_private })
    }
}

impl CheckedUrl {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Resolves the host to addresses that may be connected to. The caller must use only these.
    pub(crate) async fn addresses(&self, limit: Duration) -> Result<Vec<SocketAddr>, Unreachable> {
        let host = || self.host.clone();
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = tokio::time::timeout(limit, lookup)
            .await
            .map_err(|_| Unreachable::TookTooLong { host: host(), limit })?
            .map_err(|source| Unreachable::Unknown { host: host(), source })?;
        let found: Vec<SocketAddr> = found.collect();
        if found.is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(Unreachable::Unknown { host: host(), source });
        }
        // One private address is enough to refuse: a name with both kinds is suspicious.
        match found.iter().map(SocketAddr::ip).find(|ip| !is_public(*ip)) {
            Some(address) if !self.may_be_private => {
                Err(Unreachable::Private { host: host(), address })
            }
            Some(_) | None => Ok(found),
        }
    }
}

impl fmt::Display for CheckedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Whether an address is public: not this machine's, not a private network's, and not that of a
/// cloud's metadata service.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = match (a, b, c) {
        // "This network", private, loopback, link-local with the metadata service, private.
        (0 | 10 | 127, ..) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        // Carrier NAT, protocol assignments, documentation, benchmarks.
        (100, 64..=127, _)
        | (192, 0, 0 | 2)
        | (198, 18 | 19, _)
        | (198, 51, 100)
        | (203, 0, 113) => true,
        // 6to4 relays; multicast and reserved.
        (192, 88, 99) | (224..=255, ..) => true,
        _ => false,
    };
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let segments = ip.segments();
    match segments {
        // An IPv4 address mapped by a translator (NAT64).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        // The same for 6to4.
        [0x2002, high, low, ..] => {
            is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        // Teredo, documentation, benchmarks.
        [0x2001, 0 | 2 | 0xdb8, ..] => false,
        // All global unicast addresses assigned so far; loopback, unique local, link-local and
        // multicast are not among them.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn addresses_of_the_internet_and_others() {
        for (text, want) in [
            ("140.82.121.4", true),
            ("8.8.8.8", true),
            ("172.15.255.255", true),
            ("172.32.0.0", true),
            ("100.63.255.255", true),
            ("2606:50c0:8000::153", true),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("192.0.2.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("::127.0.0.1", false),
            ("64:ff9b::a9fe:a9fe", false),
            ("2002:7f00:1::", false),
            ("2001:db8::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), want, "{text}");
        }
    }

    #[test]
    fn places() {
        let hosts = Hosts::new(vec!["GitHub.com".into()], vec!["git.lan".into(), "::1".into()]);
        let place = |url: &str| {
            hosts.check(url).map(|place| (place.host, place.port)).map_err(|err| err.to_string())
        };
        assert_eq!(place("https://github.com/o/s.git"), Ok(("github.com".into(), 443)));
        assert_eq!(place("https://GITHUB.com:8443/"), Ok(("github.com".into(), 8443)));
        assert_eq!(place("http://git.lan/o"), Ok(("git.lan".into(), 80)));
        assert_eq!(place("http://[::1]:3000/o"), Ok(("::1".into(), 3000)));
        for (url, want) in [
            ("http://github.com/o/s.git", "must use https"),
            ("https://github.com.evil.org/", "is not one of"),
            ("https://evil.org/github.com", "is not one of"),
            ("https://github.com@evil.org/", "is not a URL"),
            ("https://user:password@github.com/", "is not a URL"),
            ("ssh://github.com/o/s.git", "is not a URL"),
            ("file:///etc/passwd", "is not a URL"),
            ("ext::sh -c id", "is not a URL"),
            ("/etc", "is not a URL"),
            ("", "is not a URL"),
        ] {
            let error = place(url).unwrap_err();
            assert!(error.contains(want), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn local_hosts_are_refused_unless_allowed() {
        let allowed = Hosts::new(Vec::new(), vec!["localhost".into()]);
        let place = allowed.check("http://localhost:1234/").unwrap();
        let found = place.addresses(SOON).await.unwrap();
        assert!(found.iter().all(|address| address.port() == 1234 && address.ip().is_loopback()));
        let not = Hosts::new(vec!["localhost".into(), "169.254.169.254".into()], Vec::new());
        for url in ["https://localhost/", "https://169.254.169.254/"] {
            let error = not.check(url).unwrap().addresses(SOON).await.unwrap_err();
            assert!(matches!(error, Unreachable::Private { .. }), "{error}");
        }
        let nowhere = Hosts::new(vec!["missing.invalid".into()], Vec::new());
        let error = nowhere.check("https://missing.invalid/").unwrap().addresses(SOON).await;
        assert!(matches!(
            error,
            Err(Unreachable::Unknown { .. } | Unreachable::TookTooLong { .. })
        ));
    }
}
