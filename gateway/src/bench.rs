//! The real lookup and placement over a fleet without traffic, to measure their cost. Used by
//! `benches` only.

use crate::invoke::place::place;
use crate::{
    call::lookup::{self, Target},
    config::{Config, Settings},
    fleet::Fleet,
    observe::metrics::Metrics,
    routes::Routes,
};
use epsilon_api::{function::Version, ids::VmId, vm::Vm};
use epsilon_placement::bounded_load::Balance;
use http::{Method, Uri};
use std::sync::Arc;

/// A routing table and a fleet for measurements.
#[derive(Debug)]
pub struct Trial {
    routes: Routes,
    fleet: Fleet,
    balance: Balance,
    metrics: Arc<Metrics>,
}

impl Trial {
    /// These functions on these VMs, with the default settings. `None` if the settings are invalid.
    pub fn new(versions: Vec<Version>, vms: Vec<Arc<dyn Vm>>) -> Option<Self> {
        let config = Config::new(Settings::default(), "/").ok()?;
        let metrics = Metrics::new(&prometheus::Registry::new()).ok()?;
        let routes = Routes::new(versions, Vec::new(), Arc::clone(&metrics));
        let fleet = Fleet::new(vms, &config.health_policy);
        Some(Self { routes, fleet, balance: config.balance, metrics })
    }

    /// The VM for a request to this path; the call ends at once.
    pub fn place(&self, uri: &Uri) -> Option<VmId> {
        self.begin(uri).map(|(vm, _)| vm)
    }

    /// The VM for a request, and a guard that counts the call as running there.
    pub fn begin(&self, uri: &Uri) -> Option<(VmId, Running)> {
        let table = self.routes.table();
        let found = lookup::lookup(&table, None, &Method::GET, uri, "localhost");
        let Ok(Target::Function(route, ..)) = found else { return None };
        let fleet = self.fleet.snapshot();
        let placed = place(&fleet, &route, &[], &self.balance, &self.metrics.placement)?;
        Some((placed.member.id.clone(), Running { _in_flight: placed.in_flight }))
    }
}

/// A call that counts as running until this is dropped.
#[derive(Debug)]
pub struct Running {
    _in_flight: crate::fleet::load::InFlightGuard,
}
