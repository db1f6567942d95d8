//! HTTP connections of this program: proxy bypass, TLS with known authorities, and explanations of
//! failed connections. Used for the control API (`client.rs`) and for calls of functions
//! (`commands/invoke.rs`).

use crate::failure::Failure;
use reqwest::{Certificate, Url};
use rustls::{CertificateError, Error as TlsError};
use std::{error::Error, net::IpAddr, path::Path, time::Duration};

/// Connect timeout: loopback and private networks answer at once or not at all.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// TCP keep-alive, which detects a dead gateway during a log that is silent for hours.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Trusted certificate authorities.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// The system's authorities.
    System,
    /// Only the authorities in this file.
    Only(&'a Path),
    /// Both.
    SystemAnd(&'a Path),
}

/// A client for `url`: bypasses the proxy when the address is this machine's own, because a
/// company's proxy would look for 127.0.0.1 on its own machine.
///
/// # Errors
/// Wrong usage when the file of authorities cannot be read or contains none.
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
        // The system's authorities are not loaded unless needed; a small image has none.
        (_, Trust::System) => builder.tls_certs_only([]),
    };
    builder.build().map_err(|err| {
        Failure::new("CLIENT", "no HTTP client can be made")
            .with_cause(&err)
            .hint("where this system has no certificates of authorities, name one with `--ca FILE`")
    })
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, Failure> {
    let path = file.display();
    let text = std::fs::read(file)
        .map_err(|err| Failure::usage(format!("`--ca {path}` cannot be read")).with_cause(&err))?;
    let found = Certificate::from_pem_bundle(&text).unwrap_or_default();
    if found.is_empty() {
        return Err(Failure::usage(format!("`--ca {path}` contains no certificate in PEM")));
    }
    Ok(found)
}

/// Whether the URL's host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The TLS error of a failed connection; `None` when it was not TLS.
pub(super) fn tls_failure(err: &reqwest::Error, url: &Url, ca: Option<&Path>) -> Option<Failure> {
    let at = url.origin().ascii_serialization();
    let failure = |message: String| Failure::new("TLS", message);
    Some(match of_tls(err)? {
        // The second one: a different authority of the same name.
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
            failure(format!("the certificate of {at} is signed by an unknown authority")).hint(hint)
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
        TlsError::InvalidMessage(_) => failure(format!("{at} does not use TLS")).hint(format!(
            "write `http://` instead of `https://`, if the network to it is safe: {at}"
        )),
        other => failure(format!("the TLS handshake with {at} failed")).with_cause(other),
    })
}

/// Names of a certificate, which rustls prints as `DnsName("x")` and `IpAddress(y)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let bare = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        bare.unwrap_or(name).trim_matches('"').to_owned()
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

/// The TLS error anywhere in the chain of sources. `source()` of an I/O error skips the error that
/// it wraps.
fn of_tls<'a>(err: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    if let Some(found) = err.downcast_ref() {
        return Some(found);
    }
    match err.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => of_tls(inner),
        None => of_tls(err.source()?),
    }
}
