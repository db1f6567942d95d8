//! A gateway and agents that join it over real sockets: joining, calls, loss of a VM, silence,
//! return, drains, orders.

use crate::{
    agent::Agent,
    fake::{self, answer, ok},
    tls,
    world::{TEST_TIMEOUT, World, eventually, patient, read_until},
};
use epsilon_api::{
    body,
    error::VmError,
    fleet::{Join, MemberKind, PROTOCOL},
    ids::VmId,
    units::{Bytes, MilliCores},
    vm::Call,
};
use epsilon_fleet_link::tls::Files;
use epsilon_gateway::config::Settings;
use epsilon_store::{Key, KeyRole, Member};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jiff::Timestamp;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Semaphore};

/// Each VM answers with its own id.
fn says_its_name(agent: &Agent, function: &str) {
    let name = agent.id.to_string();
    agent.vm.script(function, move |_| {
        let name = name.clone();
        async move { ok(name) }
    });
}

/// Answers with the path and body of the request.
async fn echo(call: Call) -> Result<epsilon_api::vm::Answer, VmError> {
    let headers = format!("{:?}", call.request.headers());
    assert!(!headers.contains("x-epsilon-"), "{headers}");
    let path = call.request.uri().to_string();
    let body = call.request.into_body().collect().await.unwrap().to_bytes();
    ok(format!("{path} {}", String::from_utf8_lossy(&body)))
}

#[tokio::test]
async fn a_joined_vm_learns_each_version_once() {
    let world = World::fleet(&["pay"]).await;
    let reply = world.get("/pay").await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (503, "NO_CAPACITY"));

    let agent = Agent::join("vm-a", &world).await;
    agent.vm.script("pay", echo);
    let reply = world.call(Method::POST, "/pay/x?y=1", "hello").await;
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "/x?y=1 hello"));
    assert!(reply.header("server-timing").contains("exec;dur=1.000"), "{reply:?}");
    assert_eq!(world.get("/pay").await.status, 200);
    assert_eq!(agent.orders(), ["PUT /v1/version pay@1"]);

    let vm = world.vm("vm-a").await.unwrap();
    assert_eq!(vm["address"], agent.address.to_string());
    assert!(vm["report_age_ms"].as_u64().unwrap() < 3000, "{vm}");
    let metrics = world.metrics();
    assert!(metrics.contains(r#"epsilon_vm_up{vm="vm-a"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"epsilon_vms{standing="ready"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"epsilon_vms{standing="out"} 0"#), "{metrics}");
}

#[tokio::test]
async fn a_restarted_agent_gets_versions_again() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.vm.script("pay", echo);
    assert_eq!(world.get("/pay").await.status, 200);
    agent.boot_again();
    let boot = || async { world.vm("vm-a").await.unwrap()["boot"].clone() };
    let before = boot().await;
    let began = Instant::now();
    while boot().await == before && began.elapsed() < Duration::from_secs(1) {}
    assert_eq!(world.get("/pay").await.status, 200);
    assert_eq!(agent.orders(), ["PUT /v1/version pay@1", "PUT /v1/version pay@1"]);
}

#[tokio::test]
async fn a_forgotten_version_is_announced_again() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    for agent in [&a, &b] {
        says_its_name(agent, "pay");
    }
    let home = world.get("/pay").await.body;
    let (home, next) = if home == "vm-a" { (&a, &b) } else { (&b, &a) };
    home.forget_silently();
    let reply = world.call(Method::POST, "/pay", "not lost").await;
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, next.id.as_str()));
    let seen_by =
        |agent: &Agent| agent.orders().iter().filter(|one| *one == "PUT /v1/version pay@1").count();
    let began = Instant::now();
    while seen_by(home) < 2 {
        assert_eq!(world.get("/pay").await.status, 200);
        assert!(began.elapsed() < TEST_TIMEOUT, "{:?}", home.orders());
    }
}

