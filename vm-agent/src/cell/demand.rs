//! How many ready cells of a kind are worth their memory. Pure: time is passed in.
//!
//! Starts are counted in short slices; the highest count in the last minutes is the burst to be
//! ready for. The usual kind never drops below the minimum, so that the first call after a quiet
//! night finds a cell; all other kinds shrink to none.

use crate::moment::Moment;
use std::{collections::VecDeque, time::Duration};

/// Starts within this time count as one burst: about as long as a few cells take to boot one after
/// the other.
const SLICE: Duration = Duration::from_secs(5);
/// How long a peak is remembered: most bursts that repeat do so within minutes, and a cell that
/// waits longer costs more memory than it saves time.
const PEAK_LIFETIME: Duration = Duration::from_secs(300);

/// The recent starts of one kind.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// Begin of each slice with starts in it, and their number; the newest last.
    slices: VecDeque<(Moment, u32)>,
}

/// Limits of the number of ready cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl Demand {
    /// Counts one start of this kind.
    pub(crate) fn started(&mut self, now: Moment) {
        self.forget(now);
        match self.slices.back_mut() {
            Some((since, count)) if now < *since + SLICE => *count = count.saturating_add(1),
            Some(_) | None => self.slices.push_back((now, 1)),
        }
    }

    /// How many cells should be ready.
    pub(crate) fn target(&mut self, now: Moment, range: Range) -> u32 {
        self.forget(now);
        let peak = self.slices.iter().map(|(_, count)| *count).max().unwrap_or(0);
        peak.max(range.min).min(range.max)
    }

    /// Whether no start is remembered any more.
    pub(crate) fn is_over(&mut self, now: Moment) -> bool {
        self.forget(now);
        self.slices.is_empty()
    }

    fn forget(&mut self, now: Moment) {
        while self.slices.front().is_some_and(|(since, _)| now >= *since + PEAK_LIFETIME) {
            self.slices.pop_front();
        }
    }
}

/// Distributes `max` cells over the kinds: one each in turn, in their order, until each has its
/// target.
pub(crate) fn shares(targets: &[u32], max: u32) -> Vec<u32> {
    let mut shares = vec![0; targets.len()];
    let mut left = max;
    while left > 0 {
        let before = left;
        for (share, target) in shares.iter_mut().zip(targets) {
            if *share < *target && left > 0 {
                *share += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    /// Starts at these seconds; evaluated at one; within a range => cells.
    macro_rules! targets {
        ($($name:ident: $starts:expr, at $now:expr, $min:literal..$max:literal => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let mut demand = Demand::default();
                let starts: &[u64] = &$starts;
                starts.iter().for_each(|at| demand.started(s(*at)));
                assert_eq!(demand.target(s($now), Range { min: $min, max: $max }), $want);
            }
        )*};
    }

    targets! {
        nothing_seen_is_the_minimum: [], at 0, 2..8 => 2;
        nothing_seen_of_an_unusual_kind: [], at 0, 0..8 => 0;
        one_start_wants_one_ready: [10], at 11, 0..8 => 1;
        starts_far_apart_want_one: [10, 40, 80, 120], at 121, 0..8 => 1;
        a_burst_wants_as_many: [10, 10, 11, 12, 14], at 15, 0..8 => 5;
        the_highest_peak_counts: [10, 10, 10, 60, 60], at 61, 0..8 => 3;
        never_more_than_the_maximum: [1, 1, 1, 1, 1, 1], at 2, 2..4 => 4;
        the_minimum_is_no_addition: [10], at 11, 2..8 => 2;
        a_peak_is_remembered: [10, 10, 10], at 309, 0..8 => 3;
        and_forgotten: [10, 10, 10], at 310, 0..8 => 0;
        a_maximum_below_the_minimum_wins: [], at 0, 2..0 => 0;
    }

    #[test]
    fn kind_is_over_when_last_start_is_forgotten() {
        let mut demand = Demand::default();
        demand.started(s(10));
        assert!(!demand.is_over(s(309)));
        assert!(demand.is_over(s(310)));
    }

    #[test]
    fn scarce_cells_are_shared() {
        for (row, targets, max, want) in [
            ("all have what they want", &[2, 3][..], 8, &[2, 3][..]),
            ("one each in turn", &[8, 8], 5, &[3, 2]),
            ("a small target is met", &[8, 1], 4, &[3, 1]),
            ("nothing to share", &[2, 2], 0, &[0, 0]),
            ("all targets are zero", &[0, 0], 4, &[0, 0]),
        ] {
            assert_eq!(shares(targets, max), want, "{row}");
        }
    }
}
