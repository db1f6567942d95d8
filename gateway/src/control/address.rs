//! The addresses of the control API, for people and for the command line of this machine.

use epsilon_fleet_link::tls::Files;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

/// The control listener's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress {
    /// Its URL for other machines, as printed in the `ready` line.
    pub url: String,
    /// Its URL for this machine: plain HTTP by loopback, if it listens there.
    pub local: String,
    /// The authority of the certificate, if `local` uses TLS.
    pub authority: Option<PathBuf>,
}

impl ControlAddress {
    pub(crate) fn new(address: SocketAddr, tls: Option<&Files>) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let reached = SocketAddr::new(ip, address.port());
        // Plain HTTP is accepted only from loopback; a connection to another address of this
        // machine comes from that address.
        let secure = tls.filter(|_| !ip.is_loopback());
        let authority = secure.map(|files| &files.authority);
        let scheme = |tls: bool| if tls { "https" } else { "http" };
        Self {
            url: format!("{}://{address}", scheme(tls.is_some())),
            local: format!("{}://{reached}", scheme(secure.is_some())),
            authority: authority.map(|path| std::path::absolute(path).unwrap_or(path.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_no_certificate() {
        let path = || PathBuf::from("/ca.pem");
        let files = Files { certificate: path(), key: path(), authority: path() };
        let of = |address: &str, tls| {
            let all = ControlAddress::new(address.parse().unwrap(), tls);
            (all.url, all.local, all.authority)
        };
        let rows = [
            ("127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1", false),
            ("0.0.0.0:1", "http://0.0.0.0:1", "http://127.0.0.1:1", false),
            ("10.0.0.5:1", "http://10.0.0.5:1", "http://10.0.0.5:1", false),
            ("127.0.0.1:1", "https://127.0.0.1:1", "http://127.0.0.1:1", true),
            ("[::]:1", "https://[::]:1", "http://[::1]:1", true),
            ("10.0.0.5:1", "https://10.0.0.5:1", "https://10.0.0.5:1", true),
        ];
        for (address, url, local, tls) in rows {
            let authority = local.starts_with("https").then(path);
            let tls = tls.then_some(&files);
            assert_eq!(of(address, tls), (url.to_owned(), local.to_owned(), authority));
        }
    }
}
