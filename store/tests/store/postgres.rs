//! PostgreSQL only: two gateways at once, outages, notifications between processes, size.

use crate::support::*;
use epsilon_api::ids::GatewayId;
use epsilon_store::{Change, KeyRole, Store, StoreError, testing::Postgres};
use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Upper bound for a "quick" failure during an outage, on a busy machine.
const QUICK: Duration = Duration::from_secs(8);
/// How long a test waits for an expected event.
const SOON: Duration = Duration::from_secs(30);

async fn open(url: &str) -> Arc<dyn Store> {
    epsilon_store::open(url).await.unwrap()
}

async fn two() -> (Arc<dyn Store>, Arc<dyn Store>) {
    let url = Postgres::shared().database().await;
    (open(&url).await, open(&url).await)
}

/// Waits for `change` or a resync.
async fn next_change(changes: &mut BoxStream<'static, Change>, change: Change) -> Change {
    let wanted = async {
        loop {
            let next = changes.next().await.unwrap();
            if next == change || next == Change::Resync {
                return next;
            }
        }
    };
    tokio::time::timeout(SOON, wanted).await.unwrap()
}

async fn works_again(store: &dyn Store) {
    let until = Instant::now() + SOON;
    while let Err(err) = store.snapshot().await {
        assert!(matches!(err, StoreError::Unavailable(_)), "{err:?}");
        assert!(Instant::now() < until, "the store does not come back: {err:?}");
    }
}

