//! Images in one file: an OCI image layout as a tar, which `skopeo copy oci-archive:…` reads. It
//! also contains the list that `docker load` reads. The same images give the same bytes.
//!
//! ```text
//! oci-layout, index.json            what OCI tools read
//! manifest.json                     what docker load reads
//! blobs/sha256/DIGEST               layers, each once; configurations; manifests
//! ```

use super::blob::Blob;
use super::export::Exported;
use super::{Base, Exports, ImageSet, blob};
use crate::image::name::Name;
use crate::{blocking, cache::Cache, error, image::archive::Listed};
use epsilon_api::{build::BuildError, function::ImageRef};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tar::{EntryType, Header};

/// Completes "while …" when writing fails.
const WRITING: &str = "writing the images' file";

/// A file that is written as a layout once all images of a build are added.
#[derive(Debug)]
pub(crate) struct Layout {
    file: PathBuf,
    cache: Cache,
    exports: Arc<Exports>,
    images: Mutex<Vec<Packed>>,
}

/// One image, ready to be written.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) name: String,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

/// `index.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: u64,
    annotations: BTreeMap<&'static str, String>,
}

impl Layout {
    pub(crate) fn new(file: PathBuf, cache: Cache, exports: Arc<Exports>) -> Self {
        Self { file, cache, exports, images: Mutex::default() }
    }

    /// Adds all images of a set.
    pub(crate) async fn add(&self, image_set: &ImageSet) -> Result<Vec<ImageRef>, BuildError> {
        let mut layers = self.exports.layers(&image_set.base).await?;
        layers.extend(image_set.layers.iter().cloned());
        let layers = blob::all(layers, &self.cache).await?;
        let images = image_set.images.iter();
        images.map(|(image, name)| self.pack(name, image.config.clone(), layers.clone())).collect()
    }

    /// Adds an image that the engine built or pulled.
    pub(crate) async fn add_foreign(
        &self,
        image: &Base,
        name: &Name,
    ) -> Result<ImageRef, BuildError> {
        let Exported { config, layers } = self.exports.whole(image).await?;
        self.pack(name, config, blob::all(layers, &self.cache).await?)
    }

    /// Writes the file atomically.
    pub(crate) async fn write(&self) -> Result<(), BuildError> {
        let images = std::mem::take(&mut *self.images.lock());
        let file = self.file.clone();
        blocking::run(WRITING, move || {
            write(&images, &file).map_err(|err| {
                if error::is_disk_full(&err) {
                    error::disk_full(format!("there is no room for `{}`", file.display()))
                } else {
                    error::internal(format!("`{}` cannot be written: {err}", file.display()))
                }
            })
        })
        .await
    }

    fn pack(
        &self,
        name: &Name,
        config: Vec<u8>,
        layers: Vec<Blob>,
    ) -> Result<ImageRef, BuildError> {
        let config = Blob::in_memory(config);
        let manifest = Blob::in_memory(blob::manifest(&config, &layers)?);
        let name = name.to_string();
        let reference = format!("oci-archive:{}:{name}", self.file.display());
        let image = ImageRef { reference, digest: config.digest.clone() };
        self.images.lock().push(Packed { name, manifest, config, layers });
        Ok(image)
    }
}

fn write(images: &[Packed], to: &Path) -> io::Result<()> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let draft = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = fill(images, &draft).and_then(|()| fs::rename(&draft, to));
    if written.is_err() {
        let _gone_or_never_there = fs::remove_file(&draft);
    }
    written
}

fn fill(images: &[Packed], draft: &Path) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(draft)?));
    for (path, blob) in files(images)? {
        tar.append_data(&mut header(blob.bytes), path, blob.open()?)?;
    }
    let mut file = tar.into_inner()?;
    file.flush()?;
    file.get_ref().sync_all()
}

/// All files of a layout with these images, by their paths in it.
pub(crate) fn files(images: &[Packed]) -> io::Result<Vec<(String, Blob)>> {
    let text = |path: &str, content: Vec<u8>| (path.to_owned(), Blob::in_memory(content));
    let mut files = vec![
        text("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        text("index.json", serde_json::to_vec(&index(images))?),
        text("manifest.json", serde_json::to_vec(&list(images))?),
    ];
    let blobs = images.iter().flat_map(|image| {
        image.layers.iter().chain([&image.config, &image.manifest]).map(|blob| (path(blob), blob))
    });
    // Sorted, and each once: images of one project share their layers.
    let blobs: BTreeMap<_, _> = blobs.collect();
    files.extend(blobs.into_iter().map(|(path, blob)| (path, blob.clone())));
    Ok(files)
}

fn index(images: &[Packed]) -> Index {
    let manifests = images.iter().map(|image| Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json",
        digest: image.manifest.digest.clone(),
        size: image.manifest.bytes,
        annotations: BTreeMap::from([
            ("io.containerd.image.name", image.name.clone()),
            ("org.opencontainers.image.ref.name", image.name.clone()),
        ]),
    });
    Index {
        schema_version: 2,
        media_type: "application/vnd.oci.image.index.v1+json",
        manifests: manifests.collect(),
    }
}

fn list(images: &[Packed]) -> Vec<Listed> {
    let listed = images.iter().map(|image| Listed {
        config: path(&image.config),
        repo_tags: Some(vec![image.name.clone()]),
        layers: image.layers.iter().map(path).collect(),
    });
    listed.collect()
}

fn path(blob: &Blob) -> String {
    format!("blobs/{}", blob.digest.replacen(':', "/", 1))
}

fn header(bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
