//! Content of registries and OCI layouts: compressed layers, configurations, and the manifest that
//! lists them. The same layer gives the same blob, so that a registry that has it is not sent it
//! again.

use crate::{
    blocking,
    cache::{Cache, Held},
    error,
    hashing::Hashing,
    image::Layer,
    source::ContentDigest,
};
use bytes::Bytes;
use epsilon_api::build::BuildError;
use flate2::{Compression, GzBuilder};
use oci_spec::image::{DescriptorBuilder, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Compression level of layers, the usual 6; a new level would change every layer's digest.
const LEVEL: Compression = Compression::new(6);

/// A compressed layer or a configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) bytes: u64,
    #[serde(skip)]
    pub(crate) content: Content,
    /// Holds the content in the cache, if it is there.
    #[serde(skip)]
    _held: Held,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    File(PathBuf),
    /// A part of a file: from this offset, as many bytes as the blob has.
    Part(PathBuf, u64),
    Memory(Bytes),
}

impl Default for Content {
    fn default() -> Self {
        Self::Memory(Bytes::new())
    }
}

impl Blob {
    pub(crate) fn in_memory(content: Vec<u8>) -> Self {
        Self {
            digest: format!("sha256:{}", ContentDigest::of(&content)),
            bytes: content.len() as u64,
            content: Content::Memory(content.into()),
            _held: Held::default(),
        }
    }

    /// A part of a file whose digest is known.
    pub(crate) fn part_of(file: &Path, at: u64, bytes: u64, digest: String) -> Self {
        let content = Content::Part(file.to_owned(), at);
        Self { digest, bytes, content, _held: Held::default() }
    }

    /// Its bytes.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match &self.content {
            Content::File(file) => Box::new(File::open(file)?),
            Content::Part(file, at) => {
                let mut file = File::open(file)?;
                file.seek(SeekFrom::Start(*at))?;
                Box::new(file.take(self.bytes))
            }
            Content::Memory(bytes) => Box::new(io::Cursor::new(bytes.clone())),
        })
    }
}

/// Makes the manifest of an image.
pub(crate) fn manifest(config: &Blob, layers: &[Blob]) -> Result<Vec<u8>, BuildError> {
    let layers: Vec<_> = layers.iter().map(|layer| (layer, MediaType::ImageLayerGzip)).collect();
    manifest_of(config, &layers)
}

/// The same for layers that are packed in one way or the other.
pub(crate) fn manifest_of(
    config: &Blob,
    layers: &[(&Blob, MediaType)],
) -> Result<Vec<u8>, BuildError> {
    let describe = |blob: &Blob, kind: MediaType| {
        let digest: oci_spec::image::Digest = blob.digest.parse()?;
        DescriptorBuilder::default().media_type(kind).digest(digest).size(blob.bytes).build()
    };
    let make = || {
        let layers: Result<Vec<_>, _> =
            layers.iter().map(|(blob, packing)| describe(blob, packing.clone())).collect();
        ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(describe(config, MediaType::ImageConfig)?)
            .layers(layers?)
            .build()
    };
    let manifest = make().map_err(|err| error::broken("describing an image", &err))?;
    serde_json::to_vec(&manifest).map_err(|err| error::broken("describing an image", &err))
}

/// Compressed blobs of layers.
pub(crate) async fn all(layers: Vec<Layer>, cache: &Cache) -> Result<Vec<Blob>, BuildError> {
    let cache = cache.clone();
    blocking::run("compressing a layer", move || {
        layers.iter().map(|layer| compressed(layer, &cache)).collect()
    })
    .await
}

/// The compressed blob of a layer; made once, then taken from the cache.
fn compressed(layer: &Layer, cache: &Cache) -> Result<Blob, BuildError> {
    let name = ContentDigest::of(layer.diff_id.as_bytes()).to_string();
    let file = format!("{name}.gz");
    let known: Option<Blob> = cache.load("layers", &name);
    if let Some(blob) = known
        && let Some((path, held)) = cache.hold("layers", &file)
        && fs::metadata(&path).is_ok_and(|file| file.len() == blob.bytes)
    {
        return Ok(Blob { content: Content::File(path), _held: held, ..blob });
    }
    let path = cache.entry_path("layers", &file);
    let work = cache.work()?;
    let draft = work.path().join("layer.gz");
    let (digest, bytes) = write_compressed(layer, &draft)
        .and_then(|written| fs::rename(&draft, &path).map(|()| written))
        .map_err(|err| error::file("compressing a layer", &err))?;
    let (path, held) = cache.hold("layers", &file).ok_or_else(|| {
        error::broken("compressing a layer", &io::Error::from(io::ErrorKind::NotFound))
    })?;
    let digest = format!("sha256:{digest}");
    let blob = Blob { digest, bytes, content: Content::File(path), _held: held };
    cache.store("layers", &name, &blob)?;
    Ok(blob)
}

/// gzip without time and name in its header: the same layer gives the same blob.
fn write_compressed(layer: &Layer, to: &PathBuf) -> io::Result<(ContentDigest, u64)> {
    let mut from = File::open(&layer.tar)?;
    let mut to = GzBuilder::new().mtime(0).write(Hashing::new(File::create(to)?), LEVEL);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        to.write_all(&buffer[..n])?;
    }
    let (mut file, digest, bytes) = to.finish()?.finish();
    file.flush()?;
    Ok((digest, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_compresses_to_the_same_blob() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer");
        fs::write(&tar, vec![1; 100_000]).unwrap();
        let layer =
            Layer { diff_id: "sha256:0a".into(), tar, bytes: 100_000, held: Held::default() };
        let (one, _) = write_compressed(&layer, &dir.path().join("1")).unwrap();
        let (two, bytes) = write_compressed(&layer, &dir.path().join("2")).unwrap();
        assert_eq!(one, two);
        assert_eq!(fs::metadata(dir.path().join("2")).unwrap().len(), bytes);
        assert_eq!(one, ContentDigest::of(&fs::read(dir.path().join("1")).unwrap()));
    }
}
