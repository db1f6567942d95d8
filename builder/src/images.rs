//! Images of this machine's engine, exported as an OCI image layout and loaded from one, for
//! `epsilon backup` and `epsilon restore`. Not a part of a serving builder: it has no folder of its
//! own and can work beside one.
//!
//! ```text
//! engine ─ save ─▶ one archive, as `docker save` writes it ─ saved.rs ─▶ a layout's files, each layer once
//! a layout's files ─ LayoutSelection: names that are listed, and wanted ─ load ─▶ engine
//! ```
//!
//! A layout may come from anywhere, and an engine that loads it moves all names in it to the loaded
//! images. So its two lists are written again, with the wanted names only.

mod saved;

use crate::{
    config::Config,
    engine::{Engine, EngineError, EngineImage, Part, files},
    error::{self, Hint},
    image::archive::{Listed, header, padding},
    language,
    publish::blob::Blob,
    runtime,
};
use epsilon_api::{build::BuildError, chain::Chain};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::task::TaskTracker;

/// Limit on the engine's answer to an export or a load: classic engines first write all images to
/// their own disk.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3600);
/// Largest list of a layout's images.
const LARGEST_LIST: u64 = 64 << 20;
/// The annotations in `index.json` that engines read an image's name from.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

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

/// The images of an unpacked layout that are to be loaded.
#[derive(Debug)]
pub struct LayoutSelection {
    folder: PathBuf,
    index: Vec<u8>,
    list: Vec<u8>,
}

/// Why a layout is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// One of its lists is missing, too large or not valid.
    #[error("its list of images `{0}` cannot be read")]
    List(&'static str, #[source] io::Error),
    /// It has a name that the backup's manifest does not list.
    #[error("it would give an image the name `{}`, which is not on its list", .0.escape_default())]
    Name(String),
}

/// The part of `index.json` that is taken over. Written again, because engines also read keys that
/// differ in case.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl LayoutSelection {
    /// Selects the images with `wanted` names from a layout whose names have to be `listed`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn new(
        folder: &Path,
        listed: &BTreeSet<&str>,
        wanted: &BTreeSet<&str>,
    ) -> Result<Self, Refused> {
        const INDEX: &str = "index.json";
        const LIST: &str = "manifest.json";
        let mut index: Index = text(folder, INDEX)?;
        let mut list: Vec<Listed> = text(folder, LIST)?;
        let tags = list.iter().flat_map(|image| image.repo_tags.iter().flatten());
        for image in &mut index.manifests {
            image.annotations.retain(|key, _| NAME_ANNOTATIONS.contains(&key.as_str()));
        }
        let names = index.manifests.iter().flat_map(|image| image.annotations.values());
        if let Some(stray) = tags.chain(names).find(|name| !listed.contains(name.as_str())) {
            return Err(Refused::Name(stray.clone()));
        }
        let is_wanted = |name: &String| wanted.contains(name.as_str());
        for image in &mut index.manifests {
            image.annotations.retain(|_, name| is_wanted(name));
        }
        index.manifests.retain(|image| !image.annotations.is_empty());
        for image in &mut list {
            image.repo_tags.get_or_insert_default().retain(is_wanted);
        }
        list.retain(|image| image.repo_tags.as_ref().is_some_and(|tags| !tags.is_empty()));
        let index = serde_json::to_vec(&index).map_err(|err| Refused::List(INDEX, err.into()))?;
        let list = serde_json::to_vec(&list).map_err(|err| Refused::List(LIST, err.into()))?;
        Ok(Self { folder: folder.to_owned(), index, list })
    }

    /// The archive that engines load. Of the folder's files it has only those that the lists can
    /// refer to.
    fn parts(self) -> io::Result<Vec<Part>> {
        let mut found = Vec::new();
        collect(&self.folder, Path::new("blobs"), &mut found)?;
        found.push("oci-layout".into());
        found.sort();
        let mut parts = Vec::with_capacity(found.len() * 3 + 7);
        for (name, content) in [("index.json", self.index), ("manifest.json", self.list)] {
            let bytes = content.len() as u64;
            parts.push(Part::Bytes(header(name, bytes)?));
            parts.push(Part::Bytes(content.into()));
            parts.push(Part::Bytes(padding(bytes)));
        }
        for path in found {
            let file = self.folder.join(&path);
            let bytes = fs::metadata(&file)?.len();
            parts.push(Part::Bytes(header(&path.to_string_lossy(), bytes)?));
            parts.push(Part::File(file));
            parts.push(Part::Bytes(padding(bytes)));
        }
        parts.push(Part::Bytes(bytes::Bytes::from_static(&[0; 1024])));
        Ok(parts)
    }
}

