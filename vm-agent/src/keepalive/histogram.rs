//! A bounded histogram of the pauses of one function, each from the end of its last running call to
//! its next one. As in "Serverless in the Wild" (Shahrad et al., USENIX ATC'20, section 4.2):
//! minutes up to four hours, finer below two minutes, and a count of longer pauses. Old pauses
//! weigh less, so that it follows change. Pure.

use std::time::Duration;

/// Pauses up to this long have a bin; longer ones are only counted.
pub const REACH: Duration = Duration::from_secs(4 * 3600);
/// Width of a bin below two minutes, in seconds: there, a minute more or less doubles what an
/// instance costs.
const FINE: u64 = 10;
const FINE_UPTO: u64 = 120;
const FINE_BINS: usize = (FINE_UPTO / FINE) as usize;
/// Width of a bin above, in seconds, as in the paper.
const COARSE: u64 = 60;
/// Number of bins.
const BINS: usize = FINE_BINS + ((REACH.as_secs() - FINE_UPTO) / COARSE) as usize;
/// After this many pauses, the weights of all earlier ones are halved. The total weight is between
/// 64 and 128 pauses, enough for a 99th percentile: two longer pauses are noticed at once, and that
/// there are no more of them after some four hundred calls.
const HALF_AFTER: u32 = 64;
/// A bin below this is empty: a pause seen once, some 250 pauses ago.
const FORGOTTEN: f32 = 0.06;

/// The pauses of one function, about a kilobyte.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bins: Box<[f32; BINS]>,
    within: f32,
    beyond: f32,
    since_half: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bins: Box::new([0.0; BINS]), within: 0.0, beyond: 0.0, since_half: 0 }
    }
}

impl Histogram {
    /// Adds a pause. No allocation; constant time, except for one pass over the bins every 64
    /// pauses.
    pub fn add(&mut self, pause: Duration) {
        match bin(pause) {
            Some(bin) => {
                self.bins[bin] += 1.0;
                self.within += 1.0;
            }
            None => self.beyond += 1.0,
        }
        self.since_half += 1;
        if self.since_half >= HALF_AFTER {
            self.halve();
        }
    }

    fn halve(&mut self) {
        self.since_half = 0;
        let half = |weight: f32| if weight < 2.0 * FORGOTTEN { 0.0 } else { weight / 2.0 };
        self.bins.iter_mut().for_each(|weight| *weight = half(*weight));
        self.beyond = half(self.beyond);
        self.within = self.bins.iter().sum();
    }

    /// The number of pauses by weight: exact while there are few.
    pub fn samples(&self) -> f32 {
        self.within + self.beyond
    }

    /// The share of pauses longer than [`REACH`], 0 to 1.
    pub fn beyond(&self) -> f32 {
        if self.samples() > 0.0 { self.beyond / self.samples() } else { 0.0 }
    }

    /// Coefficient of variation of the bins' weights: high when pauses are alike (few bins hold all
    /// of the weight), low when all pauses are equally likely. The paper's measure of whether a
    /// histogram is representative.
    pub fn variation(&self) -> f32 {
        let mean = self.within / BINS as f32;
        if mean <= 0.0 {
            return 0.0;
        }
        let spread = self.bins.iter().map(|weight| (weight - mean).powi(2)).sum::<f32>();
        (spread / BINS as f32).sqrt() / mean
    }

    /// The pause, of those within [`REACH`], that this share of them does not reach: the lower edge
    /// of its bin.
    pub fn lower(&self, share: f32) -> Duration {
        edge(self.bin_at(share))
    }

    /// The pause, of those within [`REACH`], that this share of them does not exceed: the upper
    /// edge of its bin.
    pub fn upper(&self, share: f32) -> Duration {
        edge(self.bin_at(share) + 1)
    }

    fn bin_at(&self, share: f32) -> usize {
        let wanted = self.within * share;
        let mut sum = 0.0;
        let reached = self.bins.iter().position(|weight| {
            sum += weight;
            *weight > 0.0 && sum >= wanted
        });
        // Rounding of the sum may leave the last bin short of it.
        let last = || self.bins.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
        reached.unwrap_or_else(last)
    }

