//! Past demand: means and the trend over the last seconds, and the largest count of the last
//! minutes. Pure; time is passed in and never goes back. Bounded by the windows, one entry per
//! second.

use std::{collections::VecDeque, time::Duration};

/// Time since the autoscaler started; tests use plain numbers.
pub(crate) type Moment = Duration;

/// Samples of the last `keep`.
#[derive(Clone, Debug)]
pub(super) struct History {
    keep: Duration,
    samples: VecDeque<(Moment, f64)>,
}

/// A straight line through the samples of the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// Its value at the end of the window.
    pub(super) now: f64,
    /// Places per second.
    pub(super) slope: f64,
    /// The part of the samples' variance that it explains, 0 to 1.
    pub(super) fit: f64,
}

impl History {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, samples: VecDeque::new() }
    }

    pub(super) fn push(&mut self, at: Moment, value: f64) {
        self.samples.push_back((at, value));
        while self.samples.front().is_some_and(|(then, _)| *then + self.keep <= at) {
            self.samples.pop_front();
        }
    }

    /// The mean over the last `window`, or over the part of it that has samples.
    pub(super) fn mean(&self, at: Moment, window: Duration) -> f64 {
        let (mut sum, mut count) = (0.0, 0u32);
        for (_, value) in self.samples.iter().rev().take_while(|(then, _)| *then + window > at) {
            sum += value;
            count += 1;
        }
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }

    /// The least-squares line; `None` until half of the window is filled, because before that it
    /// would swing with each sample.
    pub(super) fn line(&self, at: Moment) -> Option<Line> {
        let (first, _) = self.samples.front()?;
        if self.samples.len() < 3 || (at - *first) * 2 < self.keep {
            return None;
        }
        let count = self.samples.len() as f64;
        // Seconds before now: small numbers keep the sums exact.
        let points =
            || self.samples.iter().map(|(then, v)| (then.as_secs_f64() - at.as_secs_f64(), *v));
        let (x, y) = points().fold((0.0, 0.0), |(x, y), (t, v)| (x + t, y + v));
        let (x, y) = (x / count, y / count);
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        for (t, v) in points() {
            xx += (t - x) * (t - x);
            xy += (t - x) * (v - y);
            yy += (v - y) * (v - y);
        }
        if xx <= 0.0 || yy <= 0.0 {
            return Some(Line { now: y, slope: 0.0, fit: 0.0 });
        }
        let slope = xy / xx;
        Some(Line { now: y - slope * x, slope, fit: xy * xy / (xx * yy) })
    }
}

/// The largest value of the last `keep`: the wanted count falls only after all of them did.
#[derive(Clone, Debug)]
pub(super) struct WindowMax {
    keep: Duration,
    /// Falling values, each the largest of all after it.
    values: VecDeque<(Moment, u32)>,
}

impl WindowMax {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, values: VecDeque::new() }
    }

    pub(super) fn push(&mut self, at: Moment, value: u32) {
        while self.values.back().is_some_and(|(_, smaller)| *smaller <= value) {
            self.values.pop_back();
        }
        self.values.push_back((at, value));
        self.expire(at);
    }

    /// The largest value, and how much longer it stays in the window.
    pub(super) fn get(&mut self, at: Moment) -> Option<(u32, Duration)> {
        self.expire(at);
        self.values.front().map(|(then, value)| (*value, *then + self.keep - at))
    }

    fn expire(&mut self, at: Moment) {
        while self.values.front().is_some_and(|(then, _)| *then + self.keep <= at) {
            self.values.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn s(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn filled(values: impl IntoIterator<Item = f64>) -> (History, Moment) {
        let mut history = History::new(s(60));
        let mut at = s(0);
        for value in values {
            at += s(1);
            history.push(at, value);
        }
        (history, at)
    }

    #[test]
    fn a_mean_is_of_its_window_only() {
        let (history, at) = filled((1..=100).map(f64::from));
        assert_eq!(history.mean(at, s(6)), (95..=100).sum::<u32>() as f64 / 6.0);
        assert_eq!(history.mean(at, s(60)), 70.5);
        assert_eq!(history.samples.len(), 60);
    }

    #[test]
    fn a_gap_in_the_samples_leaves_what_is_fresh() {
        let (mut history, at) = filled([5.0; 10]);
        history.push(at + s(100), 9.0);
        assert_eq!(history.mean(at + s(100), s(60)), 9.0);
        assert_eq!(history.mean(at + s(300), s(60)), 0.0);
    }

    #[test]
    fn a_rise_is_a_line() {
        let (history, at) = filled((1..=60).map(|n| 10.0 + 0.5 * f64::from(n)));
        let line = history.line(at).unwrap();
        assert!((line.slope - 0.5).abs() < 1e-9 && (line.now - 40.0).abs() < 1e-9, "{line:?}");
        assert!((line.fit - 1.0).abs() < 1e-9);
    }

    #[test]
    fn noise_fits_no_line() {
        let (history, at) = filled((1..=60).map(|n| if n % 3 == 0 { 30.0 } else { 10.0 }));
        assert!(history.line(at).unwrap().fit < 0.05);
    }

    #[test]
    fn no_line_before_half_a_window() {
        let (history, at) = filled([1.0; 29]);
        assert_eq!(history.line(at), None);
    }

    proptest! {
        #[test]
        fn largest_is_the_largest_of_the_window(
            values in prop::collection::vec((1u64..20, 0u32..50), 1..80),
        ) {
            let mut largest = WindowMax::new(s(60));
            let mut all = Vec::new();
            let mut at = s(0);
            for (step, value) in values {
                at += s(step);
                largest.push(at, value);
                all.push((at, value));
                let fresh = all.iter().filter(|(then, _)| *then + s(60) > at);
                prop_assert_eq!(largest.get(at).map(|(v, _)| v), fresh.map(|(_, v)| *v).max());
                prop_assert!(largest.values.len() <= 60);
            }
        }
    }
}