#[tokio::test]
async fn a_killed_vm_loses_only_its_running_calls() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    for agent in [&a, &b] {
        says_its_name(agent, "pay");
    }
    let home = if world.get("/pay").await.body == "vm-a" { &a } else { &b };
    let begun = Arc::new(AtomicUsize::new(0));
    let never = Arc::new(Semaphore::new(0));
    {
        let begun = Arc::clone(&begun);
        let never = Arc::clone(&never);
        home.vm.script("pay", move |_| {
            let begun = Arc::clone(&begun);
            let never = Arc::clone(&never);
            async move {
                begun.fetch_add(1, SeqCst);
                drop(never.acquire().await);
                ok("late")
            }
        });
    }
    // A GET would be retried on another VM; a POST must not run twice.
    let running = world.call(Method::POST, "/pay", "x");
    let killed = async {
        eventually(1, || begun.load(SeqCst)).await;
        home.kill().await;
        for _ in 0..20 {
            let reply = world.call(Method::POST, "/pay", "x").await;
            assert_eq!(reply.status, 200, "{reply:?}");
            assert_ne!(reply.body, home.id.as_str());
        }
    };
    let (lost, ()) = tokio::join!(running, killed);
    assert_eq!((lost.status.as_u16(), &*lost.code()), (502, "FUNCTION_CRASHED"));
    assert!(lost.body.contains("the VM that ran `pay` was lost"), "{}", lost.body);
    let began = Instant::now();
    world.wait_for_standing(home.id.as_str(), "out").await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(world.vm(home.id.as_str()).await.unwrap()["reason"], "refused");
    let up = format!(r#"epsilon_vm_up{{vm="{}"}} 0"#, home.id);
    assert!(world.metrics().contains(&up));
}

#[tokio::test]
async fn a_silent_vm_is_out_until_it_reports() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    for agent in [&a, &b] {
        says_its_name(agent, "pay");
    }
    let home = if world.get("/pay").await.body == "vm-a" { &a } else { &b };
    home.silence(true);
    let began = Instant::now();
    world.wait_for_standing(home.id.as_str(), "out").await;
    let took = began.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_ne!(world.get("/pay").await.body, home.id.as_str());
    home.silence(false);
    world.wait_for_standing(home.id.as_str(), "ready").await;
    assert_eq!(world.get("/pay").await.body, home.id.as_str());
}

#[tokio::test]
async fn a_vm_that_comes_back_elsewhere_takes_its_place() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.kill().await;
    world.wait_for_standing("vm-a", "out").await;
    let again = Agent::start("vm-a", &world, ([127, 0, 0, 1], 0).into(), None).await;
    assert_ne!(again.address, agent.address);
    says_its_name(&again, "pay");
    world.wait_for_standing("vm-a", "ready").await;
    let vm = world.vm("vm-a").await.unwrap();
    assert_eq!(vm["address"], again.address.to_string());
    assert_eq!(world.get("/pay").await.body, "vm-a");
}

