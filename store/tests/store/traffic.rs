//! The contract of every back end about splits.

use crate::support::*;
use epsilon_api::{
    function::Version,
    ids::VersionNumber,
    traffic::{AbortRule, Aborted, Rate, Share, Sticky, slots::InvalidShares, text},
};
use epsilon_store::{Change, SplitRequest, Store, StoreError, Traffic, testing::Postgres};
use futures_util::StreamExt;

fn wanted(shares: &str) -> SplitRequest {
    let shares = shares.split_whitespace().map(|share| share.parse::<Share>().unwrap());
    SplitRequest {
        shares: shares.collect(),
        stable: None,
        sticky: Some(Sticky::Cookie),
        abort: AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 },
    }
}

/// `pay` with so many versions, the newest serving.
async fn pay(store: &dyn Store, versions: u32) {
    for digest in 1..=versions {
        deploy(store, "shop", &[("pay", &digest.to_string())]).await.unwrap();
    }
}

async fn split(store: &dyn Store, shares: &str) -> Result<Option<Traffic>, StoreError> {
    split_as(store, &wanted(shares)).await.map(|(_, traffic)| traffic)
}

/// With the active version seen just now.
async fn split_as(
    store: &dyn Store,
    wanted: &SplitRequest,
) -> Result<(Version, Option<Traffic>), StoreError> {
    let seen = store.active(&name("pay")).await?.number;
    store.split(&name("pay"), seen, wanted, now()).await
}

/// With the active version seen just now.
async fn promote(store: &dyn Store, to: Option<u32>) -> Result<Version, StoreError> {
    let seen = store.active(&name("pay")).await?.number;
    store.promote(&name("pay"), seen, to.map(v)).await
}

/// `3 of 3=90 4=10` of the split of `pay`, or why it ended.
async fn held(store: &dyn Store) -> Option<String> {
    let all = store.traffic().await.unwrap();
    assert!(all.len() <= 1, "{all:?}");
    all.first().map(|one| match &one.aborted {
        None => format!("{} of {}", one.stable, text(&one.split.slots.shares())),
        Some(why) => why.to_string(),
    })
}

fn why(version: VersionNumber) -> Aborted {
    Aborted { at: now(), version, calls: 20, failed: 3, limit: Rate::percent(5) }
}

mod suite {
    use super::*;

    pub(crate) async fn a_split_is_stored_with_its_versions(store: &dyn Store) {
        pay(store, 4).await;
        assert!(store.traffic().await.unwrap().is_empty());
        let set = split(store, "3=90 4=10").await.unwrap().unwrap();
        assert_eq!((set.stable, &set.candidates[0].image.digest), (v(3), &"sha256:4".to_owned()));
        assert_eq!(set.split.sticky, Some(Sticky::Cookie));
        assert_eq!(store.traffic().await.unwrap(), [set]);
        assert_eq!(active(store).await, ["pay@3"], "the stable version is the active one");
    }

    pub(crate) async fn the_stable_version_is_named_or_found(store: &dyn Store) {
        pay(store, 5).await;
        for (shares, stable) in [
            ("4=10 5=90", 4), // the oldest
            ("3=60 4=40", 4), // that of the running split
            ("2=50 3=50", 2),
            ("2=40 3=60", 2),
            ("3=40 4=60", 3),
        ] {
            assert_eq!(split(store, shares).await.unwrap().unwrap().stable, v(stable), "{shares}");
        }
        let named = SplitRequest { stable: Some(v(3)), ..wanted("3=1 4=99") };
        assert_eq!(split_as(store, &named).await.unwrap().0.number, v(3));
        let out = SplitRequest { stable: Some(v(5)), ..named };
        assert!(matches!(
            split_as(store, &out).await,
            Err(StoreError::Shares(InvalidShares::StableLeftOut(_)))
        ));
    }

