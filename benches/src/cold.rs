//! The first call of a fresh instance on the image path, beside what Docker alone needs for the same
//! image: create + start over its API, and the first answer. They take turns.

use crate::{
    Plan,
    report::{Cold, Report, median},
};
use epsilon_e2e::{
    http::{Answer, Call, Target},
    up::Epsilon,
    wait::{SOON, until},
};
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Measures and reports.
pub(crate) async fn measure(up: &Epsilon, plan: Plan, report: &mut Report) {
    eprintln!("cold starts …");
    up.get("/cold").await.expect(200);
    let image = up.container("cold").await.inspect["Config"]["Image"].as_str().unwrap().to_owned();
    let mut epsilon = Vec::new();
    let mut started = Vec::new();
    let mut answered = Vec::new();
    for _ in 0..plan.starts {
        epsilon.push(epsilon_cold(up).await);
        let (start, answer) = docker_cold(&image).await;
        started.push(start);
        answered.push(answer);
    }
    let ms = |times: &[Duration]| median(times.iter().map(|time| time.as_secs_f64() * 1e3));
    let over = epsilon.iter().zip(&started);
    let ratio = epsilon.iter().zip(&answered);
    report.cold(Cold {
        epsilon_ms: ms(&epsilon),
        docker_started_ms: ms(&started),
        docker_answered_ms: ms(&answered),
        over_start_ms: median(over.map(|(e, d)| (e.as_secs_f64() - d.as_secs_f64()) * 1e3)),
        ratio: median(ratio.map(|(e, d)| e.as_secs_f64() / d.as_secs_f64())),
    });
}

async fn epsilon_cold(up: &Epsilon) -> Duration {
    // The only instance goes, and with it its container: nothing warm is left.
    let _ = Call::get("/cold/exit").try_send(up.public()).await;
    until("no instance is left", SOON, async || match up.containers(Some("cold")).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    let answer = up.get("/cold").await.expect(200);
    assert!(answer.header("server-timing").contains("start"), "a cold start: {answer}");
    answer.took
}

/// Until Docker says "started", and until the function answers.
async fn docker_cold(image: &str) -> (Duration, Duration) {
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
