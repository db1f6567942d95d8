//! The autoscaler: how many VMs the fleet should have, and the steps to get there. Never on the
//! path of a call: it reads the VMs' reports, drains VMs and resizes the group; if it fails, calls
//! go on.
//!
//! ```text
//! VmStatus of each VM ─▶ sample.rs ─▶ policy.rs ─▶ wanted, why ─▶ plan.rs ─▶ steps ─▶ driver.rs ─▶ EC2, a command
//!        every second     places      history.rs        │         which VMs     └──▶ vms.rs ─▶ drains
//!                                     schedule.rs       └─▶ journal.rs ─▶ metrics, log, GET /v1/autoscaler
//! ```
//! Everything up to the steps is pure; `runner.rs` is the loop around it. `docs/autoscaling.md`
//! explains it to operators.

pub mod config;
pub mod policy;
pub mod sample;
pub mod schedule;

mod driver;
mod history;
mod journal;
mod plan;
mod runner;
mod vms;

pub use journal::Journal;
pub use vms::Vms;

use config::{Config, Driver};
use driver::{ScaleGroup, exec::Exec};
use jiff::Timestamp;
use prometheus::Registry;
use runner::Runner;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// An autoscaler that does not run yet.
#[derive(Debug)]
pub struct Autoscaler {
    runner: Runner,
}

impl Autoscaler {
    /// Creates the driver; sends no request yet.
    pub fn new(
        config: Config,
        vms: Arc<dyn Vms>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let group: Option<Arc<dyn ScaleGroup>> =
            match &config.driver {
                Driver::None => None,
                Driver::Exec { command, timeout } => {
                    Some(Arc::new(Exec::new(command.clone(), *timeout)))
                }
                #[cfg(feature = "aws")]
                Driver::AwsAsg { group, region, endpoint } => Some(Arc::new(
                    driver::aws::Aws::new(group.clone(), region.clone(), endpoint.clone()),
                )),
                // `Config` refuses this driver in a build without AWS.
                #[cfg(not(feature = "aws"))]
                Driver::AwsAsg { .. } => None,
            };
        let journal = Arc::new(Journal::new(&config, registry)?);
        let runner = Runner { config, vms, group, journal, clock: Timestamp::now };
        Ok(Self { runner })
    }

    /// The journal for the control API.
    pub fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.runner.journal)
    }

    /// Runs until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        self.runner.run(stop).await;
    }
}
