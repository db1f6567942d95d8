//! Times of one measurement, and their text form. Used by all modules of `cold`.

use std::time::Duration;

/// Repeated measurements of the same thing.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<f64>);

impl Times {
    pub(super) fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The median, in milliseconds.
    pub(super) fn p50(&self) -> f64 {
        self.quantile(50)
    }

    /// The percentile, in milliseconds.
    fn quantile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// `8.1 ms (p99 12 ms, 100 calls)`; with few measurements, the slowest one instead of the p99.
    pub(super) fn summary(&self) -> String {
        let (name, high) = match self.len() {
            50.. => ("p99", self.quantile(99)),
            _ => ("slowest", self.quantile(100)),
        };
        format!("{} ({name} {}, {} calls)", ms(self.p50()), ms(high), self.len())
    }
}

/// Milliseconds with a sensible number of digits.
pub(super) fn ms(ms: f64) -> String {
    if ms < 20.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// How many came from a cell, where not all did.
pub(super) fn share(from_cells: usize, all: usize) -> String {
    if from_cells == all { String::new() } else { format!("; {from_cells} of {all} in a cell") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut times = Times::default();
        (1..=100).rev().for_each(|ms| times.push(Duration::from_millis(ms)));
        assert_eq!((times.p50(), times.quantile(99), times.quantile(100)), (50.0, 99.0, 100.0));
        assert_eq!(times.summary(), "50 ms (p99 99 ms, 100 calls)");
        let mut one = Times::default();
        one.push(Duration::from_micros(1500));
        assert_eq!(one.summary(), "1.5 ms (slowest 1.5 ms, 1 calls)");
        assert_eq!((share(3, 4), share(4, 4)), ("; 3 of 4 in a cell".into(), String::new()));
    }
}
