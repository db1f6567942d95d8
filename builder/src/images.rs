//! Images of this machine's engine, out into an OCI image layout and back in: what `epsilon backup` takes along and
//! `epsilon restore` brings. Not a part of the builder that serves; it keeps no folder and can work beside one.
//!
//! ```text
//! engine ─ save ─▶ one archive, as `docker save` writes it ─ saved.rs ─▶ a layout's files, each layer once
//! a layout's files ─ load ─▶ engine
//! ```

mod saved;

use crate::config::Config;
use crate::engine::{Engine, EngineError, EngineImage, Part, files};
use crate::error::Hint;
use crate::image::archive::{header, padding};
use crate::publish::blob::Blob;
use crate::{error, runtime};
use epsilon_api::{build::BuildError, chain::Chain};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio_util::task::TaskTracker;

/// How long the engine may take before it begins to give or has taken images: classic ones first write all of them to
/// their own disk.
const PATIENCE: Duration = Duration::from_secs(3600);

/// An image that an engine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name: `epsilon/shop/pay:0123456789ab`.
    pub reference: String,
    /// What that engine calls it: `sha256:…`. Engines of two kinds call the same image differently.
    pub digest: String,
    /// Digests of its layers' bytes, bottom first: what it *is*, in any engine.
    pub layers: Vec<String>,
}

/// Whether an image's name says in which registry it can be had. One that does not is in an engine and nowhere else.
pub fn names_a_registry(reference: &str) -> bool {
    epsilon_registry::Host::named_in(reference).is_some()
}

/// The engine of this machine.
#[derive(Clone, Debug)]
pub struct Images {
    engine: Engine,
}

/// A file of a layout that is to be written.
#[derive(Clone, Debug)]
pub struct LayoutFile {
    /// Where it lies in the layout: `index.json`, `blobs/sha256/…`.
    pub path: String,
    blob: Blob,
}

impl LayoutFile {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.blob.bytes
    }

    /// SHA-256 of its bytes, in hexadecimal.
    pub fn sha256(&self) -> &str {
        self.blob.digest.trim_start_matches("sha256:")
    }

    /// Its bytes.
    ///
    /// # Errors
    /// The file's own.
    pub fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        self.blob.open()
    }
}

impl Images {
    /// The engine of these settings, which has to answer.
    ///
    /// # Errors
    /// `ENGINE_FAILED` when it does not.
    pub async fn open(config: &Config) -> Result<Self, BuildError> {
        let mut patient = config.clone();
        patient.engine_timeout = PATIENCE;
        let engine = Engine::new(&patient, "backup".into(), TaskTracker::new())?;
        let limit = config.engine_timeout;
        let checked = tokio::time::timeout(limit, engine.check()).await;
        let checked = checked.unwrap_or_else(|_| Err(EngineError::too_slow("being asked", limit)));
        checked.map_err(|err| {
            tracing::warn!(error = %Chain(&err), "The engine does not answer.");
            let socket = config.engine.display();
            error::engine_failed(format!("no container engine answers at `{socket}`"))
                .hint("start Docker, or name its socket in the setting `builder.engine`")
        })?;
        Ok(Self { engine })
    }

    /// The image behind a name, if the engine has it.
    ///
    /// # Errors
    /// `ENGINE_FAILED`.
    pub async fn find(&self, reference: &str) -> Result<Option<Image>, BuildError> {
        let found = self.engine.image(reference).await?;
        let image = |EngineImage { id, diff_ids, .. }| Image {
            reference: reference.to_owned(),
            digest: id,
            layers: diff_ids,
        };
        Ok(found.map(image))
    }

    /// Names of what `epsilon up` would make at its start if the engine lacked it.
    ///
    /// # Errors
    /// `ENGINE_FAILED`.
    pub async fn of_platform(&self, config: &Config) -> Result<Vec<String>, BuildError> {
        runtime::found(&self.engine, config).await
    }

    /// Takes images out of the engine, into a file in `work`, which the layout's files are read from. Tells how many bytes
    /// came so far.
    ///
    /// # Errors
    /// `ENGINE_FAILED`, `DISK_FULL`.
    pub async fn save(
        &self,
        references: &[&str],
        work: &Path,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<LayoutFile>, BuildError> {
        const DOING: &str = "taking images out of the engine";
        let archive = work.join("images.tar");
        let saved = async {
            let mut file = tokio::fs::File::create(&archive).await?;
            self.engine.save_all(references, &mut file, told).await
        };
        saved.await.map_err(|err| error::file(DOING, &err))?;
        let wanted: Vec<String> = references.iter().map(|name| (*name).to_owned()).collect();
        crate::blocking::run(DOING, move || saved::layout(&archive, &wanted)).await
    }

    /// Puts all images of a layout, which lies unpacked in `folder`, into the engine under their names.
    ///
    /// # Errors
    /// `ENGINE_FAILED`, `DISK_FULL`.
    pub async fn load(&self, folder: &Path) -> Result<(), BuildError> {
        let folder = folder.to_owned();
        let parts = crate::blocking::run("reading images", move || {
            parts(&folder).map_err(|err| error::file("reading images", &err))
        });
        Ok(self.engine.load(files(parts.await?)).await?)
    }

    /// Takes a name off an image, and with its last name the image, unless a container uses it.
    ///
    /// # Errors
    /// `ENGINE_FAILED`.
    pub async fn remove(&self, reference: &str) -> Result<(), BuildError> {
        Ok(self.engine.remove_name(reference).await?)
    }
}

/// A layout as the archive that engines load.
fn parts(folder: &Path) -> io::Result<Vec<Part>> {
    let mut found = Vec::new();
    collect(folder, Path::new(""), &mut found)?;
    found.sort();
    let mut parts = Vec::with_capacity(found.len() * 3 + 1);
    for path in found {
        let file = folder.join(&path);
        let bytes = fs::metadata(&file)?.len();
        parts.push(Part::Bytes(header(&path.to_string_lossy(), bytes)?));
        parts.push(Part::File(file));
        parts.push(Part::Bytes(padding(bytes)));
    }
    parts.push(Part::Bytes(bytes::Bytes::from_static(&[0; 1024])));
    Ok(parts)
}

fn collect(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
