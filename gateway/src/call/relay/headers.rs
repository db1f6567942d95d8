//! Which headers pass the gateway. The map is changed in place, in one pass: a message has few
//! headers, and looking up each unwanted name costs more than comparing all that are present.

use super::super::lookup::Addressed;
use epsilon_api::headers::RESERVED_PREFIX;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ALT_SVC, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, STRICT_TRANSPORT_SECURITY, TE, TRANSFER_ENCODING, UPGRADE,
    },
};

const FORWARDED_PREFIX: &str = "x-forwarded-";
const REAL_IP: &str = "x-real-ip";

/// Hop-by-hop headers whatever `Connection` names (RFC 9110, 7.6.1). `Upgrade` has rules of its
/// own.
static OF_ONE_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Request headers that a function must not get: hyper answers `Expect` when the body is read; `TE`
/// has rules of its own; the gateway sets the forwarding headers itself.
static NOT_FOR_FUNCTIONS: [HeaderName; 3] = [EXPECT, TE, FORWARDED];

/// Headers that affect a whole origin or host, and thus every function called by path there: the
/// scope of service workers, stored data, alternative servers, HTTPS only, network error reports.
static OF_AN_ORIGIN: [HeaderName; 5] = [
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("clear-site-data"),
    ALT_SVC,
    STRICT_TRANSPORT_SECURITY,
    HeaderName::from_static("nel"),
];

/// Headers that frame or route a message.
static FRAMING: [HeaderName; 5] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE];

