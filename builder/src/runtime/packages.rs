//! The runtime base without a registry: a small Debian or Ubuntu from the packages of this
//! machine's own mirror, with Node's own binary.
//!
//! ```text
//! debootstrap ─▶ root file system ─▶ seed image ─▶ container: pip fetches Node ─▶ folder
//!                                        └───▶ container: base.sh installs it, updates, trims ─▶ base image
//! ```
//!
//! Needs root (debootstrap creates devices and changes owners) and nothing else that a new machine
//! lacks: debootstrap itself is installed if missing.

use super::{
    RuntimeContext,
    mirror::{self, Mirror, Repository},
    step::Needs,
};
use crate::cache::WorkDir;
use crate::engine::SCRATCH;
use crate::engine::container::{Bind, Container, Exit, Rights, Task};
use crate::error::Hint;
use crate::image::user::USER;
use crate::{blocking, error};
use epsilon_api::build::BuildError;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Major version of Node for functions.
const NODE_MAJOR: u32 = 24;
const FETCH_NODE: &str = include_str!("node.sh");
const MAKE_BASE: &str = include_str!("base.sh");

/// Hint where this is impossible.
const OTHERWISE: &str = "run the builder once as root on Debian or Ubuntu, or set `builder.runtime_image` to an \
                         image that has `sh`, `npm` and `node` 24";

/// Text that identifies everything that decides the base.
pub(super) fn recipe() -> String {
    format!("packages {NODE_MAJOR}\n{FETCH_NODE}\n{MAKE_BASE}")
}

/// The release of a base made on this machine: `bookworm`.
pub(super) fn release() -> Option<String> {
    mirror::codename(&fs::read_to_string("/etc/os-release").ok()?)
}

/// Makes the base and names it `name:tag`.
pub(super) async fn make(
    context: &RuntimeContext<'_>,
    work: &Arc<WorkDir>,
    name: &str,
    tag: &str,
) -> Result<(), BuildError> {
    if !rustix::process::geteuid().is_root() {
        return Err(error::runtime_failed(
            "no public registry can be reached, and making the base from the distribution's packages needs root",
        )
        .hint(OTHERWISE));
    }
    let (release, mirror) = blocking::run("reading apt's settings", own_mirror).await?;
    let command = super::command::Commands { work, last_line: context.last_line };

    context.step("debootstrap", Needs::Mirror, command.ensure_debootstrap()).await?;
    let root = work.path().join("root");
    let doing = format!("a root file system of {release}, from this machine's mirror");
    let bootstrapped = command.debootstrap(&release, &mirror.main, &root);
    context.step(&doing, Needs::Mirror, bootstrapped).await?;

    let scratch = context.engine.scratch("seed");
    let seed = scratch.reference();
    let import = async {
        let (tar, done) = command.tar(&root)?;
        context.engine.import(tar, SCRATCH, &scratch.tag).await?;
        done.await
    };
    context.step("the root file system becomes an image", Needs::Machine, import).await?;
    let node = work.folder("node", (0, 0))?;
    let fetched = fetch_node(context, work, &seed, &node);
    context.step("Node 24 and npm", Needs::PackageIndex, fetched).await?;
    let base = finish(context, work, &seed, &node, &mirror);
    let doing = "security updates, Node put in, the rest trimmed";
    let finished = context.step(doing, Needs::Mirror, base).await?;
    let import = async { Ok(context.engine.import(finished.export(), name, tag).await?) };
    context.step("the base becomes an image", Needs::Machine, import).await
}

fn own_mirror() -> Result<(String, Mirror), BuildError> {
    let release = release().ok_or_else(|| {
        error::runtime_failed(
            "no public registry can be reached, and this machine is neither Debian nor Ubuntu",
        )
        .hint(OTHERWISE)
    })?;
    let mirror = mirror::choose(&repositories(), &release).ok_or_else(|| {
        error::runtime_failed(format!(
            "no public registry can be reached, and apt's settings name no http mirror of `{release}`"
        ))
        .hint(OTHERWISE)
    })?;
    Ok((release, mirror))
}

/// All of apt's settings, in apt's order.
fn repositories() -> Vec<Repository> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = folder.filter_map(|e| Some(e.ok()?.path())).collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "list" => Some(mirror::one_line(&text)),
                "sources" => Some(mirror::deb822(&text)),
                _ => None,
            }
        })
        .flatten()
        .collect()
}

async fn fetch_node(
    context: &RuntimeContext<'_>,
    work: &Arc<WorkDir>,
    seed: &str,
    node: &Path,
) -> Result<Container, BuildError> {
    let mut mounts = context.egress_env.mounts();
    mounts.push(Bind { host: node.to_owned(), inside: "/out", writable: true });
    let env = vec![format!("NODE_MAJOR={NODE_MAJOR}")];
    install(context, work, seed, FETCH_NODE, env, mounts).await
}

async fn finish(
    context: &RuntimeContext<'_>,
    work: &Arc<WorkDir>,
    seed: &str,
    node: &Path,
    mirror: &Mirror,
) -> Result<Container, BuildError> {
    let sources = work.path().join("sources.list");
    let text = mirror.lines.join("\n") + "\n";
    fs::write(&sources, text).map_err(|err| error::file("writing the base's mirror", &err))?;
    let mut mounts = context.egress_env.mounts();
    mounts.push(Bind { host: node.to_owned(), inside: "/node", writable: false });
    mounts.push(Bind { host: sources, inside: "/run/epsilon/sources.list", writable: false });
    install(context, work, seed, MAKE_BASE, vec![format!("USER_ID={USER}")], mounts).await
}

async fn install(
    context: &RuntimeContext<'_>,
    work: &Arc<WorkDir>,
    seed: &str,
    script: &str,
    mut env: Vec<String>,
    mounts: Vec<Bind>,
) -> Result<Container, BuildError> {
    env.extend(context.egress_env.env());
    let task = Task {
        purpose: "base",
        image: seed.to_owned(),
        command: ["sh", "-euc", script].map(str::to_owned).to_vec(),
        env,
        mounts,
        workdir: "/",
        rights: Rights::Install,
        network: context.egress_env.network(),
        limits: context.limits,
        largest_file: None,
    };
    let container = context.engine.create(&task, Some(Arc::clone(work) as _)).await?;
    let ended = container.run(|line| context.last_line.set(line)).await?;
    match ended.exit {
        Exit::Code(0) => Ok(container),
        Exit::Code(_) | Exit::OutOfMemory | Exit::TimedOut => {
            let says = ended.tail.join("\n");
            Err(error::runtime_failed(format!("the runtime base could not be made:\n{says}"))
                .hint("the distribution's mirror and Python's package index must be reachable"))
        }
    }
}
