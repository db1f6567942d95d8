//! A copy of a file that a gateway writes: whole, private, and with the right word on what serves.

use crate::support::{active, begin, deploy, gateway, image, name, now, open, v};
use epsilon_api::traffic::{AbortRule, Rate};
use epsilon_store::{BackupError, SplitRequest, back_up, rename_images};
use std::{os::unix::fs::PermissionsExt, sync::Arc};

#[tokio::test]
async fn a_copy_of_a_store_at_work_knows_what_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("epsilon.db"), dir.path().join("copy.db"));
    let store = open(&file).await;
    for digest in ["one", "two", "three"] {
        deploy(&*store, "shop", &[("pay", digest), ("hello", "same")]).await.unwrap();
    }
    let shares = ["3=90", "2=10"].map(|share| share.parse().unwrap()).to_vec();
    let abort = AbortRule { above: Rate::percent(5), window_ms: 60_000, min_calls: 20 };
    let wanted = SplitRequest { shares, stable: Some(v(3)), sticky: None, abort };
    store.split(&name("pay"), v(3), &wanted, now()).await.unwrap();
    let seen = gateway(now());
    store.gateway_heartbeat(&seen).await.unwrap();
    // What is being deployed serves nothing yet, and what is written meanwhile is another state.
    begin(&*store).await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            loop {
                begin(&*store).await;
            }
        })
    };
    let found = back_up(&file, &copy).await.unwrap();
    writer.abort();

    let mode = std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let rows: Vec<_> = found.versions.iter().map(|one| (one.id.to_string(), one.serves)).collect();
    let row = |id: &str, serves| (id.to_owned(), serves);
    let want = [row("hello@1", true), row("pay@1", false), row("pay@2", true), row("pay@3", true)];
    assert_eq!(rows, want);
    assert_eq!(found.functions, 2);
    assert_eq!(found.versions[3].image, image("pay", "three"));
    assert_eq!(found.versions[3].base, Some(image("runtime-node", "base")));
    assert_eq!(found.last_heartbeat, Some(seen.seen_at));
    assert_eq!(active(&*open(&copy).await).await, ["hello@1", "pay@3"]);

    let again = back_up(&file, &copy).await;
    assert!(matches!(again, Err(BackupError::Store(_))), "a copy is not written over: {again:?}");
}

#[tokio::test]
async fn images_get_the_digests_of_another_engine() {
    let dir = tempfile::tempdir().unwrap();
    let (file, copy) = (dir.path().join("epsilon.db"), dir.path().join("copy.db"));
    let store = open(&file).await;
    deploy(&*store, "shop", &[("pay", "one"), ("hello", "one")]).await.unwrap();
    drop(store);
    let renamed = [
        (image("pay", "one"), "sha256:other".to_owned()),
        (image("runtime-node", "base"), "sha256:other-base".to_owned()),
        (image("hello", "stale"), "sha256:never".to_owned()),
    ];
    rename_images(&file, &renamed).await.unwrap();
    let found = back_up(&file, &copy).await.unwrap().versions;
    let digests: Vec<_> = found.iter().map(|one| one.image.digest.as_str()).collect();
    assert_eq!(digests, ["sha256:one", "sha256:other"]);
    for one in found {
        assert_eq!(one.base.unwrap().digest, "sha256:other-base");
    }
    let versions = open(&copy).await.snapshot().await.unwrap();
    assert_eq!(versions[0].parts.as_ref().unwrap().layers.len(), 2, "the rest is as it was");
}
