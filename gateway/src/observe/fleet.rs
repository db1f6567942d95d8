//! `epsilon_vm_*`: the VMs as this gateway sees them, read at each scrape, so that a VM that left
//! has no series.

use crate::fleet::{Fleet, Member};
use epsilon_api::admin::VmStanding;
use prometheus::{
    CounterVec, GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use std::sync::Arc;
use tokio::time::Instant;

/// Collects the metrics of VMs.
pub(crate) struct FleetMetrics {
    fleet: Arc<Fleet>,
    descs: Vec<Desc>,
}

/// One metric: name, help text, and its value for a VM.
type Row = (&'static str, &'static str, fn(&Member) -> f64);

const ROWS: [Row; 5] = [
    ("epsilon_vm_up", "Whether the VM gets calls.", |member| {
        let standing = member.info(Instant::now()).standing;
        f64::from(u8::from(matches!(standing, VmStanding::Ready | VmStanding::Suspect)))
    }),
    ("epsilon_vm_draining", "Whether the VM drains.", |member| {
        f64::from(u8::from(!member.takes_calls()))
    }),
    ("epsilon_vm_in_flight", "Calls of this gateway in flight on the VM.", |member| {
        f64::from(member.load.own_calls())
    }),
    ("epsilon_vm_waiting", "Calls of all gateways that wait on the VM, by its report.", |member| {
        f64::from(member.vm.status().calls_waiting)
    }),
    (
        "epsilon_vm_reports_missed",
        "Times that the VM's report stream broke or could not be opened.",
        |member| member.missed() as f64,
    ),
];

/// The only one that is a counter.
const SENT: Row = ("epsilon_vm_calls_total", "Calls that this gateway sent to the VM.", |member| {
    member.load.sent_calls() as f64
});

const VMS: &str = "epsilon_vms";
const VMS_HELP: &str = "VMs by standing, as this gateway sees them.";

impl FleetMetrics {
    pub(crate) fn new(fleet: Arc<Fleet>) -> Result<Self, prometheus::Error> {
        let desc = |(name, help, _): Row| {
            Desc::new(name.into(), help.into(), vec!["vm".into()], [].into())
        };
        let rows = ROWS.into_iter().chain([SENT]);
        let mut descs: Vec<Desc> = rows.map(desc).collect::<Result<_, _>>()?;
        descs.push(Desc::new(VMS.into(), VMS_HELP.into(), vec!["standing".into()], [].into())?);
        Ok(Self { fleet, descs })
    }

    /// Number of VMs per standing; standings without VMs are 0, so that graphs have no gaps.
    fn standings(&self) -> Vec<MetricFamily> {
        let Ok(gauges) = GaugeVec::new(Opts::new(VMS, VMS_HELP), &["standing"]) else {
            return Vec::new();
        };
        let gauge = |standing: VmStanding| gauges.with_label_values(&[standing.as_str()]);
        for standing in VmStanding::ALL {
            gauge(standing).set(0.0);
        }
        for member in self.fleet.members() {
            gauge(member.info(Instant::now()).standing).inc();
        }
        gauges.collect()
    }

    fn family(&self, (name, help, value): Row) -> Vec<MetricFamily> {
        let Ok(gauges) = GaugeVec::new(Opts::new(name, help), &["vm"]) else { return Vec::new() };
        for member in self.fleet.members() {
            gauges.with_label_values(&[member.id.as_str()]).set(value(&member));
        }
        gauges.collect()
    }

    fn sent(&self) -> Vec<MetricFamily> {
        let (name, help, value) = SENT;
        let Ok(counters) = CounterVec::new(Opts::new(name, help), &["vm"]) else {
            return Vec::new();
        };
        for member in self.fleet.members() {
            counters.with_label_values(&[member.id.as_str()]).inc_by(value(&member));
        }
        counters.collect()
    }
}

impl Collector for FleetMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        ROWS.into_iter()
            .flat_map(|row| self.family(row))
            .chain(self.sent())
            .chain(self.standings())
            .collect()
    }
}
