//! What HTTP says between callers, proxies, gateway and functions: what reaches a function, what reaches a caller.

use crate::{
    fake::{self, ok},
    world::World,
};
use ::http::Response;
use epsilon_api::body;
use epsilon_gateway::config::Settings;

fn settings(text: &str) -> Settings {
    serde_json::from_str(text).unwrap()
}

/// A world whose function `hello` answers with what it is told of its caller.
async fn told(settings: Settings) -> World {
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", |call| async move {
        let headers = call.request.headers();
        let one = |name: &str| headers.get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
        let names = ["for", "proto", "host", "port", "prefix"];
        let told = names.map(|name| one(&format!("x-forwarded-{name}"))).join(" ");
        assert!(!headers.contains_key("x-real-ip") && !headers.contains_key("forwarded"));
        ok(format!("{} {told}", call.request.uri()))
    });
    world
}

/// The body of one answer.
async fn ask(world: &World, head: &str) -> String {
    let answer = world.raw(&format!("GET {head}\r\nconnection: close\r\n\r\n")).await;
    answer.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

const FORWARDED: &str = "host: a\r\nx-forwarded-for: 6.6.6.6, 203.0.113.7\r\nx-forwarded-proto: https\r\n\
    x-forwarded-port: 443\r\nx-forwarded-host: shop.example\r\nx-real-ip: 6.6.6.6\r\nforwarded: for=6.6.6.6";

#[tokio::test]
async fn only_a_trusted_proxy_says_who_calls() {
    let request = format!("/hello/x HTTP/1.1\r\n{FORWARDED}");
    let trusting = told(settings(r#"{"trusted_proxies":["127.0.0.0/8"]}"#)).await;
    assert_eq!(ask(&trusting, &request).await, "/x 203.0.113.7 https shop.example 443 /hello");
    let strict = told(settings(r#"{"trusted_proxies":["10.0.0.0/8"]}"#)).await;
    assert_eq!(ask(&strict, &request).await, "/x 127.0.0.1 http a - /hello");
}

#[tokio::test]
async fn a_function_below_its_name_is_told_its_prefix_and_one_with_a_host_has_none() {
    let world = told(settings(r#"{"domain":"fn.example.org"}"#)).await;
    let spoken = "x-forwarded-prefix: /admin";
    for (head, prefix) in [
        (format!("/hello HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello"),
        (format!("/hello/a/b?c HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello"),
        (format!("/hello@1/a HTTP/1.1\r\nhost: a\r\n{spoken}"), "/hello@1"),
        (format!("/a HTTP/1.1\r\nhost: hello.fn.example.org\r\n{spoken}"), "-"),
        (format!("/a HTTP/1.1\r\nhost: hello--v1.fn.example.org\r\n{spoken}"), "-"),
    ] {
        let seen = ask(&world, &head).await;
        assert_eq!(seen.rsplit(' ').next().unwrap(), prefix, "{head}");
    }
}

#[tokio::test]
async fn a_function_that_shares_its_origin_says_nothing_for_all_of_it() {
    let world = World::start(&["hello"], settings(r#"{"domain":"fn.example.org"}"#)).await;
    world.vm.script("hello", |_| async {
        let response = Response::builder()
            .header("service-worker-allowed", "/")
            .header("clear-site-data", "\"*\"")
            .header("alt-svc", "h3=\":443\"")
            .header("strict-transport-security", "max-age=1")
            .header("etag", "1");
        Ok(fake::answer(response.body(body::empty()).unwrap()))
    });
    for (host, own) in [("a", false), ("hello.fn.example.org", true)] {
        let request = format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = world.raw(&request).await;
        for name in ["service-worker-allowed", "clear-site-data", "alt-svc", "strict-transport"] {
            assert_eq!(answer.contains(name), own, "{name} in {answer}");
        }
        assert!(answer.contains("etag: 1"), "{answer}");
    }
}

/// What a tunnel would carry is no request of ours.
#[tokio::test]
async fn connect_is_answered_and_its_connection_ends() {
    let world = told(Settings::default()).await;
    let answer = world
        .raw("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\nGET /hello HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains(r#""code":"BAD_REQUEST""#), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}
