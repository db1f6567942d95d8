//! A reusable deadline timer. Arming and cancelling a timer takes a lock of the runtime each time,
//! and almost no call reaches its deadline. So the timer is never cancelled: it fires for a
//! deadline that is long past, about once per `timeout`, and is then re-armed for the current one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The timer. Needs a tokio runtime at its first use.
#[derive(Debug, Default)]
pub struct DeadlineTimer(Option<Pin<Box<Sleep>>>);

impl DeadlineTimer {
    /// Ready at the deadline and not before.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};
    use tokio::time::{advance, timeout};

    /// Seconds from now until the timer fires for that deadline (also in seconds from now); `None`:
    /// not within 100.
    async fn fires_after(deadline_timer: &mut DeadlineTimer, deadline: u64) -> Option<u64> {
        let began = Instant::now();
        let deadline = began + Duration::from_secs(deadline);
        let fires_after = poll_fn(|cx| deadline_timer.poll(cx, deadline));
        let fired = timeout(Duration::from_secs(100), fires_after).await;
        fired.ok().map(|()| began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_each_deadline_whatever_was_before() {
        let mut deadline_timer = DeadlineTimer::default();
        assert_eq!(fires_after(&mut deadline_timer, 3600).await, None, "given up: it stays set");
        for deadline in [50, 10, 10, 90] {
            assert_eq!(fires_after(&mut deadline_timer, deadline).await, Some(deadline));
        }
        assert_eq!(fires_after(&mut deadline_timer, 150).await, None);
        advance(Duration::from_secs(100)).await;
        assert_eq!(
            fires_after(&mut deadline_timer, 20).await,
            Some(20),
            "the earlier deadline was dropped"
        );
        assert_eq!(fires_after(&mut deadline_timer, 0).await, Some(0));
    }
}
