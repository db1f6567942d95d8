//! A project's `.npmrc` beside the operator's: which registry is used, through which proxy, with
//! which token. Registry and proxy are in this process, reached by containers through the bridge's
//! own address.

use super::lab::{Lab, Served, add, docker};
use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};
use tempfile::NamedTempFile;

const SECRET: &str = "OPERATORS-SECRET";

/// A server that answers with what it has, and records each request's head.
struct Host {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

impl Host {
    fn start() -> Self {
        // The bridge's own address is the first one of its network.
        let subnet = "{{(index .IPAM.Config 0).Subnet}}";
        let subnet = docker(&["network", "inspect", "-f", subnet, "bridge"]);
        let bridge = format!("{}.1", subnet.split_once(".0/").unwrap().0);
        let listener = TcpListener::bind((bridge.as_str(), 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (heads, files) = (Arc::default(), Arc::default());
        let host = Self { address, heads: Arc::clone(&heads), files: Arc::clone(&files) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _broken_off = answer(stream, &heads, &files);
            }
        });
        host
    }

    /// Publishes version 1.0.0 of a package here, with its tarball at `tarballs`.
    fn publish(&self, name: &str, index: &str, tarballs: &Self) {
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        let package = format!(r#"{{"name":"{name}","version":"1.0.0"}}"#);
        add(&mut tar, "package/package.json", package.as_bytes());
        add(&mut tar, "package/index.js", format!("module.exports = '{index}';").as_bytes());
        let path = format!("/{name}/-/{name}-1.0.0.tgz");
        let url = format!("http://{}{path}", tarballs.address);
        let about = serde_json::json!({
            "name": name, "dist-tags": { "latest": "1.0.0" },
            "versions": { "1.0.0": { "name": name, "version": "1.0.0", "dist": { "tarball": url } } },
        });
        self.files.lock().unwrap().insert(format!("/{name}"), about.to_string().into_bytes());
        let tarball = tar.into_inner().unwrap().finish().unwrap();
        tarballs.files.lock().unwrap().insert(path, tarball);
    }

    /// The recorded requests, cleared by this.
    fn requests(&self) -> String {
        std::mem::take(&mut *self.heads.lock().unwrap()).join("\n")
    }
}

fn answer(
    mut stream: TcpStream,
    heads: &Mutex<Vec<String>>,
    files: &Mutex<HashMap<String, Vec<u8>>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    // A request to a proxy has a whole URL.
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path =
        target.strip_prefix("http://").map_or(target, |rest| &rest[rest.find('/').unwrap_or(0)..]);
    let found = files.lock().unwrap().get(path).cloned();
    heads.lock().unwrap().push(head.clone());
    let (status, body) = match found {
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", b"{}".to_vec()),
    };
    let mut answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    let _infallible = write!(answer, "cache-control: public, max-age=31536000, immutable\r\n");
    answer.push_str("connection: close\r\n\r\n");
    stream.write_all(answer.as_bytes())?;
    stream.write_all(&body)
}

/// The operator's settings: a registry, and a token for it.
fn operators(registry: &Host) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let address = &registry.address;
    writeln!(file, "registry=http://{address}/\n//{address}/:_authToken={SECRET}").unwrap();
    file
}

async fn lab(npmrc: &NamedTempFile) -> Lab {
    let path = npmrc.path().display();
    Lab::with(&format!("{{install_network: bridge, npmrc: '{path}'}}")).await
}

const INDEX: (&str, &str) =
    ("index.js", "exports.hello = (req, res) => res.send(require('leftpadx'));");

#[tokio::test(flavor = "multi_thread")]
async fn projects_proxy_is_ignored() {
    let (registry, attacker) = (Host::start(), Host::start());
    registry.publish("leftpadx", "genuine", &registry);
    registry.publish("leftpady", "genuine", &registry);
    attacker.publish("leftpadx", "EVIL", &attacker);
    let npmrc = operators(&registry);
    let lab = lab(&npmrc).await;
    let proxy = &attacker.address;
    let evil =
        format!("proxy=http://{proxy}\nhttps-proxy=http://{proxy}\nnoproxy=x\nstrict-ssl=false\n");
    let package = r#"{"name":"evil","dependencies":{"leftpadx":"1.0.0"}}"#;
    let files = [("package.json", package), (".npmrc", &evil), INDEX];
    let built = lab.build(&files).await.unwrap();
    assert_eq!(attacker.requests(), "");
    assert!(lab.lines().contains("`noproxy`, `proxy`, `strict-ssl` left out"), "{}", lab.lines());
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "genuine");
    // The operator's token is for the operator's registry.
    assert!(registry.requests().contains(SECRET));

