//! The gateway's health for those that might send it calls: `GET /` on the public listener,
//! `/healthz` on the control listener. Both are public and answered from memory, and give the
//! status only. Causes and addresses are in the log and in `GET /v1/vms`.
//!
//! | status | `GET /` | when |
//! |---|---|---|
//! | `ok` | 200 | calls are served |
//! | `degraded` | 200 | calls are served, but an operator must act: taking the gateway out of a load balancer would make it worse |
//! | `unavailable` | 503 | this gateway cannot serve calls, but another one may |
//!
//! `/healthz` is 200 in every case: VMs join through the control listener, so it must stay
//! reachable for the repair.
//!
//! A fleet without VMs is `ok`: every fleet starts like this, and another gateway could do no
//! better.

use crate::fleet::Fleet;
use crate::fleet::health::{OutReason, Standing};
use crate::fleet::watch::KNOWN;
use crate::store_health::{Since, StoreHealth};
use epsilon_fleet_link::certificate::{Certificate, Validity};
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use std::sync::Arc;
use tokio::time::Instant;
use utoipa::ToSchema;

/// Where the health is computed from.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) store: Arc<StoreHealth>,
    /// The certificates that this process loaded.
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) began: Instant,
}

/// The health at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = HealthReport)]
pub(crate) struct Report {
    pub(crate) status: Status,
    /// Why the status is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    pub(crate) vms: Vms,
    pub(crate) store: Store,
}

/// The status; the table of the module describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = HealthStatus)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Ok,
    Degraded,
    Unavailable,
}

/// The VMs of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = HealthVms)]
pub(crate) struct Vms {
    /// VMs in the store.
    pub(crate) known: usize,
    /// VMs of these whose reports are received.
    pub(crate) heard: usize,
}

/// Whether the store answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = HealthStore)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(crate) enum Store {
    /// It answers.
    Ok,
    /// It does not answer; calls of known functions are served.
    Away { since: Timestamp },
    /// It answers queries but does not accept writes.
    Full { since: Timestamp },
}

