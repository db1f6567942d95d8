//! Which version a call goes to. All callers together are a hundred slots, and each slot belongs to
//! one version; a share is a number of slots. Pure: the caller's hash is passed in.
//!
//! When shares change, as few slots as possible change: **a caller that keeps its slot stays on its
//! version as long as that version's share does not shrink.** A rule that looks only at the new
//! shares cannot promise that for three or more versions, so the slots are stored with the split.

use super::{MAX_VERSIONS, Share};
use crate::ids::VersionNumber;
use serde::{Deserialize, Serialize};

/// Number of slots.
pub const COUNT: usize = 100;

/// The version of each slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(VersionNumber, u8)>", into = "Vec<(VersionNumber, u8)>")]
pub struct Slots([VersionNumber; COUNT]);

/// Why shares do not make a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShares {
    /// Their sum is not 100.
    #[error("the shares make {0} percent; they must make 100")]
    Sum(u32),
    /// A version is named twice.
    #[error("version {0} is named twice")]
    Twice(VersionNumber),
    /// More versions than a split may have.
    #[error("a split has at most {MAX_VERSIONS} versions")]
    TooMany,
    /// The version to go back to is not in the split.
    #[error("version {0} cannot be the stable one: it gets no calls")]
    StableLeftOut(VersionNumber),
}

impl InvalidShares {
    /// Checks shares and returns those that are not 0.
    ///
    /// # Errors
    /// The first violation.
    pub fn check(shares: &[Share]) -> Result<Vec<Share>, Self> {
        for (nth, share) in shares.iter().enumerate() {
            if shares[..nth].iter().any(|other| other.version == share.version) {
                return Err(Self::Twice(share.version));
            }
        }
        let some: Vec<_> = shares.iter().copied().filter(|share| share.percent > 0).collect();
        let sum = some.iter().map(|share| u32::from(share.percent)).sum();
        match (sum, some.len()) {
            (100, ..=MAX_VERSIONS) => Ok(some),
            (100, _) => Err(Self::TooMany),
            _ => Err(Self::Sum(sum)),
        }
    }
}

impl Slots {
    /// All slots of one version.
    pub fn all(version: VersionNumber) -> Self {
        Self([version; COUNT])
    }

    /// The slots for other shares. Versions that shrink or leave give up their last slots; those
    /// that grow or arrive get them.
    ///
    /// # Errors
    /// When the shares do not make a split.
    pub fn share(&self, shares: &[Share]) -> Result<Self, InvalidShares> {
        let mut left = InvalidShares::check(shares)?;
        let mut take = |wanted: &dyn Fn(&Share) -> bool| {
            let share = left.iter_mut().find(|share| share.percent > 0 && wanted(share))?;
            share.percent -= 1;
            Some(share.version)
        };
        let retained = self.0.map(|owner| take(&|share| share.version == owner));
        // As many slots are given up as are missing elsewhere, so none stays with a version against
        // its share.
        let mut next = Self(self.0);
        for (slot, retained) in next.0.iter_mut().zip(retained) {
            if let Some(version) = retained.or_else(|| take(&|_| true)) {
                *slot = version;
            }
        }
        Ok(next)
    }

    /// Number of slots of each version, by version number.
    pub fn shares(&self) -> Vec<Share> {
        let mut versions = self.0;
        versions.sort_unstable();
        let runs = versions.chunk_by(|a, b| a == b);
        // A run is at most as long as there are slots.
        runs.map(|run| Share { version: run[0], percent: run.len() as u8 }).collect()
    }

    /// The versions of the slots, in order.
    pub fn iter(&self) -> impl Iterator<Item = VersionNumber> {
        self.0.iter().copied()
    }

    /// The slot of a caller's hash; hashes are spread evenly over all numbers.
    pub fn of(place: u64) -> usize {
        ((u128::from(place) * COUNT as u128) >> 64) as usize
    }
}

impl From<Slots> for Vec<(VersionNumber, u8)> {
    fn from(slots: Slots) -> Self {
        slots.0.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u8)).collect()
    }
}

impl TryFrom<Vec<(VersionNumber, u8)>> for Slots {
    type Error = String;

