//! What every back end of the store must do. A back end passes by one line at the end of this file:
//! the contract is written against the trait alone.

#![allow(clippy::unwrap_used, reason = "a test panics where it stands")]

use epsilon_api::{
    admin::DeploymentState,
    build::{Built, BuiltFunction},
    error::ErrorBody,
    function::{FunctionSpec, ImageRef, Runtime},
    ids::{DeploymentId, FunctionName, ProjectName, VersionNumber, VmId},
};
use epsilon_store::{Key, KeyRole, Page, Store, StoreError};
use jiff::Timestamp;
use std::{any::Any, sync::Arc};

/// A store and what has to live as long as it.
type Opened = (Arc<dyn Store>, Box<dyn Any>);

fn now() -> Timestamp {
    Timestamp::now()
}

fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

fn project(text: &str) -> ProjectName {
    ProjectName::parse(text).unwrap()
}

fn v(number: u32) -> VersionNumber {
    VersionNumber::new(number).unwrap()
}

fn first(limit: u32) -> Page {
    Page { cursor: None, limit }
}

fn built(owner: &str, functions: &[(&str, &str)]) -> Built {
    let functions = functions
        .iter()
        .map(|(function, digest)| BuiltFunction {
            name: name(function),
            spec: FunctionSpec::new(Runtime::Node, "index.js", *function),
            image: ImageRef {
                reference: format!("epsilon/{function}:{digest}"),
                digest: format!("sha256:{digest}"),
            },
        })
        .collect();
    Built { project: project(owner), functions }
}

fn why() -> ErrorBody {
    ErrorBody::new(http::StatusCode::UNPROCESSABLE_ENTITY, "LOAD_FAILED", "it threw", None)
}

async fn begin(store: &dyn Store) -> DeploymentId {
    let id = DeploymentId::random();
    store.begin_deployment(&id, now()).await.unwrap();
    id
}

/// A whole deployment; answers (name, version, changed).
async fn deploy(
    store: &dyn Store,
    owner: &str,
    functions: &[(&str, &str)],
) -> Result<Vec<(String, u32, bool)>, StoreError> {
    let id = begin(store).await;
    store.prepare(&id, &built(owner, functions), now()).await?;
    let done = store.activate(&id, now()).await?;
    assert_eq!((done.state, done.project), (DeploymentState::Done, Some(project(owner))));
    Ok(done.functions.iter().map(|f| (f.name.to_string(), f.version.get(), f.changed)).collect())
}

async fn active(store: &dyn Store) -> Vec<String> {
    store.snapshot().await.unwrap().iter().map(|version| version.id().to_string()).collect()
}

fn row(function: &str, version: u32, changed: bool) -> (String, u32, bool) {
    (function.to_owned(), version, changed)
}

mod suite {
    use super::*;

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

    pub(crate) async fn changed_settings_are_a_new_version(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let id = begin(store).await;
        let mut work = built("shop", &[("pay", "a")]);
        work.functions[0].spec.min_instances = 1;
        assert!(store.prepare(&id, &work, now()).await.unwrap()[0].changed);
        store.activate(&id, now()).await.unwrap();
        assert_eq!(store.snapshot().await.unwrap()[0].spec.min_instances, 1);
    }

    pub(crate) async fn a_build_equal_to_an_older_version_is_new_again(store: &dyn Store) {
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
        let kept = store.deployment(&id).await.unwrap();
        assert_eq!((kept.state, kept.error), (DeploymentState::Failed, Some(why())));
        assert!(kept.functions.is_empty() && kept.ended_at.is_some());
        assert!(matches!(store.activate(&id, now()).await, Err(StoreError::DeploymentOver(_))));
        // Its number was shown to VMs: it is not used for something else.
        assert_eq!(deploy(store, "shop", &[("pay", "c")]).await.unwrap(), [row("pay", 3, true)]);
    }

    pub(crate) async fn a_function_of_another_project_is_a_conflict(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let err = deploy(store, "bank", &[("loan", "x"), ("pay", "b")]).await.unwrap_err();
        assert_eq!(err.to_string(), "function `pay` belongs to project `shop`");
        assert_eq!(active(store).await, ["pay@1"], "`loan` must not serve either");
    }

