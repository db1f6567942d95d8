//! Receives the reports of VMs: one task per VM. The stream of reports is also the health check:
//! what it shows, and its end, is applied to the member at once.
//!
//! ```text
//! GET /v1/reports ─▶ a line every REPORT ─▶ view, health, load
//!      ▲                 │ none for SILENCE, or the stream breaks, or it cannot be opened
//!      └── pause ◀───────┘ after `lost_after` without a line: pending calls are given up
//! ```

use super::Fleet;
use super::link::error::LinkError;
use super::link::{lines, parsed};
use super::member::Member;
use super::remote::Remote;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use epsilon_api::{
    chain::Chain,
    fleet::{HEARTBEAT_INTERVAL, REPORT},
    vm::{VmState, VmStatus},
};
use futures_util::StreamExt;
use http::Method;
use rand::RngExt;
use std::{
    convert::Infallible,
    mem::{Discriminant, discriminant},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Time without a report after which a VM counts as gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// How late silence may be noticed.
const TICK: Duration = Duration::from_millis(100);
/// How often `wait_for_reports` checks for first reports.
const POLL: Duration = Duration::from_millis(10);
/// Longest report: thousands of images and hundreds of instances take some hundred KiB.
const LONGEST_REPORT: usize = 8 << 20;
/// Pauses before the stream is reopened. The longest is short, so that a VM that is back gets calls
/// soon.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long a member may take to learn of a new gateway: one heartbeat, plus the request.
pub(crate) const KNOWN: Duration = HEARTBEAT_INTERVAL.saturating_add(SILENCE);

/// Waits until all VMs, at least `known` of them, have reported or failed to answer; at most as
/// long as members take to learn of a new gateway.
pub(crate) async fn wait_for_reports(fleet: &Fleet, known: usize) {
    let decided = || {
        let members = fleet.members();
        members.len() >= known && members.iter().all(|member| member.is_decided())
    };
    let all = async {
        while !decided() {
            sleep(POLL).await;
        }
    };
    let _ = timeout(KNOWN, all).await;
}

/// Follows the reports of a VM on another machine. Ends only by being dropped.
pub(crate) async fn follow(
    member: Arc<Member>,
    remote: Arc<Remote>,
    lost_after: Duration,
    drain_prewarm: DrainPrewarm,
) {
    let mut pause = FIRST_PAUSE;
    let mut outage = Outage::default();
    let mut last_report = Instant::now();
    loop {
        let Err(link_error) =
            reports(&member, &remote, &drain_prewarm, &mut last_report, &mut pause).await;
        let now = Instant::now();
        member.report_failed(&link_error, now);
        remote.invalidate_versions();
        if now.duration_since(last_report) >= lost_after {
            remote.mark_lost();
        }
        if outage.is_worth_logging(&link_error, pause == FIRST_PAUSE, now) {
            tracing::warn!(vm = %member.id, error = %Chain(&link_error), "VM's reports cannot be read; retrying.");
        } else {
            tracing::debug!(vm = %member.id, error = %Chain(&link_error), "VM's reports cannot be read; retrying.");
        }
        let part = rand::rng().random_range(0.5..1.0);
        sleep(pause.mul_f64(part)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Limits the log of an outage: one line for each kind of error, not one for each attempt.
#[derive(Debug, Default)]
struct Outage {
    logged: Option<Discriminant<LinkError>>,
    unauthenticated_since: Option<Instant>,
}

impl Outage {
    /// Whether the error is worth a log line. `begins`: there was a report since the last error. A
    /// member that does not know this gateway yet learns of it with its next heartbeat; that
    /// happens at each join and each new gateway.
    fn is_worth_logging(&mut self, link_error: &LinkError, begins: bool, now: Instant) -> bool {
        if begins {
            *self = Self::default();
        }
        if matches!(link_error, LinkError::Unauthenticated)
            && now.duration_since(*self.unauthenticated_since.get_or_insert(now)) < KNOWN
        {
            return false;
        }
        let kind = discriminant(link_error);
        self.logged.replace(kind) != Some(kind)
    }
}

/// Reads one stream of reports to its end.
async fn reports(
    member: &Member,
    remote: &Remote,
    drain_prewarm: &DrainPrewarm,
    last_report: &mut Instant,
    pause: &mut Duration,
) -> Result<Infallible, LinkError> {
    let silent = || LinkError::TimedOut(SILENCE);
    let opened = timeout(SILENCE, remote.link.ask(Method::GET, "/v1/reports", "")).await;
    let response = opened.unwrap_or_else(|_| Err(silent()))?;
    if !response.status().is_success() {
        return Err(LinkError::Protocol(format!("status {} for /v1/reports", response.status())));
    }
    let mut lines = lines(response.into_body(), LONGEST_REPORT);
    loop {
        let line = timeout(SILENCE, lines.next()).await.map_err(|_| silent())?;
        let line =
            line.ok_or_else(|| LinkError::Disconnected("the stream of reports ended".into()))??;
        let status: VmStatus = parsed(&line)?;
        if status.id != member.id {
            return Err(LinkError::Protocol(format!("the reports of `{}`", status.id)));
        }
        let now = Instant::now();
        let drained_before = member.view().state == VmState::Draining;
        if status.state == VmState::Draining && !drained_before {
            drain_prewarm.begin(status.clone());
        }
        remote.reported(&status);
        member.reported(status, now);
        (*last_report, *pause) = (now, FIRST_PAUSE);
    }
}

/// Follows the VM of this process. Ends only by being dropped.
pub(crate) async fn follow_local(member: Arc<Member>) {
    let mut each = interval(REPORT);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        each.tick().await;
        member.reported(member.vm.status(), Instant::now());
    }
}

/// Sends all VMs a regular tick, by which silence is noticed. Ends only by being dropped.
pub(crate) async fn tick(fleet: Arc<Fleet>) {
    let mut each = interval(TICK);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        each.tick().await;
        let now = Instant::now();
        for member in fleet.snapshot().members() {
            member.tick(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outage_is_logged_once() {
        let start = Instant::now();
        let mut outage = Outage::default();
        let mut logged = |link_error: LinkError, begins: bool, after: u64| {
            outage.is_worth_logging(&link_error, begins, start + Duration::from_secs(after))
        };
        let broke = || LinkError::Disconnected("reset".into());
        assert!(logged(broke(), true, 0) && !logged(broke(), false, 1), "once");
        assert!(logged(LinkError::TimedOut(SILENCE), false, 2), "another kind");
        assert!(logged(broke(), true, 3), "a new outage");
        assert!(
            !logged(LinkError::Unauthenticated, true, 10)
                && !logged(LinkError::Unauthenticated, false, 17)
        );
        assert!(
            logged(LinkError::Unauthenticated, false, 18)
                && !logged(LinkError::Unauthenticated, false, 30)
        );
        assert!(!logged(LinkError::Unauthenticated, true, 40), "the next outage starts over");
    }
}
