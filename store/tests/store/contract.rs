//! The contract of every back end of the store. A back end joins by one line at the end of this
//! file: the contract is written against the trait alone.

use crate::support::*;
use epsilon_api::{
    admin::DeploymentState,
    ids::{GatewayId, VmId},
    traffic::{AbortRule, Rate},
};
use epsilon_store::{
    Change, Key, KeyRole, Outcome, Page, SplitRequest, Store, StoreError, testing::Postgres,
};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::{any::Any, sync::Arc, time::Duration};

/// A store and a guard that has to live as long.
type Opened = (Arc<dyn Store>, Box<dyn Any>);

mod suite {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    pub(crate) async fn nothing_serves_before_it_is_activated(store: &dyn Store) {
        let id = begin(store).await;
        let plan = store.prepare(&id, &built("shop", &[("pay", "a")]), now()).await.unwrap();
        assert!(plan[0].changed && plan[0].version.number == v(1));
        assert!(active(store).await.is_empty());
        assert!(matches!(
            store.versions(&name("pay"), &first(9)).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        store.activate(&id, now()).await.unwrap();
        assert_eq!(active(store).await, ["pay@1"]);
        assert_eq!(store.snapshot().await.unwrap()[0], plan[0].version);
    }

    pub(crate) async fn an_unchanged_function_keeps_its_version(store: &dyn Store) {
        let both = [("pay", "a"), ("ship", "a")];
        assert_eq!(
            deploy(store, "shop", &both).await.unwrap(),
            [row("pay", 1, true), row("ship", 1, true)]
        );
        assert_eq!(
            deploy(store, "shop", &both).await.unwrap(),
            [row("pay", 1, false), row("ship", 1, false)]
        );
        assert_eq!(
            deploy(store, "shop", &[("pay", "b"), ("ship", "a")]).await.unwrap(),
            [row("pay", 2, true), row("ship", 1, false)]
        );
    }

    pub(crate) async fn parts_are_stored_with_their_version(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let mut foreign = built("shop", &[("pay", "b")]);
        foreign.functions[0].parts = None;
        let id = begin(store).await;
        store.prepare(&id, &foreign, now()).await.unwrap();
        store.activate(&id, now()).await.unwrap();
        assert_eq!(store.active(&name("pay")).await.unwrap().parts, None);
        let versions = store.versions(&name("pay"), &first(9)).await.unwrap().items;
        let parts_of: Vec<_> = versions.into_iter().map(|one| one.version.parts).collect();
        assert_eq!(parts_of, [None, Some(parts("a"))]);
        assert_eq!(store.version(&name("pay"), v(1)).await.unwrap().parts, Some(parts("a")));
    }

    pub(crate) async fn a_version_without_parts_learns_them(store: &dyn Store) {
        let mut before = built("shop", &[("pay", "a")]);
        before.functions[0].parts = None;
        let mut elsewhere = built("shop", &[("pay", "a")]);
        elsewhere.functions[0].image.reference = "registry.example/pay@sha256:1".into();
        let now_known = built("shop", &[("pay", "a")]);
        let mut otherwise = built("shop", &[("pay", "a")]);
        otherwise.functions[0].parts = Some(parts("z"));
        for (work, changed, want) in [
            (&before, true, None),
            (&elsewhere, false, None),
            (&now_known, false, Some(parts("a"))),
            (&before, false, Some(parts("a"))),
            (&otherwise, false, Some(parts("a"))),
        ] {
            let id = begin(store).await;
            let prepared = store.prepare(&id, work, now()).await.unwrap().remove(0);
            assert_eq!((prepared.changed, &prepared.version.parts), (changed, &want));
            store.activate(&id, now()).await.unwrap();
            assert_eq!(store.snapshot().await.unwrap(), [prepared.version]);
        }
    }

    pub(crate) async fn changed_settings_are_a_new_version(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let id = begin(store).await;
        let mut work = built("shop", &[("pay", "a")]);
        work.functions[0].spec.min_instances = 1;
        assert!(store.prepare(&id, &work, now()).await.unwrap()[0].changed);
        store.activate(&id, now()).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap()[0].spec.min_instances, 1);
    }

    pub(crate) async fn build_equal_to_an_older_version_is_new(store: &dyn Store) {
        for digest in ["a", "b", "a"] {
            deploy(store, "shop", &[("pay", digest)]).await.unwrap();
        }
        assert_eq!(active(store).await, ["pay@3"]);
    }

    pub(crate) async fn after_a_rollback_the_active_version_is_the_measure(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        store.rollback(&name("pay"), None).await.unwrap();
        assert_eq!(deploy(store, "shop", &[("pay", "a")]).await.unwrap(), [row("pay", 1, false)]);
        assert_eq!(deploy(store, "shop", &[("pay", "b")]).await.unwrap(), [row("pay", 3, true)]);
    }

