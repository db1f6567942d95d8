//! Shared resources of the machine and its networks: no instance can use them up, or reach what is
//! closed to it.

use crate::support::{Base, World, docker, function, image_of, run_and_kill, until};
use epsilon_api::function::Version;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::Command,
    sync::{Arc, OnceLock},
};

/// Perl is part of the base, and makes system calls without a library in between.
const CODE: &str = r#"
const fs = require('node:fs'), os = require('node:os'), net = require('node:net');
const { execFile, spawn } = require('node:child_process');
const run = (script) => new Promise((done) => execFile('perl', ['-e', script], (err, out) => done(err ? String(err) : out)));
const tried = (work) => { try { return work() ?? 'done'; } catch (e) { return e.code; } };
exports.hello = async (req, res) => {
  const { pathname, searchParams: query } = new URL(req.url, 'http://x');
  if (pathname === '/user') return res.json({ id: process.getuid(), ...os.userInfo(), home: os.homedir() });
  if (pathname === '/watch') return res.send(tried(() => { fs.watch('/tmp').close(); }));
  if (pathname === '/greedy') {
    // Takes all inotify instances that it gets.
    const perl = spawn('perl', ['-e', '$| = 1; $n = 0; $n++ while syscall($ARGV[0], 0) >= 0; print "$n\n"; sleep 1000', query.get('call')]);
    return perl.stdout.once('data', (taken) => res.send(String(taken).trim()));
  }
  if (pathname === '/perl') return res.send(await run(query.get('script')));
  if (pathname === '/folder') {
    return res.json({
      write: tried(() => fs.writeFileSync('/run/epsilon/x', '')),
      files: fs.readdirSync('/run/epsilon').sort(),
      mount: fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n').find((line) => line.includes(' /run/epsilon ')),
    });
  }
  if (pathname === '/run') {
    fs.copyFileSync('/bin/true', '/tmp/true');
    fs.chmodSync('/tmp/true', 0o755);
    return execFile('/tmp/true', (err) => res.send(err ? String(err) : 'ran'));
  }
  if (pathname === '/gateway') {
    const [, , hex] = fs.readFileSync('/proc/net/route', 'utf8').split('\n')[1].split('\t');
    return res.send(hex.match(/../g).reverse().map((byte) => parseInt(byte, 16)).join('.'));
  }
  if (pathname === '/address') return res.send(Object.values(os.networkInterfaces()).flat().find((at) => !at.internal).address);
  if (pathname === '/listen') return net.createServer().listen(9000, () => res.send('listens'));
  if (pathname === '/resolve') {
    return require('node:dns').resolve4('epsilon.invalid', (err, found) => res.send(err?.code ?? String(found)));
  }
  if (pathname === '/connect') {
    const socket = net.connect(+query.get('port'), query.get('address'));
    socket.setTimeout(3000, () => socket.destroy(Object.assign(new Error(), { code: 'silence' })));
    return socket.on('connect', () => { res.send('open'); socket.destroy(); }).on('error', (e) => res.send(e.code));
  }
  res.send('hello');
};
"#;
const WATCHES_ALL: &str =
    if cfg!(target_arch = "x86_64") { "/greedy?call=294" } else { "/greedy?call=26" };
const REFUSED: &str = "ECONNREFUSED";

async fn user(world: &World, version: &Arc<Version>) -> Value {
    serde_json::from_str(&world.text(version, "/user").await).unwrap()
}

async fn connect(world: &World, version: &Arc<Version>, address: &str, port: u16) -> String {
    world.text(version, &format!("/connect?address={address}&port={port}")).await
}

