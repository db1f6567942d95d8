//! Which images a backup has: those of versions that only this machine's engine has, their bases,
//! and the images that `epsilon up` makes at its start.

use super::ProgressLine;
use crate::{
    backup::manifest::{LeftOut, Why},
    failure::Failure,
};
use epsilon_api::build::BuildError;
use epsilon_builder::{
    config::Config,
    images::{Image, Images, LayoutFile, names_a_registry},
};
use epsilon_store::BackedUpVersion;
use std::{collections::BTreeMap, path::Path};

/// The images of a backup.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) images: Vec<Image>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) files: Vec<LayoutFile>,
}

/// The wanted images that the engine has, and the versions whose images it does not have.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    /// By name.
    images: BTreeMap<String, Image>,
    left_out: Vec<LeftOut>,
}

/// Exports the images of these versions from the engine. Does not contact it if registries have all
/// of them.
pub(super) async fn take(
    config: &Config,
    versions: &[BackedUpVersion],
    work: &Path,
    shown: &ProgressLine,
) -> Result<Taken, Failure> {
    let mut taken = Taken::default();
    let (elsewhere, here): (Vec<_>, Vec<_>) =
        versions.iter().partition(|version| names_a_registry(&version.image.reference));
    taken.left_out.extend(elsewhere.into_iter().map(|version| left_out(version, Why::InRegistry)));
    if here.is_empty() {
        return Ok(taken);
    }
    shown.say("the images");
    let failed = |err: BuildError| Failure::from(err.body());
    let engine = Images::open(config).await.map_err(failed)?;
    // Versions can serve without these. With them they start from cells as before, and the next
    // deployment needs no network.
    let bases = versions.iter().filter_map(|version| version.base.as_ref());
    let bases: Vec<_> = bases
        .map(|base| base.reference.clone())
        .filter(|base| !names_a_registry(base))
        .chain(engine.of_platform(config).await.map_err(failed)?)
        .collect();
    let on_progress = |bytes| shown.say_bytes("the images", bytes);
    let save = async |found: &Found| {
        let names: Vec<&str> = found.images.keys().map(String::as_str).collect();
        engine.save(&names, work, &on_progress).await
    };
    let (found, files) =
        save_remaining(async || look(&engine, &here, &bases).await, save).await.map_err(failed)?;
    taken.images = found.images.into_values().collect();
    taken.left_out.extend(found.left_out);
    taken.files = files;
    Ok(taken)
}

async fn look(
    engine: &Images,
    versions: &[&BackedUpVersion],
    bases: &[String],
) -> Result<Found, BuildError> {
    let mut found = Found::default();
    for version in versions {
        match engine.find(&version.image.reference).await? {
            Some(image) if image.digest == version.image.digest => {
                found.images.insert(image.reference.clone(), image);
            }
            Some(_) | None => found.left_out.push(left_out(version, Why::NotInEngine)),
        }
    }
    for name in bases {
        if !found.images.contains_key(name)
            && let Some(image) = engine.find(name).await?
        {
            found.images.insert(name.clone(), image);
        }
    }
    Ok(found)
}

/// Saves the images that `look` finds. An engine that lacks one of them exports none: if the
/// platform removed an image meanwhile, of a version that is not needed any more, the rest is saved
/// in a second attempt.
async fn save_remaining(
    look: impl AsyncFn() -> Result<Found, BuildError>,
    save: impl AsyncFn(&Found) -> Result<Vec<LayoutFile>, BuildError>,
) -> Result<(Found, Vec<LayoutFile>), BuildError> {
    let found = look().await?;
    if found.images.is_empty() {
        return Ok((found, Vec::new()));
    }
    let failed = match save(&found).await {
        Ok(files) => return Ok((found, files)),
        Err(failed) => failed,
    };
    let again = look().await?;
    if again == found {
        return Err(failed);
    }
    let files = if again.images.is_empty() { Vec::new() } else { save(&again).await? };
    Ok((again, files))
}

fn left_out(version: &BackedUpVersion, why: Why) -> LeftOut {
    LeftOut {
        version: version.id.to_string(),
        image: version.image.reference.clone(),
        serves: version.serves,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_builder::error::engine_failed;
    use std::cell::{Cell, RefCell};

    fn found(names: &[&str]) -> Found {
        let image = |name: &&str| {
            let image =
                Image { reference: (*name).into(), digest: String::new(), layers: Vec::new() };
            ((*name).to_owned(), image)
        };
        Found { images: names.iter().map(image).collect(), left_out: Vec::new() }
    }

    /// What is saved from an engine that has `before` and then `after`, and exports nothing if an
    /// image is missing.
    async fn saved(before: &[&str], after: &[&str]) -> (Result<Vec<String>, String>, usize) {
        let has = RefCell::new(found(before));
        let tries = Cell::new(0);
        let look = async || Ok(has.borrow().clone());
        let save = async |wanted: &Found| {
            tries.set(tries.get() + 1);
            has.replace(found(after));
            match wanted.images.keys().find(|name| !after.contains(&name.as_str())) {
                Some(lost) => Err(engine_failed(format!("no `{lost}`"))),
                None if after.contains(&"broken") => Err(engine_failed("broken")),
                None => Ok(Vec::new()),
            }
        };
        let saved = save_remaining(look, save).await;
        let names = saved.map(|(found, _)| found.images.into_keys().collect());
        (names.map_err(|err| err.message), tries.get())
    }

    #[tokio::test]
    async fn an_image_removed_meanwhile_does_not_prevent_the_others() {
        let names = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect());
        assert_eq!(saved(&["a", "b"], &["a", "b"]).await, (names(&["a", "b"]), 1));
        assert_eq!(saved(&["a", "b"], &["a"]).await, (names(&["a"]), 2));
        assert_eq!(saved(&["a"], &[]).await, (names(&[]), 1));
        assert_eq!(saved(&[], &[]).await, (names(&[]), 0));
        let broken = Err("broken".to_owned());
        assert_eq!(saved(&["broken"], &["broken"]).await, (broken, 1), "nothing went");
    }
}
