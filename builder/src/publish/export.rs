//! Exports layers of an image from the engine, once, into the cache: for registries, which need the
//! base's layers too, and for engines that do not load an archive without them.

use super::Base;
use crate::{
    blocking,
    cache::{Cache, WorkDir},
    engine::Engine,
    error,
    image::{Layer, archive::Listed},
    source::ContentDigest,
};
use epsilon_api::build::BuildError;
use flate2::read::GzDecoder;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};
use tokio::io::AsyncWriteExt;

/// Exports, each made once.
#[derive(Debug)]
pub(crate) struct Exports {
    engine: Engine,
    cache: Cache,
    /// One at a time: a base has hundreds of MiB.
    turn: tokio::sync::Mutex<()>,
}

/// An exported image.
#[derive(Debug)]
pub(crate) struct Exported {
    /// Its configuration, byte for byte.
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Layer>,
}

impl Exports {
    pub(crate) fn new(engine: Engine, cache: Cache) -> Self {
        Self { engine, cache, turn: tokio::sync::Mutex::new(()) }
    }

    /// All layers of an image.
    pub(crate) async fn layers(&self, base: &Base) -> Result<Vec<Layer>, BuildError> {
        let _turn = self.turn.lock().await;
        let diff_ids = &base.image.diff_ids;
        let cached: Option<Vec<Layer>> = diff_ids.iter().map(|id| self.cached(id)).collect();
        match cached {
            Some(layers) => Ok(layers),
            None => Ok(self.export(&base.reference).await?.layers),
        }
    }

    /// An image with its configuration.
    pub(crate) async fn whole(&self, base: &Base) -> Result<Exported, BuildError> {
        let _turn = self.turn.lock().await;
        self.export(&base.reference).await
    }

    fn cached(&self, diff_id: &str) -> Option<Layer> {
        let (tar, held) = self.cache.hold("layers", &file_name(diff_id))?;
        let bytes = fs::metadata(&tar).ok()?.len();
        Some(Layer { diff_id: diff_id.to_owned(), tar, bytes, held })
    }

    async fn export(&self, reference: &str) -> Result<Exported, BuildError> {
        let doing = "taking an image out of the engine";
        let work = self.cache.work()?;
        let archive = work.path().join("image.tar");
        let saved = async {
            let mut file = tokio::fs::File::create(&archive).await?;
            let mut image = self.engine.save(reference);
            while let Some(piece) = image.try_next().await? {
                file.write_all(&piece).await?;
            }
            file.flush().await
        };
        saved.await.map_err(|err| error::file(doing, &err))?;
        let cache = self.cache.clone();
        blocking::run(doing, move || {
            unpack(&work, &archive, &cache).map_err(|err| error::file(doing, &err))
        })
        .await
    }
}

/// Reads an archive of `docker save`, of classic engines and of newer ones, which write OCI layouts
/// with the same list and may compress the layers.
fn unpack(work: &Arc<WorkDir>, archive: &Path, cache: &Cache) -> io::Result<Exported> {
    let root = work.path().join("image");
    // `unpack` stays inside `root`, whatever the archive contains.
    tar::Archive::new(BufReader::new(File::open(archive)?)).unpack(&root)?;
    let list: Vec<Listed> = serde_json::from_slice(&fs::read(root.join("manifest.json"))?)?;
    let Some(image) = list.into_iter().next() else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive contains no image"));
    };
    let config = fs::read(root.join(&image.config))?;
    let mut layers = Vec::with_capacity(image.layers.len());
    for (at, file) in image.layers.iter().enumerate() {
        let plain = work.path().join(format!("layer-{at}"));
        let (diff_id, bytes) = plain_copy(&root.join(file), &plain)?;
        let entry = cache.entry_path("layers", &file_name(&diff_id));
        fs::rename(&plain, &entry)?;
        let Some((tar, held)) = cache.hold("layers", &file_name(&diff_id)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        layers.push(Layer { diff_id, tar, bytes, held });
    }
    Ok(Exported { config, layers })
}

/// Copies a layer, decompressing it if necessary; returns its digest and size.
fn plain_copy(from: &Path, to: &Path) -> io::Result<(String, u64)> {
    let mut magic = [0; 2];
    let is_gzip = File::open(from)?.read_exact(&mut magic).is_ok() && magic == [0x1f, 0x8b];
    let file = BufReader::new(File::open(from)?);
    let mut content: Box<dyn Read> =
        if is_gzip { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let mut to = File::create(to)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let n = content.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        sha.update(&buffer[..n]);
        io::Write::write_all(&mut to, &buffer[..n])?;
        bytes += n as u64;
    }
    let hex: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("sha256:{hex}"), bytes))
}

fn file_name(diff_id: &str) -> String {
    // The digest comes from the engine; hashed again, it cannot be a path.
    format!("{}.tar", ContentDigest::of(diff_id.as_bytes()))
}
