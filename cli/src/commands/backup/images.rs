//! Which images a backup takes along: those of versions that only this machine's engine has, the bases below them, and what
//! `epsilon up` would make at its start.

use super::Shown;
use crate::{
    backup::manifest::{LeftOut, Why},
    failure::Failure,
};
use epsilon_builder::{
    config::Config,
    images::{Image, Images, LayoutFile, names_a_registry},
};
use epsilon_store::KeptVersion;
use std::{collections::BTreeMap, path::Path};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) images: Vec<Image>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) files: Vec<LayoutFile>,
}

/// Takes the images of these versions out of the engine. Asks it nothing where a registry has all of them.
pub(super) async fn take(
    config: &Config,
    versions: &[KeptVersion],
    work: &Path,
    shown: &Shown,
) -> Result<Taken, Failure> {
    let mut taken = Taken::default();
    let (elsewhere, here): (Vec<_>, Vec<_>) =
        versions.iter().partition(|version| names_a_registry(&version.image.reference));
    taken.left_out.extend(elsewhere.into_iter().map(|version| left_out(version, Why::InRegistry)));
    if here.is_empty() {
        return Ok(taken);
    }
    shown.say("the images");
    let failed = |err: epsilon_api::build::BuildError| Failure::from(err.body());
    let engine = Images::open(config).await.map_err(failed)?;
    let mut found = BTreeMap::new();
    for version in here {
        match engine.find(&version.image.reference).await.map_err(failed)? {
            Some(image) if image.digest == version.image.digest => {
                found.insert(image.reference.clone(), image);
            }
            Some(_) | None => taken.left_out.push(left_out(version, Why::NotInEngine)),
        }
    }
    // Without these all versions can serve, by their images; with them they start as before, and the next deployment too.
    let bases = versions.iter().filter_map(|version| version.base.as_ref());
    let bases = bases.map(|base| base.reference.clone()).filter(|base| !names_a_registry(base));
    for name in bases.chain(engine.of_platform(config).await.map_err(failed)?) {
        if !found.contains_key(&name)
            && let Some(image) = engine.find(&name).await.map_err(failed)?
        {
            found.insert(name, image);
        }
    }
    if !found.is_empty() {
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        let told = |bytes| shown.say_bytes("the images", bytes);
        taken.files = engine.save(&names, work, &told).await.map_err(failed)?;
        taken.images = found.into_values().collect();
    }
    Ok(taken)
}

fn left_out(version: &KeptVersion, why: Why) -> LeftOut {
    LeftOut {
        version: version.id.to_string(),
        image: version.image.reference.clone(),
        serves: version.serves,
        why,
    }
}
