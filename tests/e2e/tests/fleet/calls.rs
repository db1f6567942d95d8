//! Constant load on a fleet's functions while a test breaks something, and the results that callers
//! may get.

use epsilon_e2e::{
    fleet::Gateway,
    load::{Loads, Tally},
};
use serde_json::Value;

/// Callers of each function.
pub(crate) const CALLERS: usize = 4;

/// Starts the callers of `f0`, `f1`… through one gateway.
pub(crate) fn load(gateway: &Gateway, functions: usize) -> Loads {
    Loads::start(gateway.public(), (0..functions).map(|index| format!("/f{index}")), CALLERS)
}

/// All calls were answered with 200, except for at most `lost` clear 502s.
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
