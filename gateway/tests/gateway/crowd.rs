//! More connections than the limit: idle ones are closed for new ones, and a health check is always
//! answered.

use crate::world::{World, eventually, own_address, patient, read_to_close, read_until};
use epsilon_gateway::config::Settings;
use futures_util::{StreamExt, stream};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const HEALTH: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const CALL: &str = "GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";

async fn world(max_connections: usize) -> World {
    let world = World::start(&["hello"], Settings { max_connections, ..Settings::default() }).await;
    world.vm.script("hello", |_| std::future::pending());
    world
}

async fn open(to: SocketAddr, request: &str) -> TcpStream {
    let mut stream = patient(TcpStream::connect(to)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// A connection that got one answer and then stays idle.
async fn idle(to: SocketAddr, request: &str) -> TcpStream {
    let mut stream = open(to, request).await;
    read_until(&mut stream, "\r\n\r\n").await;
    stream
}

/// Opens this number of idle connections.
async fn crowd(to: SocketAddr, request: &str, wanted: usize) -> Vec<TcpStream> {
    stream::iter(0..wanted).map(|_| idle(to, request)).buffer_unordered(64).collect().await
}

/// Waits until the oldest connection has been idle long enough to be closed for a new one.
async fn wait_until_idle(since: Instant) {
    while since.elapsed() < Duration::from_millis(1100) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Checks the answer of the health check and returns its duration.
async fn health(to: SocketAddr, request: &str) -> Duration {
    let began = Instant::now();
    let answer = read_until(&mut open(to, request).await, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    began.elapsed()
}

#[tokio::test]
async fn idle_connections_block_neither_listener() {
    epsilon_bootstrap::files::raise_file_limit();
    let world = world(1000).await;
    for (to, request) in
        [(world.public, HEALTH), (world.control, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")]
    {
        let began = Instant::now();
        let crowd = crowd(to, request, 1000).await;
        wait_until_idle(began).await;
        for _ in 0..20 {
            let took = health(to, request).await;
            assert!(took < Duration::from_millis(500), "{took:?}");
        }
        drop(crowd);
    }
}

#[tokio::test]
async fn the_longest_idle_connection_is_closed_first() {
    let world = world(3).await;
    let mut busy = open(world.public, CALL).await;
    eventually(1, || world.vm.active()).await;
    let began = Instant::now();
    let mut older = idle(world.public, HEALTH).await;
    let _newer = idle(world.public, HEALTH).await;
    wait_until_idle(began).await;
    let _fresh = idle(world.public, HEALTH).await;
    assert_eq!(patient(older.read(&mut [0; 9])).await.unwrap(), 0, "closed");
    assert_eq!(world.vm.active(), 1);
    busy.write_all(b"x").await.unwrap();
}

#[tokio::test]
async fn a_full_gateway_still_answers_health_checks() {
    let world = world(2).await;
    let _busy = [open(world.public, CALL).await, open(world.public, CALL).await];
    eventually(2, || world.vm.active()).await;
    // A silent connection occupies the reserved slot until another one arrives.
    let _silent = open(world.public, "").await;
    for _ in 0..3 {
        let answer = read_to_close(&mut open(world.public, HEALTH).await).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"),
            "{answer}"
        );
        let answer = read_to_close(&mut open(world.public, CALL).await).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        for line in [r#""code":"NO_CAPACITY""#, "retry-after: 1", "connection: close"] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
    }
    assert_eq!(world.vm.active(), 2);
}

#[tokio::test]
async fn a_tunnel_is_at_work_however_silent_it_is() {
    let world = World::start(&["ws"], Settings { max_connections: 1, ..Settings::default() }).await;
    let mut socket = crate::calls::open_socket(&world).await;
    wait_until_idle(Instant::now()).await;
    let answer = read_to_close(&mut open(world.public, HEALTH).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    socket.write_all(b"ping").await.unwrap();
    assert_eq!(read_until(&mut socket, "ping").await, "ping");
}

/// Loopback is exempt, so the test connects from another address of this machine.
#[tokio::test]
async fn one_address_has_its_share_and_no_more() {
    let listen = SocketAddr::new(own_address(), 0);
    let settings = Settings { listen, max_connections_per_ip: Some(3), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    world.vm.script("hello", |_| std::future::pending());
    let mut busy = Vec::new();
    for n in 1..=3 {
        busy.push(open(world.public, CALL).await);
        eventually(n, || world.vm.active()).await;
    }
    assert_eq!(read_to_close(&mut open(world.public, HEALTH).await).await, "", "one too many");
    busy.pop();
    eventually(2, || world.vm.active()).await;
    // A new connection is accepted after the gateway has closed the old one.
    let began = Instant::now();
    while read_to_close(&mut open(world.public, "GET / HTTP/1.0\r\n\r\n").await).await.is_empty() {
        assert!(began.elapsed() < crate::world::TEST_TIMEOUT);
    }
}
