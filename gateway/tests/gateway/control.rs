//! The control API from outside: authentication, errors, and the format of its answers.

use crate::{
    fake::line,
    world::{World, own_address, patient, read, read_to_close},
};
use epsilon_api::{body, ids::GatewayId, units};
use epsilon_gateway::{
    app::App,
    config::{Config, Settings},
};
use epsilon_store::{Gateway, Key, KeyRole};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Snapshot of an answer; values that differ from run to run are replaced.
macro_rules! golden {
    ($reply:expr) => {
        let mut value = $reply.json();
        blot(&mut value);
        insta::assert_json_snapshot!(value);
    };
}

fn blot(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "created_at" | "ended_at" | "updated_at" if value.is_string() => {
                        *value = "[time]".into();
                    }
                    "deployment" | "id" | "request_id" | "url"
                        if value.is_string() && value != "vm-1" && value != "0123456789ab" =>
                    {
                        *value = format!("[{name}]").into();
                    }
                    _ => blot(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blot),
        _ => {}
    }
}

const PATHS: [(&str, &str); 17] = [
    ("GET", "/v1/functions"),
    ("GET", "/v1/functions/hello"),
    ("DELETE", "/v1/functions/hello"),
    ("GET", "/v1/functions/hello/versions"),
    ("POST", "/v1/functions/hello/rollback"),
    ("GET", "/v1/functions/hello/traffic"),
    ("POST", "/v1/functions/hello/traffic"),
    ("POST", "/v1/functions/hello/promote"),
    ("GET", "/v1/functions/hello/logs"),
    ("GET", "/v1/deployments"),
    ("POST", "/v1/deployments"),
    ("GET", "/v1/vms"),
    ("GET", "/v1/builders"),
    ("GET", "/v1/keys"),
    ("DELETE", "/v1/keys/0123456789ab"),
    ("POST", "/v1/vms/vm-1/drain"),
    ("POST", "/v1/vms/vm-1/undrain"),
];

#[tokio::test]
async fn every_control_path_requires_the_key() {
    let world = World::with(&["hello"]).await;
    let fleet = std::fs::read_to_string(world.dir.path().join("fleet.token")).unwrap();
    let wrong_secret = format!("Bearer {}0", &world.key[..world.key.len() - 1]);
    let basic = format!("Basic {}", world.key);
    let fleet = format!("Bearer {}", fleet.trim());
    for (method, path) in PATHS {
        for key in ["", "Bearer", "Bearer x", &wrong_secret, &basic, &fleet] {
            if key == format!("Bearer {}", world.key) {
                continue; // the last digit happened to be 0
            }
            let method = method.parse().unwrap();
            let reply = world.ask_with(key, method, path, "").await;
            assert_eq!((reply.status.as_u16(), &*reply.code()), (401, "UNAUTHORIZED"), "{path}");
        }
    }
    assert_eq!(
        world.get("/v1/functions").await.status,
        404,
        "the public listener has no control API"
    );
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_right_ones() {
    let world = World::with(&["hello"]).await;
    let reply = world.ask(Method::PUT, "/v1/deployments", "").await;
    assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, "GET,HEAD,POST"));
}

#[tokio::test]
async fn health_metrics_and_the_document_are_open() {
    let world = World::with(&["hello"]).await;
    for path in ["/healthz", "/metrics", "/v1/openapi.json"] {
        assert_eq!(world.ask_with("", Method::GET, path, "").await.status, 200, "{path}");
    }
    let metrics = world.ask_with("", Method::GET, "/metrics", "").await;
    assert!(metrics.body.contains("epsilon_functions 1"));
}

#[tokio::test]
async fn remote_metrics_need_the_key_but_health_not() {
    let control = SocketAddr::new(own_address(), 0);
    let world = World::start(&["hello"], Settings { control, ..Settings::default() }).await;
    let key = format!("Bearer {}", world.key);
    let get = async |key: &str, path: &str| {
        world.ask_with(key, Method::GET, path, "").await.status.as_u16()
    };
    assert_eq!(get("", "/healthz").await, 200);
    assert_eq!((get("", "/metrics").await, get("Bearer x", "/metrics").await), (401, 401));
    assert_eq!(get(&key, "/metrics").await, 200);
}

