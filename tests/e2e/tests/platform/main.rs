//! Everything that can be tested on one running platform, shared by all tests of this binary: each
//! test has functions of its own names, or shares the two below, and none changes what another one
//! sees.
//!
//! Tests that kill, restart or starve the platform are in binaries of their own.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod admin;
mod bad_archives;
mod bad_code;
mod bad_projects;
mod bodies;
mod brought;
mod builds;
mod burst;
mod calls;
mod cold;
mod command_line;
mod containers;
mod deployments;
mod dev;
mod examples;
#[path = "../../../../gateway/tests/support/fake_github.rs"]
mod fake_github;
mod git_push;
mod headers;
mod http_details;
mod images;
mod images_own;
mod isolation;
mod lifecycle;
mod limits;
mod logs;
mod origin_defects;
mod settings;
mod signatures;
mod streaming;
mod traffic;
mod versions;
mod webhook;

use epsilon_e2e::{
    http::{Answer, Call},
    project,
    up::{Epsilon, Settings},
};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::OnceCell;

/// Limits that a test can reach quickly.
const CONFIG: &str = "
gateway: { max_body: 8MiB, header_timeout: 3s }
vm_agent: { queue_wait: 3s, start_timeout: 8s }
builder: { inspect_timeout: 5s }
";

/// The platform of this binary; removed by its guard when the binary ends.
async fn up() -> &'static Epsilon {
    static UP: OnceCell<Epsilon> = OnceCell::const_new();
    static TRIED: AtomicBool = AtomicBool::new(false);
    UP.get_or_init(|| async {
        let again = TRIED.swap(true, Ordering::Relaxed);
        assert!(!again, "the platform did not start; the first test that failed says why");
        Epsilon::start_with(Settings::config(CONFIG)).await
    })
    .await
}

/// The platform with two functions that most tests need and none changes (a test that leaves an
/// instance full or broken has a function of its own):
///
/// - `probe` runs the JavaScript in its body: `return` gives the answer, as JSON. One call at a
///   time.
/// - `echo` answers with everything that it saw of the request. Ten calls at a time.
async fn probe() -> &'static Epsilon {
    static PROBE: OnceCell<()> = OnceCell::const_new();
    let up = up().await;
    PROBE
        .get_or_init(|| async {
            up.deploy(&project!("probe", { "index.js" => PROBE_JS })).await;
        })
        .await;
    up
}

const PROBE_JS: &str = r#"
const AsyncFunction = (async () => {}).constructor;
exports.probe = {
  config: { timeout: 20_000, memory: "128MiB", maxInstances: 4 },
  func: async (req, res) => {
    const answer = await new AsyncFunction("require", "req", "res", req.body)(require, req, res);
    if (!res.headersSent) res.json(answer === undefined ? null : answer);
  },
};
exports.echo = {
  config: { timeout: 20_000, memory: "128MiB", maxBody: "8MiB", concurrency: 10, maxInstances: 4 },
  func: (req, res) => res.json({
    method: req.method, path: req.path, url: req.url, query: req.query, headers: req.headers,
    body: req.body, raw: req.rawBody ? req.rawBody.toString("utf8") : null,
  }),
};
"#;

/// Runs JavaScript in the function `probe`.
async fn run(code: &str) -> Answer {
    Call::post("/probe", "text/plain", code.to_owned()).send(probe().await.public()).await
}