/// Reading, writing under the lock, and a single statement: all fail alike, and soon.
async fn is_unavailable(store: &dyn Store) {
    let began = Instant::now();
    let vm = member("vm-1");
    let (id, own) = (&vm.join.id, key("k", KeyRole::Member(vm.join.id.clone())));
    let (read, join, heartbeat) =
        tokio::join!(store.snapshot(), store.join(&vm, &own), store.member_heartbeat(id, now()));
    for err in [read.map(drop), join, heartbeat].map(Result::unwrap_err) {
        assert!(matches!(err, StoreError::Unavailable(_)), "{err:?}");
    }
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_came_back_is_used_again() {
    let server = Postgres::start();
    let url = server.database().await;
    let (here, there) = (open(&url).await, open(&url).await);
    deploy(&*here, "shop", &[("pay", "a")]).await.unwrap();
    let mut changes = here.changes();

    server.stop();
    is_unavailable(&*here).await;
    let err = epsilon_store::open(&url).await.unwrap_err();
    assert!(matches!(&err, StoreError::Connect { .. }), "{err}");
    server.start_again();
    works_again(&*here).await;
    works_again(&*there).await;
    assert_eq!(active(&*here).await, ["pay@1"]);
    assert_eq!(next_change(&mut changes, Change::Resync).await, Change::Resync);
    deploy(&*there, "shop", &[("pay", "b")]).await.unwrap();
    next_change(&mut changes, Change::Routes).await;

    // While it is in use: what was acknowledged is there, the rest may be.
    let writer = Arc::clone(&there);
    let writing = tokio::spawn(async move {
        let mut answered = Vec::new();
        loop {
            match writer.begin_deployment(&id(), &GatewayId::random(), now()).await {
                Ok(()) => answered.push(()),
                Err(StoreError::Unavailable(_)) => return answered.len(),
                Err(err) => panic!("{err:?}"),
            }
        }
    });
    while here.deployments(&first(100)).await.unwrap().items.len() < 20 {}
    server.stop();
    let answered = writing.await.unwrap();
    server.start_again();
    works_again(&*here).await;
    assert!(here.deployments(&first(10_000)).await.unwrap().items.len() >= answered + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_delays_no_operation() {
    let server = Postgres::start();
    let url = server.database().await;
    let (here, there) = (open(&url).await, open(&url).await);
    deploy(&*here, "shop", &[("pay", "a")]).await.unwrap();
    let mut changes = here.changes();
    server.cut();
    for _ in 0..4 {
        // More than there are connections: none of them is held by an operation that timed out.
        join_all((0..3).map(|_| is_unavailable(&*here))).await;
    }
    let began = Instant::now();
    let err = epsilon_store::open(&url).await.unwrap_err();
    assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
    assert!(err.to_string().contains("127.0.0.1"), "{err}");
    server.heal();
    works_again(&*here).await;
    works_again(&*there).await;
    assert_eq!(
        next_change(&mut changes, Change::Resync).await,
        Change::Resync,
        "changes may have been missed"
    );
    deploy(&*there, "shop", &[("pay", "b")]).await.unwrap();
    next_change(&mut changes, Change::Routes).await;
}

/// Like a failover to another machine: the old connections stay silent for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_connections_are_replaced() {
    let server = Postgres::start();
    let store = open(&server.database().await).await;
    let mut changes = store.changes();
    // All connections are within an operation.
    let enough = Arc::new(AtomicBool::new(false));
    let busy = (0..12).map(|_| {
        let (store, enough) = (Arc::clone(&store), Arc::clone(&enough));
        tokio::spawn(async move {
            while !enough.load(Ordering::Relaxed) && store.snapshot().await.is_ok() {}
        })
    });
    let busy: Vec<_> = busy.collect();
    for _ in 0..50 {
        store.snapshot().await.unwrap();
    }
    server.hang();
    works_again(&*store).await;
    enough.store(true, Ordering::Relaxed);
    for one in busy {
        tokio::time::timeout(SOON, one).await.expect("an operation hangs").unwrap();
    }
    assert_eq!(next_change(&mut changes, Change::Resync).await, Change::Resync);
    deploy(&*store, "shop", &[("pay", "a")]).await.unwrap();
    next_change(&mut changes, Change::Routes).await;
}

#[tokio::test]
async fn a_change_reaches_the_other_gateway_within_a_second() {
    let (here, there) = two().await;
    let mut changes = there.changes();
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let draining = round % 2 == 0;
        let began = Instant::now();
        here.set_draining(&member("vm-1").join.id, draining).await.unwrap();
        assert_eq!(next_change(&mut changes, Change::Draining).await, Change::Draining);
        slowest = slowest.max(began.elapsed());
        assert_eq!(there.draining().await.unwrap().len(), usize::from(draining));
    }
    println!("a change was received after {slowest:?} at most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_that_deploy_at_once_agree() {
    const EACH: u32 = 15;
    let (here, there) = two().await;
    let gateways = [&here, &there].map(|store| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let mut made = Vec::new();
            for n in 0..EACH {
                let digest = format!("{:p}{n}", Arc::as_ptr(&store));
                let work = [("pay", digest.as_str()), ("ship", digest.as_str())];
                match deploy(&*store, "shop", &work).await {
                    Ok(done) => made.push(done[0].1),
                    Err(StoreError::Superseded { .. }) => {}
                    Err(err) => panic!("{err:?}"),
                }
                match store.rollback(&name("ship"), None).await {
                    Ok(_) | Err(StoreError::NoOlderVersion { .. }) => {}
                    Err(err) => panic!("{err:?}"),
                }
            }
            made
        })
    });
    let mut numbers = Vec::new();
    for made in join_all(gateways).await {
        numbers.extend(made.unwrap());
    }
    let served = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), served, "no number was given twice");
    assert!(numbers.iter().all(|number| *number <= 2 * EACH));
    assert_eq!(here.snapshot().await.unwrap(), there.snapshot().await.unwrap());
    // What serves is the latest of all that were activated.
    let serves = here.snapshot().await.unwrap().remove(0);
    let done = here.deployments(&first(2 * EACH)).await.unwrap().items;
    let newest = done.iter().find(|deployment| !deployment.functions.is_empty()).unwrap();
    assert_eq!(serves.deployment, newest.id);
}

