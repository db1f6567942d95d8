//! Address of the caller, determined once per call, for logs, for functions and for limits by
//! address. This is not authentication: it does not say who the caller is.
//!
//! Forwarding headers are believed only if the peer is one of `gateway.trusted_proxies`:
//!
//! | from a trusted proxy | how it is used |
//! |---|---|
//! | `X-Forwarded-For` | walked from the right over trusted addresses to the first untrusted one; an unreadable entry ends the walk at the hop before it |
//! | `X-Forwarded-Proto`, `-Host`, `-Port` | the right-most entry: that of the nearest proxy |
//! | `X-Forwarded-Prefix` | a path prefix that the proxy removed, if it is a plain path |
//! | `Forwarded` (RFC 7239) | the same walk, if there is no `X-Forwarded-For`; protocol and host of the caller's entry |
//!
//! `X-Real-IP` is never read: it does not say which proxy wrote it.

use crate::call::header_value::header;
use crate::networks::Networks;
use epsilon_api::headers::FORWARDED_PREFIX as X_FORWARDED_PREFIX;
use epsilon_http_server::Connection;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, HOST},
};
use std::net::{IpAddr, SocketAddr};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Longest path prefix that is accepted from a proxy.
const MAX_PREFIX: usize = 256;

/// The address of one call's caller and how the caller reached the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallerAddress {
    /// Address of the caller.
    pub(crate) ip: IpAddr,
    /// Where the address comes from.
    pub(crate) source: Source,
    /// Protocol between the caller and the first proxy.
    pub(crate) proto: Proto,
    /// Host that the caller requested, if a proxy reports one other than the request's `Host`.
    pub(crate) host: Option<HeaderValue>,
    /// Port that the caller connected to, if a proxy reports it.
    pub(crate) port: Option<HeaderValue>,
    /// Path prefix that a proxy removed.
    pub(crate) prefix: Option<HeaderValue>,
}

/// Where a caller's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is the peer of the connection.
    Peer,
    /// Trusted proxies reported it.
    Proxy,
}

/// Protocol of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    Http,
    Https,
}

impl Proto {
    fn read(text: &[u8]) -> Option<Self> {
        match text {
            b if b.eq_ignore_ascii_case(b"https") || b.eq_ignore_ascii_case(b"wss") => {
                Some(Self::Https)
            }
            b if b.eq_ignore_ascii_case(b"http") || b.eq_ignore_ascii_case(b"ws") => {
                Some(Self::Http)
            }
            _ => None,
        }
    }

    /// The value of `X-Forwarded-Proto`.
    pub(crate) fn to_header(self) -> HeaderValue {
        match self {
            Self::Http => HeaderValue::from_static("http"),
            Self::Https => HeaderValue::from_static("https"),
        }
    }
}

impl CallerAddress {
    /// The caller of a request that came on this connection.
    pub(crate) fn of(connection: &Connection, headers: &HeaderMap, trusted: &Networks) -> Self {
        let peer = connection.peer;
        let mut caller = Self {
            ip: peer,
            source: Source::Peer,
            proto: if connection.is_secure() { Proto::Https } else { Proto::Http },
            host: None,
            port: None,
            prefix: None,
        };
        if trusted.is_empty() || !trusted.contains(peer) {
            return caller;
        }
        if headers.contains_key(X_FORWARDED_FOR) {
            let entries = headers.get_all(X_FORWARDED_FOR).iter().rev();
            let entries = entries.flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
            caller.ip = walk(peer, entries.map(address), trusted);
        } else if headers.contains_key(FORWARDED) {
            let elements = elements(headers);
            let mut hops = elements.iter().rev();
            let mut last_element = None;
            caller.ip = walk(
                peer,
                hops.by_ref().map(|element| {
                    let node = element.node.as_deref().and_then(address);
                    last_element = node.and(Some(element)).or(last_element);
                    node
                }),
                trusted,
            );
            if let Some(element) = last_element {
                caller.proto = element.proto.unwrap_or(caller.proto);
                caller.host = element.host.as_deref().and_then(host);
            }
        }
        if caller.ip != peer {
            caller.source = Source::Proxy;
        }
        if let Some(proto) = nearest(headers, &X_FORWARDED_PROTO).and_then(Proto::read) {
            caller.proto = proto;
        }
        if let Some(host) = nearest(headers, &X_FORWARDED_HOST).and_then(host) {
            caller.host = Some(host);
        }
        caller.port = nearest(headers, &X_FORWARDED_PORT).and_then(port);
        caller.prefix = nearest(headers, &X_FORWARDED_PREFIX).and_then(prefix);
        caller
    }

