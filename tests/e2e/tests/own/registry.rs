//! Images in a registry instead of this machine's engine, with the real one that Debian ships as
//! `docker-registry`.

use epsilon_api::ids::DeploymentId;
use epsilon_e2e::{
    engine::{ask, containers_of, docker},
    fleet::{Fleet, Plan},
    http::Call,
    project,
    up::{Epsilon, Settings},
    wait::{LONG, SOON, until},
};
use epsilon_registry::debian::DebianRegistry;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A proxy to a registry, which breaks when a certain word is sent.
struct BreakingProxy {
    address: SocketAddr,
    state: Arc<State>,
    _accepting: JoinSet<()>,
}

#[derive(Default)]
struct State {
    word: Mutex<Option<&'static str>>,
    is_broken: AtomicBool,
    /// The open connections.
    open: Mutex<JoinSet<()>>,
}

impl BreakingProxy {
    async fn to(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, mut accepting) = (Arc::new(State::default()), JoinSet::new());
        let shared = Arc::clone(&state);
        accepting.spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if shared.is_broken.load(Ordering::SeqCst) {
                    continue; // closed at once
                }
                let pipe = pipe(client, registry, Arc::clone(&shared));
                shared.open.lock().unwrap().spawn(pipe);
            }
        });
        Self { address, state, _accepting: accepting }
    }

    /// Breaks when this word is sent, until it is restored.
    fn breaks_at(&self, word: &'static str) {
        *self.state.word.lock().unwrap() = Some(word);
    }

    fn is_broken(&self) -> bool {
        self.state.is_broken.load(Ordering::SeqCst)
    }

    fn heal(&self) {
        *self.state.word.lock().unwrap() = None;
        self.state.is_broken.store(false, Ordering::SeqCst);
    }
}

/// Copies both ways and scans what the client sends.
async fn pipe(client: TcpStream, registry: SocketAddr, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(registry).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = async { drop(copy(&mut from_server, &mut to_client).await) };
    let up = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(bytes) = from_client.read(&mut piece).await
            && bytes > 0
        {
            let said = String::from_utf8_lossy(&piece[..bytes]);
            let word = *state.word.lock().unwrap();
            if word.is_some_and(|word| said.contains(word)) {
                state.is_broken.store(true, Ordering::SeqCst);
                state.open.lock().unwrap().abort_all();
                return;
            }
            if to_server.write_all(&piece[..bytes]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = down => {}, () = up => {} }
}

/// A variable that keeps a function out of cells: these tests are about its image.
const NO_CELL: &str = "env: { NODE_OPTIONS: '--no-deprecation' }";

/// A VM that serves a function from a cell has fetched its code from the registry, and not its
/// image.
#[tokio::test]
async fn a_vm_fetches_code_and_not_the_image() {
    let registry = DebianRegistry::start().await;
    let config = format!("builder: {{ registry: \"{}/code\" }}", registry.address());
    let fleet = Fleet::start(Plan { agents: 1, config: Some(config), ..Plan::default() }).await;
    // Code of this run only, which is stored nowhere yet.
    let run = DeploymentId::random();
    let text = format!("exports.light = (req, res) => res.send('{run}')");
    fleet.deploy(&project!("light", { "index.js" => text })).await;
    let gateway = &fleet.gateways[0];
    let version = gateway.admin("/v1/functions/light/versions").await[0].clone();
    let image = version["image"].as_str().unwrap();
    // The deployment's own instance may have come from the image, before the first cell was ready.
    let seen = until("a call is served by a cell", LONG, async || {
        let answer = gateway.get("/light").await;
        if answer.status != 200 {
            return Err(answer.to_string()); // met the container that was removed below
        }
        assert_eq!(answer.text(), run.to_string());
        let timing = answer.header("server-timing").to_owned();
        // An instance that was offered a cell, and started from the image after all, names both.
        if timing.contains("cell;") && !timing.contains("create;") {
            return Ok(timing);
        }
        let vm = &fleet.agents[0];
        for container in containers_of(vm.id(), &vm.program.data()).await {
            if container.label("epsilon.function") == "light" {
                docker(&["rm", "-f", &container.id]).await;
            }
        }
        Err(timing)
    })
    .await;
    assert!(!seen.contains("pull"), "{seen}");
    let layers = fleet.agents[0].program.data().join("vm/layers");
    let unpacked = std::fs::read_dir(&layers).unwrap().flatten();
    let names: Vec<_> = unpacked.map(|one| one.file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("sha256-")), "{names:?}");
    docker(&["rmi", "-f", image]).await;
}

