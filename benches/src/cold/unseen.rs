//! The first call of a function whose code is not on the machine: its layer comes from a registry
//! on the same machine. Beside `docker pull` of its image, whose base the engine has, and create +
//! start + first answer.
//!
//! A machine that has seen a function keeps its layer. Here the store is tiny: two others, whose
//! layers do not fit in together, are called before each turn and evict the first one's, which is
//! the least recently used. fit in together, are called before each turn and drive the first one's
//! out, which was used longest ago.

use super::{
    docker, go, is_from_cell,
    times::{Times, ms, share},
};
use crate::{Plan, report::Row};
use epsilon_e2e::{
    engine::{ask, docker as run_docker},
    http::Answer,
    project,
    up::{Epsilon, Settings},
};
use epsilon_registry::debian::DebianRegistry;
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// Code of the function that is measured: 10 KB, as hex that does not compress to nothing.
const SMALL: usize = 10 << 10;
/// More than half of the store.
const LARGE: usize = 600 << 10;
const OTHERS: [&str; 2] = ["one", "other"];
/// Attempts of a turn until the layer is removed.
const TRIES: usize = 10;
/// A layer that is present takes microseconds.
const FETCHED: Duration = Duration::from_micros(500);

/// Runs in turns; the first one is not counted.
pub(super) async fn measure(plan: Plan, rows: &mut Vec<Row>) {
    eprintln!("first calls of a function that comes from a registry …");
    let registry = DebianRegistry::start().await;
    let layer_cache = tempfile::tempdir().unwrap();
    let config = format!(
        "builder: {{ registry: \"{}/bench\" }}\nvm_agent: {{ layers_size: 1MiB, disk_look: 200ms, layer_cache: \"{}\" }}",
        registry.address(),
        layer_cache.path().display()
    );
    let up = Epsilon::start_with(Settings::config(&config)).await;
    up.deploy(&project!("unseen", { "index.js" => code("unseen", SMALL) })).await;
    for name in OTHERS {
        up.deploy(&project!(name, { "index.js" => code(name, LARGE) })).await;
    }
    let image = up.image("unseen").await;
    let mut epsilon = Times::default();
    let mut pulled = Times::default();
    let mut in_cells = 0;
    for turn in 0..=plan.starts {
        let answer = unseen(&up).await;
        run_docker(&["rmi", "-f", &image]).await;
        let began = Instant::now();
        ask(&["pull", "-q", &image]).await;
        docker::first_answer(&image).await;
        if turn > 0 {
            epsilon.push(answer.took);
            pulled.push(began.elapsed());
            in_cells += usize::from(is_from_cell(&answer));
        }
    }
    for name in ["unseen"].into_iter().chain(OTHERS) {
        run_docker(&["rmi", "-f", &up.image(name).await]).await;
    }
    rows.push(Row {
        what: "first call of a function whose code (10 KB) is in a registry on this machine".into(),
        epsilon: epsilon.summary() + &share(in_cells, plan.starts),
        reference: format!("{}: `docker pull` + create + start + first answer", ms(pulled.p50())),
        ratio: format!("{:.1}× faster", pulled.p50() / epsilon.p50()),
    });
}

/// The first call of the function, its layer being removed.
async fn unseen(up: &Epsilon) -> Answer {
    for _ in 0..TRIES {
        go(up, "unseen").await;
        for name in OTHERS {
            up.get(&format!("/{name}")).await.expect(200);
            go(up, name).await;
        }
        up.cells_are_ready(1).await;
        let answer = up.get("/unseen").await.expect(200);
        if layers(answer.header("server-timing")) >= FETCHED {
            return answer;
        }
    }
    panic!("the layer stays on the machine");
}

/// Code of about this size, different in each run, so that it is stored nowhere yet.
fn code(name: &str, size: usize) -> String {
    let mut state = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let mut text = String::with_capacity(size + 200);
    text.push_str("const text = \"");
    while text.len() < size {
        // Knuth's MMIX: any bytes will do that gzip cannot compress.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        write!(text, "{:08x}", state >> 32).unwrap();
    }
    write!(
        text,
        "\";\nexports.{name} = {{ config: {{ maxInstances: 1, idleTimeout: '1s' }}, \
         func: (req, res) => res.send(String(text.length)) }};\n"
    )
    .unwrap();
    text
}

/// The phase `layers` of a `server-timing` header.
fn layers(timing: &str) -> Duration {
    let phase = timing.split(", ").find_map(|phase| phase.strip_prefix("layers;dur="));
    let ms: f64 = phase.map_or(0.0, |ms| ms.parse().unwrap());
    Duration::from_secs_f64(ms / 1e3)
}
