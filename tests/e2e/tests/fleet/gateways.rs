//! Two gateways on one PostgreSQL: changes through one reach both, and neither needs the other, nor
//! the database, to relay calls to known functions.

use super::{
    calls::{CALLERS, load, only_lost},
    functions, lent,
};
use epsilon_e2e::{
    fleet::Gateway,
    http::{Answer, Call},
    project,
    wait::{SOON, until, within},
};
use epsilon_store::testing::Postgres;
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon a gateway knows a change made through another.
const KNOWN: Duration = Duration::from_secs(1);
/// How soon a control request that needs the database reports that it is unavailable.
const QUICK: Duration = Duration::from_secs(2);

/// Length of the outage: longer than every limit of a database operation, and than a reconciliation
/// interval.
const AWAY: Duration = Duration::from_secs(7);

/// An action on the database.
type Act = fn(&Postgres);

/// Waits until the function answers this through this gateway.
async fn answers(gateway: &Gateway, function: &str, status: u16, text: &str) {
    until(&format!("/{function} answers {status} `{text}`"), KNOWN, async || {
        let answer = gateway.get(&format!("/{function}")).await;
        match answer.status == status && answer.text().starts_with(text) {
            true => Ok(()),
            false => Err(answer.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn changes_reach_the_other_gateway_within_a_second() {
    let fleet = lent::two().await;
    let [first, second] = &fleet.gateways[..] else { panic!("two") };
    let changed =
        project!("changed", { "index.js" => "exports.changed = (req, res) => res.send('one')" });
    fleet.deploy(&changed).await;
    answers(second, "changed", 200, "one").await;
    changed.write("index.js", "exports.changed = (req, res) => res.send('two')");
    fleet.try_deploy(1, &changed).await.done();
    answers(first, "changed", 200, "two").await;

    // Each gateway has an admin key of its own, and both are valid at both.
    assert_ne!(first.key(), second.key());
    let foreign = |call: Call| call.header("authorization", &format!("Bearer {}", first.key()));
    let rollback = Call::post_json("/v1/functions/changed/rollback", &json!({ "version": 1 }));
    foreign(rollback).send(second.control()).await.expect(200);
    answers(first, "changed", 200, "one").await;
    first.send_admin(Call::new(Method::DELETE, "/v1/functions/changed")).await.expect(200);
    answers(second, "changed", 404, "").await;
}

#[tokio::test]
async fn killed_gateway_costs_the_others_callers_nothing() {
    let mut fleet = lent::two().await;
    let (living, dying) = (load(&fleet.gateways[0], 3), load(&fleet.gateways[1], 3));
    living.more(150).await;
    dying.more(150).await;
    fleet.gateways[1].program.kill().await;
    living.more(150).await;
    fleet.gateways[1].start_again().await;
    dying.more(150).await;
    only_lost(&living.stop().await, 0);
    let tally = dying.stop().await;
    eprintln!("{tally:?}");
    assert_eq!(tally.answers(), tally.of(200), "no answer but a good one: {tally:?}");
    // Each caller had one call in flight; the next one may meet the listener just when it closes.
    assert!(tally.broken.len() <= 2 * 3 * CALLERS, "{tally:?}");
    fleet.all_ready().await;
}

/// Requests that need the database, sent during the outage.
async fn requests_without_store(gateway: &Gateway) -> Vec<Answer> {
    let rollback = Call::post_json("/v1/functions/f0/rollback", &json!({ "version": 1 }));
    let verbs = [
        Call::get("/v1/functions"),
        Call::get("/v1/deployments"),
        rollback,
        Call::new(Method::DELETE, "/v1/functions/f1"),
        Call::post("/v1/deployments?folder=many", "application/gzip", functions(2).archive()),
    ];
    // Concurrently: when the database does not answer, each waits for its own limit.
    join_all(verbs.map(|verb| within("a control verb", QUICK, gateway.send_admin(verb)))).await
}

#[tokio::test]
async fn calls_continue_without_the_database() {
    let fleet = lent::two().await;
    let postgres = fleet.postgres();
    // Its methods block the thread, which the callers use, too.
    let database = async |act: Act| {
        let postgres = Arc::clone(&postgres);
        tokio::task::spawn_blocking(move || act(&postgres)).await.unwrap();
    };
    // Once stopped with an error, once silent.
    let away: [(Act, Act); 2] =
        [(Postgres::stop, Postgres::start_again), (Postgres::cut, Postgres::heal)];
    for (leave, come_back) in away {
        let calls: Vec<_> = fleet.gateways.iter().map(|gateway| load(gateway, 2)).collect();
        database(leave).await;
        let left = Instant::now();
        for gateway in &fleet.gateways {
            until("a gateway knows that the store is away", SOON, async || {
                match gateway.send_admin(Call::get("/v1/functions")).await.status {
                    503 => Ok(()),
                    status => Err(status),
                }
            })
            .await;
            for answer in requests_without_store(gateway).await {
                assert_eq!(answer.status, 503, "{answer}");
                assert_eq!(answer.json()["error"]["code"], "STORE_UNAVAILABLE", "{answer}");
            }
        }
        for calls in &calls {
            calls.go_on_until(left + AWAY).await;
        }
        database(come_back).await;
        for gateway in &fleet.gateways {
            until("a gateway works again", SOON, async || {
                match gateway.send_admin(Call::get("/v1/functions")).await.status {
                    200 => Ok(()),
                    status => Err(status),
                }
            })
            .await;
        }
        for calls in calls {
            only_lost(&calls.stop().await, 0);
        }
        fleet.all_ready().await;
    }
    fleet.try_deploy(1, &functions(lent::FUNCTIONS)).await.done();
}

#[tokio::test]
async fn a_deployment_dies_with_its_gateway_and_changes_nothing() {
    let mut fleet = lent::two().await;
    let hello =
        project!("hello", { "index.js" => "exports.hello = (req, res) => res.send('one')" });
    fleet.deploy(&hello).await;
    hello.write("index.js", "exports.hello = (req, res) => res.send('two')");
    let bearer = format!("Bearer {}", fleet.gateways[1].key());
    let deploy = Call::post("/v1/deployments?folder=hello", "application/gzip", hello.archive());
    let deploy = deploy.header("authorization", &bearer);
    let mut events = deploy.open(fleet.gateways[1].control()).await;
    let mut events_so_far = String::new();
    while !events_so_far.contains("step_started") {
        events_so_far.push_str(&String::from_utf8_lossy(&events.piece().await.unwrap().unwrap()));
    }
    fleet.gateways[1].program.kill().await;
    while let Ok(Some(piece)) = events.piece().await {
        assert!(!String::from_utf8_lossy(&piece).contains("\"done\""), "it was too late");
    }

    let last = async |gateway: &Gateway| gateway.admin("/v1/deployments").await[0].clone();
    assert_eq!(last(&fleet.gateways[0]).await["state"], "running");
    assert_eq!(fleet.gateways[0].get("/hello").await.expect(200).text(), "one");
    fleet.gateways[1].start_again().await;
    let failed = last(&fleet.gateways[0]).await;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(failed["error"]["code"], "DEPLOYMENT_INTERRUPTED", "{failed}");
    fleet.all_ready().await;
    for gateway in &fleet.gateways {
        assert_eq!(gateway.get("/hello").await.expect(200).text(), "one");
    }
    fleet.deploy(&hello).await;
    answers(&fleet.gateways[1], "hello", 200, "two").await;
}