    /// Replaces the request's forwarding headers by this address, for the function. `prefix` is the
    /// path prefix that the gateway removed.
    pub(crate) fn write_to(
        self,
        headers: &mut HeaderMap,
        connection: &Connection,
        prefix: Option<HeaderValue>,
    ) {
        // The caller alone, without the proxies between: a function that reads the left-most entry
        // and one that trusts a single proxy get the same address.
        let address = match self.source {
            Source::Peer => connection.peer_header.clone(),
            Source::Proxy => header(&self.ip.to_string()),
        };
        headers.insert(X_FORWARDED_FOR, address);
        headers.insert(X_FORWARDED_PROTO, self.proto.to_header());
        if let Some(host) = self.host.or_else(|| headers.get(HOST).cloned()) {
            headers.insert(X_FORWARDED_HOST, host);
        }
        if let Some(port) = self.port {
            headers.insert(X_FORWARDED_PORT, port);
        }
        let prefix = match (self.prefix, prefix) {
            (Some(before), Some(ours)) => {
                HeaderValue::from_bytes(&[before.as_bytes(), ours.as_bytes()].concat()).ok()
            }
            (before, ours) => before.or(ours),
        };
        if let Some(prefix) = prefix {
            headers.insert(X_FORWARDED_PREFIX, prefix);
        }
    }
}

/// The first address that is not trusted, starting at the nearest hop; an unreadable entry ends the
/// walk.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trusted: &Networks) -> IpAddr {
    let mut caller = peer;
    for hop in hops {
        let Some(hop) = hop else { break };
        caller = hop;
        if !trusted.contains(hop) {
            break;
        }
    }
    caller
}

/// `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]` or `[2001:db8::7]:4711`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

/// The right-most entry of a header: that of the nearest proxy.
fn nearest<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let line = headers.get_all(name).iter().next_back()?.as_bytes();
    line.rsplit(|b| *b == b',').next().map(<[u8]>::trim_ascii)
}

fn host(text: &[u8]) -> Option<HeaderValue> {
    let fine = !text.is_empty() && text.iter().all(|b| super::http_rules::is_host_byte(*b));
    HeaderValue::from_bytes(text).ok().filter(|_| fine)
}

fn port(text: &[u8]) -> Option<HeaderValue> {
    let number = str::from_utf8(text).ok()?.parse::<u16>().ok().filter(|port| *port > 0)?;
    Some(HeaderValue::from(number))
}

/// Accepts only a path of plain segments. Anything else could become a link to another host
/// (`//evil.example`) in a function's answers.
fn prefix(text: &[u8]) -> Option<HeaderValue> {
    let text = text.strip_suffix(b"/").unwrap_or(text);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'@');
    let mut segments = text.strip_prefix(b"/")?.split(|b| *b == b'/');
    let fine = text.len() <= MAX_PREFIX
        && segments
            .all(|segment| !matches!(segment, b"" | b"." | b"..") && segment.iter().all(plain));
    HeaderValue::from_bytes(text).ok().filter(|_| fine)
}

/// One hop of a `Forwarded` header.
#[derive(Debug, Default)]
struct Element {
    node: Option<Vec<u8>>,
    proto: Option<Proto>,
    host: Option<Vec<u8>>,
}

/// The hops of all `Forwarded` lines, the farthest first.
fn elements(headers: &HeaderMap) -> Vec<Element> {
    let lines = headers.get_all(FORWARDED).iter();
    lines
        .flat_map(|line| split_unquoted(line.as_bytes(), b','))
        .map(|element| {
            let mut found = Element::default();
            for pair in split_unquoted(element, b';') {
                let Some(at) = pair.iter().position(|b| *b == b'=') else { continue };
                let (name, value) =
                    (pair[..at].trim_ascii(), unquoted(pair[at + 1..].trim_ascii()));
                match name {
                    b if b.eq_ignore_ascii_case(b"for") => found.node = Some(value),
                    b if b.eq_ignore_ascii_case(b"proto") => found.proto = Proto::read(&value),
                    b if b.eq_ignore_ascii_case(b"host") => found.host = Some(value),
                    _ => {}
                }
            }
            found
        })
        .collect()
}

/// Splits at separators that are not inside quotes.
fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |b| {
        let is_escape = quoted && !escaped && *b == b'\\';
        if *b == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = is_escape;
        *b == separator && !quoted
    })
}

fn unquoted(text: &[u8]) -> Vec<u8> {
    match text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")) {
        Some(inner) => inner.iter().copied().filter(|b| *b != b'\\').collect(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
