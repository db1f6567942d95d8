//! The control listener with certificates: it requires TLS of all clients but those on this
//! machine, which may use plain HTTP, and a certificate of members of the fleet. The public
//! listener with `listen_tls`.

use crate::{
    fake,
    world::{World, own_address, patient},
};
use epsilon_api::{
    fleet::{Join, MemberKind, PROTOCOL},
    ids::VmId,
    units::{Bytes, MilliCores},
    vm::Call,
};
use epsilon_fleet_link::tls::Files;
use epsilon_gateway::config::Settings;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

/// Writes a CA and a certificate for this machine's addresses to a folder, and `ended.pem`, an
/// expired certificate of the same key.
pub(crate) fn certificates(folder: &Path) -> Files {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = [IpAddr::from(Ipv4Addr::LOCALHOST), own_address()].map(|ip| ip.to_string());
    let mut params = CertificateParams::new(names).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    params.not_after = rcgen::date_time_ymd(1980, 1, 1);
    let ended = params.signed_by(&key, &issuer).unwrap();
    let path = |name: &str| folder.join(name);
    std::fs::write(path("authority.pem"), own.pem()).unwrap();
    std::fs::write(path("certificate.pem"), certificate.pem()).unwrap();
    std::fs::write(path("ended.pem"), ended.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    Files {
        certificate: path("certificate.pem"),
        key: path("key.pem"),
        authority: path("authority.pem"),
    }
}

/// Settings of a gateway with these files.
pub(crate) fn settings(files: &Files) -> Settings {
    Settings {
        tls_certificate: Some(files.certificate.clone()),
        tls_key: Some(files.key.clone()),
        tls_authority: Some(files.authority.clone()),
        ..Settings::default()
    }
}

/// A client that trusts the CA, with or without a client certificate.
fn client(files: &Files, shows: bool) -> reqwest::Client {
    let read = |path: &Path| std::fs::read(path).unwrap();
    let authority = reqwest::Certificate::from_pem(&read(&files.authority)).unwrap();
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([authority]);
    let own = [read(&files.key), read(&files.certificate)].concat();
    let identity = || reqwest::Identity::from_pem(&own).unwrap();
    (if shows { builder.identity(identity()) } else { builder }).build().unwrap()
}

async fn answer_of(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = patient(request.send()).await.unwrap();
    (answer.status().as_u16(), patient(answer.text()).await.unwrap())
}

fn join() -> Join {
    Join {
        protocol: PROTOCOL,
        kind: MemberKind::Vm,
        id: VmId::parse("vm-x").unwrap(),
        address: "192.0.2.7:8082".to_owned(),
        tls: true,
        memory_bytes: Bytes::mib(1),
        cpu: MilliCores::ONE,
    }
}

#[tokio::test]
async fn what_keys_guard_wants_tls_and_no_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificates(folder.path());
    let control = SocketAddr::new(own_address(), 0);
    let world = World::start(&["hello"], Settings { control, ..settings(&files) }).await;
    let client = client(&files, false);
    let get = async |path: &str, key: &str| {
        let request = client.get(format!("https://{}{path}", world.control));
        answer_of(if key.is_empty() { request } else { request.bearer_auth(key) }).await.0
    };
    assert_eq!(get("/healthz", "").await, 200);
    for path in ["/metrics", "/v1/functions", "/v1/vms"] {
        assert_eq!(get(path, "").await, 401, "{path}");
        assert_eq!(get(path, "epsilon_admin_000000000000_00").await, 401, "{path}");
        assert_eq!(get(path, &world.key).await, 200, "{path}");
    }
    let push = format!("https://{}/git/shop/info/refs?service=git-receive-pack", world.control);
    assert_eq!(answer_of(client.get(&push)).await.0, 401);
    assert_eq!(answer_of(client.get(&push).basic_auth("git", Some(&world.key))).await.0, 200);
    let hook = client.post(format!("https://{}/v1/hooks/github/shop", world.control)).body("{}");
    assert_eq!(answer_of(hook).await.0, 404, "no such project: the request was accepted");
}

#[tokio::test]
async fn members_need_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificates(folder.path());
    for ip in [own_address(), Ipv4Addr::LOCALHOST.into()] {
        let control = SocketAddr::new(ip, 0);
        let world = World::start(&[], Settings { control, ..settings(&files) }).await;
        let token = std::fs::read_to_string(world.dir.path().join("fleet.token")).unwrap();
        let order = async |shows: bool, verb: &str| {
            let url = format!("https://{}/v1/fleet/{verb}", world.control);
            let request = client(&files, shows).post(url).bearer_auth(token.trim());
            answer_of(request.json(&join())).await
        };
        for verb in ["join", "beat", "leave"] {
            let (status, body) = order(false, verb).await;
            assert_eq!(status, 403, "{verb} at {ip}: {body}");
            assert!(body.contains("CERTIFICATE_REQUIRED"), "{body}");
        }
        assert!(world.store.members().await.unwrap().is_empty());
        assert_eq!(order(true, "join").await.0, 200, "{ip}");
    }
}

#[tokio::test]
async fn remote_plain_http_is_refused_with_tls_required() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificates(folder.path());
    let control = SocketAddr::new(own_address(), 0);
    let world = World::start(&["hello"], Settings { control, ..settings(&files) }).await;
    let reply = world.ask(http::Method::GET, "/v1/functions", "").await;
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (400, "TLS_REQUIRED"));
    assert!(reply.body.contains("use `https://`"), "{}", reply.body);
}

/// Answers with the protocol in `x-forwarded-proto`.
async fn proto(call: Call) -> Result<epsilon_api::vm::Answer, epsilon_api::error::VmError> {
    let proto = call.request.headers()["x-forwarded-proto"].to_str().unwrap().to_owned();
    Ok(fake::answer(http::Response::new(epsilon_api::body::full(proto))))
}

#[tokio::test]
async fn callers_speak_tls_where_the_public_listener_does() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificates(folder.path());
    for ip in [own_address(), Ipv4Addr::LOCALHOST.into()] {
        let listen = SocketAddr::new(ip, 0);
        let settings = Settings { listen, listen_tls: true, ..settings(&files) };
        let world = World::start(&["hello"], settings).await;
        world.vm.script("hello", proto);
        let url = |scheme: &str| format!("{scheme}://{}/hello", world.public);
        // Its health check, as a load balancer asks for it, and a call.
        let health = client(&files, false).get(format!("https://{}/", world.public));
        assert_eq!(answer_of(health).await.0, 200, "{ip}");
        let called = answer_of(client(&files, false).get(url("https"))).await;
        assert_eq!(called, (200, "https".to_owned()), "{ip}");
        let (status, body) = answer_of(client(&files, false).get(url("http"))).await;
        match ip.is_loopback() {
            true => assert_eq!((status, body.as_str()), (200, "http")),
            false => assert!(status == 400 && body.contains("TLS_REQUIRED"), "{status} {body}"),
        }
    }
}