    // A workspace's file, which npm might read as well.
    let package = r#"{"name":"evil","workspaces":["w"],"dependencies":{"leftpadx":"1.0.0"}}"#;
    let workspace = r#"{"name":"w","version":"1.0.0","dependencies":{"leftpady":"1.0.0"}}"#;
    let files =
        [("package.json", package), ("w/package.json", workspace), ("w/.npmrc", &evil), INDEX];
    lab.build(&files).await.unwrap();
    assert_eq!(attacker.requests(), "");
    registry.requests();

    // Another project fetches from the registry itself, whatever was fetched for the first one.
    let package = r#"{"name":"victim","dependencies":{"leftpadx":"1.0.0","leftpady":"1.0.0"}}"#;
    let built = lab.build(&[("package.json", package), INDEX]).await.unwrap();
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "genuine");
    let requests = registry.requests();
    assert!(
        requests.contains("GET /leftpadx ") && requests.contains("GET /leftpady "),
        "{requests}"
    );
    assert!(requests.contains("GET /leftpadx/-/leftpadx-1.0.0.tgz "), "{requests}");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_token_goes_to_the_operators_hosts_only() {
    let (registry, other) = (Host::start(), Host::start());
    registry.publish("leftpadx", "genuine", &other);
    let npmrc = operators(&registry);
    let lab = lab(&npmrc).await;
    let address = &other.address;
    // A registry of the project's own, and a token of its own for the operator's host.
    let own = format!(
        "registry=http://{address}/\n//{address}/:_authToken=OWN\n//{}/:_authToken=OWN\n",
        registry.address
    );
    let package = ("package.json", r#"{"name":"redirect","dependencies":{"leftpadx":"1.0.0"}}"#);
    lab.build(&[package, (".npmrc", &own), INDEX]).await.unwrap();
    let (at_registry, at_other) = (registry.requests(), other.requests());
    assert!(at_registry.contains(SECRET) && !at_registry.contains("OWN"), "{at_registry}");
    // The registry names this URL of its tarball.
    assert!(at_other.contains("GET /leftpadx/-/") && !at_other.contains(SECRET), "{at_other}");

    let lock = format!(
        r#"{{"name":"locked","lockfileVersion":3,"requires":true,"packages":{{
            "":{{"name":"locked","dependencies":{{"leftpadx":"1.0.0"}}}},
            "node_modules/leftpadx":{{"version":"1.0.0","resolved":"http://{address}/leftpadx/-/leftpadx-1.0.0.tgz"}}}}}}"#
    );
    let package = ("package.json", r#"{"name":"locked","dependencies":{"leftpadx":"1.0.0"}}"#);
    lab.build(&[package, ("package-lock.json", &lock), INDEX]).await.unwrap();
    let at_other = other.requests();
    assert!(at_other.contains("GET /leftpadx/-/") && !at_other.contains(SECRET), "{at_other}");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_own_scope_uses_its_own_token() {
    let (registry, own) = (Host::start(), Host::start());
    own.publish("@team%2fleftpadx", "theirs", &own);
    let about = own.files.lock().unwrap().remove("/@team%2fleftpadx").unwrap();
    let about =
        String::from_utf8(about).unwrap().replace("\"@team%2fleftpadx\"", "\"@team/leftpadx\"");
    own.files.lock().unwrap().insert("/@team%2fleftpadx".into(), about.into_bytes());
    let npmrc = operators(&registry);
    let lab = lab(&npmrc).await;
    let address = &own.address;
    let settings = format!("@team:registry=http://{address}/\n//{address}/:_authToken=OWN\n");
    let package = r#"{"name":"scoped","dependencies":{"@team/leftpadx":"1.0.0"}}"#;
    let index = ("index.js", "exports.hello = (req, res) => res.send(require('@team/leftpadx'));");
    let built =
        lab.build(&[("package.json", package), (".npmrc", &settings), index]).await.unwrap();
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "theirs");
    let requests = own.requests();
    assert!(requests.contains("Bearer OWN") && !requests.contains(SECRET), "{requests}");
    assert_eq!(registry.requests(), "");
    lab.end().await;
}

/// The tarball that it names is fetched, not the registry's one of the same version.
#[tokio::test(flavor = "multi_thread")]
async fn yarn_1_lockfile_is_honoured() {
    let (registry, pinned) = (Host::start(), Host::start());
    registry.publish("leftpadx", "newest", &registry);
    pinned.publish("leftpadx", "pinned", &pinned);
    let npmrc = operators(&registry);
    let lab = lab(&npmrc).await;
    let package = ("package.json", r#"{"name":"lab-yarn","dependencies":{"leftpadx":"*"}}"#);
    let tarball = format!("http://{}/leftpadx/-/leftpadx-1.0.0.tgz", pinned.address);
    let lock = format!(
        "# yarn lockfile v1\n\n\nleftpadx@*:\n  version \"1.0.0\"\n  resolved \"{tarball}\"\n"
    );
    let built = lab.build(&[package, ("yarn.lock", &lock), INDEX]).await.unwrap();
    assert!(!lab.lines().contains("is ignored"), "{}", lab.lines());
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "pinned");
    lab.end().await;
}
