//! Functions and their calls, in the shape of the figures published of Azure Functions ("Serverless
//! in the Wild", Shahrad et al., USENIX ATC'20, section 3). What is relied on:
//!
//! | published | here |
//! |---|---|
//! | rates over eight orders of magnitude; 45 % called at most once an hour, 81 % at most once a minute (fig. 5) | [`PER_DAY`] |
//! | timers in about 29 % of applications, most of them with one period (figs. 2 and 6) | [`TIMERS`], [`PERIODS`] |
//! | pauses of the others: some like chance, some in bursts, with a CV above 1 (fig. 6) | half and half |
//! | average execution: log-normal, log mean −0.38, sigma 2.36 (fig. 7) | the same, a minute at most |
//! | memory: half at most 170 MB, nine of ten at most 400 MB (fig. 8) | a log-normal through both |
//!
//! What a start costs is not published: the load of the code is assumed to be log-normal around 100
//! ms.

use epsilon_placement::hash;
use std::f64::consts::TAU;

/// How long the trace is.
pub(crate) const HOURS: u64 = 7 * 24;
const END: f64 = HOURS as f64 * 3600.0;
const FUNCTIONS: u64 = 400;
const SEED: u64 = 20;

/// Shares of functions, and the decimal logarithm of the calls a day that they stay below.
const PER_DAY: [(f64, f64); 4] = [(0.0, -1.0), (0.45, 1.380), (0.81, 3.158), (1.0, 7.0)];
const TIMERS: f64 = 0.29;
/// The share of timers with one period; the others have several, which looks random.
const PERIODIC: f64 = 0.8;
/// Periods that people configure, in minutes.
const PERIODS: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 360.0, 720.0, 1440.0];
/// A function whose mean pause is shorter than this is never idle: no policy makes a difference to
/// it after its first call.
const TOGETHER: f64 = 29.0;

/// One function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Mean number of calls a day.
    pub(crate) per_day: f64,
    /// Bytes of one instance.
    pub(crate) memory: u64,
    /// Duration of a call, in seconds.
    pub(crate) runs: f64,
    /// Duration of loading its code, in seconds.
    pub(crate) loads: f64,
    rhythm: Rhythm,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Rhythm {
    /// A timer, a second early or late.
    Period(f64),
    /// Uniformly random.
    Chance(f64),
    /// Nine pauses of ten are short.
    Bursts(f64),
}

/// A call; or all calls of a function that is never idle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    /// Time of the first one, in seconds.
    pub(crate) at: f64,
    /// Number of calls.
    pub(crate) count: u64,
}

/// All functions; the same in each run.
pub(crate) fn functions() -> Vec<Function> {
    let mut rng = Rng { seed: SEED, draws: 0 };
    (0..FUNCTIONS).map(|n| Function::random(&mut rng, n)).collect()
}

impl Function {
    fn random(rng: &mut Rng, n: u64) -> Self {
        let mut per_day = 10_f64.powf(log_rate(rng.unit()));
        let mean = 86_400.0 / per_day;
        let rhythm = if rng.unit() < TIMERS && mean >= 60.0 && rng.unit() < PERIODIC {
            let apart = |period: f64| (period * 60.0 / mean).ln().abs();
            let nearest = PERIODS.iter().copied().min_by(|a, b| apart(*a).total_cmp(&apart(*b)));
            let period = nearest.unwrap_or(60.0) * 60.0;
            per_day = 86_400.0 / period;
            Rhythm::Period(period)
        } else if rng.unit() < 0.5 {
            Rhythm::Chance(mean)
        } else {
            Rhythm::Bursts(mean)
        };
        let mib = 170.0 * (rng.normal() * (400.0_f64 / 170.0).ln() / 1.2816).exp();
        Self {
            per_day,
            memory: (mib.clamp(32.0, 2048.0) * f64::from(1 << 20)) as u64,
            runs: (rng.normal() * 2.36 - 0.38).exp().min(60.0),
            loads: 0.1 * rng.normal().exp(),
            rhythm,
            seed: SEED + 1 + n,
        }
    }

    /// Whether it has calls all the time.
    pub(crate) fn is_never_idle(&self) -> bool {
        86_400.0 / self.per_day < TOGETHER
    }

    /// Its calls, in order.
    pub(crate) fn calls(&self) -> impl Iterator<Item = Calls> {
        let mut rng = Rng { seed: self.seed, draws: 0 };
        let (Rhythm::Period(mean) | Rhythm::Chance(mean) | Rhythm::Bursts(mean)) = self.rhythm;
        let rhythm = self.rhythm;
        let never_idle = self.is_never_idle();
        let count = if never_idle { (END / mean) as u64 } else { 1 };
        let mut turn = rng.unit() * mean; // the phase is independent of the trace's begin
        let mut first = true;
        std::iter::from_fn(move || {
            if !std::mem::take(&mut first) {
                turn += match rhythm {
                    _ if never_idle => END,
                    Rhythm::Period(period) => period,
                    Rhythm::Chance(mean) => rng.exponential(mean),
                    Rhythm::Bursts(mean) if rng.unit() < 0.9 => rng.exponential(mean / 10.0),
                    Rhythm::Bursts(mean) => rng.exponential(mean * 9.1),
                };
            }
            let late = if matches!(rhythm, Rhythm::Period(_)) { rng.unit() } else { 0.0 };
            (turn < END).then_some(Calls { at: turn + late, count })
        })
    }
}

/// From the share of functions to the logarithm of their rate, interpolated between the published
/// points.
fn log_rate(share: f64) -> f64 {
    let above =
        PER_DAY.iter().position(|(upto, _)| share <= *upto).unwrap_or(PER_DAY.len() - 1).max(1);
    let ((x0, y0), (x1, y1)) = (PER_DAY[above - 1], PER_DAY[above]);
    y0 + (share - x0) / (x1 - x0) * (y1 - y0)
}

/// Random numbers that are the same on every machine.
#[derive(Clone, Debug)]
struct Rng {
    seed: u64,
    draws: u64,
}

impl Rng {
    /// Uniform from 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        self.draws += 1;
        (hash::nth(self.seed, self.draws) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (TAU * self.unit()).cos()
    }
}