impl Status {
    /// The HTTP status for load balancers.
    pub(crate) fn code(self) -> StatusCode {
        match self {
            Self::Ok | Self::Degraded => StatusCode::OK,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Health {
    /// The current health.
    pub(crate) fn report(&self) -> Report {
        self.at(Instant::now(), Timestamp::now())
    }

    fn at(&self, now: Instant, time: Timestamp) -> Report {
        let snapshot = self.fleet.snapshot();
        let members = snapshot.members();
        let has_reported = |standing| {
            !matches!(
                standing,
                Standing::Out(OutReason::NeverReported | OutReason::Silent | OutReason::Refused)
            )
        };
        let vms = Vms {
            known: members.len() + self.fleet.unusable(),
            heard: members.iter().filter(|member| has_reported(member.standing())).count(),
        };
        let Since { unavailable, full } = self.store.since();
        let store = match (unavailable, full) {
            (Some(since), _) => Store::Away { since },
            (None, Some(since)) => Store::Full { since },
            (None, None) => Store::Ok,
        };
        // Since when the first VM could have reported.
        let known = members.iter().map(|member| member.discovered_at());
        let known = known.chain((self.fleet.unusable() > 0).then_some(self.began)).min();
        let is_start_over = known.is_some_and(|known| now.duration_since(known) >= KNOWN);
        let certificate = self.certificates.iter().map(|one| one.validity(time));
        let certificate = certificate.filter(|validity| *validity != Validity::Valid).min();
        // A gateway with a VM in its own process needs no certificate to reach it.
        let needs_certificate = !members.iter().any(|member| member.address.is_none());
        let (status, reason) = match certificate {
            Some(validity) if vms.known > 0 && vms.heard == 0 && needs_certificate => {
                (Status::Unavailable, Some(of_certificate(validity)))
            }
            _ if is_start_over && !self.fleet.has_any_reported() => {
                (Status::Unavailable, Some("no VM of the fleet has reported since the start"))
            }
            Some(validity) => (Status::Degraded, Some(of_certificate(validity))),
            None if matches!(store, Store::Full { .. }) => {
                (Status::Degraded, Some("the store's disk is full: nothing can be changed"))
            }
            None if vms.known > 0 && vms.heard == 0 && is_start_over => {
                (Status::Degraded, Some("no VM of the fleet reports"))
            }
            None => (Status::Ok, None),
        };
        Report { status, reason, vms, store }
    }
}

fn of_certificate(validity: Validity) -> &'static str {
    match validity {
        Validity::NotYet => "a certificate of this gateway is not valid yet, by its clock",
        Validity::Valid | Validity::Ended => "a certificate of this gateway has expired",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::link::error::LinkError;
    use crate::fleet::{HealthPolicy, Member};
    use crate::testing::FakeVm;
    use epsilon_api::{ids::VmId, vm::Vm};
    use epsilon_fleet_link::certificate::Owner;
    use prometheus::IntGauge;
    use std::{io, time::Duration};
    use tokio::time;

    struct World {
        health: Health,
        began: Instant,
    }

    impl World {
        fn new(local: Option<Arc<dyn Vm>>) -> Self {
            let up = IntGauge::new("up", "up").unwrap();
            let began = Instant::now();
            let health = Health {
                fleet: Arc::new(Fleet::new(local, &HealthPolicy::default())),
                store: Arc::new(StoreHealth::new(up)),
                certificates: Vec::new(),
                began,
            };
            Self { health, began }
        }

        fn join(&self, id: &str) -> Arc<Member> {
            let member = Member::joined(FakeVm::arc(id), &HealthPolicy::default(), None);
            let member = Arc::new(member.at(format!("{id}:8082")));
            self.health.fleet.admit(Arc::clone(&member));
            member
        }

        /// Status, its code, known and reporting VMs after this many seconds.
        fn state(&self, seconds: u64) -> (Status, u16, usize, usize) {
            let now = self.began + Duration::from_secs(seconds);
            let Report { status, reason, vms, .. } = self.health.at(now, Timestamp::now());
            assert_eq!(reason.is_some(), status != Status::Ok);
            (status, status.code().as_u16(), vms.known, vms.heard)
        }
    }

    fn reports(member: &Member) {
        member.reported(member.vm.status(), Instant::now());
    }

    const OK: Status = Status::Ok;
    const DEGRADED: Status = Status::Degraded;
    const UNAVAILABLE: Status = Status::Unavailable;

    #[tokio::test(start_paused = true)]
    async fn without_any_report_the_gateway_becomes_unavailable() {
        let world = World::new(None);
        assert_eq!(world.state(0), (OK, 200, 0, 0));
        assert_eq!(world.state(100), (OK, 200, 0, 0), "a fleet starts without a VM");
        time::advance(Duration::from_secs(100)).await;
        let (a, _b) = (world.join("a"), world.join("b"));
        a.report_failed(
            &LinkError::Refused(io::ErrorKind::ConnectionRefused.into()),
            Instant::now(),
        );
        assert_eq!(world.state(107), (OK, 200, 2, 0), "they joined a moment ago");
        assert_eq!(world.state(108), (UNAVAILABLE, 503, 2, 0));
        reports(&a);
        assert_eq!(world.state(108), (OK, 200, 2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn losing_a_reporting_vm_is_only_degraded() {
        let world = World::new(None);
        let a = world.join("a");
        reports(&a);
        time::advance(Duration::from_secs(20)).await;
        a.tick(Instant::now());
        assert_eq!(world.state(20), (DEGRADED, 200, 1, 0), "another gateway could do no better");
        world.join("b");
        world.health.fleet.forget(&VmId::parse("a").unwrap());
        assert_eq!(world.state(40), (DEGRADED, 200, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unusable_vm_counts_as_not_reporting() {
        let world = World::new(None);
        world.health.fleet.set_unusable(1);
        assert_eq!(world.state(7), (OK, 200, 1, 0));
        assert_eq!(world.state(8), (UNAVAILABLE, 503, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_certificate_shuts_out_who_needs_one() {
        let time: Timestamp = "2020-01-01T00:00:00Z".parse().unwrap();
        let ended = Certificate {
            owner: Owner::Own,
            path: "tls.pem".into(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: time,
        };
        let mut alone = World::new(Some(FakeVm::arc("here")));
        alone.health.certificates = vec![ended.clone()];
        assert_eq!(alone.state(100), (DEGRADED, 200, 1, 1));
        let mut started = World::new(None);
        started.health.certificates = vec![ended.clone()];
        started.join("a");
        let report = started.health.at(started.began + 2 * KNOWN, Timestamp::now());
        let cause = Some("a certificate of this gateway has expired");
        assert_eq!(
            (report.status, report.reason),
            (UNAVAILABLE, cause),
            "the cause, not the effect"
        );
        let mut fleet = World::new(None);
        reports(&fleet.join("a"));
        fleet.health.certificates = vec![ended];
        assert_eq!(fleet.state(0), (DEGRADED, 200, 1, 1), "existing connections stay open");
        fleet.health.fleet.forget(&VmId::parse("a").unwrap());
        fleet.join("b");
        assert_eq!(fleet.state(0), (UNAVAILABLE, 503, 1, 0), "its next connection is refused");
        let before = fleet.health.at(Instant::now(), time);
        assert_eq!((before.status, before.reason), (OK, None));
    }

    #[tokio::test]
    async fn a_full_store_is_degraded_not_unavailable() {
        let world = World::new(Some(FakeVm::arc("here")));
        world.health.store.mark_full();
        assert_eq!(world.state(0), (DEGRADED, 200, 1, 1));
        let text = serde_json::to_value(world.health.report()).unwrap();
        assert_eq!(text["store"]["status"], "full");
        world.health.store.mark_writable();
        world.health.store.mark_unavailable();
        assert_eq!(world.state(0), (OK, 200, 1, 1), "calls are served");
        let text = serde_json::to_value(world.health.report()).unwrap();
        assert_eq!(text["store"]["status"], "away");
        assert_eq!(text["vms"], serde_json::json!({"known": 1, "heard": 1}));
    }
}
