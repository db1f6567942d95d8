//! Callers without pauses that count their results, while the test kills things.

use crate::{
    http::{Call, CallBroken},
    wait::{SOON, until},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Results of the callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Count of each status.
    pub statuses: BTreeMap<u16, u64>,
    /// Calls that were never sent, because no process listened.
    pub refused: u64,
    /// Calls that were sent and got no complete answer, as text.
    pub broken: Vec<String>,
    /// Longest time of an answer.
    pub slowest: Duration,
}

impl Tally {
    /// Count of a status.
    pub fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    /// Count of all answers.
    pub fn answers(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Adds the results of others.
    pub fn merge(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.refused += other.refused;
        self.broken.extend(other.broken);
        self.slowest = self.slowest.max(other.slowest);
    }

    /// Calls without a 200.
    pub fn lost(&self) -> u64 {
        self.answers() - self.of(200) + self.refused + self.broken.len() as u64
    }

    fn add(&mut self, result: Result<u16, CallBroken>, took: Duration) {
        self.slowest = self.slowest.max(took);
        match result {
            Ok(status) => *self.statuses.entry(status).or_default() += 1,
            Err(broken) if broken.is_refused() => self.refused += 1,
            Err(broken) => self.broken.push(broken.to_string()),
        }
    }
}

/// Running callers. Each has one call at a time, each on a connection of its own.
#[derive(Debug)]
pub struct Load {
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    /// Starts callers of one path.
    pub fn start(to: SocketAddr, path: &str, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (stop, tally, path) = (stop.clone(), tally.clone(), path.to_owned());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let result = Call::get(&path).try_send(to).await.map(|answer| answer.status);
                    let refused = matches!(&result, Err(broken) if broken.is_refused());
                    tally.lock().unwrap().add(result, began.elapsed());
                    if refused {
                        // No process listens: wait instead of spinning on a machine of two cores.
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            });
        }
        Self { callers: tasks, stop, tally }
    }

    /// Results so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// Lets each caller finish its call; returns all results.
    ///
    /// # Panics
    /// When a caller panicked.
    pub async fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        self.tally.lock().unwrap().clone()
    }
}

/// Running callers of several paths.
#[derive(Debug)]
pub struct Loads(Vec<Load>);

impl Loads {
    /// Starts callers of each path.
    pub fn start(
        to: SocketAddr,
        paths: impl IntoIterator<Item = impl AsRef<str>>,
        callers: usize,
    ) -> Self {
        Self(paths.into_iter().map(|path| Load::start(to, path.as_ref(), callers)).collect())
    }

    /// Results so far.
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        self.0.iter().for_each(|load| all.merge(load.tally()));
        all
    }

    /// Waits until so many more calls succeeded. The limit is per call: a busy machine makes few.
    pub async fn more(&self, count: u64) {
        let mut seen = self.tally().of(200);
        let goal = seen + count;
        while seen < goal {
            seen = until("calls go on", SOON, async || match self.tally().of(200) {
                now if now > seen => Ok(now),
                now => Err(now),
            })
            .await;
        }
    }

    /// Waits until this time, with calls succeeding.
    pub async fn go_on_until(&self, end: Instant) {
        while Instant::now() < end {
            self.more(20).await;
        }
    }

    /// Lets each caller finish its call; returns all results.
    pub async fn stop(self) -> Tally {
        // Stop all of them first: the ones waited for later would go on calling.
        self.0.iter().for_each(|load| load.stop.store(true, Ordering::Relaxed));
        let mut all = Tally::default();
        for load in self.0 {
            all.merge(load.stop().await);
        }
        all
    }
}

/// Makes concurrent calls and collects the results.
///
/// # Panics
/// When a caller panicked.
pub async fn at_once(to: SocketAddr, path: &str, calls: usize) -> Tally {
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        let path = path.to_owned();
        tasks.spawn(async move {
            let began = Instant::now();
            let result = Call::get(&path).try_send(to).await.map(|answer| answer.status);
            (result, began.elapsed())
        });
    }
    let mut tally = Tally::default();
    while let Some(ended) = tasks.join_next().await {
        let (result, took) = ended.unwrap();
        tally.add(result, took);
    }
    tally
}
