//! What Docker alone needs for a function's image: create and start over its API, and the first
//! answer.

use epsilon_e2e::{
    http::{Answer, Call, Target},
    wait::SOON,
};
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Until Docker says "started", and until the function answers.
pub(super) async fn first_answer(image: &str) -> (Duration, Duration) {
    let body = json!({ "Image": image, "Labels": { "epsilon.bench": "cold" } });
    let began = Instant::now();
    let created = docker(Call::post_json("/containers/create", &body)).await.expect(201).json();
    let id = created["Id"].as_str().unwrap().to_owned();
    docker(Call::post(&format!("/containers/{id}/start"), "application/json", ""))
        .await
        .expect(204);
    let started = began.elapsed();
    let inspected = docker(Call::get(&format!("/containers/{id}/json"))).await.expect(200).json();
    let ip: IpAddr = inspected["NetworkSettings"]["IPAddress"].as_str().unwrap().parse().unwrap();
    let address = SocketAddr::new(ip, 8080);
    while Call::get("/").try_send(address).await.is_err() {
        assert!(began.elapsed() < SOON, "the plain container does not answer");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let answered = began.elapsed();
    let remove = Call::new("DELETE".parse().unwrap(), &format!("/containers/{id}?force=true"));
    docker(remove).await.expect(204);
    (started, answered)
}

async fn docker(call: Call) -> Answer {
    call.send(Target::Unix("/var/run/docker.sock".into())).await
}
