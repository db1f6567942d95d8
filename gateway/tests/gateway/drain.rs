//! Shutdown: running calls may finish, idle connections are closed at once, calls at the deadline
//! are counted and cut.

use crate::{
    calls::open_socket,
    fake::ok,
    world::{World, eventually, patient, read_to_close, read_until},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);
const GET: &[u8] = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";

/// A function that answers after a notification.
async fn gated() -> (World, Arc<Notify>) {
    let world = World::with(&["hello"]).await;
    let gate = Arc::new(Notify::new());
    let held = Arc::clone(&gate);
    world.vm.script("hello", move |_| {
        let gate = Arc::clone(&held);
        async move {
            gate.notified().await;
            ok("done")
        }
    });
    (world, gate)
}

#[tokio::test]
async fn a_running_call_ends_and_its_connection_closes() {
    let (mut world, gate) = gated().await;
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(GET).await.unwrap();
    eventually(1, || world.vm.active()).await;
    let draining = tokio::spawn(world.drain(LONG));
    let public = world.public;
    // No new connection is accepted.
    while let Ok(mut stream) = TcpStream::connect(public).await {
        assert_eq!(patient(stream.read(&mut [0; 1])).await.unwrap_or(0), 0);
        tokio::task::yield_now().await;
    }
    assert!(!draining.is_finished());
    gate.notify_one();
    let answer = read_to_close(&mut caller).await;
    assert!(answer.contains("connection: close") && answer.ends_with("done"), "{answer}");
    assert_eq!(patient(draining).await.unwrap().cut, 0);
}

#[tokio::test]
async fn idle_and_silent_connections_do_not_hold_it_up() {
    let (mut world, gate) = gated().await;
    let mut idle = TcpStream::connect(world.public).await.unwrap();
    idle.write_all(GET).await.unwrap();
    gate.notify_one();
    read_until(&mut idle, "done").await;
    let mut silent = TcpStream::connect(world.public).await.unwrap();
    eventually(true, || world.metrics().contains("epsilon_connections 2")).await;
    assert_eq!(patient(world.drain(LONG)).await.cut, 0);
    assert_eq!(read_to_close(&mut idle).await + &read_to_close(&mut silent).await, "");
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut_and_counted() {
    let (mut world, _gate) = gated().await;
    let mut caller = TcpStream::connect(world.public).await.unwrap();
    caller.write_all(GET).await.unwrap();
    eventually(1, || world.vm.active()).await;
    assert_eq!(patient(world.drain(SHORT)).await.cut, 1);
    assert_eq!(read_to_close(&mut caller).await, "");
    eventually(0, || world.vm.active()).await;
}

#[tokio::test]
async fn an_upgraded_stream_is_waited_for_and_cut_too() {
    let mut world = World::with(&["ws"]).await;
    let mut caller = open_socket(&world).await;
    assert_eq!(patient(world.drain(SHORT)).await.cut, 1);
    assert_eq!(read_to_close(&mut caller).await, "");

    let mut world = World::with(&["ws"]).await;
    let caller = open_socket(&world).await;
    let draining = tokio::spawn(world.drain(LONG));
    drop(caller);
    assert_eq!(patient(draining).await.unwrap().cut, 0);
}
