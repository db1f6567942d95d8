//! Hears what a VM says of itself: one task per VM. The stream of reports is the probe as well: what can be told from
//! it, and from its end, goes to the member at once.
//!
//! ```text
//! GET /v1/reports ─▶ a line each REPORT ─▶ view, health, load
//!      ▲                 │ none for SILENCE, or the stream breaks, or it cannot be opened
//!      └── pause ◀───────┘ after `lost_after` without a line: what the VM owes is given up
//! ```

use super::{
    Fleet,
    handover::Handover,
    link::{lines, parsed},
    member::Member,
    remote::Remote,
    trouble::Trouble,
};
use epsilon_api::{
    chain::Chain,
    fleet::{BEAT, REPORT},
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

/// Without a report for so long a VM is taken for gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// How late silence may be noticed.
const TICK: Duration = Duration::from_millis(100);
/// How often the first words of VMs are looked for.
const LOOK: Duration = Duration::from_millis(10);
/// A VM that holds thousands of images and hundreds of instances says so in some hundred KiB.
const LONGEST_REPORT: usize = 8 << 20;
/// Pauses before a stream is opened again. The longest is short: a VM that is back is wanted.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// So long a member may take to hear of a gateway that is new to it: a beat, and what it takes to ask.
pub(crate) const KNOWN: Duration = BEAT.saturating_add(SILENCE);

/// Waits until all VMs, of which there are so many at least, have reported or do not answer. Not longer than it takes
/// members to hear of a gateway that is new to them.
pub(crate) async fn all_heard(fleet: &Fleet, known: usize) {
    let decided = || {
        let members = fleet.members();
        members.len() >= known && members.iter().all(|member| member.is_decided())
    };
    let all = async {
        while !decided() {
            sleep(LOOK).await;
        }
    };
    let _ = timeout(KNOWN, all).await;
}

/// Follows the reports of a VM on another machine. Ends only by being dropped.
pub(crate) async fn follow(
    member: Arc<Member>,
    remote: Arc<Remote>,
    lost_after: Duration,
    handover: Handover,
) {
    let mut pause = FIRST_PAUSE;
    let mut outage = Outage::default();
    let mut heard = Instant::now();
    loop {
        let Err(trouble) = reports(&member, &remote, &handover, &mut heard, &mut pause).await;
        let now = Instant::now();
        member.met(&trouble, now);
        remote.doubt();
        if now.duration_since(heard) >= lost_after {
            remote.give_up();
        }
        if outage.is_news(&trouble, pause == FIRST_PAUSE, now) {
            tracing::warn!(vm = %member.id, error = %Chain(&trouble), "No reports.");
        } else {
            tracing::debug!(vm = %member.id, error = %Chain(&trouble), "No reports.");
        }
        let part = rand::rng().random_range(0.5..1.0);
        sleep(pause.mul_f64(part)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What was told of an outage: one line for each kind of trouble, not one for each attempt.
#[derive(Debug, Default)]
struct Outage {
    told: Option<Discriminant<Trouble>>,
    strange_since: Option<Instant>,
}

impl Outage {
    /// Whether somebody should know. `begins`: there was a report since the last trouble. That a member does not know us mends
    /// itself with its next beat, at each joining and each new gateway.
    fn is_news(&mut self, trouble: &Trouble, begins: bool, now: Instant) -> bool {
        if begins {
            *self = Self::default();
        }
        if matches!(trouble, Trouble::Stranger)
            && now.duration_since(*self.strange_since.get_or_insert(now)) < KNOWN
        {
            return false;
        }
        let kind = discriminant(trouble);
        self.told.replace(kind) != Some(kind)
    }
}

/// One stream of reports, to its end.
async fn reports(
    member: &Member,
    remote: &Remote,
    handover: &Handover,
    heard: &mut Instant,
    pause: &mut Duration,
) -> Result<Infallible, Trouble> {
    let silent = || Trouble::Silent(SILENCE);
    let opened = timeout(SILENCE, remote.link.ask(Method::GET, "/v1/reports", "")).await;
    let response = opened.unwrap_or_else(|_| Err(silent()))?;
    if !response.status().is_success() {
        return Err(Trouble::Odd(format!("{} to /v1/reports", response.status())));
    }
    let mut lines = lines(response.into_body(), LONGEST_REPORT);
    loop {
        let line = timeout(SILENCE, lines.next()).await.map_err(|_| silent())?;
        let line = line.ok_or_else(|| Trouble::Broke("the stream of reports ended".into()))??;
        let status: VmStatus = parsed(&line)?;
        if status.id != member.id {
            return Err(Trouble::Odd(format!("the reports of `{}`", status.id)));
        }
        let now = Instant::now();
        let drained_before = member.view().state == VmState::Draining;
        if status.state == VmState::Draining && !drained_before {
            handover.begin(status.clone());
        }
        remote.reported(&status);
        member.reported(status, now);
        (*heard, *pause) = (now, FIRST_PAUSE);
    }
}

/// Follows the VM of this process, which is there as long as we are. Ends only by being dropped.
pub(crate) async fn follow_at_home(member: Arc<Member>) {
    let mut each = interval(REPORT);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        each.tick().await;
        member.reported(member.vm.status(), Instant::now());
    }
}

/// Tells all VMs that time passes: silence is noticed by nothing else. Ends only by being dropped.
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
    fn trouble_is_told_once_for_each_outage_and_a_stranger_has_time_to_be_known() {
        let start = Instant::now();
        let mut outage = Outage::default();
        let mut told = |trouble: Trouble, begins: bool, after: u64| {
            outage.is_news(&trouble, begins, start + Duration::from_secs(after))
        };
        let broke = || Trouble::Broke("reset".into());
        assert!(told(broke(), true, 0) && !told(broke(), false, 1), "once");
        assert!(told(Trouble::Silent(SILENCE), false, 2), "another kind");
        assert!(told(broke(), true, 3), "another outage");
        assert!(!told(Trouble::Stranger, true, 10) && !told(Trouble::Stranger, false, 17));
        assert!(told(Trouble::Stranger, false, 18) && !told(Trouble::Stranger, false, 30));
        assert!(!told(Trouble::Stranger, true, 40), "the next one begins anew");
    }
}