#[tokio::test]
async fn a_leaving_vm_is_forgotten_when_gone() {
    let world = World::fleet(&["pay"]).await;
    let (leaves, stays) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    leaves.leave().await;
    let began = Instant::now();
    while world.vm("vm-a").await.is_some() {
        assert!(began.elapsed() < TEST_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(world.vm(stays.id.as_str()).await.is_some());
    assert!(!world.metrics().contains(r#"vm="vm-a""#), "its series are removed");
}

#[tokio::test]
async fn a_drain_reaches_the_agent_and_prewarms_others() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    for agent in [&a, &b] {
        says_its_name(agent, "pay");
    }
    let home = if world.get("/pay").await.body == "vm-a" { &a } else { &b };
    let other = if home.id == a.id { &b } else { &a };
    // The reports of the VM contain an instance of `pay`.
    home.vm.ready.lock().unwrap().push(fake::version("pay", 1).id());
    let id = home.id.as_str();
    let held = async || world.vm(id).await.unwrap()["instances"][0]["function"] == "pay";
    while !held().await {}

    let reply = world.ask(Method::POST, &format!("/v1/vms/{id}/drain"), "").await;
    assert_eq!(reply.json()["data"]["standing"], "draining", "{reply:?}");
    assert_eq!(world.get("/pay").await.body, other.id.as_str());
    eventually(true, || home.vm.draining.load(SeqCst)).await;
    eventually(true, || other.has_received("POST /v1/ready pay@1")).await;

    world.ask(Method::POST, &format!("/v1/vms/{id}/undrain"), "").await;
    eventually(false, || home.vm.draining.load(SeqCst)).await;
    world.wait_for_standing(id, "ready").await;
}

#[tokio::test]
async fn a_self_draining_vm_gets_no_new_calls() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    for agent in [&a, &b] {
        says_its_name(agent, "pay");
    }
    let home = if world.get("/pay").await.body == "vm-a" { &a } else { &b };
    home.vm.ready.lock().unwrap().push(fake::version("pay", 1).id());
    let other = if home.id == a.id { &b } else { &a };
    home.vm.draining.store(true, SeqCst);
    world.wait_for_standing(home.id.as_str(), "draining").await;
    assert_eq!(world.get("/pay").await.body, other.id.as_str());
    eventually(true, || other.has_received("POST /v1/ready pay@1")).await;
    assert!(
        world.store.draining().await.unwrap().is_empty(),
        "no drain is stored: only the VM decided it"
    );
}

#[tokio::test]
async fn a_returning_vm_retires_old_versions() {
    let world = World::fleet(&["pay"]).await;
    let first = Agent::join("vm-a", &world).await;
    let address = first.address;
    first.kill().await;
    world.wait_for_standing("vm-a", "out").await;
    let reply = world.ask(Method::DELETE, "/v1/functions/pay", "").await;
    assert_eq!(reply.status, 200);
    let again = Agent::start("vm-a", &world, address, None).await;
    eventually(true, || again.has_received("POST /v1/retire pay@1")).await;
}

#[tokio::test]
async fn a_deployment_starts_versions_on_joined_vms() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.vm.script("pay", echo);
    let events = world.deploy("shop", &[("pay", "2")]).await;
    assert!(
        matches!(events.last(), Some(epsilon_api::admin::DeployEvent::Done { .. })),
        "{events:?}"
    );
    assert!(agent.has_received("POST /v1/ready pay@2"), "{:?}", agent.orders());
    eventually(true, || agent.has_received("POST /v1/retire pay@1")).await;
    assert_eq!(world.get("/pay").await.status, 200);
    // The start had already announced the version.
    assert!(!agent.has_received("PUT /v1/version pay@2"));

    agent.vm.broken.lock().unwrap().insert("pay".into(), "Error: no key".into());
    let events = world.deploy("shop", &[("pay", "3")]).await;
    let last = format!("{:?}", events.last());
    assert!(last.contains("FUNCTION_INIT_FAILED") && last.contains("no key"), "{last}");
}

#[tokio::test]
async fn logs_of_all_vms_come_over_the_wire() {
    let world = World::fleet(&["pay"]).await;
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    a.vm.log.lock().unwrap().push(fake::line("pay", Some("12345678"), "from a"));
    b.vm.log.lock().unwrap().push(fake::line("pay", None, "from b"));
    let path = "/v1/functions/pay/logs?request_id=12345678&tail=7";
    let reply = world.ask(Method::GET, path, "").await;
    assert!(reply.body.contains("from a") && reply.body.contains("from b"), "{reply:?}");
    let request = "GET /v1/logs/pay follow=false&request_id=12345678&tail=7";
    assert!(a.has_received(request), "{:?}", a.orders());
    assert!(reply.body.contains(r#""vm":"vm-a""#), "{reply:?}");
    let back = format!("{path}&after=vm-b:3-512&after=vm-c:1-2");
    assert_eq!(world.ask(Method::GET, &back, "").await.status, StatusCode::OK);
    assert!(b.has_received(&format!("{request}&after=3-512")), "{:?}", b.orders());
    assert!(!a.orders().concat().contains("after"), "{:?}", a.orders());
    b.kill().await;
    assert!(world.ask(Method::GET, path, "").await.body.contains("from a"));
}

#[tokio::test]
async fn followed_logs_keep_their_position_across_vm_changes() {
    let world = World::fleet(&["pay"]).await;
    let a = Agent::join("vm-a", &world).await;
    let mut line = fake::line("pay", None, "one");
    line.position = Some("3-512".parse().unwrap());
    a.vm.log.lock().unwrap().push(line);
    let request = world
        .control_request(Method::GET, "/v1/functions/pay/logs?follow=true&after=vm-b:7-8")
        .header("authorization", format!("Bearer {}", world.key))
        .body(body::empty())
        .unwrap();
    let client: Client<_, body::CallBody> = Client::builder(TokioExecutor::new()).build_http();
    let mut response = patient(client.request(request)).await.unwrap();
    let first = patient(response.body_mut().frame()).await.unwrap().unwrap();
    let first = String::from_utf8_lossy(first.data_ref().unwrap()).into_owned();
    assert!(first.contains(r#""vm":"vm-a","position":"3-512""#), "{first}");

    let b = Agent::join("vm-b", &world).await;
    eventually(true, || b.has_received("GET /v1/logs/pay follow=true&after=7-8")).await;
    a.kill().await;
    let a = Agent::join("vm-a", &world).await;
    eventually(true, || a.has_received("GET /v1/logs/pay follow=true&after=3-512")).await;
}

#[tokio::test]
async fn an_upgrade_passes_both_hops() {
    let world = World::fleet(&["chat"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.vm.script("chat", |_| async {
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "shout");
        Ok(answer(response.body(body::empty()).unwrap()))
    });
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "\r\n\r\n").await;
    assert!(seen.starts_with("HTTP/1.1 101 "), "{seen}");
    for word in ["hello", "there"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, &word.to_uppercase()).await;
    }
    drop(stream);
    eventually(0, || world.running().calls()).await;
}

#[tokio::test]
async fn a_body_streams_through_while_it_is_sent() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent
        .vm
        .script("pay", |call| async move { Ok(answer(Response::new(call.request.into_body()))) });
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "POST /pay HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for word in ["first", "other"] {
        stream.write_all(format!("5\r\n{word}\r\n").as_bytes()).await.unwrap();
        read_until(&mut stream, word).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
}

#[tokio::test]
async fn the_vm_notices_a_caller_hanging_up() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.vm.script("pay", |_| std::future::pending());
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(b"GET /pay HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    eventually(1, || agent.vm.active()).await;
    drop(stream);
    eventually(0, || agent.vm.active()).await;
}

#[tokio::test]
async fn concurrent_calls_announce_their_version_once() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    says_its_name(&agent, "pay");
    agent.slow_orders(Duration::from_millis(200));
    let replies = futures_util::future::join_all((0..20).map(|_| world.get("/pay"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(agent.orders(), ["PUT /v1/version pay@1"]);
}

#[tokio::test]
async fn calls_waiting_for_an_announcement_fail_together() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    agent.slow_orders(Duration::from_millis(200));
    agent.refuse_orders(true);
    let replies = futures_util::future::join_all((0..20).map(|_| world.get("/pay"))).await;
    assert!(replies.iter().all(|reply| reply.status == 503), "{replies:?}");
    let requests = agent.orders().len();
    // A request after the failure tries again, with all the attempts of a call.
    assert!(requests <= 4, "{requests} times");
}

#[tokio::test]
async fn a_connection_with_refused_upload_is_not_reused() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    // Reads on after the answer, as an agent does.
    agent.vm.script("pay", move |call| {
        tokio::spawn(call.request.into_body().collect());
        let function = fake::version("pay", 1).function;
        async { Err(VmError::ConcurrencyLimit { function, limit: 1 }) }
    });
    assert_eq!(world.get("/pay").await.status, 429);
    let before = agent.connections();
    let mut slow = TcpStream::connect(world.public).await.unwrap();
    // Large enough that the call starts before the whole body has arrived.
    let head = "POST /pay HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    slow.write_all(format!("{head}{}", "x".repeat(300_000)).as_bytes()).await.unwrap();
    read_until(&mut slow, "429").await;
    eventually(before - 1, || agent.connections()).await;
    assert_eq!(world.get("/pay").await.status, 429);
}

#[tokio::test]
async fn connections_to_a_vm_are_reused() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    says_its_name(&agent, "pay");
    let before = agent.connections();
    for _ in 0..50 {
        assert_eq!(world.call(Method::POST, "/pay", "x").await.status, 200);
    }
    assert!(agent.connections() <= before + 2, "{before} → {}", agent.connections());
}

struct FleetApi<'a>(&'a World);

impl FleetApi<'_> {
    async fn ask(&self, key: &str, verb: &str, body: &str) -> (u16, String) {
        let path = format!("/v1/fleet/{verb}");
        let reply = self.0.ask_with(&format!("Bearer {key}"), Method::POST, &path, body).await;
        let code = reply.status.as_u16();
        (code, if code < 300 { String::new() } else { reply.code() })
    }

    fn token(&self) -> String {
        self.token_of(MemberKind::Vm)
    }

    fn token_of(&self, kind: MemberKind) -> String {
        let file = self.0.dir.path().join(kind.token_file());
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }
}

