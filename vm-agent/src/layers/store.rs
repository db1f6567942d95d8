//! The store of unpacked layers: which directories exist, their leases, their sizes, their last
//! uses. It does not know where layers come from.
//!
//! ```text
//! .draft-ID/        being unpacked; not used, and removed at the next start
//!    └─ renamed ─▶ sha256-HEX/app/     complete and verified
//!                  sha256-HEX/size     flushed to disk; its size in bytes
//!                     └─ renamed ─▶ .gone-ID/   being removed
//! boot              the boot id of the machine that the directories without `size` belong to
//! ```
//!
//! Flushing a file takes as long as all the rest of a small layer, and a lost layer costs one
//! fetch. So flushes happen later, for all layers at once ([`LayerStore::flush`]); after a power
//! cut before that, those layers are removed at the next start. An agent that is killed loses none:
//! cells that run on have them mounted.

use super::{name::Name, unpack::APP};
use epsilon_api::chain::Chain;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_OMIT, syncfs, utimensat};
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

const DRAFT: &str = ".draft-";
const GONE: &str = ".gone-";
const SIZE: &str = "size";
const BOOT: &str = "boot";
/// Changes with each boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory, and the layers in it.
#[derive(Debug)]
pub(super) struct LayerStore {
    folder: PathBuf,
    known: Mutex<HashMap<Name, Layer>>,
}

#[derive(Debug)]
struct Layer {
    bytes: u64,
    leases: usize,
    used: SystemTime,
    /// The directory's `size` and time are up to date.
    is_recorded: bool,
    is_on_disk: bool,
}

impl LayerStore {
    /// Opens the store, with the layers of an earlier run.
    pub(super) fn open(folder: &Path) -> io::Result<Arc<Self>> {
        fs::create_dir_all(folder)?;
        // The layers are for cells alone, which see them through mounts.
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let is_same_boot = !boot.is_empty()
            && fs::read_to_string(folder.join(BOOT)).is_ok_and(|known| known == boot);
        let mut known = HashMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let text = entry.file_name();
            let Some(text) = text.to_str() else { continue };
            // Of an agent that was killed while it wrote or removed them.
            if text.starts_with(DRAFT) || text.starts_with(GONE) {
                remove(&path);
                continue;
            }
            let Some(name) = Name::of_folder(text) else { continue };
            let size = fs::read_to_string(path.join(SIZE)).ok();
            let size = size.and_then(|size| size.parse::<u64>().ok());
            // Not flushed before the machine went down, so maybe incomplete.
            if size.is_none() && !is_same_boot {
                remove(&path);
                continue;
            }
            let layer = Layer {
                bytes: size.map_or_else(|| measure(&path), Ok)?,
                leases: 0,
                used: entry.metadata()?.modified()?,
                is_recorded: size.is_some(),
                is_on_disk: size.is_some(),
            };
            known.insert(name, layer);
        }
        if !is_same_boot {
            fs::write(folder.join(BOOT), boot)?;
        }
        Ok(Arc::new(Self { folder: folder.to_owned(), known: Mutex::new(known) }))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leases a layer, if it is here.
    pub(super) fn lease(self: &Arc<Self>, name: &Name) -> Option<LayerLease> {
        // An operator may have removed it by hand.
        let app = self.folder.join(name.as_str()).join(APP);
        let is_there = app.is_dir();
        let mut known = self.known.lock();
        let layer = known.get_mut(name)?;
        if !is_there && layer.leases == 0 {
            known.remove(name);
            return None;
        }
        layer.leases += 1;
        layer.used = SystemTime::now();
        layer.is_recorded = false;
        Some(LayerLease { store: Arc::clone(self), name: name.clone(), app })
    }

    /// Creates a draft directory to unpack to. Blocking.
    pub(super) fn draft(&self) -> io::Result<Draft> {
        let path = self.folder.join(format!("{DRAFT}{:016x}", rand::random::<u64>()));
        fs::create_dir(&path)?;
        Ok(Draft { path: Some(path) })
    }

    /// Stores a draft that is complete and verified, and leases it. Blocking.
    pub(super) fn insert(
        self: &Arc<Self>,
        name: &Name,
        draft: Draft,
        bytes: u64,
    ) -> io::Result<LayerLease> {
        let to = self.folder.join(name.as_str());
        draft.rename(&to)?;
        let used = SystemTime::now();
        let layer = Layer { bytes, leases: 1, used, is_recorded: false, is_on_disk: false };
        self.known.lock().insert(name.clone(), layer);
        Ok(LayerLease { store: Arc::clone(self), name: name.clone(), app: to.join(APP) })
    }