fn text<T: serde::de::DeserializeOwned>(folder: &Path, name: &'static str) -> Result<T, Refused> {
    let read = || {
        let file = folder.join(name);
        if fs::metadata(&file)?.len() > LARGEST_LIST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    };
    read().map_err(|err| Refused::List(name, err))
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use std::io::Read as _;

    const NAMES: [&str; 2] = ["epsilon/shop/one:1", "epsilon/shop/two:1"];

    /// A layout with `tags` in `manifest.json` and `names` in `index.json`.
    fn unpacked(tags: &[&str], names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: String| fs::write(dir.path().join(name), content).unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        put("blobs/sha256/aa", "layer".into());
        put("oci-layout", "{}".into());
        put("repositories", r#"{"nginx":{"latest":"aa"}}"#.into());
        let tags = tags.iter().map(|tag| {
            format!(
                r#"{{"Config":"blobs/sha256/aa","RepoTags":["{tag}"],"Layers":[],"repotags":["x:1"]}}"#
            )
        });
        put("manifest.json", format!("[{}]", tags.collect::<Vec<_>>().join(",")));
        let names = names.iter().map(|name| {
            format!(r#"{{"mediaType":"m","digest":"sha256:aa","size":5,"annotations":{{{name}}}}}"#)
        });
        let names = names.collect::<Vec<_>>().join(",");
        put(
            "index.json",
            format!(r#"{{"schemaVersion":2,"mediaType":"i","manifests":[{names}]}}"#),
        );
        dir
    }

    fn select(dir: &tempfile::TempDir, wanted: &[&str]) -> Result<LayoutSelection, Refused> {
        let wanted = wanted.iter().copied().collect();
        LayoutSelection::new(dir.path(), &NAMES.into_iter().collect(), &wanted)
    }

    #[tokio::test]
    async fn only_names_that_are_wanted_reach_the_engine() {
        let names = NAMES.map(|name| {
            format!(r#""{}":"{name}","{}":"{name}""#, NAME_ANNOTATIONS[0], NAME_ANNOTATIONS[1])
        });
        let dir = unpacked(&NAMES, &names.each_ref().map(String::as_str));
        let parts = select(&dir, &NAMES[1..]).unwrap().parts().unwrap();
        let sent: Vec<bytes::Bytes> = files(parts).try_collect().await.unwrap();
        let mut seen = BTreeMap::new();
        for entry in tar::Archive::new(&sent.concat()[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            seen.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let paths: Vec<_> = seen.keys().map(String::as_str).collect();
        assert_eq!(paths, ["blobs/sha256/aa", "index.json", "manifest.json", "oci-layout"]);
        for list in ["index.json", "manifest.json"] {
            let list = &seen[list];
            assert!(list.contains(NAMES[1]) && !list.contains(NAMES[0]), "{list}");
            assert!(!list.contains("x:1"), "engines would read it too: {list}");
        }
    }

    #[test]
    fn a_name_that_is_not_listed_is_refused_everywhere() {
        let named = |key: &str, name: &str| format!(r#""{key}":"{name}""#);
        let good = named(NAME_ANNOTATIONS[0], NAMES[0]);
        assert!(select(&unpacked(&NAMES, &[&good]), &NAMES).is_ok());
        for (tags, name) in [
            (&["nginx:latest"][..], good),
            (&NAMES, named(NAME_ANNOTATIONS[0], "nginx:latest")),
            (&NAMES, named(NAME_ANNOTATIONS[1], "nginx:latest")),
        ] {
            let refused = select(&unpacked(tags, &[&name]), &[]).unwrap_err().to_string();
            assert!(refused.contains("nginx:latest"), "{refused}");
        }
        let dir = unpacked(&NAMES, &[]);
        fs::remove_file(dir.path().join("manifest.json")).unwrap();
        assert!(matches!(select(&dir, &NAMES), Err(Refused::List("manifest.json", _))));
    }

    #[test]
    fn backup_has_only_the_operators_image_of_a_registry() {
        let operators = "registry.example/node:24".to_owned();
        let settings = crate::config::Settings {
            runtime_image: Some(operators.clone()),
            ..Default::default()
        };
        let config = Config::new(settings, Path::new("/nowhere")).unwrap();
        for (name, want) in [
            (NAMES[0], true),
            ("acme/node:24", true),
            (&*operators, true),
            ("registry.example/node:25", false),
            ("docker.io/library/nginx:latest", false),
        ] {
            assert_eq!(belongs_in_backup(&config, name), want, "{name}");
        }
    }
}
