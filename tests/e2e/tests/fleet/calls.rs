//! Constant load on a fleet's functions while a test breaks something, and what the callers may have got.

use epsilon_e2e::{
    fleet::Gateway,
    load::{Load, Tally},
    wait::{SOON, until},
};
use serde_json::Value;
use std::time::Instant;

/// Callers of each function.
pub(crate) const CALLERS: usize = 4;

/// Callers of `f0`, `f1`… through one gateway.
pub(crate) struct Calls(Vec<Load>);

impl Calls {
    /// Starts the callers of so many functions.
    pub(crate) fn start(gateway: &Gateway, functions: usize) -> Self {
        let start = |index| Load::start(gateway.public(), &format!("/f{index}"), CALLERS);
        Self((0..functions).map(start).collect())
    }

    /// What they got so far.
    pub(crate) fn tally(&self) -> Tally {
        let mut all = Tally::default();
        self.0.iter().for_each(|load| all.merge(load.tally()));
        all
    }

    /// Waits until so many more calls went well.
    pub(crate) async fn more(&self, count: u64) {
        let start = self.tally().of(200);
        until("calls go on", SOON, async || {
            let now = self.tally().of(200) - start;
            if now >= count { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// Waits until this moment, through which calls must go on.
    pub(crate) async fn go_on_until(&self, end: Instant) {
        while Instant::now() < end {
            self.more(20).await;
        }
    }

    /// Lets each caller end its call; then all that they got.
    pub(crate) async fn stop(self) -> Tally {
        let mut all = Tally::default();
        for load in self.0 {
            all.merge(load.stop().await);
        }
        all
    }
}

/// All calls were answered: with 200, but for at most `lost` clear 502s.
#[track_caller]
pub(crate) fn only_lost(tally: &Tally, lost: u64) {
    let other: u64 = tally.answers() - tally.of(200) - tally.of(502);
    assert!(tally.of(502) <= lost && other == 0, "at most {lost} may be lost: {tally:?}");
    assert!(tally.broken.is_empty() && tally.refused == 0, "{tally:?}");
    eprintln!("{tally:?}");
}

/// The VM that holds a function's instances.
pub(crate) async fn home(gateway: &Gateway, function: &str) -> String {
    let vms = gateway.admin("/v1/vms").await;
    let holds = |vm: &&Value| {
        vm["instances"].as_array().unwrap().iter().any(|instance| instance["function"] == function)
    };
    let home = vms.as_array().unwrap().iter().find(holds);
    home.expect("some VM holds it")["id"].as_str().unwrap().to_owned()
}