fn join(id: &str, address: &str) -> Join {
    Join {
        protocol: PROTOCOL,
        kind: MemberKind::Vm,
        id: VmId::parse(id).unwrap(),
        address: address.to_owned(),
        tls: false,
        memory_bytes: Bytes::mib(1),
        cpu: MilliCores::ONE,
    }
}

fn text(join: &Join) -> String {
    serde_json::to_string(join).unwrap()
}

#[tokio::test]
async fn who_may_join_and_what_is_said_to_others() {
    let world = World::fleet(&[]).await;
    let api = FleetApi(&world);
    let token = api.token();
    let good = text(&join("vm-x", "127.0.0.1:9"));
    let refused = |code: u16, text: &str| (code, text.to_owned());

    for key in ["", "nonsense", world.key.as_str()] {
        assert_eq!(api.ask(key, "join", &good).await, refused(401, "UNAUTHORIZED"), "{key}");
        assert_eq!(api.ask(key, "beat", &good).await, refused(401, "UNAUTHORIZED"), "{key}");
        assert_eq!(api.ask(key, "leave", "").await, refused(401, "UNAUTHORIZED"), "{key}");
    }
    assert_eq!(api.ask(&token, "beat", &good).await, refused(401, "UNAUTHORIZED"));

    for (other, code) in [(PROTOCOL + 1, 409), (0, 409)] {
        let odd = Join { protocol: other, ..join("vm-x", "127.0.0.1:9") };
        assert_eq!(api.ask(&token, "join", &text(&odd)).await, refused(code, "PROTOCOL_MISMATCH"));
    }
    for address in ["", "127.0.0.1", ":8082", "host:port", "127.0.0.1:0"] {
        let odd = text(&join("vm-x", address));
        assert_eq!(api.ask(&token, "join", &odd).await, refused(422, "INVALID_BODY"), "{address}");
    }
    let odd = good.replace("\"tls\"", "\"tsl\"");
    assert_eq!(api.ask(&token, "join", &odd).await, refused(422, "UNKNOWN_FIELD"));
    assert!(world.store.members().await.unwrap().is_empty(), "none of these joined");
}

