//! The callers: each has one connection and one call at a time (a closed loop). The code is the
//! same for every target, and so is its cost, which is therefore on both sides of every ratio.

use epsilon_e2e::http::{Call, Connection, Target};
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Result of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The median, in microseconds.
    pub(crate) p50: f64,
    /// The 99th percentile, in microseconds.
    pub(crate) p99: f64,
    /// Calls per second.
    pub(crate) rate: f64,
}

/// Makes calls for `length` on this many connections. Runs on a thread of its own, so that callers
/// never wait for the bench's other work.
pub(crate) fn turn(to: Target, path: String, connections: usize, length: Duration) -> Turn {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let mut callers = JoinSet::new();
        let began = Instant::now();
        for _ in 0..connections {
            let to = to.clone();
            let path = path.clone();
            callers.spawn(caller(to, path, began + length));
        }
        let mut all = Histogram::<u64>::new(3).unwrap();
        while let Some(times) = callers.join_next().await {
            all.add(times.unwrap()).unwrap();
        }
        let spent = began.elapsed();
        let micros = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
        Turn { p50: micros(0.5), p99: micros(0.99), rate: all.len() as f64 / spent.as_secs_f64() }
    })
}

async fn caller(to: Target, path: String, end: Instant) -> Histogram<u64> {
    let mut times = Histogram::<u64>::new(3).unwrap();
    let mut connection = Connection::open(&to).await.unwrap();
    while Instant::now() < end {
        let answer = connection.call(Call::get(&path)).await.unwrap();
        assert_eq!(&answer.body[..], b"Hello", "{answer}");
        times.record(answer.took.as_nanos() as u64).unwrap();
    }
    times
}
