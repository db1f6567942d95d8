//! Waits for the end of a call that did not end with its answer: the caller disconnected, the
//! instance hung up, or the handler still runs after its answer. Its code may be running, so its
//! slot stays taken until the wrapper reports that the call ended; at the deadline the instance is
//! killed, as for any call that does not end.

use super::Lease;
use crate::container::connections::Upstream;
use crate::container::control;
use crate::container::control::{ControlError, Health};
use crate::container::sockets::is_not_listening;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

/// First pause between two health requests. Most handlers end with their connection. Each pause is
/// an eighth of the time since, so that a slot is free soon after its call and long calls are not
/// polled all the time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const PAUSE_SHARE: u32 = 8;
/// The first pause after an answer: work that continues there takes longer than what a disconnected
/// caller left running.
const FIRST_PAUSE_ANSWERED: Duration = Duration::from_millis(10);
/// Timeout of one health request. A wrapper that is busy computing answers late, not never.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a process that hung up may still accept connections while it dies.
const EXIT_GRACE: Duration = Duration::from_millis(50);

/// A lease that is being settled. If the task is dropped (the runtime ends), the slot is given back
/// and no new task is made.
pub(crate) struct Abandoned(Option<Lease>);

impl Abandoned {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(Some(lease))
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(mut lease) = self.0.take() {
            lease.mark_unsent();
        }
    }
}

pub(crate) async fn settle(mut abandoned: Abandoned) {
    let Some(lease) = abandoned.0.as_ref() else { return };
    let deadline = lease.deadline();
    let outcome = watch(lease, deadline).await;
    let Some(lease) = abandoned.0.take() else { return };
    match outcome {
        Outcome::Ended => lease.finish(),
        Outcome::Cut => lease.cut(),
        Outcome::Dead => lease.instance_died(),
        Outcome::Deadline => lease.kill(),
    }
}

enum Outcome {
    Ended,
    /// The instance is stopping, whatever runs in it.
    Cut,
    Dead,
    Deadline,
}

async fn watch(lease: &Lease, deadline: Instant) -> Outcome {
    let folder = match lease.instance().connections.upstream() {
        Some(Upstream::Sockets(folder, _)) => folder,
        Some(Upstream::Tcp(address)) => return watch_server(*address).await,
        None => return Outcome::Ended,
    };
    // With other calls in the instance, one probe may catch a moment in which a call of theirs is
    // not there yet. An answered call was there.
    let is_alone = lease.pool().version.spec.concurrency.get() == 1 || lease.is_answered();
    let confirmations_needed = if is_alone { 1 } else { 2 };
    let mut confirmations = 0;
    let first = if lease.is_answered() { FIRST_PAUSE_ANSWERED } else { FIRST_PAUSE };
    let began = Instant::now();
    loop {
        if lease.instance().stop.is_cancelled() {
            return Outcome::Cut; // its container is removed anyway
        }
        let held = lease.calls_in_instance();
        match timeout(HEALTH_TIMEOUT, control::health(folder)).await {
            Ok(Ok(health)) if is_over(&health, lease, held) => {
                confirmations += 1;
                if confirmations >= confirmations_needed {
                    return Outcome::Ended;
                }
            }
            Ok(Err(ControlError::NotListening(_))) => return Outcome::Dead,
            Ok(_) | Err(_) => confirmations = 0,
        }
        let pause = (began.elapsed() / PAUSE_SHARE).clamp(first, LONGEST_PAUSE);
        let next = Instant::now() + pause;
        if next >= deadline {
            sleep_until(deadline).await;
            return Outcome::Deadline;
        }
        tokio::select! {
            // Both may be dropped: a timer, a token.
            () = sleep_until(next) => {}
            () = lease.instance().stop.cancelled() => {}
        }
    }
}

/// By its id, where the wrapper lists the calls that run; else when fewer run than hold a slot
/// here.
fn is_over(health: &Health, lease: &Lease, held: usize) -> bool {
    match (&health.calls, lease.request_id()) {
        (Some(calls), Some(id)) => !calls.iter().any(|call| call == id.as_str()),
        (Some(_) | None, _) => (health.active as usize) < held,
    }
}

/// All that can be learned of a `runtime: container` that hung up is whether it still listens.
async fn watch_server(address: SocketAddr) -> Outcome {
    sleep(EXIT_GRACE).await;
    match timeout(HEALTH_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Err(err)) if is_not_listening(&err) => Outcome::Dead,
        Ok(_) => Outcome::Ended,
        Err(_) => Outcome::Dead,
    }
}
