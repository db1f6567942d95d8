//! Calls: functions by Zipf's law, each call at a random moment, with an exponential duration. One
//! function in the middle of the list surges for a while.

use super::SURGE;
use epsilon_placement::hash;

/// Calls that run at once on each VM, on average.
const LOAD: f64 = 12.0;
/// How long a call takes on average, seconds.
const TAKES: f64 = 0.2;
/// Calls of the surge that run at once, for each VM of the fleet.
const SURGING: f64 = 4.0;

/// One call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Its function's number.
    pub(super) function: usize,
    /// When it comes, seconds.
    pub(super) at: f64,
    /// How long it runs.
    pub(super) takes: f64,
}

/// Generates the calls.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Sums of the functions' shares, the last one 1.
    upto: Vec<f64>,
    rate: f64,
    surge_rate: f64,
    now: f64,
    rng: Rng,
}

impl Traffic {
    pub(super) fn new(functions: usize, vms: usize, seed: u64) -> Self {
        let weights = (1..=functions).map(|rank| 1.0 / rank as f64);
        let mut sum = 0.0;
        let mut upto: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        upto.iter_mut().for_each(|share| *share /= sum);
        let rate = LOAD * vms as f64 / TAKES;
        Self { upto, rate, surge_rate: SURGING * vms as f64 / TAKES, now: 0.0, rng: Rng::new(seed) }
    }

    pub(super) fn functions(&self) -> usize {
        self.upto.len()
    }

    /// The next call, if it comes before the end.
    pub(super) fn next(&mut self, end: f64) -> Option<Call> {
        let surging = if SURGE.contains(&self.now) { self.surge_rate } else { 0.0 };
        let rate = self.rate + surging;
        self.now += self.rng.exponential(1.0 / rate);
        let rng = self.rng.unit();
        let function = if self.rng.unit() < surging / rate {
            self.functions() / 2
        } else {
            self.upto.partition_point(|share| *share < rng).min(self.functions() - 1)
        };
        let takes = self.rng.exponential(TAKES);
        (self.now < end).then_some(Call { function, at: self.now, takes })
    }
}

/// Random numbers that are the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Rng {
    seed: u64,
    draws: u64,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// From 0 to 1, without 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.draws += 1;
        (hash::nth(self.seed, self.draws) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}