/// The header by which clients recognize a gateway before they send a key; a function cannot set
/// it.
#[tokio::test]
async fn the_control_listener_shows_itself_and_no_function_can() {
    let world = World::with(&["hello"]).await;
    for (key, path) in [("", "/healthz"), ("", "/v1/functions"), ("", "/nothing")] {
        let reply = world.ask_with(key, Method::GET, path, "").await;
        assert_eq!(reply.header("x-epsilon-listener"), "control", "{path}");
    }
    world.vm.script("hello", |_| async {
        let answer = Response::builder().header("x-epsilon-listener", "control");
        Ok(crate::fake::answer(answer.body(epsilon_api::body::full("mine")).unwrap()))
    });
    let reply = world.get("/hello").await;
    assert_eq!((reply.body.as_str(), reply.header("x-epsilon-listener")), ("mine", ""));
    assert_eq!(world.get("/healthz").await.header("x-epsilon-listener"), "");
}

/// The answers of `epsilon up` while it builds the runtime base.
#[tokio::test]
async fn a_starting_gateway_reports_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let settings = Settings { listen: any, control: any, ..Settings::default() };
    let build = async || {
        let config = Config::new(settings.clone(), dir.path()).unwrap();
        let store = crate::world::open(&dir).await;
        App::build(config, store, None, None, &Registry::new()).await.unwrap()
    };
    let ask = async |app: SocketAddr, path: &str| {
        let client: Client<_, body::CallBody> = Client::builder(TokioExecutor::new()).build_http();
        let request = http::Request::get(format!("http://{app}{path}")).body(body::empty());
        patient(client.request(request.unwrap())).await
    };
    let mut app = build().await;
    let control = app.control_addr();
    app.open_control().step("making the runtime base, Node 24");
    let health = read(ask(control, "/healthz").await.unwrap()).await;
    assert_eq!((health.status.as_u16(), health.header("x-epsilon-listener")), (503, "control"));
    assert_eq!(health.json()["data"]["step"], "making the runtime base, Node 24");
    let other = read(ask(control, "/v1/functions").await.unwrap()).await;
    assert_eq!((other.status.as_u16(), other.code().as_str()), (503, "STARTING"));
    assert!(other.body.contains("Node 24") && other.header("retry-after") == "2", "{other:?}");
    let running = app.spawn();
    assert_eq!(ask(control, "/healthz").await.unwrap().status(), 200);
    running.drain(Duration::ZERO).await;

    // A gateway that is dropped closes its listener.
    let mut app = build().await;
    let control = app.control_addr();
    app.open_control();
    drop(app);
    let began = std::time::Instant::now();
    while TcpStream::connect(control).await.is_ok() {
        assert!(began.elapsed() < crate::world::TEST_TIMEOUT);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn keys_are_private_and_survive_a_restart() {
    let world = World::with(&[]).await;
    for file in ["admin.key", "fleet.token", "builder.token"] {
        let mode = std::fs::metadata(world.dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let key = world.key.clone();
    let world = world.restarted().await;
    assert_eq!(world.key, key);
    assert_eq!(world.ask(Method::GET, "/v1/functions", "").await.status, 200);
}

#[tokio::test]
async fn invalid_requests_get_helpful_errors() {
    let world = World::with(&["hello"]).await;
    for (method, path, text, status, code, hint) in [
        ("GET", "/v1/function", "", 404, "NOT_FOUND", "openapi"),
        ("GET", "/", "", 404, "NOT_FOUND", "openapi"),
        ("PUT", "/v1/functions", "", 405, "METHOD_NOT_ALLOWED", "openapi"),
        ("POST", "/v1/functions/hello", "", 405, "METHOD_NOT_ALLOWED", "openapi"),
        ("GET", "/v1/functions?limt=1", "", 422, "UNKNOWN_PARAMETER", "`limit`"),
        ("GET", "/v1/functions?limit=0", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/functions?limit=x", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/functions?limit=1&limit=2", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/deployments?cursor=x", "", 422, "INVALID_PARAMETER", "next_cursor"),
        ("GET", "/v1/functions/missing", "", 404, "FUNCTION_NOT_FOUND", "epsilon functions"),
        ("GET", "/v1/functions/__proto__", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/functions/%ff", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/functions/missing/logs", "", 404, "FUNCTION_NOT_FOUND", ""),
        ("GET", "/v1/functions/missing/versions", "", 404, "FUNCTION_NOT_FOUND", ""),
        ("GET", "/v1/functions/hello/logs?follow=yes", "", 422, "INVALID_PARAMETER", ""),
        ("GET", "/v1/functions/hello/logs?after=vm-1", "", 422, "INVALID_PARAMETER", ""),
        ("DELETE", "/v1/functions/missing", "", 404, "FUNCTION_NOT_FOUND", ""),
        ("GET", "/v1/deployments/d-0000000000000009", "", 404, "DEPLOYMENT_NOT_FOUND", ""),
        ("GET", "/v1/deployments/9", "", 422, "INVALID_PARAMETER", ""),
        ("POST", "/v1/deployments?ony=hello", "x", 422, "UNKNOWN_PARAMETER", "`only`"),
        ("POST", "/v1/deployments?only=1st", "x", 422, "INVALID_PARAMETER", ""),
        ("POST", "/v1/functions/hello/rollback", "", 409, "NO_OLDER_VERSION", "version"),
        (
            "POST",
            "/v1/functions/hello/rollback",
            r#"{"version":9}"#,
            404,
            "VERSION_NOT_FOUND",
            "epsilon versions hello",
        ),
        (
            "POST",
            "/v1/functions/hello/rollback",
            r#"{"versoin":1}"#,
            422,
            "UNKNOWN_FIELD",
            "`version`",
        ),
        ("POST", "/v1/functions/hello/rollback", r#"{"version":0}"#, 422, "INVALID_BODY", ""),
        ("POST", "/v1/functions/hello/rollback", "[1]", 422, "INVALID_BODY", ""),
        ("POST", "/v1/functions/hello/rollback", "{", 422, "INVALID_BODY", ""),
        ("POST", "/v1/vms/vm-2/drain", "", 404, "VM_NOT_FOUND", "`vm-1`"),
    ] {
        let reply = world.ask(method.parse().unwrap(), path, text).await;
        assert_eq!(
            (reply.status.as_u16(), &*reply.code()),
            (status, code),
            "{method} {path} {text}"
        );
        let given = reply.json()["error"]["hint"].as_str().unwrap_or_default().to_owned();
        assert!(given.contains(hint), "{method} {path}: {given:?}");
    }
    let reply = world.ask(Method::POST, "/v1/functions/hello/rollback", &"x".repeat(70_000)).await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (413, "BODY_TOO_LARGE"));
}

#[tokio::test]
async fn an_archive_over_the_limit_is_413() {
    let settings = Settings { max_source: units::Bytes(10), ..Settings::default() };
    let world = World::start(&[], settings).await;
    let reply = world.ask(Method::POST, "/v1/deployments", &"x".repeat(1 << 20)).await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (413, "BODY_TOO_LARGE"));
    assert_eq!(world.builder.begun(), 0);
}

/// A refused client can read the reason, also if it sends the whole of a large archive first.
#[tokio::test]
async fn a_sender_of_a_refused_archive_reads_the_reason() {
    let settings = Settings { max_source: units::Bytes::mib(8), ..Settings::default() };
    let world = World::start(&["hello"], settings).await;
    let big = "x".repeat(32 << 20);
    let key = format!("Bearer {}", world.key);
    for (key, path, status) in [
        ("Bearer wrong", "/v1/deployments", 401),
        (&*key, "/v1/deployments", 413),
        (&*key, "/v1/deployments?ony=x", 422),
        (&*key, "/v1/nowhere", 404),
        (&*key, "/v1/functions/hello/rollback", 413),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: {key}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            big.len()
        );
        let mut caller = TcpStream::connect(world.control).await.unwrap();
        caller.write_all(head.as_bytes()).await.unwrap();
        patient(caller.write_all(big.as_bytes())).await.unwrap();
        let answer = read_to_close(&mut caller).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn without_a_builder_there_are_no_deployments() {
    let world = World::with(&["hello"]).await;
    let dir = Arc::clone(&world.dir);
    let store = Arc::clone(&world.store);
    drop(world);
    let world = World::on(dir, store, Settings::default(), false).await;
    let reply = world.ask(Method::POST, "/v1/deployments", "x").await;
    assert_eq!((reply.status.as_u16(), &*reply.code()), (503, "NO_BUILDER"));
    assert_eq!(world.ask(Method::GET, "/v1/functions/hello", "").await.status, 200);
}

#[tokio::test]
async fn golden_list_of_functions() {
    let world = World::with(&["hello", "sendMail"]).await;
    golden!(world.ask(Method::GET, "/v1/functions?limit=1", "").await);
}

#[tokio::test]
async fn golden_function() {
    let world = World::with(&["hello"]).await;
    world.deploy("shop", &[("hello", "2")]).await;
    golden!(world.ask(Method::GET, "/v1/functions/hello", "").await);
}

#[tokio::test]
async fn golden_versions() {
    let world = World::with(&["hello"]).await;
    world.deploy("shop", &[("hello", "2")]).await;
    golden!(world.ask(Method::GET, "/v1/functions/hello/versions", "").await);
}

#[tokio::test]
async fn golden_deployments() {
    let world = World::with(&["hello"]).await;
    world.vm.broken.lock().unwrap().insert("pay".into(), "Error: no key\n  at pay.js:1".into());
    world.deploy("shop", &[("hello", "1"), ("pay", "1")]).await;
    golden!(world.ask(Method::GET, "/v1/deployments", "").await);
}

#[tokio::test]
async fn golden_vms() {
    let world = World::with(&[]).await;
    world.deploy("shop", &[("hello", "1")]).await;
    world.ask(Method::POST, "/v1/vms/vm-1/drain", "").await;
    let mut reply = world.ask(Method::GET, "/v1/vms", "").await;
    reply.body = reply.body.replace("1970-01-01T00:00:00Z", "[time]");
    let vm = &reply.json()["data"][0];
    assert!(vm["report_age_ms"].as_u64().unwrap() < 20_000, "{vm}");
    let (since, age) = (vm["since"].to_string(), vm["report_age_ms"].to_string());
    reply.body = reply.body.replace(&since, "\"[time]\"");
    reply.body = reply.body.replace(&format!("ms\":{age}"), "ms\":0");
    golden!(reply);
}

#[tokio::test]
async fn golden_error() {
    let world = World::with(&[]).await;
    golden!(world.ask(Method::GET, "/v1/functions/missing", "").await);
}

#[tokio::test]
async fn lists_go_on_where_they_ended() {
    let world = World::with(&["a", "b", "c"]).await;
    let first = world.ask(Method::GET, "/v1/functions?limit=2", "").await.json();
    assert_eq!(first["pagination"]["has_more"], true);
    let cursor = first["pagination"]["next_cursor"].as_str().unwrap();
    let next = world.ask(Method::GET, &format!("/v1/functions?limit=2&cursor={cursor}"), "").await;
    assert_eq!(next.json()["data"][0]["name"], "c");
    assert_eq!(next.json()["pagination"]["has_more"], false);
}

#[tokio::test]
async fn a_log_is_one_record_per_line() {
    let world = World::with(&["hello"]).await;
    *world.vm.log.lock().unwrap() = vec![
        line("hello", Some("call-0001"), "one"),
        line("other", None, "not ours"),
        line("hello", Some("call-0002"), "two"),
        line("hello", None, "three"),
    ];
    let messages = async |query: &str| {
        let reply = world.ask(Method::GET, &format!("/v1/functions/hello/logs{query}"), "").await;
        assert_eq!(reply.header("content-type"), "application/x-ndjson");
        let text = |line| serde_json::from_str::<Value>(line).unwrap()["message"].to_string();
        reply.body.lines().map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(messages("").await, r#""one" "two" "three""#);
    assert_eq!(messages("?tail=1").await, r#""three""#);
    assert_eq!(messages("?request_id=call-0002").await, r#""two""#);
}

#[tokio::test]
async fn a_followed_log_ends_when_the_gateway_stops() {
    let mut world = World::with(&["hello"]).await;
    world.vm.log.lock().unwrap().push(line("hello", None, "stored"));
    let request = world
        .control_request(Method::GET, "/v1/functions/hello/logs?follow=true")
        .header("authorization", format!("Bearer {}", world.key))
        .body(body::empty())
        .unwrap();
    let client: Client<_, body::CallBody> = Client::builder(TokioExecutor::new()).build_http();
    let mut response = patient(client.request(request)).await.unwrap();
    let first = patient(response.body_mut().frame()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(first.data_ref().unwrap()).contains("stored"));
    let draining = tokio::spawn(world.drain(Duration::from_secs(20)));
    assert_eq!(read(response).await.body, "");
    assert_eq!(patient(draining).await.unwrap().cut, 0);
}

#[tokio::test]
async fn a_drain_survives_a_restart() {
    let world = World::with(&["hello"]).await;
    world.ask(Method::POST, "/v1/vms/vm-1/drain", "").await;
    let world = world.restarted().await;
    let vms = world.ask(Method::GET, "/v1/vms", "").await.json();
    assert_eq!(vms["data"][0]["state"], "draining");
    assert_eq!(world.get("/hello").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

/// The document lists every path and method that exists, and no others.
#[tokio::test]
async fn the_document_and_the_routes_agree() {
    let world = World::with(&["hello"]).await;
    let document = world.ask(Method::GET, "/v1/openapi.json", "").await.json();
    let named = |path: &str| {
        path.replace("{name}", "hello").replace("{id}", "vm-1").replace("{key}", "0123456789ab")
    };
    let mut documented = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = if path.contains("deployments/") { path.clone() } else { named(path) };
        for method in methods.as_object().unwrap().keys() {
            documented.push((method.to_uppercase(), path.clone()));
        }
    }
    for (method, path) in PATHS {
        assert!(documented.contains(&(method.to_owned(), path.to_owned())), "{method} {path}");
    }
    for (method, path) in &documented {
        if method == "DELETE" {
            continue; // tested above; here it would remove the function from the other requests
        }
        let path = path.replace("{id}", "d-0000000000000009");
        let reply = world.ask(method.parse().unwrap(), &path, "").await;
        let code = reply.json_code();
        assert!(!matches!(&*code, "NOT_FOUND" | "METHOD_NOT_ALLOWED"), "{method} {path}: {code}");
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for used in text.split("#/components/schemas/").skip(1) {
        let name = used.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "schema {name}");
    }
}

impl crate::world::Reply {
    /// The code of an error in JSON, or an empty text.
    fn json_code(&self) -> String {
        serde_json::from_str::<Value>(&self.body)
            .ok()
            .and_then(|value| Some(value["error"]["code"].as_str()?.to_owned()))
            .unwrap_or_default()
    }
}

/// A key of a gateway whose last heartbeat was this long ago; id and text.
async fn other_gateway_s_key(world: &World, silence: SignedDuration) -> (String, String) {
    let (id, secret) = ("aaaaaaaaaaaa", "1".repeat(64));
    let text = format!("epsilon_admin_{id}_{secret}");
    let gateway = Gateway {
        id: GatewayId::random(),
        public_key: "0".repeat(64),
        control_url: "http://10.0.0.5:8081".into(),
        seen_at: Timestamp::now() - silence,
    };
    world.store.gateway_heartbeat(&gateway).await.unwrap();
    let hash = Sha256::digest(&secret).iter().map(|byte| format!("{byte:02x}")).collect();
    let created_at = gateway.seen_at;
    let key = Key { id: id.into(), role: KeyRole::Admin, hash, created_at };
    world.store.replace_key(&gateway.id, &key, Timestamp::MIN).await.unwrap();
    (id.into(), text)
}

#[tokio::test]
async fn a_lost_gateway_s_key_is_listed_and_can_be_removed() {
    let world = World::with(&["hello"]).await;
    let (id, text) = other_gateway_s_key(&world, SignedDuration::from_hours(25)).await;
    let lost = format!("Bearer {text}");
    assert_eq!(world.ask_with(&lost, Method::GET, "/v1/functions", "").await.status, 200);
    let keys = world.ask(Method::GET, "/v1/keys", "").await.json();
    let keys = keys["data"].as_array().unwrap();
    let roles: Vec<_> = keys.iter().map(|key| key["role"].as_str().unwrap()).collect();
    assert_eq!(roles.iter().filter(|role| **role == "admin").count(), 2, "{roles:?}");
    assert!(roles.contains(&"fleet") && roles.contains(&"builder") && roles.len() == 4);
    let own = keys.iter().find(|key| key["is_yours"] == true).unwrap();
    assert!(
        own["gateway_seen_at"].is_string() && !keys.iter().any(|key| key.get("hash").is_some())
    );
    let own = own["id"].as_str().unwrap().to_owned();

    let remove = async |id: &str, query: &str| {
        world.ask(Method::DELETE, &format!("/v1/keys/{id}{query}"), "").await
    };
    let fleet = keys.iter().find(|key| key["role"] == "fleet").unwrap()["id"].as_str().unwrap();
    for in_use in [&*own, fleet] {
        let refused = remove(in_use, "").await;
        assert_eq!((refused.status.as_u16(), &*refused.code()), (409, "KEY_IN_USE"));
    }
    assert_eq!(remove("bbbbbbbbbbbb", "").await.code(), "KEY_NOT_FOUND");
    assert_eq!(remove(&text, "").await.code(), "INVALID_PARAMETER", "the text is not an id");
    let removed = remove(&id, "").await.json();
    assert_eq!(removed["data"]["id"], *id);
    assert_eq!(world.ask_with(&lost, Method::GET, "/v1/functions", "").await.status, 401);
    assert_eq!(remove(&own, "?force=true").await.status, 200);
    assert_eq!(world.ask(Method::GET, "/v1/functions", "").await.status, 401);
    let counted = r#"epsilon_control_actions_total{action="remove_key",outcome="ok"} 2"#;
    assert!(world.metrics().contains(counted));
}

#[tokio::test]
async fn changes_and_wrong_keys_are_audited_reads_not() {
    let world = World::with(&["hello"]).await;
    let wrong = format!("Bearer {}", "epsilon_admin_000000000000_".to_owned() + &"0".repeat(64));
    world.ask_with(&wrong, Method::GET, "/v1/functions", "").await;
    world.ask_with("", Method::GET, "/v1/functions", "").await;
    world.ask_with(&wrong, Method::POST, "/v1/fleet/join", "{}").await;
    world.ask(Method::GET, "/v1/functions", "").await;
    world.ask(Method::POST, "/v1/vms/vm-1/drain", "").await;
    world.ask(Method::POST, "/v1/vms/vm-9/drain", "").await;
    world.ask(Method::POST, "/v1/vms/vm-1/undrain", "").await;
    world.deploy("shop", &[("hello", "2")]).await;
    world.ask(Method::DELETE, "/v1/functions/hello", "").await;
    let metrics = world.metrics();
    let counted: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("epsilon_control_actions_total") && !line.ends_with(" 0"))
        .collect();
    assert_eq!(
        counted,
        [
            r#"epsilon_control_actions_total{action="delete",outcome="ok"} 1"#,
            r#"epsilon_control_actions_total{action="deploy",outcome="ok"} 1"#,
            r#"epsilon_control_actions_total{action="drain",outcome="ok"} 1"#,
            r#"epsilon_control_actions_total{action="drain",outcome="refused"} 1"#,
            r#"epsilon_control_actions_total{action="undrain",outcome="ok"} 1"#,
        ]
    );
    for line in [
        r#"epsilon_auth_failed_total{door="control"} 1"#,
        r#"epsilon_auth_failed_total{door="fleet"} 1"#,
        r#"epsilon_auth_failed_total{door="git"} 0"#,
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line}");
    }
}