/// The address by which other machines know this one. Nothing is sent.
fn own_address() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("198.51.100.1:9").unwrap();
    match socket.local_addr().unwrap().ip() {
        std::net::IpAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_instance_has_its_own_named_user() {
    let base = Base::new();
    let world = World::new("{}").await;
    let one = function(&world, &base, CODE, |_| {});
    let two = function(&world, &base, CODE, |_| {});
    world.until_ready(&one, 2).await;
    let users = [user(&world, &one).await, user(&world, &two).await];
    for user in &users {
        let id = user["id"].as_u64().unwrap();
        assert!(id >= 1_879_048_192, "{user}");
        assert_eq!((&user["uid"], &user["gid"]), (&json!(id), &json!(id)));
        assert_eq!((&user["username"], &user["home"]), (&json!("function"), &json!("/tmp")));
    }
    assert_ne!(users[0]["id"], users[1]["id"]);
    world.end().await;
    // The same from an image.
    let imaged = World::new("{cells_max: 0, user_ids: 700000-700000}").await;
    let (_image, version) = image_of(&base, CODE);
    assert_eq!(user(&imaged, &version).await["id"], 700_000);
    imaged.retire(&version).await;
    assert_eq!(user(&imaged, &version).await["id"], 700_000, "freed, and given out again");
    imaged.end().await;
    let shared = World::new("{cells_max: 0, user_ids: shared}").await;
    assert_eq!(user(&shared, &version).await["id"], 65_532);
    shared.end().await;
}

#[tokio::test]
async fn exhausted_user_limits_do_not_affect_other_instances() {
    let base = Base::new();
    let world = World::new("{}").await;
    let greedy = function(&world, &base, CODE, |_| {});
    let other = function(&world, &base, CODE, |_| {});
    world.until_ready(&greedy, 2).await;
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let taken: u32 = world.text(&greedy, WATCHES_ALL).await.parse().unwrap();
    assert!(taken > 0 && taken <= most.trim().parse().unwrap(), "{taken}");
    assert_eq!(world.text(&greedy, "/watch").await, "EMFILE");
    assert_eq!(world.text(&other, "/watch").await, "done");
    world.end().await;
}

#[tokio::test]
async fn adopted_instance_keeps_its_own_user() {
    let base = Base::new();
    let seen: Arc<OnceLock<(Arc<Version>, Value)>> = Arc::default();
    let to = Arc::clone(&seen);
    let settings = "{cells_max: 0, user_ids: 700001-700002}";
    let (image, version) = image_of(&base, CODE);
    let folder = run_and_kill(tempfile::tempdir().unwrap(), settings, async move |world| {
        let user = user(world, &version).await;
        to.set((version, user)).unwrap();
    });
    let (version, before) = seen.get().unwrap();
    let world = World::on(folder, settings).await;
    assert_eq!(user(&world, version).await, *before);
    let (_other, another) = image_of(&base, CODE);
    assert_ne!(user(&world, &another).await["id"], before["id"]);
    world.end().await;
    drop(image);
}

#[tokio::test]
async fn the_socket_directory_is_small_and_closed_to_code() {
    let base = Base::new();
    let world = World::new("{}").await;
    let celled = function(&world, &base, CODE, |_| {});
    world.until_ready(&celled, 1).await;
    let (_image, from_image) = image_of(&base, CODE);
    for version in [celled, from_image] {
        let folder: Value = serde_json::from_str(&world.text(&version, "/folder").await).unwrap();
        assert_eq!(folder["write"], "EACCES", "{folder}");
        assert_eq!(folder["files"], json!(["calls.sock", "control.sock"]));
        let mount = folder["mount"].as_str().unwrap();
        for option in ["nosuid", "nodev", "noexec", "- tmpfs", "size=1024k", "nr_inodes=64"] {
            assert!(mount.contains(option), "{option}: {mount}");
        }
        assert_eq!(world.text(&version, "/run").await, "ran", "/tmp may hold programs");
    }
    world.end().await;
}

/// Each of these is allowed by Docker 20.10, or without a profile; with the profile, the kernel
/// refuses them.
#[tokio::test]
async fn calls_that_no_function_needs_are_refused() {
    if cfg!(not(target_arch = "x86_64")) {
        return; // the numbers below are of this architecture
    }
    let base = Base::new();
    let world = World::new("{}").await;
    let version = function(&world, &base, CODE, |_| {});
    world.until_ready(&version, 1).await;
    let tried = async |call: &str| {
        let script = format!("$r = syscall({call}); print $r < 0 ? $! + 0 : 'done'");
        let encoded: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
        world.text(&version, &format!("/perl?script={encoded}")).await
    };
    const EPERM: &str = "1";
    const EAFNOSUPPORT: &str = "97";
    for (name, call, want) in [
        ("io_uring_setup", "425, 1, 0", EPERM),
        ("io_uring_enter", "426, 0, 0, 0, 0", EPERM),
        ("io_uring_register", "427, 0, 0, 0", EPERM),
        ("socket AF_VSOCK", "41, 40, 1, 0", EAFNOSUPPORT),
        ("socket AF_ALG", "41, 38, 5, 0", EAFNOSUPPORT),
        ("socket AF_PACKET", "41, 17, 3, 0", EAFNOSUPPORT),
        ("socket AF_X25", "41, 9, 5, 0", EPERM),
        ("keyctl", "250, 0, 0", EPERM),
        ("add_key", "248, 0, 0, 0, 0, 0", EPERM),
        ("bpf", "321, 0, 0, 0", EPERM),
        ("perf_event_open", "298, 0, 0, -1, -1, 0", EPERM),
        ("userfaultfd", "323, 0", EPERM),
        ("unshare CLONE_NEWUSER", "272, 0x10000000", EPERM),
        ("clone CLONE_NEWUSER", "56, 0x10000011, 0, 0, 0, 0", EPERM),
        ("clone3", "435, 0, 0", "38"),
        ("setns", "308, 0, 0", EPERM),
        ("mount", "165, 0, 0, 0, 0, 0", EPERM),
        ("open_by_handle_at", "304, 0, 0, 0", EPERM),
        ("kexec_load", "246, 0, 0, 0, 0", EPERM),
        ("socket AF_UNIX", "41, 1, 1, 0", "done"),
        ("socket AF_INET", "41, 2, 1, 0", "done"),
        ("socket AF_INET6", "41, 10, 1, 0", "done"),
        ("socket AF_NETLINK", "41, 16, 3, 0", "done"),
        ("memfd_create", "319, my $name = 'x', 0", "done"),
        ("eventfd2", "290, 0, 0", "done"),
        ("pidfd_open", "434, $$ + 0, 0", "done"),
    ] {
        assert_eq!(tried(call).await, want, "{name}");
    }
    world.end().await;
}

#[tokio::test]
async fn only_dns_of_the_machine_is_reached() {
    let base = Base::new();
    let world = World::with_limits("{}", |config| {
        config.reconcile_every = std::time::Duration::from_millis(200);
    })
    .await;
    let version = function(&world, &base, CODE, |_| {});
    world.until_ready(&version, 1).await;
    // A service of this machine on all its addresses.
    let service = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = service.local_addr().unwrap().port();
    let gateway = world.text(&version, "/gateway").await;
    for address in [gateway, own_address().to_string()] {
        assert_eq!(connect(&world, &version, &address, port).await, REFUSED, "{address}");
    }
    assert_eq!(connect(&world, &version, "169.254.169.254", 80).await, REFUSED);

    // A function of another agent that listens.
    let neighbour = World::new("{}").await;
    let listens = function(&neighbour, &base, CODE, |_| {});
    assert_eq!(neighbour.text(&listens, "/listen").await, "listens");
    let address = neighbour.text(&listens, "/address").await;
    assert_eq!(connect(&neighbour, &listens, &address, 9000).await, "open", "by itself");
    // The neighbour's network is one of this machine's own by now.
    until(|| connected(&world, &address), |rules| *rules).await;
    assert_eq!(connect(&world, &version, &address, 9000).await, REFUSED);
    neighbour.end().await;

    // DNS works as without any rule.
    let open = World::new("{closed_networks: none, open_addresses: 0.0.0.0/0}").await;
    let free = function(&open, &base, CODE, |_| {});
    let want = open.text(&free, "/resolve").await;
    assert_eq!(world.text(&version, "/resolve").await, want);
    open.end().await;
    let bridge = world.bridge();
    assert!(!rules(&bridge).is_empty());
    world.end().await;
    assert_eq!(rules(&bridge), "", "nothing is left");
}

/// Whether a rule of the world's network closes that of this address.
fn connected(world: &World, address: &str) -> bool {
    let prefix = address.rsplit_once('.').unwrap().0.rsplit_once('.').unwrap().0.to_owned();
    let chain = format!("{}-out", world.bridge());
    rules(&chain).lines().any(|line| line.contains(&format!("-d {prefix}.")))
}

fn rules(part: &str) -> String {
    let all = Command::new("iptables").args(["-w", "5", "-S"]).output().unwrap();
    let text = String::from_utf8(all.stdout).unwrap();
    text.lines().filter(|line| line.contains(part)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn only_opened_addresses_are_reached() {
    let base = Base::new();
    let own = own_address();
    let service = TcpListener::bind("0.0.0.0:0").unwrap();
    let other = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    // A database in a container whose port Docker publishes on this machine.
    let database = Published::new();
    let settings = format!(
        "{{cells_min: 1, open_addresses: '{own}:{},{own}:{}'}}",
        port(&service),
        database.port
    );
    let world = World::new(&settings).await;
    let version = function(&world, &base, CODE, |_| {});
    world.until_ready(&version, 1).await;
    let reach = async |port| connect(&world, &version, &own.to_string(), port).await;
    assert_eq!(reach(port(&service)).await, "open");
    assert_eq!(reach(port(&other)).await, REFUSED);
    assert_eq!(reach(database.port).await, "open");
    world.end().await;
}

/// Rules survive like the network itself: the next agent on the directory has the same bridge.
#[tokio::test]
async fn rules_of_a_killed_agent_are_refilled_then_removed() {
    let base = Base::new();
    let bridge: Arc<OnceLock<String>> = Arc::default();
    let to = Arc::clone(&bridge);
    let settings = "{cells_max: 0, open_addresses: 192.0.2.77:5432}";
    let folder = run_and_kill(tempfile::tempdir().unwrap(), settings, async move |world| {
        to.set(world.bridge()).unwrap();
        assert!(rules(&world.bridge()).contains("192.0.2.77"));
    });
    let bridge = bridge.get().unwrap();
    let before = rules(bridge);
    assert!(!before.is_empty(), "they were not removed");
    // Another program removed a part of them.
    let emptied =
        Command::new("iptables").args(["-w", "5", "-F", &format!("{bridge}-in")]).status();
    assert!(emptied.unwrap().success());
    let world = World::on(folder, "{cells_max: 0}").await;
    let (_image, version) = image_of(&base, CODE);
    assert_eq!(connect(&world, &version, &own_address().to_string(), 9).await, REFUSED);
    let now = rules(bridge);
    assert!(now.contains(&format!("-A {bridge}-in -j ")), "{now}");
    assert!(!now.contains("192.0.2.77"), "as the settings are now: {now}");
    let jumps = |rules: &str| rules.lines().filter(|line| line.contains(" -j eps")).count();
    assert_eq!((jumps(&before), jumps(&now)), (3, 3), "once each: {now}");
    world.end().await;
    assert_eq!(rules(bridge), "");
}

/// A foreign container with a port on this machine.
struct Published {
    id: String,
    port: u16,
}

impl Published {
    fn new() -> Self {
        let server = "require('net').createServer().listen(5432)";
        let runtime = "epsilon/runtime-node:current";
        let id =
            docker(&["run", "-d", "-p", "5432", "--entrypoint", "node", runtime, "-e", server]);
        let port = docker(&["port", &id, "5432/tcp"]);
        let port = port.lines().next().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
        Self { id, port }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rm", "-f", &self.id]).output());
    }
}