    /// The size of all layers on disk, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.known.lock().values().map(|layer| layer.bytes).sum()
    }

    /// The layer to remove next: the least recently used one without a lease.
    pub(super) fn oldest(&self) -> Option<Name> {
        let known = self.known.lock();
        let unused = known.iter().filter(|(_, layer)| layer.leases == 0);
        unused.min_by_key(|(_, layer)| layer.used).map(|(name, _)| name.clone())
    }

    /// Removes a layer, unless it is leased. Returns its size. Must not be called while the layer
    /// is being fetched. Blocking.
    pub(super) fn remove(&self, name: &Name) -> Option<u64> {
        let layer = {
            let mut known = self.known.lock();
            known.get(name).filter(|layer| layer.leases == 0)?;
            known.remove(name)?
        };
        let path = self.folder.join(name.as_str());
        let gone = self.folder.join(format!("{GONE}{:016x}", rand::random::<u64>()));
        // A directory with its final name is always complete: an interrupted removal must not leave
        // half of it.
        match fs::rename(&path, &gone) {
            Ok(()) => remove(&gone),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                tracing::warn!(error = %Chain(&err), folder = %path.display(), "Code layer could not be removed; it stays in the store.");
                self.known.lock().insert(name.clone(), layer);
                return None;
            }
        }
        Some(layer.bytes)
    }

    /// Makes new layers and last uses durable across a power cut. Blocking, for as long as the disk
    /// takes.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut unsaved = Vec::new();
        for (name, layer) in self.known.lock().iter_mut().filter(|(_, layer)| !layer.is_recorded) {
            layer.is_recorded = true;
            unsaved.push((name.clone(), layer.used, (!layer.is_on_disk).then_some(layer.bytes)));
        }
        if unsaved.iter().any(|(_, _, bytes)| bytes.is_some()) {
            syncfs(File::open(&self.folder)?)?;
        }
        for (name, used, bytes) in unsaved {
            let path = self.folder.join(name.as_str());
            let result =
                bytes.map_or(Ok(()), |bytes| fs::write(path.join(SIZE), bytes.to_string()));
            if result.is_ok() && bytes.is_some() {
                self.known.lock().entry(name).and_modify(|layer| layer.is_on_disk = true);
            }
            result.and_then(|()| set_time(&path, used)).or_else(|err| match err.kind() {
                io::ErrorKind::NotFound => Ok(()), // removed meanwhile
                _ => Err(err),
            })?;
        }
        Ok(())
    }
}

/// A layer that is not removed while this exists.
#[derive(Debug)]
pub(super) struct LayerLease {
    store: Arc<LayerStore>,
    name: Name,
    app: PathBuf,
}

impl LayerLease {
    /// The directory to mount.
    pub(super) fn app(&self) -> &Path {
        &self.app
    }
}

impl Drop for LayerLease {
    fn drop(&mut self) {
        if let Some(layer) = self.store.known.lock().get_mut(&self.name) {
            layer.leases = layer.leases.saturating_sub(1);
            layer.used = SystemTime::now();
            layer.is_recorded = false;
        }
    }
}

/// A directory that is being filled; removed on drop unless it was stored.
#[derive(Debug)]
pub(super) struct Draft {
    path: Option<PathBuf>,
}

impl Draft {
    /// Where to unpack to; does not exist yet.
    pub(super) fn app(&self) -> PathBuf {
        self.path.as_deref().unwrap_or(Path::new("")).join(APP)
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, to)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => {
            tracing::warn!(error = %Chain(&err), folder = %path.display(), "Directory could not be removed; the next start will remove it.");
        }
    }
}

fn set_time(path: &Path, time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec {
        tv_sec: i64::try_from(since.as_secs()).unwrap_or_default(),
        tv_nsec: i64::from(since.subsec_nanos()),
    };
    let times = Timestamps { last_access: omit, last_modification };
    Ok(utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The size of a directory on disk, in bytes.
fn measure(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let found = entry.metadata()?; // of a link itself
        bytes += found.blocks() * 512;
        if found.is_dir() {
            bytes += measure(&entry.path())?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
