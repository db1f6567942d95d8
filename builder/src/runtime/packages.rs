//! The runtime base without a registry: a small Debian or Ubuntu from the packages of this
//! machine's own mirror, completed by the language's recipe.
//!
//! ```text
//! debootstrap ─▶ root file system ─▶ seed image ─▶ Recipe::complete ─▶ base image
//! ```
//!
//! Needs root (debootstrap creates devices and changes owners) and nothing else that a new machine
//! lacks: debootstrap itself is installed if missing.

use super::{
    RuntimeContext,
    mirror::{self, Mirror, Repository},
    recipe::{Facts, Recipe},
    seed::Seed,
    step::Needs,
};
use crate::{
    blocking,
    cache::WorkDir,
    engine::SCRATCH,
    error::{self, Hint},
};
use epsilon_api::build::BuildError;
use std::{fs, path::PathBuf, sync::Arc};

/// The release of a base made on this machine: `bookworm`.
pub(super) fn release() -> Option<String> {
    mirror::codename(&fs::read_to_string("/etc/os-release").ok()?)
}

/// Makes the base and names it `name:tag`.
pub(super) async fn make(
    recipe: &dyn Recipe,
    context: &RuntimeContext<'_>,
    work: &Arc<WorkDir>,
    name: &str,
    tag: &str,
) -> Result<(), BuildError> {
    if !rustix::process::geteuid().is_root() {
        return Err(error::runtime_failed(
            "no public registry can be reached, and making the base from the distribution's packages needs root",
        )
        .hint(otherwise(recipe.facts())));
    }
    let facts = recipe.facts();
    let (release, mirror) =
        blocking::run("reading apt's settings", move || own_mirror(facts)).await?;
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
    let seed = Seed { context, work, image: &seed, mirror: &mirror };
    let finished = recipe.complete(seed).await?;
    let import = async { Ok(context.engine.import(finished.export(), name, tag).await?) };
    context.step("the base becomes an image", Needs::Machine, import).await
}

/// What to do where this is impossible.
fn otherwise(facts: &Facts) -> String {
    let Facts { setting, needs, .. } = facts;
    format!(
        "run the builder once as root on Debian or Ubuntu, or set `{setting}` to an image that has {needs}"
    )
}

fn own_mirror(facts: &Facts) -> Result<(String, Mirror), BuildError> {
    let release = release().ok_or_else(|| {
        error::runtime_failed(
            "no public registry can be reached, and this machine is neither Debian nor Ubuntu",
        )
        .hint(otherwise(facts))
    })?;
    let mirror = mirror::choose(&repositories(), &release).ok_or_else(|| {
        error::runtime_failed(format!(
            "no public registry can be reached, and apt's settings name no http mirror of `{release}`"
        ))
        .hint(otherwise(facts))
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