#[tokio::test]
async fn a_credential_belongs_to_one_member() {
    let world = World::fleet(&[]).await;
    let api = FleetApi(&world);
    let (a, b) = (Agent::join("vm-a", &world).await, Agent::join("vm-b", &world).await);
    let me = |agent: &Agent| text(&join(agent.id.as_str(), &agent.address.to_string()));
    assert_eq!(api.ask(&a.credential(), "beat", &me(&a)).await.0, 200);
    assert_eq!(api.ask(&a.credential(), "beat", &me(&b)).await.0, 401, "another's");
    let moved = text(&join("vm-a", "127.0.0.1:9"));
    assert_eq!(
        api.ask(&a.credential(), "beat", &moved).await.0,
        401,
        "a new address requires joining again"
    );
    let key = format!("Bearer {}", a.credential());
    let reply = world.ask_with(&key, Method::GET, "/v1/vms", "").await;
    assert_eq!(reply.status, 401, "a VM's credential is no admin key");

    let credential = a.credential();
    assert_eq!(api.ask(&credential, "leave", "").await.0, 204);
    assert_eq!(api.ask(&credential, "beat", &me(&a)).await.0, 401);
}

#[tokio::test]
async fn two_machines_cannot_have_one_id() {
    let world = World::fleet(&[]).await;
    let agent = Agent::join("vm-a", &world).await;
    let api = FleetApi(&world);
    let copy = text(&join("vm-a", "127.0.0.1:9"));
    assert_eq!(api.ask(&api.token(), "join", &copy).await, (409, "ID_TAKEN".to_owned()));
    agent.kill().await;
    world.wait_for_standing("vm-a", "out").await;
    let began = Instant::now();
    while api.ask(&api.token(), "join", &copy).await.0 != 200 {
        assert!(began.elapsed() < TEST_TIMEOUT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn member_ids_are_unique_across_kinds() {
    let world = World::fleet(&[]).await;
    let api = FleetApi(&world);
    let token = api.token_of(MemberKind::Builder);
    let builder =
        |id: &str, address: &str| text(&Join { kind: MemberKind::Builder, ..join(id, address) });
    let taken = (409, "ID_TAKEN".to_owned());
    assert_eq!(api.ask(&token, "join", &builder("b", "127.0.0.1:9")).await.0, 200);
    assert_eq!(api.ask(&token, "join", &builder("b", "127.0.0.1:10")).await, taken);
    assert_eq!(api.ask(&api.token(), "join", &text(&join("b", "127.0.0.1:9"))).await, taken);
    assert_eq!(api.ask(&token, "join", &builder("b", "127.0.0.1:9")).await.0, 200, "again");
    let agent = Agent::join("vm-a", &world).await;
    assert_eq!(api.ask(&token, "join", &builder("vm-a", "127.0.0.1:9")).await, taken);
    let same_place = builder("vm-a", &agent.address.to_string());
    assert_eq!(api.ask(&token, "join", &same_place).await, taken);
}

#[tokio::test]
async fn slow_clients_and_strangers_block_no_joins() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::world::open(&folder).await;
    let mut settings = Settings::default();
    settings.limits.max_joining = 1;
    let world = World::gateway(store, &[], settings).await;
    let api = FleetApi(&world);
    let mut slow = TcpStream::connect(world.control).await.unwrap();
    let head = format!(
        "POST /v1/fleet/join HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n",
        api.token()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut slow, "100 Continue").await; // accepted, and the gateway waits for the body
    let good = text(&join("vm-x", "127.0.0.1:9"));
    assert_eq!(api.ask("nonsense", "join", &good).await, (401, "UNAUTHORIZED".to_owned()));
    assert_eq!(api.ask(&api.token(), "join", &good).await.0, 200);
}

#[tokio::test]
async fn with_certificates_all_of_it_goes_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = tls::certificates(folder.path());
    let store = crate::world::open(&folder).await;
    let world = World::gateway(store, &["pay"], tls::settings(&files)).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let agent = Agent::start("vm-a", &world, any, Some(&files)).await;
    agent.vm.script("pay", echo);
    // Plain HTTP is allowed from this machine.
    world.wait_for_standing("vm-a", "ready").await;
    for _ in 0..2 {
        assert_eq!(world.call(Method::POST, "/pay/x", "hello").await.body, "/x hello");
    }
    let plain = patient(TcpStream::connect(agent.address)).await;
    assert!(plain.is_ok(), "the port is open, but for TLS only");
}

/// The health answers of both listeners without a key.
async fn health(world: &World) -> [(u16, serde_json::Value); 2] {
    let (public, control) =
        (world.get("/").await, world.ask_with("", Method::GET, "/healthz", "").await);
    [public, control].map(|reply| (reply.status.as_u16(), reply.json()["data"].clone()))
}

#[tokio::test]
async fn load_balancers_learn_of_an_ended_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let files = tls::certificates(folder.path());
    let path = folder.path().join("epsilon.db");
    let open = async || epsilon_store::open(path.to_str().unwrap()).await.unwrap();
    let one = World::gateway(open().await, &["pay"], tls::settings(&files)).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let _agent = Agent::start("vm-a", &one, any, Some(&files)).await;
    one.wait_for_standing("vm-a", "ready").await;
    let healthy = health(&one).await;
    assert_eq!((healthy[0].0, &healthy[0].1), (200, &serde_json::json!({"status": "ok"})));
    assert_eq!(healthy[1].1["vms"], serde_json::json!({"known": 1, "heard": 1}));

    let ended = Files { certificate: folder.path().join("ended.pem"), ..files };
    let two = World::gateway(open().await, &[], tls::settings(&ended)).await;
    let reports = health(&two).await;
    for ((status, data), want) in reports.iter().zip([503, 200]) {
        assert_eq!((*status, &data["status"]), (want, &"unavailable".into()), "{data}");
        assert_eq!(data["reason"], "a certificate of this gateway has expired");
        assert!(!data.to_string().contains("127.0.0.1"), "{data}");
    }
    assert_eq!(reports[1].1["vms"], serde_json::json!({"known": 1, "heard": 0}));
    // The cause is shown to the holder of the key.
    let vm = two.vm("vm-a").await.unwrap();
    assert_eq!(vm["standing"], "starting");
    let cause = vm["cause"].as_str().unwrap();
    assert!(cause.contains("our certificate has expired"), "{vm}");
}

