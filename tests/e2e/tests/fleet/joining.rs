//! Programs join and leave a gateway; strangers cannot.

use super::{functions, lent, turn};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    http::Call,
    wait::{SOON, until},
    wire::exchange,
};
use rustix::process::Signal;

#[tokio::test]
async fn three_agents_and_a_builder_join_and_serve() {
    let fleet = lent::one().await;
    for name in ["f0", "f1"] {
        let answer = fleet.gateways[0].get(&format!("/{name}")).await.expect(200);
        assert!(answer.text().starts_with(name), "{answer}");
        assert!(
            answer.header("x-epsilon-spent").is_empty(),
            "internal headers stay inside: {answer}"
        );
        assert!(answer.header("server-timing").contains("exec"), "{answer}");
    }
    let vms = fleet.gateways[0].admin("/v1/vms").await;
    assert_eq!(vms.as_array().unwrap().len(), 3, "{vms}");
}

/// Function, agent, gateway, caller: two connections on which hyper writes none.
#[tokio::test]
async fn early_hints_come_through_gateway_and_agent() {
    let fleet = lent::one().await;
    let request = b"GET /f0/hints HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = exchange(fleet.gateways[0].public(), request.to_vec()).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload; as=style\r\n\r\n";
    assert!(answer.starts_with(&format!("{hints}HTTP/1.1 200 OK\r\n")), "{answer}");
}

#[tokio::test]
async fn a_gateway_without_a_builder_says_so() {
    let mut fleet = lent::one().await;
    fleet.builder.terminate().await;
    until("deployments are refused", SOON, async || {
        let deployment = fleet.try_deploy(0, &functions(1)).await;
        match deployment.status {
            503 => {
                assert_eq!(deployment.failed().code, "NO_BUILDER");
                Ok(())
            }
            status => Err(status),
        }
    })
    .await;
}

#[tokio::test]
async fn agent_keeps_id_and_instances_across_a_restart() {
    let _turn = turn().await;
    let mut fleet = Fleet::start(Plan { agents: 1, ..Plan::default() }).await;
    fleet.deploy(&functions(1)).await;
    let before = fleet.gateways[0].get("/f0").await.expect(200).text();
    let id = fleet.agents[0].id().to_owned();
    fleet.agents[0].program.kill().await;
    fleet.agents[0].program.start_again().await;
    assert_eq!(fleet.agents[0].program.data_file("vm/id"), id);
    fleet.gateways[0].sees(&id, "ready").await;
    assert_eq!(fleet.gateways[0].get("/f0").await.expect(200).text(), before, "the same instance");
}

#[tokio::test]
async fn sigterm_of_an_agent_is_a_drain() {
    let mut fleet = lent::one().await;
    let mut long = Call::get("/f0/long").open(fleet.gateways[0].public()).await;
    assert_eq!(long.piece().await.unwrap().unwrap(), "begun ");
    let reported = async || fleet.gateways[0].busy_vm().await;
    let home = until("a report contains the call", SOON, reported).await;
    fleet.agent(&home).program.signal(Signal::TERM);
    until("the other VM takes its calls", SOON, async || {
        match Call::get("/f0").try_send(fleet.gateways[0].public()).await {
            Ok(answer) if answer.status == 200 => match fleet.gateways[0].vm(&home).await {
                Some(vm) if vm["standing"] == "ready" => Err("it still is ready".to_owned()),
                _ => Ok(()),
            },
            other => panic!("a call was lost: {other:?}"),
        }
    })
    .await;
    assert_eq!(long.piece().await.unwrap().unwrap(), "ended", "a running call ends in peace");
    let status = fleet.agent(&home).program.ended(SOON).await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn without_a_pass_an_agent_says_nothing() {
    let fleet = lent::one().await;
    let agent = fleet.agents[0].program.addresses()[0];
    for path in ["/v1/reports", "/v1/logs/f0", "/", "/f0"] {
        let answer = Call::get(path).header("x-epsilon-version", "f0@1").send(agent).await;
        assert_eq!(answer.status, 401, "{path}: {answer}");
    }
    let answer = Call::get("/healthz").send(agent).await;
    assert_eq!(answer.status, 200, "{answer}");
    let join = serde_json::json!({});
    let call = Call::post_json("/v1/fleet/join", &join)
        .header("authorization", "Bearer epsilon_fleet_000000000000_00");
    let answer = call.send(fleet.gateways[0].control()).await;
    assert_eq!(answer.status, 401, "{answer}");
}