    pub(crate) async fn a_failed_deployment_changes_nothing(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let id = begin(store).await;
        store.prepare(&id, &built("shop", &[("pay", "b"), ("ship", "a")]), now()).await.unwrap();
        store.fail_deployment(&id, &why(), now()).await.unwrap();
        assert_eq!(active(store).await, ["pay@1"]);
        assert_eq!(store.versions(&name("pay"), &first(9)).await.unwrap().items.len(), 1);
        let stored = store.deployment(&id).await.unwrap();
        assert_eq!((stored.state, stored.error), (DeploymentState::Failed, Some(why())));
        assert!(stored.functions.is_empty() && stored.ended_at.is_some());
        assert!(matches!(store.activate(&id, now()).await, Err(StoreError::DeploymentEnded(_))));
        // Its number was sent to VMs: it is not reused.
        assert_eq!(deploy(store, "shop", &[("pay", "c")]).await.unwrap(), [row("pay", 3, true)]);
    }

    pub(crate) async fn a_function_of_another_project_is_a_conflict(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let err = deploy(store, "bank", &[("loan", "x"), ("pay", "b")]).await.unwrap_err();
        assert_eq!(err.to_string(), "function `pay` belongs to project `shop`");
        assert_eq!(active(store).await, ["pay@1"], "`loan` must not serve either");
    }

    pub(crate) async fn racing_projects_one_gets_the_name(store: &dyn Store) {
        let (one, two) = (begin(store).await, begin(store).await);
        store.prepare(&one, &built("shop", &[("pay", "a")]), now()).await.unwrap();
        store.prepare(&two, &built("bank", &[("pay", "b")]), now()).await.unwrap();
        store.activate(&two, now()).await.unwrap();
        assert!(store.activate(&one, now()).await.is_err());
        assert_eq!(store.snapshot().await.unwrap()[0].project, project("bank"));
    }

    pub(crate) async fn an_older_deployment_never_replaces_a_later_one(store: &dyn Store) {
        let (older, later) = (begin(store).await, begin(store).await);
        store.prepare(&later, &built("shop", &[("pay", "new")]), now()).await.unwrap();
        store.prepare(&older, &built("shop", &[("pay", "old")]), now()).await.unwrap();
        store.activate(&later, now()).await.unwrap();
        let err = store.activate(&older, now()).await.unwrap_err();
        assert!(matches!(err, StoreError::Superseded { by, .. } if by == later));
        assert_eq!(active(store).await, ["pay@1"]);
    }

    pub(crate) async fn a_delete_while_deploying_is_seen(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let id = begin(store).await;
        store.prepare(&id, &built("shop", &[("pay", "a")]), now()).await.unwrap();
        store.delete_function(&name("pay"), now()).await.unwrap();
        assert!(matches!(
            store.activate(&id, now()).await,
            Err(StoreError::DeletedMeanwhile(function)) if function == name("pay")
        ));
    }

    pub(crate) async fn unchanged_functions_keep_their_version(store: &dyn Store) {
        let (pay, tax) = (name("pay"), name("tax"));
        for digest in ["a", "b"] {
            deploy(store, "shop", &[("pay", digest), ("tax", digest)]).await.unwrap();
        }
        let id = begin(store).await;
        let next = built("shop", &[("pay", "b"), ("ship", "c"), ("tax", "b")]);
        store.prepare(&id, &next, now()).await.unwrap();
        store.rollback(&pay, None).await.unwrap();
        let shares = ["1=10", "2=90"].map(|share| share.parse().unwrap()).to_vec();
        let abort = AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 };
        let wanted = SplitRequest { shares, stable: Some(v(2)), sticky: None, abort };
        let (_, split) = store.split(&tax, v(2), &wanted, now()).await.unwrap();

        let done = store.activate(&id, now()).await.unwrap();
        assert_eq!(active(store).await, ["pay@1", "ship@1", "tax@2"]);
        assert_eq!(store.traffic().await.unwrap(), [split.unwrap()]);
        assert_eq!(store.deployment(&id).await.unwrap(), done);
        let serving = done
            .functions
            .into_iter()
            .map(|one| row(one.name.as_str(), one.version.get(), one.changed));
        let want = [row("pay", 1, false), row("ship", 1, true), row("tax", 2, false)];
        assert_eq!(serving.collect::<Vec<_>>(), want, "the versions that serve");
    }