    fn try_from(runs: Vec<(VersionNumber, u8)>) -> Result<Self, String> {
        let slots = runs.iter().flat_map(|(version, length)| {
            std::iter::repeat_n(*version, usize::from(*length)).take(COUNT + 1)
        });
        let slots: Vec<_> = slots.take(COUNT + 1).collect();
        let invalid = |slots: Vec<_>| format!("{} slots instead of {COUNT}", slots.len());
        slots.try_into().map(Self).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::text;
    use proptest::prelude::*;

    fn v(number: u32) -> VersionNumber {
        VersionNumber::new(number).unwrap()
    }

    fn shares(text: &str) -> Vec<Share> {
        text.split_whitespace().map(|share| share.parse().unwrap()).collect()
    }

    macro_rules! refused {
        ($($name:ident: $shares:expr => $why:expr;)*) => {$(
            #[test]
            fn $name() {
                let why = Slots::all(v(3)).share(&shares($shares)).unwrap_err();
                assert_eq!(why.to_string(), $why);
            }
        )*};
    }

    refused! {
        nothing: "" => "the shares make 0 percent; they must make 100";
        too_little: "3=90 4=9" => "the shares make 99 percent; they must make 100";
        too_much: "3=90 4=11" => "the shares make 101 percent; they must make 100";
        far_too_much: "3=100 4=100 5=100" => "the shares make 300 percent; they must make 100";
        twice_the_same: "3=50 3=50" => "version 3 is named twice";
        twice_with_nothing: "3=100 3=0" => "version 3 is named twice";
        nine_versions: "1=20 2=10 3=10 4=10 5=10 6=10 7=10 8=10 9=10" => "a split has at most 8 versions";
    }

    #[test]
    fn those_who_grow_take_from_those_who_shrink() {
        let mut slots = Slots::all(v(3));
        for (to, want) in [
            ("3=90 4=10", "[[3,90],[4,10]]"),
            ("3=50 4=50", "[[3,50],[4,50]]"),
            ("3=50 4=30 5=20", "[[3,50],[4,30],[5,20]]"),
            ("3=60 4=30 5=10", "[[3,50],[4,30],[5,10],[3,10]]"),
            ("4=100", "[[4,100]]"),
            ("4=99 5=1 6=0", "[[4,99],[5,1]]"),
        ] {
            slots = slots.share(&shares(to)).unwrap();
            assert_eq!(serde_json::to_string(&slots).unwrap(), want, "{to}");
        }
    }

    /// Shares that make 100, of versions 1 to 5.
    fn any_shares() -> impl Strategy<Value = Vec<Share>> {
        proptest::collection::vec(0_usize..=COUNT, 4).prop_map(|mut cuts| {
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([COUNT]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let parts = starts.zip(ends).map(|(from, to)| (to - from) as u8);
            (1..).zip(parts).map(|(n, percent)| Share { version: v(n), percent }).collect()
        })
    }

    fn percent_of(shares: &[Share], version: VersionNumber) -> u8 {
        shares.iter().find(|share| share.version == version).map_or(0, |share| share.percent)
    }

    proptest! {
        #[test]
        fn each_version_has_its_share_however_often_they_change(
            steps in proptest::collection::vec(any_shares(), 1..6),
        ) {
            let mut slots = Slots::all(v(1));
            for step in steps {
                slots = slots.share(&step).unwrap();
                let some: Vec<_> = step.into_iter().filter(|share| share.percent > 0).collect();
                prop_assert_eq!(text(&slots.shares()), text(&some));
                let stored: Vec<(VersionNumber, u8)> = slots.clone().into();
                prop_assert_eq!(&Slots::try_from(stored).unwrap(), &slots);
            }
        }

        #[test]
        fn callers_stay_while_their_version_does_not_shrink(
            first in any_shares(), second in any_shares(), place in any::<u64>(),
        ) {
            let before = Slots::all(v(1)).share(&first).unwrap();
            let after = before.share(&second).unwrap();
            let at = |slots: &Slots| slots.iter().nth(Slots::of(place)).unwrap();
            let version = at(&before);
            if percent_of(&second, version) >= percent_of(&first, version) {
                prop_assert_eq!(at(&after), version);
            }
        }

        #[test]
        fn a_place_is_in_a_slot(place in any::<u64>()) {
            prop_assert!(Slots::of(place) < COUNT);
        }
    }
}
