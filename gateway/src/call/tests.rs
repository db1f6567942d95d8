//! The retry loop, with more VMs than one machine has.

use super::*;
use crate::{
    call::place::InOrder,
    config::Settings,
    testing::{self, FakeVm, ok},
};
use epsilon_api::{
    ids::{FunctionName, RequestId},
    vm::Vm,
};
use http_body_util::BodyExt;
use prometheus::Registry;

/// `calls` over these VMs, and the one function that they know.
fn fleet(vms: &[&Arc<FakeVm>]) -> (Calls, Arc<Route>) {
    let config = Config::new(Settings::default(), "/data").unwrap();
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let versions = vec![testing::version("pay", 1)];
    let routes = Arc::new(Routes::new(versions, Arc::clone(&metrics)));
    let route = Arc::clone(routes.table().named("pay").unwrap());
    let fleet = Fleet::new(vms.iter().map(|vm| Arc::clone(*vm) as Arc<dyn Vm>));
    (Calls::new(&config, routes, Arc::new(fleet), Box::new(InOrder), metrics), route)
}

fn outgoing(route: &Route) -> Outgoing {
    let request = Request::post("/x").header("x-mine", "1").body(body::full("hello")).unwrap();
    Outgoing::new(Arc::clone(&route.version), RequestId::random(), request)
}

fn full(vm: &FakeVm) {
    vm.script("pay", |call| async move {
        Err(CallError::ConcurrencyLimit { function: call.version.function.clone(), limit: 1 })
    });
}

/// Answers with the body and a header that it saw.
fn echoes(vm: &FakeVm) {
    vm.script("pay", |call| async move {
        let mine = call.request.headers()["x-mine"].to_str().unwrap().to_owned();
        let body = call.request.into_body().collect().await.unwrap().to_bytes();
        ok(format!("{mine} {}", String::from_utf8_lossy(&body)))
    });
}

async fn text(result: Result<Answer, CallError>) -> String {
    match result {
        Ok(answer) => {
            let body = answer.response.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8_lossy(&body).into_owned()
        }
        Err(err) => err.verdict().code.to_owned(),
    }
}

#[tokio::test]
async fn a_full_vm_passes_the_whole_call_to_the_next() {
    let (a, b, c) = (FakeVm::new("a"), FakeVm::new("b"), FakeVm::new("c"));
    full(&a);
    full(&b);
    echoes(&c);
    let (calls, route) = fleet(&[&a, &b, &c]);
    assert_eq!(text(calls.relay(&route, outgoing(&route)).await).await, "1 hello");
}

#[tokio::test]
async fn when_all_are_full_the_last_answer_stands() {
    let (a, b) = (FakeVm::new("a"), FakeVm::new("b"));
    full(&a);
    full(&b);
    let (calls, route) = fleet(&[&a, &b]);
    assert_eq!(text(calls.relay(&route, outgoing(&route)).await).await, "CONCURRENCY_LIMIT");
}

#[tokio::test]
async fn a_call_that_may_have_run_is_never_sent_twice() {
    let (a, b) = (FakeVm::new("a"), FakeVm::new("b"));
    a.script("pay", |call| async move {
        let function = call.version.function.clone();
        Err(CallError::FunctionCrashed { function, cause: "gone".into() })
    });
    echoes(&b);
    let (calls, route) = fleet(&[&a, &b]);
    assert_eq!(text(calls.relay(&route, outgoing(&route)).await).await, "FUNCTION_CRASHED");
}

#[tokio::test]
async fn a_body_that_was_touched_is_never_sent_twice() {
    let (a, b) = (FakeVm::new("a"), FakeVm::new("b"));
    a.script("pay", |mut call| async move {
        call.request.body_mut().frame().await.unwrap().unwrap();
        let function: FunctionName = call.version.function.clone();
        Err(CallError::NoCapacity { function, cause: "changed its mind".into() })
    });
    echoes(&b);
    let (calls, route) = fleet(&[&a, &b]);
    assert_eq!(text(calls.relay(&route, outgoing(&route)).await).await, "NO_CAPACITY");
}

#[tokio::test]
async fn when_every_vm_drains_there_is_no_capacity() {
    let a = FakeVm::new("a");
    let (calls, route) = fleet(&[&a]);
    calls.fleet.members()[0].drain(true);
    assert_eq!(text(calls.relay(&route, outgoing(&route)).await).await, "NO_CAPACITY");
}
