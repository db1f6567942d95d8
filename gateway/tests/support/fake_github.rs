//! A fake GitHub on this machine: repositories over HTTP by git's own `http-backend`, the commit
//! status API, and deliveries signed as GitHub signs them. It can also misbehave on request. Used
//! by the gateway's tests, those of its parts and those of the whole platform.

#![allow(dead_code, reason = "each of them uses its part")]

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle};

pub(crate) const SECRET: &str = "a secret that only GitHub and we know";
pub(crate) const TOKEN: &str = "ghp_0123456789abcdefghijABCDEFGHIJ";
pub(crate) const ZEROS: &str = "0000000000000000000000000000000000000000";

/// How repositories are served.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Well,
    /// Only with the token.
    Privately,
    /// Redirects everything to this URL.
    Redirecting(String),
    /// Has no repositories.
    Empty,
    /// Accepts the request and never answers.
    Silent,
}

/// A commit status as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    behaviour: Mutex<Behaviour>,
    /// The API's next answers; 201 when empty.
    answers: Mutex<VecDeque<(u16, Option<&'static str>)>>,
    statuses: Mutex<Vec<Status>>,
    /// The `authorization` header of each repository request.
    shown: Mutex<Vec<Option<String>>>,
}

/// A running fake GitHub; dropped, it stops and removes its files.
#[derive(Debug)]
pub(crate) struct FakeGithub {
    pub(crate) address: SocketAddr,
    folder: TempDir,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Drop for FakeGithub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Content of a file in a commit.
pub(crate) enum File<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A submodule at this commit.
    Submodule(&'a str),
}

impl FakeGithub {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), format!("{SECRET}\n")).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            root: folder.path().join("repositories"),
            behaviour: Mutex::new(Behaviour::Well),
            answers: Mutex::default(),
            statuses: Mutex::default(),
            shown: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                let service = service_fn(move |request| answer(Arc::clone(&shared), request));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(served.await) });
            }
        });
        Self { address, folder, shared, server }
    }

    /// The settings of a project's hook for this server, as JSON (and so as YAML).
    pub(crate) fn hook(&self, repository: &str, more: &Value) -> Value {
        let mut settings = json!({
            "repository": repository,
            "url": format!("http://{}", self.address),
            "secret_file": self.folder.path().join("secret"),
        });
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        settings
    }

    pub(crate) fn secret_file(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// Sets the API's next answers: status and `Retry-After`.
    pub(crate) fn api_answers(&self, answers: &[(u16, Option<&'static str>)]) {
        self.shared.answers.lock().unwrap().extend(answers);
    }

    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.shared.statuses.lock().unwrap().clone()
    }

    /// `COMMIT STATE DESCRIPTION` of each status.
    pub(crate) fn status_lines(&self) -> Vec<String> {
        let line = |status: &Status| {
            let commit = status.path.rsplit('/').next().unwrap_or_default();
            let text = |key: &str| status.body[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", &commit[..7], text("state"), text("description"))
        };
        self.statuses().iter().map(line).collect()
    }

    /// The `authorization` header of each repository request.
    pub(crate) fn shown(&self) -> Vec<Option<String>> {
        self.shared.shown.lock().unwrap().clone()
    }

    /// Makes a commit with exactly these files, without a parent, and points `reference` there.
    /// Returns its id.
    pub(crate) fn commit(
        &self,
        repository: &str,
        reference: &str,
        files: &[(&str, File)],
    ) -> String {
        let path = self.shared.root.join(format!("{repository}.git"));
        if !path.exists() {
            git(&path, &["init", "--quiet", "--bare", path.to_str().unwrap()], b"");
        }
        let mut stream = format!("reset {reference}\n\ncommit {reference}\n");
        stream += "committer Dev <dev@example.org> 1700000000 +0000\ndata 4\ntest\ndeleteall\n";
        let mut stream = stream.into_bytes();
        for (name, file) in files {
            match file {
                File::Submodule(commit) => {
                    stream.extend(format!("M 160000 {commit} {name}\n").into_bytes());
                }
                File::Text(_) | File::Bytes(_) => {
                    let bytes = match file {
                        File::Text(text) => text.as_bytes(),
                        File::Bytes(bytes) => bytes,
                        File::Submodule(_) => b"",
                    };
                    stream.extend(
                        format!("M 100644 inline {name}\ndata {}\n", bytes.len()).into_bytes(),
                    );
                    stream.extend_from_slice(bytes);
                    stream.push(b'\n');
                }
            }
        }
        git(&path, &["fast-import", "--quiet", "--force"], &stream);
        git(&path, &["rev-parse", reference], b"")
    }

    /// An annotated tag on a commit. Returns the id of the tag object.
    pub(crate) fn tag(&self, repository: &str, name: &str, commit: &str) -> String {
        let path = self.shared.root.join(format!("{repository}.git"));
        let tag = format!(
            "object {commit}\ntype commit\ntag {name}\ntagger Dev <dev@example.org> 1700000000 +0000\n\nv\n"
        );
        let id = git(&path, &["mktag"], tag.as_bytes());
        git(&path, &["update-ref", &format!("refs/tags/{name}"), &id], b"");
        id
    }
}

/// The payload of a push, made from GitHub's own example.
pub(crate) fn push(repository: &str, reference: &str, after: &str, commit: &str) -> Value {
    let sample =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../gateway/tests/fixtures/github/push-branch.json");
    let sample = std::fs::read(sample.replace("tests/e2e/../gateway", "gateway")).unwrap();
    let mut payload: Value = serde_json::from_slice(&sample).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    payload["ref"] = reference.into();
    payload["after"] = after.into();
    payload["head_commit"]["id"] = commit.into();
    payload["deleted"] = (after == ZEROS).into();
    payload["repository"]["full_name"] = repository.into();
    payload["repository"]["pushed_at"] = now.as_secs().into();
    payload
}

/// The signature that GitHub sends with a body.
pub(crate) fn signature(body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let digits = hmac::sign(&key, body)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    format!("sha256={digits}")
}

/// The headers of a delivery.
pub(crate) fn headers(event: &str, delivery: &str, body: &[u8]) -> [(&'static str, String); 4] {
    [
        ("content-type", "application/json".into()),
        ("x-github-event", event.into()),
        ("x-github-delivery", delivery.into()),
        ("x-hub-signature-256", signature(body)),
    ]
}

/// Runs git without the user's settings; returns its output.
fn git(repository: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    if repository.exists() {
        command.arg("--git-dir").arg(repository);
    }
    command.args(arguments).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    let mut git = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    git.stdin.take().unwrap().write_all(input).unwrap();
    let output = git.wait_with_output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    if path.starts_with("/api/v3/") {
        let (status, after) = shared.answers.lock().unwrap().pop_front().unwrap_or((201, None));
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        shared.statuses.lock().unwrap().push(Status { path, headers: head.headers, body });
        let after = after.map(|after| ("retry-after", after));
        return Ok(plain(status, after));
    }
    let shown = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    shared.shown.lock().unwrap().push(shown.clone());
    let behaviour = shared.behaviour.lock().unwrap().clone();
    Ok(match behaviour {
        Behaviour::Privately if shown.is_none() => {
            plain(401, Some(("www-authenticate", "Basic realm=\"github\"")))
        }
        Behaviour::Well | Behaviour::Privately => backend(&shared.root, &head, &body).await,
        Behaviour::Redirecting(to) => plain(301, Some(("location", &*to))),
        Behaviour::Empty => plain(404, None),
        Behaviour::Silent => std::future::pending().await,
    })
}

fn plain(status: u16, header: Option<(&str, &str)>) -> Response<Full<Bytes>> {
    let mut answer = Response::builder().status(status);
    if let Some((name, value)) = header {
        answer = answer.header(name, value);
    }
    answer.body(Full::default()).unwrap()
}

/// git's own CGI program.
async fn backend(root: &Path, head: &http::request::Parts, body: &[u8]) -> Response<Full<Bytes>> {
    let header = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let mut backend = tokio::process::Command::new("git")
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("PATH_INFO", head.uri.path())
        .env("QUERY_STRING", head.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", head.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = backend.stdin.take().unwrap();
    let body = body.to_vec();
    tokio::spawn(async move { drop(stdin.write_all(&body).await) });
    let output = backend.wait_with_output().await.unwrap().stdout;
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(output.len());
    let mut answer = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        answer = match name {
            "Status" => {
                let code = value.split(' ').next().and_then(|code| code.parse().ok());
                answer.status(code.unwrap_or(StatusCode::BAD_GATEWAY))
            }
            _ => answer.header(name, value),
        };
    }
    let body = output.get(end + 4..).unwrap_or_default();
    answer.body(Full::from(body.to_vec())).unwrap()
}
