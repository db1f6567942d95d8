//! The caller's address by headers and by who sent them.

use super::*;

fn networks(list: &str) -> Networks {
    serde_json::from_str(list).unwrap()
}

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    headers
}

/// The headers that a function gets for a request from 10.0.0.9: address, protocol, host, port,
/// prefix.
fn headers_for(trusted: &str, lines: &[(&str, &str)]) -> String {
    let connection = Connection::without_socket("10.0.0.9:1234".parse().unwrap());
    let mut headers = map(lines);
    let caller = CallerAddress::of(&connection, &headers, &networks(trusted));
    let mut clean = HeaderMap::new();
    if let Some(host) = headers.remove(HOST) {
        clean.insert(HOST, host);
    }
    caller.write_to(&mut clean, &connection, None);
    let one = |name: &HeaderName| clean.get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
    [
        &X_FORWARDED_FOR,
        &X_FORWARDED_PROTO,
        &X_FORWARDED_HOST,
        &X_FORWARDED_PORT,
        &X_FORWARDED_PREFIX,
    ]
    .map(one)
    .join(" ")
}

const ALL: &[(&str, &str)] = &[
    ("host", "a"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "shop.example"),
    ("x-forwarded-port", "443"),
    ("x-forwarded-prefix", "/api"),
    ("forwarded", "for=203.0.113.8;proto=https"),
    ("x-real-ip", "203.0.113.9"),
];

#[test]
fn a_stranger_is_not_believed() {
    assert_eq!(headers_for("[]", ALL), "10.0.0.9 http a - -");
    assert_eq!(headers_for(r#"["10.0.1.0/24"]"#, ALL), "10.0.0.9 http a - -");
}

#[test]
fn a_trusted_proxy_is() {
    assert_eq!(headers_for(r#"["10.0.0.0/24"]"#, ALL), "203.0.113.7 https shop.example 443 /api");
}

#[test]
fn the_walk_goes_from_the_right_over_trusted_hops() {
    for (lines, want) in [
        (&[("x-forwarded-for", "6.6.6.6, 203.0.113.7")][..], "203.0.113.7"),
        (&[("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.0.5")], "203.0.113.7"),
        (
            &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7,10.0.0.5 ")],
            "203.0.113.7",
        ),
        (&[("x-forwarded-for", "10.0.0.3, 10.0.0.5")], "10.0.0.3"),
        (&[("x-forwarded-for", "203.0.113.7, <script>, 10.0.0.5")], "10.0.0.5"),
        (&[("x-forwarded-for", "203.0.113.7, , 10.0.0.5")], "10.0.0.5"),
        (&[("x-forwarded-for", "unknown")], "10.0.0.9"),
        (&[("x-forwarded-for", "")], "10.0.0.9"),
        (&[("x-forwarded-for", "203.0.113.7:4711")], "203.0.113.7"),
        (&[("x-forwarded-for", "2001:db8::7")], "2001:db8::7"),
        (&[("x-forwarded-for", "[2001:db8::7]:4711")], "2001:db8::7"),
        (&[("x-forwarded-for", "::ffff:203.0.113.7")], "203.0.113.7"),
        (
            &[("forwarded", "for=6.6.6.6, For=\"[2001:db8::7]:4711\";by=x, for=10.0.0.5")],
            "2001:db8::7",
        ),
        (&[("forwarded", "for=203.0.113.7, for=_hidden")], "10.0.0.9"),
        (&[("forwarded", "for=\"203.0.113.7, for=6.6.6.6")], "10.0.0.9"),
        (&[("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        (&[("x-real-ip", "6.6.6.6")], "10.0.0.9"),
    ] {
        let got = headers_for(r#"["10.0.0.0/24"]"#, lines);
        assert_eq!(got.split(' ').next().unwrap(), want, "{lines:?}");
    }
}

#[test]
fn other_forwarding_headers_are_validated() {
    for (lines, want) in [
        (&[("x-forwarded-proto", "http, HTTPS")][..], "10.0.0.9 https - - -"),
        (&[("x-forwarded-proto", "gopher")], "10.0.0.9 http - - -"),
        (
            &[("x-forwarded-host", "evil.example, shop.example:8443")],
            "10.0.0.9 http shop.example:8443 - -",
        ),
        (&[("x-forwarded-host", "evil.example/path")], "10.0.0.9 http - - -"),
        (&[("x-forwarded-port", "70000")], "10.0.0.9 http - - -"),
        (&[("x-forwarded-port", "8443")], "10.0.0.9 http - 8443 -"),
        (&[("x-forwarded-prefix", "/api/v1/")], "10.0.0.9 http - - /api/v1"),
        (&[("x-forwarded-prefix", "//evil.example")], "10.0.0.9 http - - -"),
        (&[("x-forwarded-prefix", "/../x")], "10.0.0.9 http - - -"),
        (&[("x-forwarded-prefix", "/a\\b")], "10.0.0.9 http - - -"),
        (
            &[("forwarded", "for=203.0.113.7;proto=https;host=shop.example")],
            "203.0.113.7 https shop.example - -",
        ),
        // The inner hop may well be plain HTTP: the protocol of the caller counts.
        (
            &[("forwarded", "for=203.0.113.7;proto=https, for=10.0.0.5;proto=http")],
            "203.0.113.7 https - - -",
        ),
    ] {
        assert_eq!(headers_for(r#"["10.0.0.0/24"]"#, lines), want, "{lines:?}");
    }
}

#[test]
fn a_prefix_of_a_trusted_proxy_comes_before_ours() {
    let connection = Connection::without_socket("10.0.0.9:1234".parse().unwrap());
    for (trusted, want) in [(r#"["10.0.0.9"]"#, "/api/hello@3"), ("[]", "/hello@3")] {
        let headers = map(&[("x-forwarded-prefix", "/api")]);
        let caller = CallerAddress::of(&connection, &headers, &networks(trusted));
        let mut headers_for = HeaderMap::new();
        caller.write_to(&mut headers_for, &connection, Some(HeaderValue::from_static("/hello@3")));
        assert_eq!(headers_for[&X_FORWARDED_PREFIX], want);
    }
}
