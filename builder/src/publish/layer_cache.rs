//! Cache of function layers on this machine's disk, as uncompressed tars by digest:
//! `DATA/builder/shelf/HEX.tar`. An agent of the same machine unpacks them from here, without
//! exporting from the engine what was just loaded into it.
//!
//! Written by `publish` when images go to this machine's engine; read by the agent
//! (`vm_agent.layer_cache`). Nothing here is precious: missing layers are taken from the engine.

use crate::{
    blocking,
    cache::upkeep::{Bound, keep_within},
    error,
    image::Layer,
};
use epsilon_api::{build::BuildError, ids::InstanceId, units::Bytes};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Layers at most.
const COUNT: usize = 20_000;

/// The cache folder.
#[derive(Clone, Debug)]
pub(crate) struct LayerCache {
    folder: PathBuf,
    /// Bytes at most.
    size: Bytes,
}

impl LayerCache {
    /// `folder` must exist.
    pub(crate) fn new(folder: PathBuf, size: Bytes) -> Self {
        Self { folder, size }
    }

    /// Adds layers, and removes the oldest ones when there is no room.
    pub(crate) async fn put(&self, layers: &[Layer]) -> Result<(), BuildError> {
        let layer_cache = self.clone();
        let layers = layers.to_vec();
        blocking::run("caching layers", move || {
            layers
                .iter()
                .try_for_each(|layer| layer_cache.put_one(layer))
                .map_err(|err| error::file("caching layers", &err))?;
            let bound = Bound { bytes: layer_cache.size.get(), count: COUNT };
            keep_within(bound, std::slice::from_ref(&layer_cache.folder), &layer_cache.trash());
            Ok(())
        })
        .await
    }

    /// The builder's work folder, which is on the same disk.
    fn trash(&self) -> PathBuf {
        self.folder.with_file_name("work")
    }

    /// Adds a hard link to the tar: atomic, and without disk space of its own as long as the
    /// original exists.
    fn put_one(&self, layer: &Layer) -> io::Result<()> {
        let hex = layer.diff_id.trim_start_matches("sha256:");
        let target = self.folder.join(format!("{hex}.tar"));
        match fs::hard_link(&layer.tar, &target) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            // Not every file system has hard links.
            Err(_) => self.copy(&layer.tar, &target)?,
            Ok(()) => {}
        }
        File::open(&target)?.set_modified(SystemTime::now())
    }

    fn copy(&self, from: &Path, target: &Path) -> io::Result<()> {
        let draft = self.folder.join(format!(".{}", InstanceId::random()));
        let copied = fs::copy(from, &draft).and_then(|_| fs::rename(&draft, target));
        if copied.is_err() {
            let _gone_or_never_there = fs::remove_file(&draft);
        }
        copied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn layer(dir: &Path, name: &str) -> Layer {
        let tar = dir.join(name);
        fs::write(&tar, vec![b'x'; 40]).unwrap();
        Layer {
            diff_id: format!("sha256:{name}"),
            tar,
            bytes: 40,
            held: crate::cache::Held::default(),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn layers_outlive_their_work_and_oldest_are_removed_first() {
        let (work, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let layer_cache = LayerCache::new(home.path().to_owned(), Bytes(100));
        let layers = ["aa", "bb"].map(|name| layer(work.path(), name));
        layer_cache.put(&layers).await.unwrap();
        for (name, age) in [("aa.tar", 2000), ("bb.tar", 1000)] {
            let file = File::open(home.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        layer_cache.put(&layers[..1]).await.unwrap();
        drop(work);
        assert_eq!(fs::read(home.path().join("aa.tar")).unwrap(), vec![b'x'; 40]);

        let work = tempfile::tempdir().unwrap();
        layer_cache.put(&[layer(work.path(), "cc")]).await.unwrap();
        assert_eq!(names(home.path()), ["aa.tar", "cc.tar"]);
    }

    #[tokio::test]
    async fn a_copy_takes_the_place_of_a_link() {
        let (work, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let layer_cache = LayerCache::new(home.path().to_owned(), Bytes(100));
        let layer = layer(work.path(), "aa");
        layer_cache.copy(&layer.tar, &home.path().join("aa.tar")).unwrap();
        assert_eq!(names(home.path()), ["aa.tar"]);
        assert!(layer_cache.copy(Path::new("/nowhere"), &home.path().join("bb.tar")).is_err());
        assert_eq!(names(home.path()), ["aa.tar"]);
    }
}
