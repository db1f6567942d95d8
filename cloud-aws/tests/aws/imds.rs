//! The metadata client against a scripted service, over TCP.

use epsilon_cloud_aws::imds::{Imds, Notice, fake::FakeImds};
use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use std::time::Duration;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};

const SOON: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(10);
const SPOT: &str = "spot/instance-action";
const LIFECYCLE: &str = "autoscaling/target-lifecycle-state";
const REBALANCE: &str = "events/recommendations/rebalance";

async fn found(fake: &FakeImds) -> Imds {
    Imds::find_at(fake.endpoint(), SOON).await.expect("the service answers")
}

async fn next(notices: &mut BoxStream<'static, Notice>) -> Notice {
    timeout(SOON, notices.next()).await.expect("a notice within the limit").unwrap()
}

/// Reads on until every path was polled a few times more: what is not a notice by then, is none.
async fn quiet(fake: &FakeImds, notices: &mut BoxStream<'static, Notice>) {
    let enough = fake.requests(REBALANCE) + 3;
    let waited = timeout(SOON, async {
        while fake.requests(REBALANCE) < enough {
            assert_eq!(notices.next().now_or_never(), None, "no notice");
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("polls within the limit");
}

#[tokio::test]
async fn instance_id_needs_a_token() {
    let fake = FakeImds::start("i-0123456789abcdef0").await.unwrap();
    assert_eq!(found(&fake).await.instance_id(), "i-0123456789abcdef0");
    assert_eq!(fake.tokens_given(), 1);
}

#[tokio::test]
async fn nothing_at_the_address_is_no_service() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", free.local_addr().unwrap());
    // Accepts nothing and answers nothing, as if packets vanished.
    let began = Instant::now();
    assert!(Imds::find_at(&endpoint, Duration::from_millis(300)).await.is_none());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(free);
    assert!(Imds::find_at(&endpoint, Duration::from_millis(300)).await.is_none(), "refused");
    assert!(Imds::find_at("http://not an address", Duration::from_millis(300)).await.is_none());
}

#[tokio::test]
async fn late_service_is_found_within_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = format!("http://{address}");
    let looking = tokio::spawn(async move { Imds::find_at(&endpoint, SOON).await });
    tokio::task::yield_now().await;
    let fake = FakeImds::start_at(address, "i-late").await.unwrap();
    assert_eq!(looking.await.unwrap().unwrap().instance_id(), "i-late");
    drop(fake);
}

#[tokio::test]
async fn invalid_id_is_ignored() {
    for text in ["", "<html>", "i-1/../x", &"i".repeat(64)] {
        let fake = FakeImds::start(text).await.unwrap();
        assert!(Imds::find_at(fake.endpoint(), SOON).await.is_none(), "{text}");
    }
    let fake = FakeImds::start("i-1").await.unwrap();
    fake.hide("instance-id");
    assert!(Imds::find_at(fake.endpoint(), SOON).await.is_none(), "404: another kind of service");
}

#[tokio::test]
async fn one_token_serves_until_half_its_life() {
    let fake = FakeImds::start("i-1").await.unwrap();
    let imds = found(&fake).await;
    quiet(&fake, &mut imds.watch(POLL_EVERY)).await;
    assert_eq!(fake.tokens_given(), 1, "six hours");

    // A life of zero: a new token for each request.
    fake.tokens_live(Some(0));
    fake.forget_tokens();
    quiet(&fake, &mut imds.watch(POLL_EVERY)).await;
    assert!(fake.tokens_given() >= 9, "{}", fake.tokens_given());
}

#[tokio::test]
async fn token_without_ttl_is_used_until_refused() {
    let fake = FakeImds::start("i-1").await.unwrap();
    fake.tokens_live(None);
    let imds = found(&fake).await;
    let mut notices = imds.watch(POLL_EVERY);
    quiet(&fake, &mut notices).await;
    assert_eq!(fake.tokens_given(), 1);
    fake.forget_tokens();
    quiet(&fake, &mut notices).await;
    assert_eq!(fake.tokens_given(), 2, "401, and then one new token");
}

#[tokio::test]
async fn each_notice_is_reported_once() {
    let fake = FakeImds::start("i-1").await.unwrap();
    let mut notices = found(&fake).await.watch(POLL_EVERY);
    fake.show(LIFECYCLE, "InService");
    quiet(&fake, &mut notices).await;

    fake.show(REBALANCE, r#"{"noticeTime":"2026-09-18T08:20:00Z"}"#);
    assert_eq!(next(&mut notices).await, Notice::Rebalance);
    fake.show(SPOT, r#"{"action":"terminate","time":"2026-09-18T08:22:00Z"}"#);
    let at = "2026-09-18T08:22:00Z".parse().unwrap();
    assert_eq!(next(&mut notices).await, Notice::SpotInterruption { at });
    fake.show(LIFECYCLE, "Terminated");
    assert_eq!(next(&mut notices).await, Notice::Terminating);
    quiet(&fake, &mut notices).await;

    fake.show(LIFECYCLE, "InService");
    quiet(&fake, &mut notices).await;
    fake.show(LIFECYCLE, "Terminated");
    assert_eq!(next(&mut notices).await, Notice::Terminating, "withdrawn, and then again");
}

#[tokio::test]
async fn polling_continues_after_a_failure() {
    let fake = FakeImds::start("i-1").await.unwrap();
    let mut notices = found(&fake).await.watch(POLL_EVERY);
    fake.show(LIFECYCLE, "InService");
    quiet(&fake, &mut notices).await;
    fake.break_down(true);
    let waited = timeout(SOON, async {
        while fake.refused() < 6 {
            assert_eq!(notices.next().now_or_never(), None, "no notice");
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("polls within the limit");
    fake.break_down(false);
    quiet(&fake, &mut notices).await;
    fake.show(LIFECYCLE, "Terminated");
    assert_eq!(next(&mut notices).await, Notice::Terminating);
}
