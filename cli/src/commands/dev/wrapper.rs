//! The wrapper on the developer's disk: its files are embedded in this program; Express, the one
//! package that it needs, is installed once from npm's registry into `DATA/dev`. After that
//! no network is needed.
//!
//! The runtime base installs Express in the same way (`npm ci` with the same lock file), but inside
//! a container, whose layers are not accessible without Docker.

use super::node::Node;
use crate::failure::Failure;
use epsilon_builder::language::node::wrapper::FILES;
use epsilon_builder::source::Hasher;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::time::timeout;

/// The start file of `epsilon dev`, instead of the wrapper's own `main.js`.
const PROCESS: &str = include_str!("process.js");
/// Name of that file.
pub(super) const PROCESS_FILE: &str = "process.js";
/// Longest time for npm to install Express and its dependencies: 65 packages, 1 MB.
const NPM_WITHIN: Duration = Duration::from_secs(5 * 60);
/// Spinner interval.
const TICK: Duration = Duration::from_millis(100);
/// Lines of npm's output that an error shows.
const TAIL: usize = 20;

/// The folder with the wrapper of this program's version, created if missing.
pub(super) async fn ensure(cache: &Path, node: &Node) -> Result<PathBuf, Failure> {
    let files = FILES
        .iter()
        .fold(Hasher::default(), |all, (name, content)| all.part(name.as_bytes()).part(content));
    let key: String = files.part(PROCESS.as_bytes()).finish().to_string();
    let key = key.trim_start_matches("sha256:").chars().take(16).collect::<String>();
    let folder = cache.join(format!("wrapper-{key}"));
    if folder.exists() {
        return Ok(folder);
    }
    let draft = Draft(cache.join(format!("draft-{}", std::process::id())));
    make(&draft.0, node).await?;
    match fs::rename(&draft.0, &folder) {
        Err(err) if !folder.exists() => Err(unwritable(&folder, &err)),
        _ => Ok(folder), // or another `epsilon dev` was faster
    }
}

/// A folder being prepared; removed when dropped, unless it was renamed.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0)); // usually it was renamed by now
    }
}

async fn make(draft: &Path, node: &Node) -> Result<(), Failure> {
    write(draft).map_err(|err| unwritable(draft, &err))?;
    let spinner = Spinner::begin("Express for the wrapper, from npm's registry (only this once)");
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(folder) = node.program.parent() {
        // npm's own first line needs `node` on PATH.
        let mut all = vec![folder.to_owned()];
        all.extend(std::env::split_paths(&path));
        path = std::env::join_paths(all).unwrap_or(path);
    }
    let mut npm = node.npm();
    npm.args([
        "ci",
        "--omit=dev",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
    ])
    .current_dir(draft)
    .env("PATH", path)
    .stdin(Stdio::null())
    .kill_on_drop(true);
    let ended = timeout(NPM_WITHIN, npm.output()).await;
    spinner.end();
    let why = match ended {
        Ok(Ok(output)) if output.status.success() => return Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL)..].join("\n")
        }
        Ok(Err(err)) => format!("`npm` cannot be run: {err}"),
        Err(_) => format!("not within {}", humantime::format_duration(NPM_WITHIN)),
    };
    Err(Failure::new(
        "WRAPPER_FAILED",
        format!("npm did not install Express for the wrapper: {why}"),
    )
    .hint("npm and its registry are needed the first time; later starts need no network"))
}

fn write(folder: &Path) -> io::Result<()> {
    for (name, content) in FILES.iter().copied().chain([(PROCESS_FILE, PROCESS.as_bytes())]) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, content)?;
    }
    Ok(())
}

fn unwritable(folder: &Path, err: &io::Error) -> Failure {
    Failure::new("DATA_DIR", format!("`{}` cannot be written", folder.display()))
        .with_cause(err)
        .hint("name another data folder with `--data-dir DIR` or EPSILON_DATA_DIR")
}

/// A spinner on a terminal, a line elsewhere.
struct Spinner(Option<ProgressBar>);

impl Spinner {
    fn begin(what: &'static str) -> Self {
        if !console::Term::stderr().is_term() {
            eprintln!("{what} …");
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("  {spinner:.cyan} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what);
        bar.enable_steady_tick(TICK);
        Self(Some(bar))
    }

    fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
