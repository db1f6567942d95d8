use super::*;
use epsilon_api::{body, headers::RawTarget};
use http::HeaderValue;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::Handle,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nHello";
const LIMIT: Duration = Duration::from_secs(20);

async fn pair() -> (Connection, DuplexStream) {
    let (ours, theirs) = duplex(64 << 10);
    (Connection::caller_driven(ours).await.unwrap(), theirs)
}

async fn read_head(server: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(server.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn get() -> Request<CallBody> {
    Request::get("/").header("host", "x").body(body::empty()).unwrap()
}

/// One call, answer read to the end.
async fn call(connection: &mut Connection) -> bytes::Bytes {
    let answer = connection.send(get(), Instant::now() + LIMIT).await;
    let answer = answer.expect("in time").expect("an answer").into_body();
    answer.collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn waiting_caller_drives_the_connection_without_a_task() {
    let (mut connection, mut server) = pair().await;
    let idle = IdleConnections::new(LIMIT);
    for _ in 0..3 {
        let serve = async {
            assert!(read_head(&mut server).await.starts_with("GET / HTTP/1.1\r\n"));
            server.write_all(ANSWER).await.unwrap();
        };
        let (answer, ()) = tokio::join!(call(&mut connection), serve);
        assert_eq!(answer, "Hello");
        idle.keep(connection);
        connection =
            idle.reuse().expect("an idle connection").ready().await.expect("ready for the next");
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
    }
}

#[tokio::test]
async fn a_detached_connection_runs_by_itself() {
    let (mut connection, mut server) = pair().await;
    let serve = async {
        read_head(&mut server).await;
        let (head, body) = ANSWER.split_at(ANSWER.len() - 5);
        server.write_all(head).await.unwrap();
        body
    };
    let (answer, body) = tokio::join!(connection.send(get(), Instant::now() + LIMIT), serve);
    let answer = answer.unwrap().unwrap().into_body();
    connection.detach();
    connection.detach(); // detaching twice is harmless
    server.write_all(body).await.unwrap();
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "Hello");
    drop(connection);
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "dropped, it is closed");
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_there_is_no_answer() {
    let (mut connection, server) = pair().await;
    assert!(connection.send(get(), Instant::now() + LIMIT).await.is_none());
    drop(server);
}

#[tokio::test]
async fn what_the_server_closed_before_gives_the_request_back() {
    let (mut connection, server) = pair().await;
    drop(server);
    let mut failed = connection.send(get(), Instant::now() + LIMIT).await.unwrap().unwrap_err();
    assert!(failed.take_message().is_some(), "nothing was sent");
    let idle = IdleConnections::new(LIMIT);
    idle.keep(connection);
    assert!(idle.reuse().is_none(), "of no more use");
}

#[tokio::test]
async fn a_target_is_written_as_its_caller_wrote_it() {
    let (mut connection, mut server) = pair().await;
    for (uri, raw, line) in [
        ("/%3Cb%3E?q=%22", Some("/<b>?q=\""), "GET /<b>?q=\" HTTP/1.1"),
        ("/a?b", None, "GET /a?b HTTP/1.1"),
        // Bytes that could end the line are not written.
        ("/a", Some("/a HTTP/1.1"), "GET /a HTTP/1.1"),
        ("/a", Some("a"), "GET /a HTTP/1.1"),
        ("/%C3%BC", Some("/\u{fc}"), "GET /\u{fc} HTTP/1.1"),
    ] {
        let mut request = Request::get(uri).header("host", "x").body(body::full("")).unwrap();
        if let Some(raw) = raw {
            let raw = HeaderValue::from_bytes(raw.as_bytes()).unwrap();
            request.extensions_mut().insert(RawTarget(raw));
        }
        let (answer, head) =
            tokio::join!(connection.send(request, Instant::now() + LIMIT), async {
                let head = read_head(&mut server).await;
                server.write_all(ANSWER).await.unwrap();
                head
            });
        assert_eq!(head.lines().next().unwrap(), line);
        assert!(head.contains("\r\nhost: x\r\n"), "{head}");
        let answer = answer.unwrap().unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "Hello");
    }
}

#[tokio::test]
async fn answer_headers_are_limited_in_number() {
    for (count, passes) in [(120, true), (MAX_HEADERS - 1, true), (MAX_HEADERS, false)] {
        let (mut connection, mut server) = pair().await;
        let fields = "set-cookie: a=b\r\n".repeat(count);
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
        let (answer, ()) = tokio::join!(connection.send(get(), Instant::now() + LIMIT), async {
            read_head(&mut server).await;
            server.write_all(answer.as_bytes()).await.unwrap();
        });
        match answer.unwrap() {
            Ok(answer) => assert!(passes && answer.headers().len() == count + 1, "{count}"),
            Err(err) => assert!(!passes && err.error().is_parse_too_large(), "{count}: {err:?}"),
        }
    }
}

#[tokio::test]
async fn interim_answers_are_reported_as_they_come() {
    let (mut connection, mut server) = pair().await;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..2 {
        let on_interim = |status: StatusCode, _| sender.send(status.as_u16()).unwrap();
        let send = connection.send_with(get(), Instant::now() + LIMIT, on_interim);
        let (answer, ()) = tokio::join!(send, async {
            read_head(&mut server).await;
            server.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n").await.unwrap();
            assert_eq!(timeout(LIMIT, receiver.recv()).await, Ok(Some(103)), "before the answer");
            server.write_all(ANSWER).await.unwrap();
        });
        let answer = answer.unwrap().unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "Hello");
    }
}
