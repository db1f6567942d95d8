//! Calls: when each arrives and how long it runs. Arrivals are random (Poisson) around a rate that
//! follows a shape; a call runs for a second on average, most of them less (exponential). The same
//! seed gives the same day.

use super::STEPS;

/// The rate over the four hours.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Eight times as many within half an hour, for an hour, and back within half an hour.
    Surge,
    /// Six times as many from one second to the next, for ten minutes; twice.
    Spike,
    /// Constant.
    Steady,
}

/// Calls per second in quiet times.
const USUAL: f64 = 20.0;
const MINUTE: f64 = 60.0;

impl Shape {
    pub(crate) const ALL: [Self; 3] = [Self::Surge, Self::Spike, Self::Steady];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Surge => "surge: 20 → 160 calls/s in 30 min",
            Self::Spike => "spikes: 20 → 120 calls/s in a second, for 10 min, twice",
            Self::Steady => "steady: 20 calls/s",
        }
    }

    /// Calls per second.
    fn rate(self, seconds: f64) -> f64 {
        let minutes = seconds / MINUTE;
        match self {
            Self::Surge => {
                let up = (minutes - 60.0) / 30.0;
                let down = (180.0 - minutes) / 30.0;
                USUAL + 140.0 * up.min(down).clamp(0.0, 1.0)
            }
            // Begun at 06:00: the spikes are at 07:00 and 08:30.
            Self::Spike if (60.0..70.0).contains(&minutes) => 6.0 * USUAL,
            Self::Spike if (150.0..160.0).contains(&minutes) => 6.0 * USUAL,
            Self::Spike | Self::Steady => USUAL,
        }
    }
}

/// The calls of one run.
#[derive(Debug)]
pub(crate) struct Traffic {
    shape: Shape,
    random: SplitMix,
}

impl Traffic {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, random: SplitMix(seed) }
    }

    /// The calls of one step: for how many steps each runs.
    pub(crate) fn arrivals(&mut self, step: u64) -> Vec<u64> {
        let mean = self.shape.rate(step as f64 / STEPS as f64) / STEPS as f64;
        // Knuth's algorithm for a Poisson number; the means are small.
        let limit = (-mean).exp();
        let mut product = self.random.unit();
        let mut calls = Vec::new();
        while product > limit {
            let seconds = -self.random.unit().ln();
            calls.push(((seconds * STEPS as f64).round() as u64).max(1));
            product *= self.random.unit();
        }
        calls
    }
}

/// A small generator that is the same everywhere (Steele, Lea, Flood: SplitMix64).
#[derive(Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0, below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}
