//! How this program connects: past a proxy where it must, over TLS to those whose authority is known, and what a connection
//! that did not come about means. Used for the control API (`client.rs`) and for calls of functions (`commands/invoke.rs`).

use crate::failure::Failure;
use reqwest::{Certificate, Url};
use rustls::{CertificateError, Error as TlsError};
use std::{error::Error, net::IpAddr, path::Path, time::Duration};

/// Loopback and private networks answer at once or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Finds a dead gateway under a log that is silent for hours.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Whose certificates are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Those of the system's authorities.
    System,
    /// Those of the authorities in this file, of no others.
    Only(&'a Path),
    /// Both.
    SystemAnd(&'a Path),
}

/// A client for `url`: past the proxy when the address is this machine's own, because a company's proxy
/// would look for 127.0.0.1 on its own machine.
///
/// # Errors
/// Wrong usage when the file of authorities cannot be read or holds none.
pub(crate) fn http_client(url: &Url, trust: Trust<'_>) -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("epsilon/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_WITHIN)
        .tcp_keepalive(KEEPALIVE)
        .redirect(reqwest::redirect::Policy::none());
    let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
    let builder = match (url.scheme(), trust) {
        (_, Trust::Only(file)) => builder.tls_certs_only(authorities(file)?),
        (_, Trust::SystemAnd(file)) => builder.tls_certs_merge(authorities(file)?),
        ("https", Trust::System) => builder,
        // The system's are not read for nothing; a small image has none.
        (_, Trust::System) => builder.tls_certs_only([]),
    };
    builder.build().map_err(|err| {
        Failure::new("CLIENT", "no HTTP client can be made")
            .because(&err)
            .hint("where this system has no certificates of authorities, name one with `--ca FILE`")
    })
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let path = file.display();
    let text = std::fs::read(file)
        .map_err(|err| Failure::usage(format!("`--ca {path}` cannot be read")).because(&err))?;
    let found = Certificate::from_pem_bundle(&text).unwrap_or_default();
    if found.is_empty() {
        return Err(Failure::usage(format!("`--ca {path}` holds no certificate in PEM")));
    }
    Ok(found)
}

/// Whether it is this machine's own, by its name.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What TLS said of a connection that did not come about; `None` when TLS was not to blame.
pub(super) fn tls_failure(err: &reqwest::Error, url: &Url, ca: Option<&Path>) -> Option<Failure> {
    let at = url.origin().ascii_serialization();
    let failure = |message: String| Failure::new("TLS", message);
    Some(match of_tls(err)? {
        // The other one: an authority of the same name that is another.
        TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            let hint = match ca {
                None => "name the file of its authority with `--ca FILE` or EPSILON_CA; a gateway's is what its setting `gateway.tls_authority` names".to_owned(),
                Some(file) => format!(
                    "`{}` is not its authority's; a gateway's is what its setting `gateway.tls_authority` names",
                    file.display()
                ),
            };
            failure(format!("the certificate of {at} is of an unknown authority")).hint(hint)
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        }) => failure(format!("the certificate of {at} is for other names"))
            .hint(format!("use one of them as its address: {}", names(presented))),
        TlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => failure(format!("the certificate of {at} has expired"))
            .hint("its operator has to renew it; or this machine's clock is wrong"),
        TlsError::InvalidMessage(_) => failure(format!("{at} does not speak TLS")).hint(format!(
            "write `http://` in place of `https://`, if the way to it is safe: {at}"
        )),
        other => failure(format!("no TLS with {at} came about")).because(other),
    })
}

/// Names of a certificate, which come as `DnsName("x")` and `IpAddress(y)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let bare = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        bare.unwrap_or(name).trim_matches('"').to_owned()
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

/// The error of TLS, anywhere in the chain of causes. What an I/O error was made of is not what it calls its source.
fn of_tls<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    if let Some(found) = err.downcast_ref() {
        return Some(found);
    }
    match err.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => of_tls(inner),
        None => of_tls(err.source()?),
    }
}
