//! The whole loop of the autoscaler with moto: load rises, the group grows, the test simulates its
//! machines, calls spread; load falls, the emptiest VM drains and is terminated. No call is lost.

use super::{
    calls::{load, only_lost},
    turn,
};
use epsilon_cloud_aws::{moto::Moto, scale_group::ScaleGroup, scale_group::in_moto};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    project::Project,
    wait::{SOON, until},
};
use std::{collections::BTreeSet, time::Duration};

/// A VM has four places of 128 MiB. Everything else is only quicker than the defaults.
fn settings(moto: &Moto) -> String {
    format!(
        "gateway:
  autoscale:
    {{ driver: aws-asg, group: vms, region: eu-central-1, endpoint: \"{}\", min: 1, max: 2, place: 128MiB, headroom: 2,
      stable_window: 4s, scale_in_after: 4s, boot_time: 1s, trend_limit: 1, every: 1s }}
vm_agent: {{ memory: 512MiB }}
",
        moto.endpoint()
    )
}

/// Functions that are busy nearly all the time when they are called without pauses.
fn busy(count: usize) -> Project {
    let mut code =
        "const config = { memory: '128MiB', concurrency: 16, maxInstances: 1 };\n".to_owned();
    for index in 0..count {
        code.push_str(&format!(
            "exports.f{index} = {{ config, func: (req, res) => setTimeout(() => res.send('f{index}'), 200) }};\n"
        ));
    }
    epsilon_e2e::project!("busy", { "index.js" => code })
}

/// Scaling in is slow by intention: a window, a drain, a round for each step.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);

async fn instances(group: &ScaleGroup) -> BTreeSet<String> {
    let standing = group.describe().await.unwrap();
    standing.instances.into_iter().map(|instance| instance.id).collect()
}

/// Starts an agent on each instance of the group that has none.
async fn boot(fleet: &mut Fleet, group: &ScaleGroup) {
    for id in instances(group).await {
        if fleet.agents.iter().all(|agent| agent.id() != id) {
            let variable = ("EPSILON_VM_AGENT_ID".to_owned(), id);
            fleet.add_agent_with(|launch| launch.env.push(variable)).await;
        }
    }
    fleet.all_ready().await;
}

#[tokio::test]
async fn vms_follow_the_load_and_the_emptiest_leaves() {
    let _turn = turn().await;
    let moto = Moto::start().await;
    let group = in_moto::group(&moto, 1, 2, 1).await;
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let gateway_env = keys.map(|name| (name.to_owned(), "test".to_owned())).to_vec();
    let config = Some(settings(&moto));
    let mut fleet = Fleet::start(Plan { agents: 0, config, gateway_env, ..Plan::default() }).await;
    boot(&mut fleet, &group).await;
    fleet.deploy(&busy(4)).await;

    let calls = load(&fleet.gateways[0], 4);
    until("the group is to grow", SOON, async || match group.describe().await.unwrap().desired {
        0 | 1 => Err(fleet.gateways[0].admin("/v1/autoscaler").await),
        _ => Ok(()),
    })
    .await;
    boot(&mut fleet, &group).await;
    until("calls run on every VM", SOON, async || {
        let vms = fleet.gateways[0].admin("/v1/vms").await;
        let active = |vm: &serde_json::Value| vm["calls_active"].as_u64() > Some(0);
        if vms.as_array().unwrap().iter().all(active) { Ok(()) } else { Err(vms) }
    })
    .await;
    calls.more(100).await;
    only_lost(&calls.stop().await, 0);

    let most = instances(&group).await;
    let calls = load(&fleet.gateways[0], 1);
    let mut drained = BTreeSet::new();
    let left = until("one VM is left", SHRINK_LIMIT, async || {
        for vm in fleet.gateways[0].admin("/v1/vms").await.as_array().unwrap() {
            if vm["standing"] == "draining" {
                drained.insert(vm["id"].as_str().unwrap().to_owned());
            }
        }
        match instances(&group).await {
            left if left.len() == 1 => Ok(left),
            _ => Err(fleet.gateways[0].admin("/v1/autoscaler").await),
        }
    })
    .await;
    let ended: BTreeSet<_> = most.difference(&left).cloned().collect();
    assert!(!ended.is_empty() && ended.is_subset(&drained), "{ended:?} ended, {drained:?} drained");
    // As AWS does.
    for id in &ended {
        fleet.agent(id).program.terminate().await;
    }
    calls.more(50).await;
    only_lost(&calls.stop().await, 0);
    eprintln!("{} VMs at most, {ended:?} ended", most.len());
}