    pub(crate) async fn of_two_projects_that_race_for_a_name_one_gets_it(store: &dyn Store) {
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
        store.delete_function(&name("pay")).await.unwrap();
        assert!(matches!(
            store.activate(&id, now()).await,
            Err(StoreError::DeletedMeanwhile(function)) if function == name("pay")
        ));
    }

    pub(crate) async fn numbers_are_not_reused_after_a_delete(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        deploy(store, "shop", &[("pay", "b")]).await.unwrap();
        assert_eq!(store.delete_function(&name("pay")).await.unwrap().number, v(2));
        assert!(active(store).await.is_empty());
        assert!(matches!(
            store.delete_function(&name("pay")).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        // The name is free for another project.
        assert_eq!(deploy(store, "bank", &[("pay", "a")]).await.unwrap(), [row("pay", 3, true)]);
        assert!(matches!(
            store.rollback(&name("pay"), Some(v(1))).await,
            Err(StoreError::VersionNotFound { .. })
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
        assert!(matches!(store.rollback(&pay, None).await, Err(StoreError::NothingOlder { .. })));
        assert!(matches!(
            store.rollback(&pay, Some(v(9))).await,
            Err(StoreError::VersionNotFound { .. })
        ));
        assert!(matches!(
            store.rollback(&name("nobody"), None).await,
            Err(StoreError::FunctionNotFound(_))
        ));
        let kept = store.versions(&pay, &first(9)).await.unwrap().items;
        let kept: Vec<_> = kept.iter().map(|one| (one.version.number.get(), one.active)).collect();
        assert_eq!(kept, [(3, false), (2, false), (1, true)]);
    }

    pub(crate) async fn unfinished_deployments_fail_at_the_next_start(store: &dyn Store) {
        deploy(store, "shop", &[("pay", "a")]).await.unwrap();
        let (one, two) = (begin(store).await, begin(store).await);
        store.prepare(&two, &built("shop", &[("pay", "b")]), now()).await.unwrap();
        assert_eq!(store.fail_unfinished(&why(), now()).await.unwrap(), 2);
        assert_eq!(store.fail_unfinished(&why(), now()).await.unwrap(), 0);
        for id in [one, two] {
            assert_eq!(store.deployment(&id).await.unwrap().error, Some(why()));
        }
        assert_eq!(active(store).await, ["pay@1"]);
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

    pub(crate) async fn a_role_has_one_key(store: &dyn Store) {
        let key =
            |id: &str, role| Key { id: id.into(), role, hash: "00".repeat(32), created_at: now() };
        let (old, new) = (key("a", KeyRole::Admin), key("b", KeyRole::Admin));
        let fleet = key("c", KeyRole::Fleet);
        for one in [&old, &fleet, &new] {
            store.replace_key(one).await.unwrap();
        }
        assert_eq!(store.key("a").await.unwrap(), None);
        assert_eq!(store.key("b").await.unwrap(), Some(new));
        assert_eq!(store.key("c").await.unwrap(), Some(fleet));
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

/// Runs the suite on one back end; `$open` makes an empty store.
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
            changed_settings_are_a_new_version,
            a_build_equal_to_an_older_version_is_new_again,
            after_a_rollback_the_active_version_is_the_measure,
            a_failed_deployment_changes_nothing,
            a_function_of_another_project_is_a_conflict,
            of_two_projects_that_race_for_a_name_one_gets_it,
            an_older_deployment_never_replaces_a_later_one,
            a_delete_while_deploying_is_seen,
            numbers_are_not_reused_after_a_delete,
            rollback_moves_the_pointer,
            unfinished_deployments_fail_at_the_next_start,
            lists_come_in_parts,
            names_keep_their_case,
            a_role_has_one_key,
            a_drain_is_remembered,
        ]);
    };
}

async fn open_sqlite() -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epsilon.db");
    (epsilon_store::open(path.to_str().unwrap()).await.unwrap(), Box::new(dir))
}

contract!(sqlite, super::open_sqlite());