/// The two races that rows alone do not decide: what each one checked has changed when it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_that_activate_at_once_take_turns() {
    const ROUNDS: u32 = 40;
    let (here, there) = two().await;
    for round in 0..ROUNDS {
        let function = format!("f{round}");
        let prepared = async |owner: &str, digest: &str| {
            let id = begin(&*here).await;
            here.prepare(&id, &built(owner, &[(&function, digest)]), now()).await.unwrap();
            id
        };
        // A free name goes to one of two projects.
        let (shop, bank) = (prepared("shop", "a").await, prepared("bank", "b").await);
        let (one, two) = tokio::join!(here.activate(&shop, now()), there.activate(&bank, now()));
        assert!(one.is_ok() != two.is_ok(), "round {round}: {one:?} {two:?}");
        let owner = one.or(two).unwrap().project.unwrap();

        // Of two deployments, the later one serves.
        let owner = owner.as_str();
        let (older, later) = (prepared(owner, "c").await, prepared(owner, "d").await);
        let (_, done) = tokio::join!(here.activate(&older, now()), there.activate(&later, now()));
        done.unwrap();
        let serves = here.snapshot().await.unwrap();
        let serves = serves.iter().find(|version| version.function == name(&function)).unwrap();
        assert_eq!(serves.deployment, later, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_gateways_that_ask_at_once_one_leads() {
    let (here, there) = two().await;
    let (one, two) = (GatewayId::random(), GatewayId::random());
    let lease = Duration::from_secs(30);
    for round in 0..20 {
        // In each round the previous lease has expired.
        let at = ago(now(), -40 * round);
        let answers = tokio::join!(
            here.lead(&one, "autoscaler", lease, at),
            there.lead(&two, "autoscaler", lease, at)
        );
        let leads = [answers.0.unwrap(), answers.1.unwrap()];
        assert_eq!(leads.iter().filter(|leads| **leads).count(), 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_start_at_once_make_one_schema() {
    let url = Postgres::shared().database().await;
    let opened = join_all((0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { open(&url).await })
    }));
    for store in opened.await {
        assert!(store.unwrap().snapshot().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn open_errors_name_the_cause_without_the_password() {
    let url = Postgres::shared().database().await;
    let (server, _) = url.rsplit_once('/').unwrap();
    let server = server.replace("epsilon@", "epsilon:geheim@");
    let open_error = async |url: &str| {
        let err = epsilon_store::open(url).await.unwrap_err();
        let text = epsilon_api::chain::Chain(&err).to_string();
        assert!(matches!(err, StoreError::Connect { .. }) && !text.contains("geheim"), "{text}");
        text
    };
    let missing = open_error(&format!("{server}/missing")).await;
    assert!(missing.contains("\"missing\" does not exist"), "{missing}");
    let tls = open_error(&format!("{server}/postgres?sslmode=require")).await;
    assert!(tls.contains("TLS"), "{tls}");
    let refused = open_error("postgres://epsilon:geheim@127.0.0.1:1/x").await;
    assert!(refused.contains("127.0.0.1:1/x") && refused.contains("refused"), "{refused}");
    open_error("postgres://epsilon:geheim@127.0.0.1:port/x").await;
}

#[tokio::test]
async fn ten_thousand_functions_are_read_in_one_go() {
    const FUNCTIONS: usize = 10_000;
    let (here, there) = two().await;
    let names: Vec<String> = (0..FUNCTIONS).map(|n| format!("f{n:05}")).collect();
    for part in names.chunks(500) {
        let work: Vec<_> = part.iter().map(|name| (name.as_str(), "a")).collect();
        let began = Instant::now();
        deploy(&*here, "shop", &work).await.unwrap();
        if part[0] == "f00000" {
            println!("500 functions deployed in {:?}", began.elapsed());
        }
    }
    let began = Instant::now();
    let read = there.snapshot().await.unwrap();
    let took = began.elapsed();
    println!("snapshot of {FUNCTIONS} functions in {took:?} (not optimised)");
    assert_eq!(read.len(), FUNCTIONS);
    assert!(took < Duration::from_secs(5));
}