/// During the builder's push, its last step, and the VM's pull: the deployment fails with a clear
/// error, serving versions continue, and the next attempt succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_loss_fails_only_the_deployment() {
    let registry = DebianRegistry::start().await;
    let proxy = BreakingProxy::to(registry.address()).await;
    let config = format!("builder: {{ registry: \"{}/middle\" }}", proxy.address);
    let up = Epsilon::start_with(Settings::config(&config)).await;
    // Of this run only: the same code would be the same image, and an existing one is not pulled.
    let run = DeploymentId::random();
    let text = |n: usize| {
        format!(
            "// {run}\nexports.middle = {{ config: {{ memory: '128MiB', {NO_CELL} }}, func: (req, res) => res.send('{n}') }}"
        )
    };
    let project = project!("middle", { "index.js" => text(1) });
    up.deploy(&project).await;
    let words = [
        ("POST /v2/", "REGISTRY_FAILED"),
        ("PUT /v2/middle/middle/middle/manifests", "REGISTRY_FAILED"),
        ("docker/", "NO_CAPACITY"),
    ];
    for (n, (word, code)) in (2..).zip(words) {
        project.write("index.js", text(n));
        proxy.breaks_at(word);
        let failed = up.try_deploy(&project).await;
        assert!(proxy.is_broken(), "`{word}` was never said: {failed:?}");
        let error = failed.failed();
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.message.contains(&proxy.address.to_string()), "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        let before = (n - 1).to_string();
        assert_eq!(up.get("/middle").await.expect(200).text(), before, "the old one serves");
        proxy.heal();
        up.deploy(&project).await;
        assert_eq!(up.get("/middle").await.expect(200).text(), n.to_string());
    }
    for version in up.admin("/v1/functions/middle/versions").await.as_array().unwrap() {
        docker(&["rmi", "-f", version["image"].as_str().unwrap()]).await;
    }
}

/// The same in a fleet: VMs and builder over the network.
#[tokio::test]
async fn fleet_removes_images_of_old_versions() {
    let registry = DebianRegistry::start().await;
    let config = format!(
        "gateway: {{ keep_versions: 1, image_grace: 1s }}\nbuilder: {{ registry: \"{}/fleet\" }}",
        registry.address()
    );
    let fleet = Fleet::start(Plan { agents: 2, config: Some(config), ..Plan::default() }).await;
    let project = project!("herd", {});
    let mut made = Vec::new();
    for n in 1..=2 {
        let config = "config: { memory: '128MiB' }";
        let text = format!("exports.herd = {{ {config}, func: (req, res) => res.send('{n}') }}");
        project.write("index.js", text);
        fleet.deploy(&project).await;
        let listed = fleet.gateways[0].admin("/v1/functions/herd/versions").await;
        made.push(listed[0]["image"].as_str().unwrap().to_owned());
    }
    until("the first image is nowhere", LONG, async || {
        let in_registry = manifest(registry.address(), &made[0]).await == 200;
        let on_vm = docker(&["image", "inspect", &made[0]]).await.code == 0;
        if in_registry || on_vm { Err((in_registry, on_vm)) } else { Ok(()) }
    })
    .await;
    assert_eq!(manifest(registry.address(), &made[1]).await, 200);
    assert_eq!(fleet.gateways[0].get("/herd").await.expect(200).text(), "2");
    docker(&["rmi", "-f", &made[1]]).await;
}