/// Cleans a caller's headers for a function; the forwarding headers come from
/// [`super::super::caller_address`]. Returns the protocol to upgrade to, if the caller asks for
/// one, can upgrade (HTTP/1.0 cannot), and the gateway passes that protocol on.
pub(crate) fn clean_request(headers: &mut HeaderMap, can_upgrade: bool) -> Option<HeaderValue> {
    let upgrade = if can_upgrade { wanted_upgrade(headers) } else { None };
    let trailers = headers.get(TE).is_some_and(|te| has_token(te.as_bytes(), b"trailers"));
    let named = named_by_connection(headers);
    remove_all(headers, |name| {
        OF_ONE_HOP.contains(name)
            || NOT_FOR_FUNCTIONS.contains(name)
            || speaks_for_us(name)
            || named.has(name)
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    upgrade
}

/// Cleans a function's headers for the caller. After a 101 the headers of the upgrade stay. A
/// function that shares its origin must not set headers for all of it.
pub(crate) fn clean_answer(headers: &mut HeaderMap, upgraded: bool, addressed: Addressed) {
    let upgrade = if upgraded { headers.get(UPGRADE).cloned() } else { None };
    let named = named_by_connection(headers);
    remove_all(headers, |name| {
        OF_ONE_HOP.contains(name)
            || is_reserved(name)
            || addressed == Addressed::ByPath && OF_AN_ORIGIN.contains(name)
            || named.has(name)
    });
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Cleans the headers of a function's interim answer for the caller.
pub(crate) fn clean_interim(addressed: Addressed) -> fn(&mut HeaderMap) {
    match addressed {
        Addressed::ByHost => |headers| clean_answer(headers, false, Addressed::ByHost),
        Addressed::ByPath => |headers| clean_answer(headers, false, Addressed::ByPath),
    }
}

/// Cleans trailers in either direction: a receiver may merge them into the headers, so they must
/// not contain a header that is not allowed.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| speaks_for_us(name) || FRAMING.contains(name));
}

fn remove_all(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    if headers.keys().any(&unwanted) {
        let names: Vec<HeaderName> = headers.keys().filter(|n| unwanted(n)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// The names that `Connection` declares hop-by-hop. Sorted, because a hostile message may have
/// thousands of names and thousands of fields.
struct Named(Vec<HeaderName>);

impl Named {
    fn has(&self, name: &HeaderName) -> bool {
        self.0.binary_search_by(|one| one.as_str().cmp(name.as_str())).is_ok()
    }
}

fn named_by_connection(headers: &HeaderMap) -> Named {
    let mut named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Framing and routing are already decided; a caller cannot remove these headers.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    named.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    Named(named)
}

/// The protocol in `Upgrade`, if `Connection` lists it. Another HTTP version (`h2c`, `HTTP/2.0`) is
/// not passed on: its messages would bypass every check of this gateway.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let agreed =
        headers.get_all(CONNECTION).iter().any(|value| has_token(value.as_bytes(), b"upgrade"));
    let other_http = protocol
        .as_bytes()
        .split(|b| *b == b',')
        .map(|one| one.trim_ascii().to_ascii_lowercase())
        .any(|one| one.starts_with(b"h2") || one.starts_with(b"http"));
    (agreed && !other_http).then(|| protocol.clone())
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|one| {
        let one = one.split(|b| *b == b';').next().unwrap_or(one);
        one.trim_ascii().eq_ignore_ascii_case(token)
    })
}

/// Names that only the platform may set, because functions trust them.
fn is_reserved(name: &HeaderName) -> bool {
    name.as_str().starts_with(RESERVED_PREFIX)
}

/// Whether a function could mistake this header for one of the platform's, or for one that frames
/// the message. Frameworks read `_` as `-`, so a name with underscores is compared in that form.
fn speaks_for_us(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.contains('_') {
        return ours(name);
    }
    let dashed = name.replace('_', "-");
    ours(&dashed) || FRAMING.iter().any(|known| known.as_str() == dashed)
}

fn ours(name: &str) -> bool {
    name.starts_with("x-")
        && (name.starts_with(RESERVED_PREFIX)
            || name.starts_with(FORWARDED_PREFIX)
            || name == REAL_IP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    /// The sorted names that the function gets.
    fn left(lines: &[(&str, &str)]) -> Vec<String> {
        let mut headers = map(lines);
        clean_request(&mut headers, true);
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn end_to_end_headers_pass() {
        let lines = [("host", "a"), ("cookie", "x=1"), ("x-mine", "1"), ("content-length", "3")];
        assert_eq!(left(&lines), ["content-length", "cookie", "host", "x-mine"]);
    }

    #[test]
    fn what_connection_names_is_of_one_hop() {
        let lines = [
            ("connection", "close, X-One ,x-two"),
            ("connection", "x-three"),
            ("x-one", "1"),
            ("x-two", "1"),
            ("x-three", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("x-four", "1"),
        ];
        assert_eq!(left(&lines), ["x-four"]);
    }

    #[test]
    fn connection_cannot_name_framing_or_our_own_headers_away() {
        let lines = [
            ("host", "a"),
            ("content-length", "3"),
            ("connection", "host, content-length, x-forwarded-for"),
            ("x-forwarded-for", "6.6.6.6"),
        ];
        assert_eq!(left(&lines), ["content-length", "host"]);
    }

    #[test]
    fn headers_of_the_gateway_cannot_be_forged() {
        let lines = [
            ("x-epsilon-deadline-ms", "1"),
            ("x-epsilon-outcome", "threw"),
            ("x_epsilon_outcome", "threw"),
            ("x-epsilon-request-id", "12345678"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-prefix", "/admin"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("content_length", "0"),
            ("transfer_encoding", "chunked"),
            ("snake_case", "fine"),
        ];
        assert_eq!(left(&lines), ["snake_case"]);
    }

    #[test]
    fn a_websocket_keeps_its_upgrade_and_http2_does_not() {
        let web = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(left(&web), ["connection", "upgrade"]);
        assert!(left(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]).is_empty());
        for other in ["HTTP/2.0", "websocket, http/3", "TLS/1.0, H2"] {
            assert!(left(&[("connection", "upgrade"), ("upgrade", other)]).is_empty(), "{other}");
        }
        assert!(left(&[("upgrade", "websocket")]).is_empty());
    }

    #[test]
    fn an_answer_loses_hop_by_hop_and_reserved_headers() {
        let mut headers = map(&[
            ("connection", "close, x-gone"),
            ("x-gone", "1"),
            ("transfer-encoding", "chunked"),
            ("x-epsilon-request-id", "forged-by-code"),
            ("upgrade", "h2c"),
            ("etag", "1"),
        ]);
        clean_answer(&mut headers, false, Addressed::ByPath);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["etag"]);
    }

    #[test]
    fn only_functions_with_own_origin_set_origin_headers() {
        let lines = [
            ("service-worker-allowed", "/"),
            ("clear-site-data", "\"*\""),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("nel", "{}"),
            ("set-cookie", "a=1; Path=/"),
        ];
        for (addressed, left) in [(Addressed::ByPath, 1), (Addressed::ByHost, 6)] {
            let mut headers = map(&lines);
            clean_answer(&mut headers, false, addressed);
            assert_eq!(headers.len(), left, "{addressed:?}");
        }
    }

    /// Comparing each with each would take half a minute of CPU time.
    #[test]
    fn many_names_in_connection_are_no_work() {
        let mut headers = HeaderMap::new();
        let names: Vec<String> = (0..6000).map(|n| format!("n{n}")).collect();
        headers.insert(CONNECTION, names.join(",").parse().unwrap());
        for n in 0..6000 {
            headers.append(
                HeaderName::try_from(format!("m{n}")).unwrap(),
                HeaderValue::from_static("1"),
            );
        }
        let began = std::time::Instant::now();
        clean_request(&mut headers, false);
        assert_eq!(headers.len(), 6000);
        assert!(began.elapsed() < std::time::Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn no_hop_by_hop_header_survives(
            lines in prop::collection::vec(("[a-z_-]{1,12}|connection|te|upgrade|x-forwarded-[a-z]+", "[ -~]{0,30}"), 0..12)
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &lines {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value.parse()) {
                    headers.append(name, value);
                }
            }
            let upgrade = clean_request(&mut headers, true);
            prop_assert_eq!(headers.contains_key(CONNECTION), upgrade.is_some());
            prop_assert!(!headers.keys().any(|name| name.as_str().starts_with(FORWARDED_PREFIX)));
            prop_assert!(!headers.contains_key(TRANSFER_ENCODING));
        }
    }
}
