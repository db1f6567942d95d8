//! Where the gateway may go on behalf of a webhook: hosts that the operator allows, and addresses of them that are
//! out in the Internet. The first is checked when settings are read, the second each time before a connection is
//! made, by an address that is then kept to: a name cannot point elsewhere between the look and the use.

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
    /// These may be in the operator's own network.
    private: Vec<String>,
}

/// An address at one of these hosts.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    url: String,
    host: String,
    port: u16,
    may_be_private: bool,
}

/// Why an address cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAllowed {
    #[error("`{0}` is no address such as `https://github.com`")]
    NoUrl(String),
    #[error("`{0}` is not one of `gateway.hooks.hosts` or `gateway.hooks.private_hosts`")]
    Host(String),
    #[error("`{0}` must be reached by https, as it is not one of `gateway.hooks.private_hosts`")]
    Clear(String),
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
    #[error("the address of `{host}` was not found within {limit:?}")]
    TookTooLong { host: String, limit: Duration },
    #[error(
        "`{host}` is at {address}, which is no address in the Internet; `gateway.hooks.private_hosts` allows that"
    )]
    Private { host: String, address: IpAddr },
}

impl Hosts {
    pub(crate) fn new(public: Vec<String>, private: Vec<String>) -> Self {
        let lower =
            |hosts: Vec<String>| hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { public: lower(public), private: lower(private) }
    }

    /// Checks an address that stands in the settings.
    pub(crate) fn place(&self, url: &str) -> Result<Place, NotAllowed> {
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
            return Err(NotAllowed::Clear(host));
        }
        let port = authority.port_u16().unwrap_or(usual);
        Ok(Place { url: url.to_owned(), host, port, may_be_private })
    }
}

impl Place {
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Addresses that may be connected to now. Whoever connects keeps to them.
    pub(crate) async fn addresses(&self, limit: Duration) -> Result<Vec<SocketAddr>, Unreachable> {
        let host = || self.host.clone();
        let asked = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = tokio::time::timeout(limit, asked)
            .await
            .map_err(|_| Unreachable::TookTooLong { host: host(), limit })?
            .map_err(|source| Unreachable::Unknown { host: host(), source })?;
        let found: Vec<SocketAddr> = found.collect();
        if found.is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(Unreachable::Unknown { host: host(), source });
        }
        // One bad address is enough: a name that points both ways is no mistake.
        match found.iter().map(SocketAddr::ip).find(|ip| !is_public(*ip)) {
            Some(address) if !self.may_be_private => {
                Err(Unreachable::Private { host: host(), address })
            }
            Some(_) | None => Ok(found),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Whether an address is one of the Internet's own: not this machine's, not a private network's, not the one where
/// clouds keep their instances' credentials.
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
        // Carriers' NAT, protocol assignments, examples, benchmarks.
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
        // An IPv4 address behind a translator (NAT64).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        // The same of 6to4.
        [0x2002, high, low, ..] => {
            is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        }
        // Teredo, examples, benchmarks.
        [0x2001, 0 | 2 | 0xdb8, ..] => false,
        // All that is given out so far; loopback, unique local, link-local and multicast are not in it.
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
            hosts.place(url).map(|place| (place.host, place.port)).map_err(|err| err.to_string())
        };
        assert_eq!(place("https://github.com/o/s.git"), Ok(("github.com".into(), 443)));
        assert_eq!(place("https://GITHUB.com:8443/"), Ok(("github.com".into(), 8443)));
        assert_eq!(place("http://git.lan/o"), Ok(("git.lan".into(), 80)));
        assert_eq!(place("http://[::1]:3000/o"), Ok(("::1".into(), 3000)));
        for (url, want) in [
            ("http://github.com/o/s.git", "must be reached by https"),
            ("https://github.com.evil.org/", "is not one of"),
            ("https://evil.org/github.com", "is not one of"),
            ("https://github.com@evil.org/", "is no address"),
            ("https://user:password@github.com/", "is no address"),
            ("ssh://github.com/o/s.git", "is no address"),
            ("file:///etc/passwd", "is no address"),
            ("ext::sh -c id", "is no address"),
            ("/etc", "is no address"),
            ("", "is no address"),
        ] {
            let told = place(url).unwrap_err();
            assert!(told.contains(want), "{url}: {told}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused_unless_it_is_allowed() {
        let allowed = Hosts::new(Vec::new(), vec!["localhost".into()]);
        let place = allowed.place("http://localhost:1234/").unwrap();
        let found = place.addresses(SOON).await.unwrap();
        assert!(found.iter().all(|address| address.port() == 1234 && address.ip().is_loopback()));
        let not = Hosts::new(vec!["localhost".into(), "169.254.169.254".into()], Vec::new());
        for url in ["https://localhost/", "https://169.254.169.254/"] {
            let told = not.place(url).unwrap().addresses(SOON).await.unwrap_err();
            assert!(matches!(told, Unreachable::Private { .. }), "{told}");
        }
        let nowhere = Hosts::new(vec!["nobody.invalid".into()], Vec::new());
        let told = nowhere.place("https://nobody.invalid/").unwrap().addresses(SOON).await;
        assert!(matches!(told, Err(Unreachable::Unknown { .. } | Unreachable::TookTooLong { .. })));
    }
}
