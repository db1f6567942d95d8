//! Rare parts of HTTP/1.1 that a proxy must handle correctly and that common clients do not use.

use crate::{
    fake::{self, ok},
    world::{World, eventually, read_to_close, read_until},
};
use bytes::Bytes;
use epsilon_api::{body, error::VmError, vm::Call};
use futures_util::stream;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Answers with the request line, header names and body that the function received, trailers last.
async fn seen(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    let function = call.version.function.clone();
    let (head, body) = call.request.into_parts();
    let mut names: Vec<&str> = head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let broke = |cause| VmError::FunctionCrashed { function, cause };
    let body = body.collect().await.map_err(broke)?;
    let mut trailers: Vec<String> =
        body.trailers().into_iter().flat_map(HeaderMap::keys).map(ToString::to_string).collect();
    trailers.sort();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    ok(format!(
        "{} {} | {} | {body} | {}\n",
        head.method,
        head.uri,
        names.join(" "),
        trailers.join(" ")
    ))
}

async fn world() -> World {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", seen);
    world
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// The request target as the function received it.
async fn target(world: &World, target: &str) -> String {
    let answer =
        world.raw(&format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let line = answer.lines().find(|line| line.starts_with("GET "));
    line.and_then(|line| line.split(' ').nth(1)).unwrap_or(status(&answer)).to_owned()
}

#[tokio::test]
async fn targets_arrive_as_they_were_sent() {
    let world = world().await;
    for (sent, seen) in [
        ("/hello", "/"),
        ("/hello?", "/?"),
        ("/hello/", "/"),
        ("/hello/?", "/?"),
        ("/hello//x", "//x"),
        ("/hello///", "///"),
        ("/hello/a%2Fb%2f", "/a%2Fb%2f"),
        ("/hello/%", "/%"),
        ("/hello/a;b=c,d", "/a;b=c,d"),
        ("/hello?a?b/c", "/?a?b/c"),
        ("/hello/x?/hello", "/x?/hello"),
        ("http://a/hello/x?y", "/x?y"),
        ("http://a/hello", "/"),
        ("http://a", "200"),
        ("http://a?x", "200"),
        ("/?x", "200"),
        ("//hello", "404"),
        ("/hello%2Fx", "404"),
        ("//", "404"),
        ("*", "404"),
        ("hello", "400"),
    ] {
        assert_eq!(target(&world, sent).await, seen, "{sent}");
    }
}

/// The `Content-Length` of a HEAD, 204 or 304 answer describes a body that is not sent.
#[tokio::test]
async fn answers_without_a_body_keep_the_connection_in_step() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |call| async move {
        let status: u16 = call.request.uri().path()[1..].parse().unwrap();
        let answer = Response::builder().status(status).header("etag", "\"1\"");
        Ok(fake::answer(answer.body(body::empty()).unwrap()))
    });
    for (method, code) in [("GET", "204"), ("GET", "304"), ("HEAD", "200"), ("POST", "205")] {
        let mut caller = TcpStream::connect(world.public).await.unwrap();
        let one = format!("{method} /hello/{code} HTTP/1.1\r\nhost: a\r\n\r\n");
        let last = "GET /hello/299 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        caller.write_all([one.as_str(), last].concat().as_bytes()).await.unwrap();
        let answers = read_to_close(&mut caller).await;
        assert_eq!(status(&answers), code);
        assert!(answers.contains("\r\n\r\nHTTP/1.1 299"), "{method} {code}: {answers}");
        assert!(!answers.contains("transfer-encoding"), "{answers}");
    }
}

