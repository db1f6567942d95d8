//! Functions keep to their VMs, also when VMs come and go.

use super::{functions, turn};
use epsilon_e2e::fleet::{Fleet, Gateway, Plan};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const FUNCTIONS: usize = 9;

/// Which VMs hold instances of which function.
async fn homes(gateway: &Gateway) -> BTreeMap<String, BTreeSet<String>> {
    let mut homes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for vm in gateway.admin("/v1/vms").await.as_array().unwrap() {
        for instance in vm["instances"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            homes.entry(text(&instance["function"])).or_default().insert(text(&vm["id"]));
        }
    }
    homes
}

async fn call_all(gateway: &Gateway, rounds: usize) {
    for _ in 0..rounds {
        for index in 0..FUNCTIONS {
            gateway.get(&format!("/f{index}")).await.expect(200);
        }
    }
}

#[tokio::test]
async fn a_function_stays_on_one_vm_and_functions_spread_over_vms() {
    let _turn = turn().await;
    let fleet = Fleet::start(Plan::default()).await;
    fleet.deploy(&functions(FUNCTIONS)).await;
    call_all(&fleet.gateways[0], 5).await;
    let homes = homes(&fleet.gateways[0]).await;
    assert_eq!(homes.len(), FUNCTIONS, "{homes:?}");
    assert!(homes.values().all(|vms| vms.len() == 1), "each on one VM: {homes:?}");
    let used: BTreeSet<_> = homes.values().flatten().collect();
    assert!(used.len() >= 2, "not all on one VM: {homes:?}");
}

#[tokio::test]
async fn a_new_vm_takes_no_more_than_its_share() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan::default()).await;
    fleet.deploy(&functions(FUNCTIONS)).await;
    call_all(&fleet.gateways[0], 2).await;
    let before = homes(&fleet.gateways[0]).await;
    fleet.add_agent().await;
    fleet.all_ready().await;
    call_all(&fleet.gateways[0], 2).await;
    let after = homes(&fleet.gateways[0]).await;
    let moved: usize =
        after.iter().map(|(function, vms)| vms.difference(&before[function]).count()).sum();
    // Its share of nine functions is 2.25; a ring of a few VMs is not even.
    assert!(moved <= 5, "{moved} of {FUNCTIONS} moved: {before:?} {after:?}");
}