    pub(crate) async fn numbers_are_not_reused_after_a_delete(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        assert_eq!(store.delete_function(&name("pay"), now()).await.unwrap().number, v(2));
        assert!(active(store).await.is_empty());
        assert!(matches!(
            store.delete_function(&name("pay"), now()).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        // The name is free for another project.
        assert_eq!(deploy(store, "bank", &[("pay", "a")]).await.unwrap(), [row("pay", 3, true)]);
        assert!(matches!(
            store.rollback(&name("pay"), Some(v(1))).await,
            Err(StoreError::VersionRemoved { .. })
        ));
    }

    pub(crate) async fn rollback_moves_the_pointer(store: &dyn Store) {
        for digest in ["a", "b", "c"] {
            deploy(store, "shop", &[("pay", digest)]).await.unwrap();
        }
        let pay = name("pay");
        assert_eq!(store.rollback(&pay, None).await.unwrap().number, v(2));
        assert_eq!(store.rollback(&pay, Some(v(3))).await.unwrap().number, v(3));
        assert_eq!(store.rollback(&pay, Some(v(1))).await.unwrap().number, v(1));
        assert!(matches!(store.rollback(&pay, None).await, Err(StoreError::NoOlderVersion { .. })));
        assert!(matches!(
            store.rollback(&pay, Some(v(9))).await,
            Err(StoreError::VersionNotFound { .. })
        ));
        assert!(matches!(
            store.rollback(&name("missing"), None).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        let stored = store.versions(&pay, &first(9)).await.unwrap().items;
        let stored: Vec<_> =
            stored.iter().map(|one| (one.version.number.get(), one.active)).collect();
        assert_eq!(stored, [(3, false), (2, false), (1, true)]);
    }

    pub(crate) async fn one_version_is_removed_unless_it_serves(store: &dyn Store) {
        let pay = name("pay");
        for digest in ["a", "b", "c"] {
            deploy(store, "shop", &[("pay", digest)]).await.unwrap();
        }
        assert!(matches!(
            store.remove_version(&pay, v(3), now()).await,
            Err(StoreError::VersionServes { .. })
        ));
        assert_eq!(store.remove_version(&pay, v(1), now()).await.unwrap().number, v(1));
        let stored = store.versions(&pay, &first(9)).await.unwrap().items;
        let stored: Vec<_> = stored.iter().map(|one| one.version.number.get()).collect();
        assert_eq!(stored, [3, 2]);
        let unneeded = store.claim_unneeded_images(Timestamp::MAX, 9).await.unwrap();
        assert_eq!(unneeded.len(), 1);
        assert!(store.remove_version(&pay, v(1), now()).await.is_err(), "it is gone");
        assert!(matches!(
            store.remove_version(&name("missing"), v(1), now()).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        // A version with a share of the calls stays.
        let shares = ["2=10", "3=90"].map(|share| share.parse().unwrap()).to_vec();
        let abort = AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 };
        let wanted = SplitRequest { shares, stable: Some(v(3)), sticky: None, abort };
        store.split(&pay, v(3), &wanted, now()).await.unwrap();
        assert!(matches!(
            store.remove_version(&pay, v(2), now()).await,
            Err(StoreError::VersionServes { .. })
        ));
    }

    pub(crate) async fn prune_keeps_newest_versions_and_the_active_one(store: &dyn Store) {
        let pay = name("pay");
        for digest in ["a", "b", "c", "d", "e"] {
            deploy(store, "shop", &[("pay", digest), ("ship", "x")]).await.unwrap();
        }
        store.rollback(&pay, Some(v(1))).await.unwrap();
        let gone = store.prune(2, now()).await.unwrap();
        let gone: Vec<_> = gone.iter().map(ToString::to_string).collect();
        assert_eq!(gone, ["pay@2", "pay@3"]);
        let stored = store.versions(&pay, &first(9)).await.unwrap().items;
        let stored: Vec<_> = stored.iter().map(|one| one.version.number.get()).collect();
        assert_eq!(stored, [5, 4, 1]);
        assert!(store.prune(2, now()).await.unwrap().is_empty(), "once");
        store.rollback(&pay, Some(v(5))).await.unwrap();
        assert_eq!(store.prune(2, now()).await.unwrap().len(), 1, "nothing holds the first now");
        let err = store.rollback(&pay, Some(v(3))).await.unwrap_err();
        assert_eq!(
            err.to_string(),
            "version 3 of `pay` was removed; the oldest one that exists is 4"
        );
        let err = store.rollback(&pay, Some(v(9))).await.unwrap_err();
        assert!(matches!(err, StoreError::VersionNotFound { .. }), "{err}");
    }

    pub(crate) async fn versions_that_a_running_deployment_needs_stay(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let id = begin(store).await;
        let work = built("shop", &[("pay", "a"), ("ship", "a")]);
        store.prepare(&id, &work, now()).await.unwrap();
        for digest in ["b", "c"] {
            deploy(store, "shop", &[("pay", digest)]).await.unwrap();
        }
        assert!(store.prune(1, now()).await.unwrap().iter().all(|gone| gone.number != v(1)));
        store.activate(&id, now()).await.unwrap();
        assert_eq!(active(store).await, ["pay@3", "ship@1"], "it found `pay` unchanged");
    }

    pub(crate) async fn images_are_unneeded_when_no_version_has_them(store: &dyn Store) {
        let take = async |before| {
            let taken = store.claim_unneeded_images(before, 9).await.unwrap();
            taken.into_iter().map(|image| image.reference).collect::<Vec<_>>()
        };
        let begun = now();
        for digest in ["a", "b", "a", "c"] {
            deploy(store, "shop", &[("pay", digest)]).await.unwrap();
        }
        store.prune(2, now()).await.unwrap();
        assert_eq!(take(ago(begun, 60)).await, [""; 0], "not yet");
        assert_eq!(take(now()).await, ["epsilon/pay:b"], "another version has `a`");
        // Failed, never served, deleted: all of them leave images.
        let id = begin(store).await;
        store.prepare(&id, &built("shop", &[("pay", "d")]), now()).await.unwrap();
        store.fail_deployment(&id, &why(), now()).await.unwrap();
        store.record_unneeded_images(&[image("pay", "c"), image("pay", "e")], now()).await.unwrap();
        let mut found = take(now()).await;
        found.sort();
        assert_eq!(found, ["epsilon/pay:b", "epsilon/pay:d", "epsilon/pay:e"]);
        store.delete_function(&name("pay"), now()).await.unwrap();
        assert_eq!(
            take(now()).await.len(),
            5,
            "images that were taken but not reported are taken again"
        );
    }

    pub(crate) async fn an_image_that_leaves_is_not_brought_again(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        store.prune(1, now()).await.unwrap();
        let early = begin(store).await;
        let brings =
            async |id| store.prepare(id, &built("shop", &[("pay", "a")]), now()).await.map(drop);
        let one = store.claim_unneeded_images(now(), 9).await.unwrap().remove(0);
        assert!(matches!(brings(&early).await, Err(StoreError::ImageBeingRemoved(_))));
        store.record_removals(&[(one, Outcome::Gone)], now()).await.unwrap();
        assert!(
            matches!(brings(&early).await, Err(StoreError::ImageBeingRemoved(_))),
            "it may have been found before it went"
        );
        let late = begin(store).await;
        brings(&late).await.unwrap();
        assert!(store.claim_unneeded_images(now(), 9).await.unwrap().is_empty(), "needed again");
        store.fail_deployment(&early, &why(), now()).await.unwrap();
        store.activate(&late, now()).await.unwrap();
        assert_eq!(active(store).await, ["pay@3"]);
    }

    pub(crate) async fn image_in_use_is_retried_and_reusable(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        store.prune(1, now()).await.unwrap();
        let early = begin(store).await;
        let one = store.claim_unneeded_images(now(), 9).await.unwrap().remove(0);
        store.record_removals(&[(one, Outcome::Unknown)], ago(now(), -60)).await.unwrap();
        assert!(store.claim_unneeded_images(now(), 9).await.unwrap().is_empty(), "later");
        let one = store.claim_unneeded_images(ago(now(), -120), 9).await.unwrap().remove(0);
        store.record_removals(&[(one, Outcome::InUse)], now()).await.unwrap();
        let work = built("shop", &[("pay", "a")]);
        let err = store.prepare(&early, &work, now()).await.unwrap_err();
        assert!(
            matches!(err, StoreError::ImageBeingRemoved(_)),
            "the first time may have taken it"
        );
        assert_eq!(deploy(store, "shop", &[("pay", "a")]).await.unwrap(), [row("pay", 3, true)]);
    }

    pub(crate) async fn unfinished_deployments_fail_at_the_next_start(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let me = gateway(now());
        store.gateway_heartbeat(&me).await.unwrap();
        let (one, two) = (begin_at(store, &me.id).await, begin_at(store, &me.id).await);
        store.prepare(&two, &built("shop", &[("pay", "b")]), now()).await.unwrap();
        let dead = ago(now(), 60);
        assert_eq!(store.fail_unfinished(&me.id, dead, &why(), now()).await.unwrap(), 2);
        assert_eq!(store.fail_unfinished(&me.id, dead, &why(), now()).await.unwrap(), 0);
        for id in [one, two] {
            assert_eq!(store.deployment(&id).await.unwrap().error, Some(why()));
        }
        assert_eq!(active(store).await, ["pay@1"]);
    }

    pub(crate) async fn deployments_of_living_gateways_go_on(store: &dyn Store) {
        let (me, living) = (gateway(now()), gateway(now()));
        let (silent, unknown) = (gateway(ago(now(), 90)), gateway(now()));
        for one in [&me, &living, &silent] {
            store.gateway_heartbeat(one).await.unwrap();
        }
        let goes_on = begin_at(store, &living.id).await;
        let dead = [begin_at(store, &silent.id).await, begin_at(store, &unknown.id).await];
        let before = ago(now(), 60);
        assert_eq!(store.fail_unfinished(&me.id, before, &why(), now()).await.unwrap(), 2);
        for id in dead {
            assert_eq!(store.deployment(&id).await.unwrap().state, DeploymentState::Failed);
        }
        store.prepare(&goes_on, &built("shop", &[("pay", "a")]), now()).await.unwrap();
        store.activate(&goes_on, now()).await.unwrap();
    }

    pub(crate) async fn a_delivery_begins_one_deployment(store: &dyn Store) {
        let gateway = GatewayId::random();
        let one = delivery("shop", "a", "1", now());
        assert_eq!(store.begin_delivery(&one, &gateway, HOUR).await.unwrap(), None);
        let begun = store.deployment(&one.deployment).await.unwrap();
        assert_eq!(begun.state, DeploymentState::Running);
        assert_eq!(begun.source.as_deref(), Some("github octo/shop main 1"));
        // Its id, its payload, or both were received before.
        for (id, digest) in [("a", "1"), ("a", "2"), ("b", "1")] {
            let again = delivery("shop", id, digest, now());
            let earlier = store.begin_delivery(&again, &GatewayId::random(), HOUR).await.unwrap();
            assert_eq!(earlier, Some(one.deployment.clone()), "{id} {digest}");
            let unknown = store.deployment(&again.deployment).await;
            assert!(matches!(unknown, Err(StoreError::DeploymentNotFound(_))));
        }
        let others = [("shop", "b", "2"), ("blog", "a", "1")];
        for (project, id, digest) in others {
            let other = delivery(project, id, digest, now());
            assert_eq!(store.begin_delivery(&other, &gateway, HOUR).await.unwrap(), None);
        }
        // Started now: it is the same deployment, and later ones come after it.
        store.begin_deployment(&one.deployment, &gateway, now()).await.unwrap();
        store.prepare(&one.deployment, &built("shop", &[("pay", "a")]), now()).await.unwrap();
        store.activate(&one.deployment, now()).await.unwrap();
        let done = store.begin_delivery(&delivery("shop", "a", "1", now()), &gateway, HOUR).await;
        assert_eq!(done.unwrap(), Some(one.deployment));
        assert_eq!(store.deployments(&first(9)).await.unwrap().items.len(), 3);
    }

    pub(crate) async fn a_delivery_whose_deployment_failed_may_come_again(store: &dyn Store) {
        let gateway = GatewayId::random();
        let failed = delivery("shop", "a", "1", now());
        store.begin_delivery(&failed, &gateway, HOUR).await.unwrap();
        store.fail_deployment(&failed.deployment, &why(), now()).await.unwrap();
        let again = delivery("shop", "a", "1", now());
        assert_eq!(store.begin_delivery(&again, &gateway, HOUR).await.unwrap(), None);
        let third = delivery("shop", "a", "1", now());
        let earlier = store.begin_delivery(&third, &gateway, HOUR).await.unwrap();
        assert_eq!(earlier, Some(again.deployment));
    }

    pub(crate) async fn deliveries_are_forgotten_when_they_are_old(store: &dyn Store) {
        let gateway = GatewayId::random();
        let old = delivery("shop", "a", "1", ago(now(), 3601));
        let young = delivery("shop", "b", "2", ago(now(), 3500));
        for one in [&old, &young] {
            assert_eq!(store.begin_delivery(one, &gateway, HOUR).await.unwrap(), None);
        }
        let known = |id, digest| {
            let again = delivery("shop", id, digest, now());
            let gateway = gateway.clone();
            async move { store.begin_delivery(&again, &gateway, HOUR).await.unwrap().is_some() }
        };
        assert!(!known("a", "1").await);
        assert!(known("b", "2").await);
    }

    pub(crate) async fn lists_come_in_parts(store: &dyn Store) {
        let functions: Vec<String> = (0..7).map(|i| format!("f{i}")).collect();
        for function in &functions {
            deploy(store, "shop", &[(function, "a")]).await.unwrap();
        }
        let (mut page, mut seen) = (first(3), Vec::new());
        loop {
            let part = store.functions(&page).await.unwrap();
            assert!(part.items.len() <= 3);
            seen.extend(part.items.iter().map(|version| version.function.to_string()));
            let Some(next) = part.next else { break };
            page.cursor = Some(next);
        }
        assert_eq!(seen, functions);

        let part = store.deployments(&first(3)).await.unwrap();
        let newest = part.items[0].functions[0].name.clone();
        assert_eq!((newest.as_str(), part.items.len()), ("f6", 3));
        let rest = store.deployments(&Page { cursor: part.next, limit: 9 }).await.unwrap();
        assert_eq!((rest.items.len(), rest.next), (4, None));
        let bad = Page { cursor: Some("x' OR 1=1 --".into()), limit: 1 };
        assert!(matches!(store.deployments(&bad).await, Err(StoreError::BadCursor(_))));
    }

    pub(crate) async fn names_keep_their_case(store: &dyn Store) {
        deploy(store, "shop", &[("Pay", "a")]).await.unwrap();
        deploy(store, "bank", &[("pay", "b")]).await.unwrap();
        assert_eq!(active(store).await, ["Pay@1", "pay@1"]);
    }

    pub(crate) async fn a_gateway_has_one_key_of_each_role(store: &dyn Store) {
        let (here, there) = (GatewayId::random(), GatewayId::random());
        let (old, new) = (key("a", KeyRole::Admin), key("b", KeyRole::Admin));
        let (fleet, other) = (key("c", KeyRole::Fleet), key("d", KeyRole::Admin));
        for (by, one) in [(&here, &old), (&there, &other), (&here, &fleet), (&here, &new)] {
            assert!(store.replace_key(by, one, now()).await.unwrap());
        }
        assert_eq!(store.key("a").await.unwrap(), None);
        for one in [new, fleet, other] {
            assert_eq!(store.key(&one.id).await.unwrap(), Some(one));
        }
    }

    pub(crate) async fn a_shared_key_outlives_its_owner(store: &dyn Store) {
        let (day, start) = (86_400, now());
        let (owner, other) = (gateway(ago(start, 2 * day)), gateway(start));
        let (shared, own) = (key("a", KeyRole::Admin), key("b", KeyRole::Admin));
        for (by, one) in [(&owner, &shared), (&other, &own)] {
            store.gateway_heartbeat(by).await.unwrap();
            store.replace_key(&by.id, one, start).await.unwrap();
        }
        // The other one takes it while its owner is there: its own goes, and the owner stays.
        let long = ago(start, 3 * day);
        assert!(!store.replace_key(&other.id, &shared, long).await.unwrap());
        assert_eq!(store.key("b").await.unwrap(), None);
        assert!(!store.adopt_key(&other.id, &shared, long).await.unwrap());
        assert_eq!(owners(store).await, [("a".into(), owner.id.clone())]);
        // The same id with another secret is not adopted.
        let forged = Key { hash: "11".repeat(32), ..shared.clone() };
        assert!(!store.adopt_key(&other.id, &forged, start).await.unwrap());
        assert!(store.adopt_key(&other.id, &shared, ago(start, day)).await.unwrap());
        assert!(!store.adopt_key(&other.id, &shared, ago(start, day)).await.unwrap());
        assert_eq!(owners(store).await, [("a".into(), other.id)]);
        let other = GatewayId::random();
        assert!(store.replace_key(&other, &forged, start).await.is_err(), "its id is taken");
    }

    /// Ids of gateways' keys, and whose they are.
    async fn owners(store: &dyn Store) -> Vec<(String, GatewayId)> {
        let keys = store.keys(&first(9)).await.unwrap().items;
        keys.into_iter().map(|one| (one.key.id, one.owner.unwrap())).collect()
    }

    pub(crate) async fn keys_and_gateways_go_when_they_are_silent(store: &dyn Store) {
        let start = now();
        let silent = gateway(ago(start, 100));
        store.gateway_heartbeat(&silent).await.unwrap();
        let unknown = GatewayId::random();
        let (lost, fresh) = (key("a", KeyRole::Admin), key("b", KeyRole::Fleet));
        store.replace_key(&silent.id, &lost, start).await.unwrap();
        store.replace_key(&unknown, &fresh, start).await.unwrap();
        let vm = member("vm-1");
        store.join(&vm, &key("c", KeyRole::Member(vm.join.id.clone()))).await.unwrap();

        let keys = store.keys(&first(9)).await.unwrap().items;
        let listed: Vec<_> =
            keys.iter().map(|one| (one.key.id.as_str(), one.owner_seen_at)).collect();
        assert_eq!(listed, [("a", Some(silent.seen_at)), ("b", None)], "members' are not listed");
        assert_eq!(keys[1].last_seen_at(), fresh.created_at);
        let part = store.keys(&first(1)).await.unwrap();
        let rest = store.keys(&Page { cursor: part.next, limit: 1 }).await.unwrap();
        assert_eq!((rest.items.len(), rest.next), (1, None));

        let refused = store.remove_key("a", Some(ago(start, 200))).await.unwrap_err();
        assert!(matches!(refused, StoreError::KeyInUse { gateway, .. } if gateway == silent.id));
        // An owner without a heartbeat yet, which has just entered its key.
        assert!(store.remove_key("b", Some(ago(start, 200))).await.is_err());
        assert!(!store.forget_gateway(&silent.id, ago(start, 200)).await.unwrap());

        assert_eq!(store.remove_key("a", Some(ago(start, 50))).await.unwrap().key, lost);
        assert_eq!(store.remove_key("b", None).await.unwrap().key, fresh);
        assert!(store.forget_gateway(&silent.id, ago(start, 50)).await.unwrap());
        assert_eq!(store.gateways().await.unwrap(), []);
        for id in ["a", "b"] {
            assert_eq!(store.key(id).await.unwrap(), None);
        }
        for id in ["a", "c"] {
            let gone = store.remove_key(id, None).await.unwrap_err();
            assert!(matches!(gone, StoreError::KeyNotFound(_)), "{gone}");
        }
        assert!(store.key("c").await.unwrap().is_some(), "a member's goes with the member");
    }

    pub(crate) async fn members_join_send_heartbeats_and_leave(store: &dyn Store) {
        let (mut one, two) = (member("vm-1"), member("vm-2"));
        let role = || KeyRole::Member(one.join.id.clone());
        let (old, new) = (key("k1", role()), key("k2", role()));
        let builders = key("k3", KeyRole::Member(two.join.id.clone()));
        store.join(&two, &builders).await.unwrap();
        store.join(&one, &old).await.unwrap();
        assert_eq!(store.members().await.unwrap(), [one.clone(), two.clone()]);

        // It joins again from another address, and another one stays as it is.
        one.join.address = "10.0.0.7:1".into();
        one.join.tls = false;
        store.join(&one, &new).await.unwrap();
        assert_eq!(store.key("k1").await.unwrap(), None);
        assert_eq!(store.key("k2").await.unwrap(), Some(new));
        one.seen_at = ago(now(), -5);
        store.member_heartbeat(&one.join.id, one.seen_at).await.unwrap();
        assert_eq!(store.members().await.unwrap(), [one.clone(), two.clone()]);

        for _ in 0..2 {
            store.leave(&one.join.id).await.unwrap();
        }
        assert_eq!(store.key("k2").await.unwrap(), None);
        assert_eq!(store.key("k3").await.unwrap(), Some(builders));
        assert_eq!(store.members().await.unwrap(), [two]);
        let gone = store.member_heartbeat(&one.join.id, now()).await.unwrap_err();
        assert!(matches!(gone, StoreError::MemberNotFound(id) if id == one.join.id));
    }

    pub(crate) async fn gateways_are_removed_after_a_silent_month(store: &dyn Store) {
        let (gone, mut one) = (gateway(ago(now(), 31 * 86_400)), gateway(ago(now(), 29 * 86_400)));
        for gateway in [&gone, &one] {
            store.gateway_heartbeat(gateway).await.unwrap();
        }
        let fresh = gateway(now());
        store.gateway_heartbeat(&fresh).await.unwrap();
        one.control_url = "https://g1:1".into();
        one.seen_at = now();
        store.gateway_heartbeat(&one).await.unwrap();
        let mut known = [one, fresh];
        known.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(store.gateways().await.unwrap(), known);
    }

    pub(crate) async fn one_gateway_leads_until_its_lease_is_over(store: &dyn Store) {
        let (one, two) = (GatewayId::random(), GatewayId::random());
        let (start, lease) = (now(), Duration::from_secs(30));
        let lead = async |who: &GatewayId, at: i64| {
            store.lead(who, "autoscaler", lease, ago(start, -at)).await.unwrap()
        };
        assert!(lead(&one, 0).await && !lead(&two, 0).await);
        assert!(lead(&one, 20).await && !lead(&two, 49).await, "it renewed its lease");
        assert!(lead(&two, 50).await && !lead(&one, 50).await, "the lease was over");
        assert!(store.lead(&one, "other", lease, start).await.unwrap(), "roles are apart");

        // The leader's clock jumps ahead by a day and comes back, or its machine dies there.
        assert!(lead(&two, 86_400).await);
        assert!(
            lead(&one, 60).await && !lead(&two, 60).await,
            "a wrong clock blocks others for a day"
        );
        // Clocks that differ by less than the lease do not make two leaders.
        assert!(lead(&one, 85).await && !lead(&two, 60).await);
        // The leader's clock goes back by an hour.
        assert!(lead(&one, -3600).await);
        assert!(!lead(&two, -3600).await);
        assert!(store.lead(&one, "edge", Duration::MAX, Timestamp::MAX).await.unwrap());
    }

    pub(crate) async fn changes_are_announced_once_readable(store: &dyn Store) {
        let mut changes = store.changes();
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(10), changes.next()).await.unwrap().unwrap()
        };
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        assert_eq!(next().await, Change::Routes);
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        assert_eq!(next().await, Change::Routes);
        store.rollback(&name("pay"), None).await.unwrap();
        assert_eq!(next().await, Change::Routes);
        store.delete_function(&name("pay"), now()).await.unwrap();
        assert_eq!(next().await, Change::Routes);

        let vm = member("vm-1");
        store.join(&vm, &key("k", KeyRole::Member(vm.join.id.clone()))).await.unwrap();
        assert_eq!(next().await, Change::Members);
        // A heartbeat alone is not announced, of a member or of a gateway.
        let mut me = gateway(now());
        store.member_heartbeat(&vm.join.id, now()).await.unwrap();
        store.gateway_heartbeat(&me).await.unwrap();
        assert_eq!(next().await, Change::Members);
        me.seen_at = now();
        store.gateway_heartbeat(&me).await.unwrap();
        store.set_draining(&vm.join.id, true).await.unwrap();
        assert_eq!(next().await, Change::Draining);
        store.leave(&vm.join.id).await.unwrap();
        assert_eq!(next().await, Change::Members);
    }

    pub(crate) async fn a_drain_is_remembered(store: &dyn Store) {
        let vm = VmId::parse("vm-1").unwrap();
        for _ in 0..2 {
            store.set_draining(&vm, true).await.unwrap();
        }
        assert_eq!(store.draining().await.unwrap(), std::slice::from_ref(&vm));
        store.set_draining(&vm, false).await.unwrap();
        assert!(store.draining().await.unwrap().is_empty());
    }
}

/// Runs the contract on one back end; `$open` makes an empty store.
macro_rules! contract {
    ($backend:ident, $open:expr, [$($test:ident),* $(,)?]) => {
        mod $backend {
            $(#[tokio::test]
            async fn $test() {
                let (store, _kept): super::Opened = $open.await;
                super::suite::$test(&*store).await;
            })*
        }
    };
    ($backend:ident, $open:expr) => {
        contract!($backend, $open, [
            nothing_serves_before_it_is_activated,
            an_unchanged_function_keeps_its_version,
            parts_are_stored_with_their_version,
            a_version_without_parts_learns_them,
            changed_settings_are_a_new_version,
            build_equal_to_an_older_version_is_new,
            after_a_rollback_the_active_version_is_the_measure,
            a_failed_deployment_changes_nothing,
            a_function_of_another_project_is_a_conflict,
            racing_projects_one_gets_the_name,
            an_older_deployment_never_replaces_a_later_one,
            a_delete_while_deploying_is_seen,
            unchanged_functions_keep_their_version,
            numbers_are_not_reused_after_a_delete,
            rollback_moves_the_pointer,
            one_version_is_removed_unless_it_serves,
            prune_keeps_newest_versions_and_the_active_one,
            versions_that_a_running_deployment_needs_stay,
            images_are_unneeded_when_no_version_has_them,
            an_image_that_leaves_is_not_brought_again,
            image_in_use_is_retried_and_reusable,
            unfinished_deployments_fail_at_the_next_start,
            deployments_of_living_gateways_go_on,
            lists_come_in_parts,
            a_delivery_begins_one_deployment,
            a_delivery_whose_deployment_failed_may_come_again,
            deliveries_are_forgotten_when_they_are_old,
            names_keep_their_case,
            a_gateway_has_one_key_of_each_role,
            a_shared_key_outlives_its_owner,
            keys_and_gateways_go_when_they_are_silent,
            a_drain_is_remembered,
            members_join_send_heartbeats_and_leave,
            gateways_are_removed_after_a_silent_month,
            one_gateway_leads_until_its_lease_is_over,
            changes_are_announced_once_readable,
        ]);
    };
}

async fn open_sqlite() -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epsilon.db");
    (epsilon_store::open(path.to_str().unwrap()).await.unwrap(), Box::new(dir))
}

async fn open_postgres() -> Opened {
    let url = Postgres::shared().database().await;
    (epsilon_store::open(&url).await.unwrap(), Box::new(()))
}

contract!(sqlite, super::open_sqlite());
contract!(postgres, super::open_postgres());