/// A HEAD answer has no body that could be cut.
#[tokio::test]
async fn an_answered_head_request_is_not_cut() {
    let world = world().await;
    for path in ["/", "/missing", "/hello"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = world.raw(&request).await;
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    eventually(0, || world.running().calls()).await;
    assert!(world.metrics().contains("epsilon_answers_cut_total 0"), "{}", world.metrics());
}

#[tokio::test]
async fn one_transfer_coding_is_understood_and_others_are_refused() {
    let world = world().await;
    let post = async |codings: &str| {
        let request = format!(
            "POST /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{codings}\r\n3\r\nabc\r\n0\r\n\r\n"
        );
        world.raw(&request).await
    };
    let fine = post("transfer-encoding: Chunked\r\n").await;
    assert!(fine.contains("| abc |"), "{fine}");
    for codings in [
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: \u{b}chunked\r\n",
    ] {
        let answer = post(codings).await;
        assert_eq!(status(&answer), "400", "{codings:?}: {answer}");
    }
}

#[tokio::test]
async fn chunk_extensions_end_at_the_gateway() {
    let answer = world()
        .await
        .raw(
            "POST /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
             3;name=value\r\nabc\r\n2;x=\"y\"\r\nde\r\n0;last\r\n\r\n",
        )
        .await;
    assert!(answer.contains("| abcde |"), "{answer}");
}

/// A trailer is a late header: names that are removed from headers are removed from trailers.
#[tokio::test]
async fn trailers_cannot_forge_headers() {
    let answer = world()
        .await
        .raw(
            "POST /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
             trailer: x-sum, x-epsilon-request-id\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\
             x-epsilon-request-id: forged-id\r\nx-forwarded-for: 6.6.6.6\r\ncontent-length: 9\r\n\r\n",
        )
        .await;
    assert!(answer.contains("| abc | x-sum\n"), "{answer}");
}

#[tokio::test]
async fn trailers_of_an_answer_pass_without_our_names() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |_| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert("x-epsilon-outcome", "threw".parse().unwrap());
        let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, body::BodyError>)));
        let answer = Response::builder().header("trailer", "x-sum, x-epsilon-outcome");
        Ok(fake::answer(answer.body(body::boxed(body)).unwrap()))
    });
    let answer = world
        .raw("GET /hello HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close, te\r\n\r\n")
        .await;
    assert!(answer.ends_with("\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), "{answer}");
}

/// A client with another expectation does not wait for a `100 Continue`.
#[tokio::test]
async fn an_unknown_expectation_is_ignored() {
    let world = world().await;
    let big = "x".repeat(32 << 20);
    let request = format!(
        "POST /missing HTTP/1.1\r\nhost: a\r\nexpect: nothing\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{big}",
        big.len()
    );
    assert_eq!(status(&world.raw(&request).await), "404");
}

/// HTTP/1.0 has no upgrades; a request for one gets a plain answer.
#[tokio::test]
async fn an_upgrade_of_http_1_0_is_ignored() {
    let answer = world()
        .await
        .raw("GET /hello HTTP/1.0\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    assert!(!answer.contains("upgrade"), "{answer}");
}

#[tokio::test]
async fn an_upgrade_that_is_ignored_leaves_the_connection_usable() {
    let world = world().await;
    for upgrade in ["websocket", "h2c"] {
        let mut caller = TcpStream::connect(world.public).await.unwrap();
        let one = format!(
            "POST /hello/1 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n\
             content-length: 3\r\n\r\nabc"
        );
        caller.write_all(one.as_bytes()).await.unwrap();
        let first = read_until(&mut caller, "| abc |").await;
        assert_eq!(status(&first), "200");
        caller.write_all(b"GET /hello/2 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_until(&mut caller, "GET /2").await;
    }
}

/// An HTTP/1.0 client gets an answer that ends with the connection, never chunks.
#[tokio::test]
async fn http_1_0_gets_no_chunks() {
    let world = World::with(&["hello"]).await;
    world.vm.script("hello", |_| async {
        let frames =
            ["abc", "def"].map(|text| Ok::<_, body::BodyError>(Frame::data(Bytes::from(text))));
        Ok(fake::answer(Response::new(body::boxed(StreamBody::new(stream::iter(frames))))))
    });
    let answer = world.raw("GET /hello HTTP/1.0\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nabcdef") && !answer.contains("chunked"), "{answer}");
}
