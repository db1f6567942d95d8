//! Images of this machine's engine, exported as an OCI image layout and loaded from one, for
//! `epsilon backup` and `epsilon restore`. Not a part of a serving builder: it has no folder of its
//! own and can work beside one.
//!
//! ```text
//! engine ─ save ─▶ one archive, as `docker save` writes it ─ saved.rs ─▶ a layout's files, each layer once
//! a layout's files ─ selection.rs: names that are listed, and wanted ─ load ─▶ engine
//! ```

mod saved;
mod selection;

pub use selection::{LayoutSelection, Refused};

use crate::{
    config::Config,
    engine::{Engine, EngineError, EngineImage, files},
    error::{self, Hint},
    language,
    publish::blob::Blob,
    runtime,
};
use epsilon_api::{build::BuildError, chain::Chain};
use serde::{Deserialize, Serialize};
use std::{io, path::Path, time::Duration};
use tokio_util::task::TaskTracker;

/// Limit on the engine's answer to an export or a load: classic engines first write all images to
/// their own disk.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3600);

/// An image that an engine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name: `epsilon/shop/pay:0123456789ab`.
    pub reference: String,
    /// Its id in that engine: `sha256:…`. Classic and containerd engines have different ids for the
    /// same image.
    pub digest: String,
    /// Digests of its layers' bytes, bottom first: the same in any engine.
    pub layers: Vec<String>,
}

/// Whether an image's name names a registry. An image without one is in an engine only.
pub fn names_a_registry(reference: &str) -> bool {
    epsilon_registry::Host::named_in(reference).is_some()
}

/// Whether a backup of a platform with these settings has an image of this name: one without a
/// registry, or the operator's own `builder.runtime_image`.
pub fn belongs_in_backup(config: &Config, reference: &str) -> bool {
    !names_a_registry(reference) || config.runtime_image.as_deref() == Some(reference)
}

/// The engine of this machine.
#[derive(Clone, Debug)]
pub struct Images {
    engine: Engine,
}

/// A file of an exported layout.
#[derive(Clone, Debug)]
pub struct LayoutFile {
    /// Its path in the layout: `index.json`, `blobs/sha256/…`.
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
        patient.engine_timeout = TRANSFER_TIMEOUT;
        let engine = Engine::new(&patient, "backup".into(), TaskTracker::new())?;
        let limit = config.engine_timeout;
        let checked = tokio::time::timeout(limit, engine.check()).await;
        let checked =
            checked.unwrap_or_else(|_| Err(EngineError::too_slow("checking the engine", limit)));
        checked.map_err(|err| {
            tracing::warn!(error = %Chain(&err), "Container engine does not answer.");
            let socket = config.engine.display();
            error::engine_failed(format!("no container engine answers at `{socket}`"))
                .hint("start Docker, or name its socket in the setting `builder.engine`")
        })?;
        Ok(Self { engine })
    }

    /// The image of a name, if the engine has it.
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

    /// Names of the images that `epsilon up` makes at its start if the engine lacks them.
    ///
    /// # Errors
    /// `ENGINE_FAILED`.
    pub async fn of_platform(&self, config: &Config) -> Result<Vec<String>, BuildError> {
        let mut found = Vec::new();
        for language in language::ALL {
            found.extend(runtime::found(language.recipe(), &self.engine, config).await?);
        }
        // An image that the operator names by its digest has no name in the engine; its registry
        // has it.
        found.retain(|name| !name.contains('@'));
        Ok(found)
    }

    /// Exports images from the engine into a file in `work`, which the layout's files are read
    /// from. `on_progress` receives the number of bytes so far.
    ///
    /// # Errors
    /// `ENGINE_FAILED`, `DISK_FULL`.
    pub async fn save(
        &self,
        references: &[&str],
        work: &Path,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<LayoutFile>, BuildError> {
        const DOING: &str = "exporting images from the engine";
        let archive = work.join("images.tar");
        let saved = async {
            let mut file = tokio::fs::File::create(&archive).await?;
            self.engine.save_all(references, &mut file, on_progress).await
        };
        saved.await.map_err(|err| error::file(DOING, &err))?;
        let wanted: Vec<String> = references.iter().map(|name| (*name).to_owned()).collect();
        crate::blocking::run(DOING, move || saved::layout(&archive, &wanted)).await
    }

    /// Loads images of a layout into the engine under their names.
    ///
    /// # Errors
    /// `ENGINE_FAILED`, `DISK_FULL`.
    pub async fn load(&self, selection: LayoutSelection) -> Result<(), BuildError> {
        let parts = crate::blocking::run("reading images", move || {
            selection.parts().map_err(|err| error::file("reading images", &err))
        });
        Ok(self.engine.load(files(parts.await?)).await?)
    }

    /// Removes a name of an image, and with its last name the image, unless a container uses it.
    ///
    /// # Errors
    /// `ENGINE_FAILED`.
    pub async fn remove(&self, reference: &str) -> Result<(), BuildError> {
        Ok(self.engine.remove_name(reference).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_has_only_the_operators_image_of_a_registry() {
        let operators = "registry.example/node:24".to_owned();
        let settings = crate::config::Settings {
            runtime_image: Some(operators.clone()),
            ..Default::default()
        };
        let config = Config::new(settings, Path::new("/nowhere")).unwrap();
        for (name, want) in [
            ("epsilon/shop/one:1", true),
            ("acme/node:24", true),
            (&*operators, true),
            ("registry.example/node:25", false),
            ("docker.io/library/nginx:latest", false),
        ] {
            assert_eq!(belongs_in_backup(&config, name), want, "{name}");
        }
    }
}