/// The status of an image in the registry.
async fn manifest(registry: SocketAddr, image: &str) -> u16 {
    let (path, digest) = image.split_once('@').unwrap();
    let path = path.split_once('/').unwrap().1;
    let call = Call::get(&format!("/v2/{path}/manifests/{digest}"));
    let call = call.header("accept", "application/vnd.oci.image.manifest.v1+json");
    call.send(registry).await.status
}

/// Unneeded images are removed from the VM and the registry.
#[tokio::test]
async fn images_of_old_versions_leave_the_registry() {
    let registry = DebianRegistry::start().await;
    let config = format!(
        "gateway: {{ keep_versions: 2, image_grace: 1s }}\nbuilder: {{ registry: \"{}/old\" }}",
        registry.address()
    );
    let up = Epsilon::start_with(Settings::config(&config)).await;
    let project = project!("aging", {});
    let mut made = Vec::new();
    for n in 1..=4 {
        let config = "config: { memory: '128MiB' }";
        let text = format!("exports.aging = {{ {config}, func: (req, res) => res.send('{n}') }}");
        project.write("index.js", text);
        up.deploy(&project).await;
        let listed = up.admin("/v1/functions/aging/versions").await;
        made.push(listed[0]["image"].as_str().unwrap().to_owned());
    }
    until("the registry has the newest two", LONG, async || {
        let mut found = Vec::new();
        for image in &made {
            found.push(manifest(registry.address(), image).await);
        }
        if found == [404, 404, 200, 200] { Ok(()) } else { Err(found) }
    })
    .await;
    for old in &made[..2] {
        let there = docker(&["image", "inspect", old]).await;
        assert_ne!(there.code, 0, "the VM has it no more: {there}");
    }
    up.cli(&["rollback", "aging"]).await.expect(0);
    assert_eq!(up.get("/aging").await.expect(200).text(), "3");
    for image in &made {
        docker(&["rmi", "-f", image]).await;
    }
}

#[tokio::test]
async fn images_are_pushed_to_and_pulled_from_registry() {
    let mut registry = DebianRegistry::start().await;
    let name = format!("{}/e2e", registry.address());
    let config = format!("builder: {{ registry: \"{name}\" }}");
    let up = Epsilon::start_with(Settings::config(&config)).await;
    let project = project!("remote", {
        "index.js" => format!("exports.remote = {{ config: {{ memory: '128MiB', idleTimeout: '1s', {NO_CELL} }},
            func: (req, res) => res.send(require('ms')('1s') + '') }}"),
        "package.json" => r#"{ "dependencies": { "ms": "2.1.3" } }"#,
    });
    assert_eq!(up.deploy(&project).await.changed(), [("remote".into(), 1)]);
    assert_eq!(up.get("/remote").await.expect(200).text(), "1000");
    let image = up.admin("/v1/functions/remote/versions").await[0]["image"].clone();
    let image = image.as_str().unwrap().to_owned();
    assert!(image.starts_with(&name) && image.contains("@sha256:"), "{image}");

    // A machine that never saw the function: its image is pulled for the call.
    until("the instance has gone", SOON, async || match up.containers(None).await.len() {
        0 => Ok(()),
        left => Err(left),
    })
    .await;
    ask(&["rmi", "-f", &image]).await;
    assert_ne!(docker(&["image", "inspect", &image]).await.code, 0, "it is gone from the engine");
    let answer = up.get("/remote").await.expect(200);
    assert!(answer.header("server-timing").contains("pull"), "{answer}");

    assert_eq!(up.deploy(&project).await.changed(), [], "unchanged");

    // Without the registry a push fails with a clear error, and serving versions continue.
    registry.stop().await;
    project.write("index.js", "exports.remote = (req, res) => res.send('2')");
    let failed = up.try_deploy(&project).await;
    assert_eq!(failed.failed().code, "REGISTRY_FAILED", "{failed:?}");
    up.get("/remote").await.expect(200);
    registry.start_again().await;
    up.deploy(&project).await;
    assert_eq!(up.get("/remote").await.expect(200).text(), "2");

    for version in up.admin("/v1/functions/remote/versions").await.as_array().unwrap() {
        docker(&["rmi", "-f", version["image"].as_str().unwrap()]).await;
    }
}