    pub(crate) async fn what_makes_no_split_changes_nothing(store: &dyn Store) {
        pay(store, 2).await;
        let refused = split(store, "1=90 3=10").await.unwrap_err();
        assert_eq!(refused.to_string(), "`pay` has no version 3");
        assert!(matches!(split(store, "1=90 2=11").await, Err(StoreError::Shares(_))));
        let missing = store.split(&name("missing"), v(1), &wanted("1=90 2=10"), now()).await;
        assert!(matches!(missing, Err(StoreError::FunctionNotFound(_))));
        // Its number is taken, but it never served.
        let id = begin(store).await;
        store.prepare(&id, &built("shop", &[("pay", "x")]), now()).await.unwrap();
        assert!(matches!(split(store, "1=90 3=10").await, Err(StoreError::VersionNotFound { .. })));
        assert_eq!((active(store).await, held(store).await), (vec!["pay@2".to_owned()], None));
    }

    pub(crate) async fn slots_move_only_as_they_must(store: &dyn Store) {
        pay(store, 4).await;
        split(store, "3=50 4=50").await.unwrap();
        split(store, "2=20 3=40 4=40").await.unwrap();
        let moved = split(store, "2=10 3=40 4=50").await.unwrap().unwrap();
        let slots = serde_json::to_string(&moved.split.slots).unwrap();
        assert_eq!(slots, "[[3,40],[2,10],[4,50]]");
    }

    pub(crate) async fn one_share_of_all_ends_it(store: &dyn Store) {
        pay(store, 4).await;
        split(store, "3=90 4=10").await.unwrap();
        assert_eq!(split(store, "3=0 4=100").await.unwrap(), None);
        assert_eq!((active(store).await, held(store).await), (vec!["pay@4".to_owned()], None));
    }

    pub(crate) async fn promoting_ends_it(store: &dyn Store) {
        pay(store, 4).await;
        assert!(matches!(promote(store, None).await, Err(StoreError::NothingToPromote { .. })));
        split(store, "2=80 3=10 4=10").await.unwrap();
        assert!(matches!(promote(store, None).await, Err(StoreError::AmbiguousPromotion { .. })));
        assert_eq!(held(store).await.unwrap(), "2 of 2=80 3=10 4=10");
        split(store, "2=80 4=20").await.unwrap();
        assert_eq!(promote(store, None).await.unwrap().number, v(4));
        assert_eq!(held(store).await, None);
        assert_eq!(promote(store, Some(1)).await.unwrap().number, v(1));
        assert!(matches!(promote(store, Some(9)).await, Err(StoreError::VersionNotFound { .. })));
    }

    pub(crate) async fn who_saw_another_active_version_changes_nothing(store: &dyn Store) {
        pay(store, 3).await;
        let (pay, seen) = (name("pay"), store.active(&name("pay")).await.unwrap().number);
        deploy(store, "shop", &[("pay", "4")]).await.unwrap();
        let newest = SplitRequest { stable: Some(v(4)), ..wanted("4=90 3=10") };
        split_as(store, &newest).await.unwrap();
        let message = "the active version of `pay` changed to v4 meanwhile";
        let late = store.split(&pay, seen, &wanted("2=10 3=90"), now()).await.unwrap_err();
        assert_eq!(late.to_string(), message);
        for to in [Some(v(2)), None] {
            assert_eq!(store.promote(&pay, seen, to).await.unwrap_err().to_string(), message);
        }
        assert_eq!(active(store).await, ["pay@4"]);
        assert_eq!(held(store).await.unwrap(), "4 of 3=10 4=90");
    }

    pub(crate) async fn abort_ends_only_that_split_and_is_recorded(store: &dyn Store) {
        pay(store, 4).await;
        let pay = name("pay");
        let first = split(store, "3=90 4=10").await.unwrap().unwrap();
        let second = split(store, "3=50 4=50").await.unwrap().unwrap();
        assert!(!store.abort_split(&pay, first.since, &why(v(4))).await.unwrap(), "it is another");
        assert!(store.abort_split(&pay, second.since, &why(v(4))).await.unwrap());
        assert!(!store.abort_split(&pay, second.since, &why(v(4))).await.unwrap(), "only once");
        let message = "3 of 20 calls of version 4 failed; the limit is 5%";
        assert_eq!(held(store).await.as_deref(), Some(message));
        assert!(store.traffic().await.unwrap()[0].candidates.is_empty());
        assert_eq!(active(store).await, ["pay@3"]);
        assert!(matches!(promote(store, None).await, Err(StoreError::NothingToPromote { .. })));
        assert_eq!(store.rollback(&pay, None).await.unwrap().number, v(2), "no split holds");
        assert_eq!(held(store).await, None);
    }

