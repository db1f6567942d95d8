//! A first deployment of a project with some 70 npm packages, beside npm itself: the same command
//! in a container of the same image, with the same cache and permissions, timed from within. The
//! difference is what a build adds to npm.

use crate::{Plan, report::median};
use epsilon_e2e::{engine::docker, project, up::Epsilon};
use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Instant,
};

const IMAGE: &str = "epsilon/runtime-node:current";
/// The user of builds.
const USER: u32 = 65_532;
/// Environment variables for npm's registry from this machine.
const OUTSIDE: [&str; 4] = ["http_proxy", "https_proxy", "no_proxy", "npm_config_registry"];
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const NPM: &str = "date +%s%N && npm install --omit=dev --ignore-scripts --no-audit --no-fund --no-update-notifier \
                   >/dev/null && date +%s%N && ls node_modules | wc -l";

/// The measured times, in milliseconds.
pub(super) struct Packages {
    pub(super) deploy_ms: f64,
    pub(super) npm_ms: f64,
    pub(super) count: usize,
}

/// Express and all that it needs; the alias makes it a set of packages that is not installed
/// yet.
fn manifest(turn: usize) -> String {
    format!(
        r#"{{ "name": "packed", "version": "1.0.0", "dependencies": {{ "express": "5.1.0", "own-{turn}": "npm:ms@2.1.3" }} }}"#
    )
}

pub(super) async fn measure(up: &Epsilon, plan: Plan) -> Packages {
    let project = project!("packed", {
        "index.js" => "const app = require('express')();\napp.get('/', (req, res) => res.send('packed'));\nexports.packed = app;\n",
        "package.json" => manifest(0),
    });
    let folder = project.path();
    // Fills npm's cache, which both then have.
    up.cli_in(&folder, &["deploy"]).await.expect(0);
    let mut deploys = Vec::new();
    let mut npms = Vec::new();
    let mut count = 0;
    for turn in 1..=plan.pushes.min(5) {
        let package = manifest(turn);
        let (npm_ms, packages) = npm(&package, &cache(&up.data().join("builder/npm"))).await;
        npms.push(npm_ms);
        count = packages;
        project.write("package.json", &package);
        let began = Instant::now();
        up.cli_in(&folder, &["deploy"]).await.expect(0);
        deploys.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Packages { deploy_ms: median(deploys), npm_ms: median(npms), count }
}

/// npm's cache of the project that was deployed last: each has its own.
fn cache(caches: &Path) -> PathBuf {
    let all = fs::read_dir(caches).unwrap().map(|entry| entry.unwrap());
    let newest = all.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    newest.unwrap().path().join("cache")
}

/// npm's own time, and the number of package directories.
async fn npm(package: &str, cache: &Path) -> (f64, usize) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("package.json"), package).unwrap();
    chown(folder.path(), Some(USER), Some(USER)).unwrap();
    let user = format!("{USER}:{USER}");
    let mount = |from: &Path, to: &str| format!("{}:{to}", from.display());
    let mut arguments = ["run", "--rm", "--init", "--read-only", "--network", "host", "--user"]
        .map(str::to_owned)
        .to_vec();
    arguments.extend([
        user,
        "--tmpfs".into(),
        "/tmp:exec".into(),
        "--workdir".into(),
        "/app".into(),
    ]);
    arguments.extend(["-e", "HOME=/tmp", "-e", "npm_config_cache=/npm"].map(str::to_owned));
    arguments.extend([
        "-v".into(),
        mount(folder.path(), "/app"),
        "-v".into(),
        mount(cache, "/npm"),
    ]);
    if Path::new(CERTIFICATES).exists() {
        arguments.extend(["-v".into(), format!("{CERTIFICATES}:/ca.crt:ro")]);
        arguments.extend(["-e", "npm_config_cafile=/ca.crt"].map(str::to_owned));
    }
    let npmrc = std::env::home_dir().map(|home| home.join(".npmrc")).filter(|file| file.exists());
    if let Some(npmrc) = npmrc {
        arguments.extend(["-v".into(), mount(&npmrc, "/npmrc:ro")]);
        arguments.extend(["-e", "npm_config_userconfig=/npmrc"].map(str::to_owned));
    }
    for (name, value) in std::env::vars() {
        if OUTSIDE.contains(&name.to_ascii_lowercase().as_str()) {
            arguments.extend(["-e".into(), format!("{name}={value}")]);
        }
    }
    arguments.extend(["--entrypoint", "sh", IMAGE, "-c", NPM].map(str::to_owned));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = docker(&arguments).await.expect(0);
    let numbers: Vec<f64> =
        outcome.stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
    ((numbers[1] - numbers[0]) / 1e6, numbers[2] as usize)
}