#[tokio::test]
async fn a_gateway_without_reports_is_unavailable() {
    let world = World::fleet(&["pay"]).await;
    assert_eq!(health(&world).await[1].1["status"], "ok", "a fleet may start without a VM");
    let api = FleetApi(&world);
    let gone = text(&join("vm-gone", "127.0.0.1:9"));
    assert_eq!(api.ask(&api.token(), "join", &gone).await.0, 200);
    let began = Instant::now();
    loop {
        let [public, control] = health(&world).await;
        if (public.0, control.0) == (503, 200) {
            assert_eq!(control.1["status"], "unavailable");
            break;
        }
        assert!(began.elapsed() < TEST_TIMEOUT, "{public:?} {control:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let vm = world.vm("vm-gone").await.unwrap();
    assert_eq!(
        (&vm["standing"], &vm["cause"]),
        (&"starting".into(), &"no process listens at its address".into())
    );
    let _agent = Agent::join("vm-a", &world).await;
    let [public, control] = health(&world).await;
    assert_eq!((public.0, control.0), (200, 200));
    assert_eq!(control.1["vms"], serde_json::json!({"known": 2, "heard": 1}));
}

#[tokio::test]
async fn plain_http_is_accepted_only_from_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let files = tls::certificates(folder.path());
    let store = crate::world::open(&folder).await;
    // A VM that joined before TLS was configured.
    let early = join("vm-early", "192.0.2.7:8082");
    let now = Timestamp::now();
    let role = KeyRole::Member(early.id.clone());
    let key = Key { id: "0".into(), role, hash: "none".into(), created_at: now };
    store.join(&Member { join: early, joined_at: now, seen_at: now }, &key).await.unwrap();
    let world = World::gateway(store, &[], tls::settings(&files)).await;
    let api = FleetApi(&world);
    let refused = (409, "TLS_REQUIRED".to_owned());
    for address in ["192.0.2.7:8082", "gateway.internal:8082", "[2001:db8::1]:8082"] {
        let plain = text(&join("vm-x", address));
        assert_eq!(api.ask(&api.token(), "join", &plain).await, refused, "{address}");
        let secure = text(&Join { tls: true, ..join("vm-x", address) });
        assert_eq!(api.ask(&api.token(), "join", &secure).await.0, 200, "{address}");
    }
    for address in ["127.0.0.1:9", "[::1]:9"] {
        let here = text(&join("vm-y", address));
        assert_eq!(api.ask(&api.token(), "join", &here).await.0, 200, "{address}");
    }
    while world.vm("vm-y").await.is_none() {}
    assert!(world.vm("vm-early").await.is_none(), "the gateway no longer connects to it");
}

#[tokio::test]
async fn a_vm_requiring_tls_is_unusable_without_it() {
    let world = World::fleet(&[]).await;
    let api = FleetApi(&world);
    let secure = Join { tls: true, ..join("vm-a", "127.0.0.1:9") };
    assert_eq!(api.ask(&api.token(), "join", &text(&secure)).await.0, 200);
    let _heard = Agent::join("vm-b", &world).await;
    assert!(world.vm("vm-a").await.is_none());
}

/// The scripted agent is a `Vm` like the others: the errors that the gateway's own tests prove for
/// a VM in the same process are the same for one on another machine.
#[tokio::test]
async fn errors_keep_their_meaning_over_the_wire() {
    let world = World::fleet(&["pay"]).await;
    let agent = Agent::join("vm-a", &world).await;
    let function = || fake::version("pay", 1).function;
    type Make = fn(epsilon_api::ids::FunctionName) -> VmError;
    let rows: [(Make, u16, &str); 5] = [
        (|function| VmError::FunctionError { function }, 500, "FUNCTION_ERROR"),
        (|function| VmError::ConcurrencyLimit { function, limit: 3 }, 429, "CONCURRENCY_LIMIT"),
        (|function| VmError::NoCapacity { function, cause: "full".into() }, 503, "NO_CAPACITY"),
        (
            |function| VmError::InitFailed { function, detail: "boom".into() },
            502,
            "FUNCTION_INIT_FAILED",
        ),
        (
            |function| VmError::FunctionTimeout { function, timeout: Duration::from_secs(60) },
            504,
            "FUNCTION_TIMEOUT",
        ),
    ];
    for (make, status, code) in rows {
        let function = function();
        agent.vm.script("pay", move |_| {
            let function = function.clone();
            async move { Err(make(function)) }
        });
        let reply = world.call(Method::POST, "/pay", "x").await;
        assert_eq!((reply.status.as_u16(), &*reply.code()), (status, code));
    }
}