    pub(crate) async fn whatever_else_changes_what_serves_ends_it(store: &dyn Store) {
        pay(store, 4).await;
        let again = async || split(store, "3=90 4=10").await.unwrap().unwrap();
        again().await;
        assert_eq!(deploy(store, "shop", &[("pay", "3")]).await.unwrap(), [row("pay", 3, false)]);
        assert!(held(store).await.is_some(), "nothing was changed");
        deploy(store, "shop", &[("pay", "5")]).await.unwrap();
        assert_eq!((active(store).await, held(store).await), (vec!["pay@5".to_owned()], None));

        again().await;
        let back = store.rollback(&name("pay"), None).await.unwrap();
        assert_eq!((back.number, held(store).await), (v(3), None), "to the stable version");
        let split = again().await;
        assert_eq!(store.rollback(&name("pay"), Some(v(1))).await.unwrap().number, v(1));
        assert_eq!(store.rollback(&name("pay"), Some(v(3))).await.unwrap().number, v(3));
        assert_eq!(held(store).await, None, "it does not come back with its stable version");
        assert!(!store.abort_split(&name("pay"), split.since, &why(v(4))).await.unwrap());

        again().await;
        store.delete_function(&name("pay"), now()).await.unwrap();
        assert_eq!(held(store).await, None);
    }

    pub(crate) async fn versions_of_a_split_stay(store: &dyn Store) {
        pay(store, 6).await;
        split(store, "1=80 2=20").await.unwrap();
        let mut gone: Vec<_> =
            store.prune(2, now()).await.unwrap().iter().map(ToString::to_string).collect();
        gone.sort();
        assert_eq!(gone, ["pay@3", "pay@4"]);
        assert_eq!(held(store).await.unwrap(), "1 of 1=80 2=20");
    }

    pub(crate) async fn it_is_known_whether_a_function_serves(store: &dyn Store) {
        let any = async |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|text| name(text)).collect();
            store.is_any_active(&names).await.unwrap()
        };
        assert!(!any(&["pay"]).await);
        pay(store, 1).await;
        assert!(any(&["pay"]).await && any(&["a", "b", "pay"]).await);
        assert!(!any(&["Pay", "pa", "payx"]).await);
        store.delete_function(&name("pay"), now()).await.unwrap();
        assert!(!any(&["pay"]).await);
    }

    pub(crate) async fn each_change_is_announced(store: &dyn Store) {
        pay(store, 4).await;
        let mut changes = store.changes();
        let mut next = async || {
            tokio::time::timeout(std::time::Duration::from_secs(20), changes.next()).await.unwrap()
        };
        let since = split(store, "3=90 4=10").await.unwrap().unwrap().since;
        assert_eq!(next().await, Some(Change::Routes));
        store.abort_split(&name("pay"), since, &why(v(4))).await.unwrap();
        assert_eq!(next().await, Some(Change::Routes));
        promote(store, Some(4)).await.unwrap();
        assert_eq!(next().await, Some(Change::Routes));
    }
}

/// Runs the suite on both back ends.
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                super::suite::$test(&*super::open(&dir.path().join("epsilon.db")).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $test() {
                let url = super::Postgres::shared().database().await;
                super::suite::$test(&*epsilon_store::open(&url).await.unwrap()).await;
            })*
        }
    };
}

on_both! {
    a_split_is_stored_with_its_versions,
    the_stable_version_is_named_or_found,
    what_makes_no_split_changes_nothing,
    slots_move_only_as_they_must,
    one_share_of_all_ends_it,
    promoting_ends_it,
    who_saw_another_active_version_changes_nothing,
    abort_ends_only_that_split_and_is_recorded,
    whatever_else_changes_what_serves_ends_it,
    versions_of_a_split_stay,
    it_is_known_whether_a_function_serves,
    each_change_is_announced,
}