    /// The non-empty bins with their weights, and the weight beyond: what is written to disk.
    pub(crate) fn parts(&self) -> (Vec<(usize, f32)>, f32) {
        let bins = self.bins.iter().copied().enumerate().filter(|(_, weight)| *weight > 0.0);
        (bins.collect(), self.beyond)
    }

    /// Restores from [`Histogram::parts`]; `None` when the values are invalid.
    pub(crate) fn from_parts(bins: &[(usize, f32)], beyond: f32) -> Option<Self> {
        let is_weight = |weight: f32| (0.0..=1e6).contains(&weight);
        let mut whole = Self { beyond, ..Self::default() };
        for &(bin, weight) in bins {
            *whole.bins.get_mut(bin).filter(|_| is_weight(weight))? = weight;
        }
        whole.within = whole.bins.iter().sum();
        is_weight(beyond).then_some(whole)
    }
}

fn bin(pause: Duration) -> Option<usize> {
    let seconds = pause.as_secs();
    match seconds {
        0..FINE_UPTO => Some((seconds / FINE) as usize),
        _ if pause < REACH => Some(FINE_BINS + ((seconds - FINE_UPTO) / COARSE) as usize),
        _ => None,
    }
}

/// Where a bin begins.
fn edge(bin: usize) -> Duration {
    let coarse = bin.saturating_sub(FINE_BINS) as u64;
    Duration::from_secs(bin.min(FINE_BINS) as u64 * FINE + coarse * COARSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn of(pauses: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        pauses.into_iter().for_each(|pause| histogram.add(s(pause)));
        histogram
    }

    #[test]
    fn every_pause_is_within_its_bin() {
        for seconds in (0..REACH.as_secs()).step_by(7).chain([9, 10, 119, 120, 14_399]) {
            let bin = bin(s(seconds)).unwrap();
            assert!(edge(bin) <= s(seconds) && s(seconds) < edge(bin + 1), "{seconds}");
        }
        assert_eq!(edge(BINS), REACH);
        assert_eq!(bin(REACH), None);
    }

    #[test]
    fn percentiles_are_edges_of_bins() {
        let pauses = of((0..50).map(|n| if n == 49 { 3600 } else { 605 }));
        assert_eq!(pauses.lower(0.05), s(600));
        assert_eq!(pauses.upper(0.95), s(660));
        assert_eq!(pauses.upper(1.0), s(3660));
        assert_eq!(Histogram::default().upper(0.99), s(10), "nothing known: the first bin");
    }

    #[test]
    fn too_long_pauses_are_counted_apart() {
        let pauses = of([60, 20_000, 20_000, 60]);
        assert_eq!(pauses.beyond(), 0.5);
        assert_eq!(pauses.upper(1.0), s(70));
        assert_eq!(pauses.samples(), 4.0);
    }

    #[test]
    fn similar_pauses_have_high_variation_even_ones_low() {
        assert!(of([900; 60]).variation() > 10.0);
        assert!(of((0..60).map(|n| 200 + n * 235)).variation() < 2.1);
        assert_eq!(Histogram::default().variation(), 0.0);
    }

    #[test]
    fn histogram_follows_change_and_its_weight_is_bounded() {
        let mut pauses = of([3600; 500]);
        assert!(pauses.samples() <= 128.0, "{}", pauses.samples());
        (0..450).for_each(|_| pauses.add(s(60)));
        assert_eq!(pauses.upper(0.99), s(70), "an hour was long ago");
        (0..2).for_each(|_| pauses.add(s(3600)));
        assert_eq!(pauses.upper(0.99), s(3660), "and is again");
    }

    #[test]
    fn parts_make_the_same_histogram_and_nonsense_makes_none() {
        let pauses = of([5, 65, 3600, 3600, 20_000]);
        let (bins, beyond) = pauses.parts();
        let again = Histogram::from_parts(&bins, beyond).unwrap();
        assert_eq!(again.parts(), pauses.parts());
        assert_eq!(again.samples(), pauses.samples());
        for (bins, beyond) in [
            (vec![(BINS, 1.0)], 0.0),
            (vec![(0, f32::NAN)], 0.0),
            (vec![(0, -1.0)], 0.0),
            (vec![], f32::INFINITY),
        ] {
            assert_eq!(Histogram::from_parts(&bins, beyond), None);
        }
    }
}
