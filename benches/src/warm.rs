//! A warm call in five variants, in turns: the instance's own socket, Epsilon, HAProxy in front of
//! that socket, Epsilon as it starts by default, and the same image run plainly by Docker and
//! called over TCP.
//!
//! Epsilon and HAProxy have one thread each (tokio's own `TOKIO_WORKER_THREADS=1`, `nbthread 1`),
//! and both hash with bounded loads. *As it starts* is the platform that all other benches measure:
//! a thread for each CPU, which on a small machine the function could use better.

use crate::{
    Plan,
    generator::{Turn, turn},
    haproxy::Haproxy,
    report::{Report, Warm, median},
};
use epsilon_e2e::{
    engine::ask,
    http::{Call, Target},
    project,
    up::{Epsilon, Settings},
    wait::{SOON, until},
};
use std::net::{IpAddr, SocketAddr};

/// Numbers of callers.
const CONNECTIONS: [usize; 3] = [1, 8, 32];

const FUNCTION: &str = r#"
const hello = (req, res) => res.send("Hello");
// Enough slots for all callers in one instance, so that both sides of each comparison use the same
// container.
exports.warm = { config: { concurrency: 32, maxInstances: 1, cpu: 2 }, func: hello };
"#;

/// The function's image, run by plain Docker; removed on drop.
struct Plain {
    id: String,
    address: SocketAddr,
}

impl Plain {
    /// Called at its own address: over a published port, Docker's userland proxy would be measured
    /// too.
    async fn start(image: &str) -> Self {
        let run = ["run", "-d", "--label", "epsilon.bench=plain", "--cpus", "2", image];
        let id = ask(&run).await;
        let format = "{{.NetworkSettings.IPAddress}}";
        let ip: IpAddr = ask(&["inspect", "--format", format, &id]).await.parse().unwrap();
        let plain = Self { id, address: SocketAddr::new(ip, 8080) };
        until("the plain container answers", SOON, async || {
            Call::get("/").try_send(plain.address).await.map_err(|broken| broken.to_string())
        })
        .await;
        plain
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["rm", "-f", &self.id]).output();
    }
}

/// Measures and reports. `up` has a function `warm`, too.
pub(crate) async fn measure(up: &Epsilon, plan: Plan, report: &mut Report) {
    let env = vec![("TOKIO_WORKER_THREADS".to_owned(), "1".to_owned())];
    let one = Epsilon::start_with(Settings { env, ..Settings::default() }).await;
    one.deploy(&project!("warm", { "index.js" => FUNCTION })).await;
    for platform in [&one, up] {
        platform.get("/warm").await.expect(200);
    }
    let socket = one.container("warm").await.sockets().join("calls.sock");
    let plain = Plain::start(&one.image("warm").await).await;
    let haproxy = Haproxy::start(&format!("unix@{}", socket.display())).await;
    let mut targets: Vec<Subject<'_>> = vec![
        ("the container's socket", Target::Unix(socket), "/"),
        ("Epsilon, one thread", one.public().into(), "/warm"),
    ];
    if let Some(haproxy) = &haproxy {
        targets.push(("HAProxy, one thread", haproxy.address().into(), "/"));
    }
    targets.push(("Epsilon, as it starts", up.public().into(), "/warm"));
    targets.push(("the container over TCP", plain.address.into(), "/"));

    for row in compare(&targets, plan).await {
        report.warm(row);
    }
}

/// What is measured: its name, its address, the path of the calls.
pub(crate) type Subject<'a> = (&'static str, Target, &'a str);

/// Each target in turn, on this many connections. The others are compared with the first one, and
/// with the last one whose name begins with HAProxy.
pub(crate) async fn compare(subjects: &[Subject<'_>], plan: Plan) -> Vec<Warm> {
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        eprintln!("warm calls on {connections} connections …");
        let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); subjects.len()];
        // The turn before the first one warms the code up and is not counted.
        for round in 0..=plan.turns {
            for (at, (_, target, path)) in subjects.iter().enumerate() {
                let target = target.clone();
                let path = (*path).to_owned();
                let work = move || turn(target, path, connections, plan.turn);
                let result = tokio::task::spawn_blocking(work).await.unwrap();
                if round > 0 {
                    turns[at].push(result);
                }
            }
        }
        let direct = turns[0].clone();
        let proxy = subjects.iter().rposition(|(name, ..)| name.starts_with("HAProxy"));
        let proxy = proxy.map(|at| turns[at].clone());
        rows.extend(subjects.iter().zip(turns).map(|((name, ..), turns)| {
            let pairs = || turns.iter().zip(&direct);
            Warm {
                connections,
                name,
                p50: median(turns.iter().map(|turn| turn.p50)),
                p99: median(turns.iter().map(|turn| turn.p99)),
                rate: median(turns.iter().map(|turn| turn.rate)),
                added_p50: median(pairs().map(|(turn, direct)| turn.p50 - direct.p50)),
                rate_ratio: median(pairs().map(|(turn, direct)| turn.rate / direct.rate)),
                proxy_ratio: proxy.as_ref().map(|proxy| {
                    median(turns.iter().zip(proxy).map(|(turn, proxy)| turn.rate / proxy.rate))
                }),
            }
        }));
    }
    rows
}
