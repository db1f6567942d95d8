//! What is unpacked on this machine: which folders there are, who holds them, how much they take, when each was used
//! last. Knows nothing of where they come from.
//!
//! ```text
//! .draft-ID/        being unpacked; nobody counts on it, and the next start removes it
//!    └─ renamed ─▶ sha256-HEX/app/     whole and checked
//!                  sha256-HEX/size     it is on the disk for sure; how much it takes
//!                     └─ renamed ─▶ .gone-ID/   being removed
//! boot              which start of the machine the folders without `size` are of
//! ```
//!
//! Writing a file to the disk for sure takes as long as all the rest of a small layer, and a layer that is lost costs one
//! fetch. So it is done later, for all at once ([`Stock::settle`]); a machine that stopped before it had its power taken
//! away starts without those layers. An agent that is killed loses none: cells that go on have them mounted.

use super::{name::Name, unpack::APP};
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
/// Changes with each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The folder, and what is in it.
#[derive(Debug)]
pub(super) struct Stock {
    folder: PathBuf,
    known: Mutex<HashMap<Name, Layer>>,
}

#[derive(Debug)]
struct Layer {
    bytes: u64,
    leases: usize,
    used: SystemTime,
    /// What the folder says of it is what is said here.
    is_settled: bool,
    is_on_disk: bool,
}

impl Stock {
    /// Finds what an earlier agent left.
    pub(super) fn open(folder: &Path) -> io::Result<Arc<Self>> {
        fs::create_dir_all(folder)?;
        // What lies here is for cells alone, and they see it by mounts.
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
            if text.starts_with(DRAFT) || text.starts_with(GONE) {
                remove(&path);
                continue;
            }
            let Some(name) = Name::of_folder(text) else { continue };
            let size = fs::read_to_string(path.join(SIZE)).ok();
            let size = size.and_then(|size| size.parse::<u64>().ok());
            if size.is_none() && !is_same_boot {
                remove(&path);
                continue;
            }
            let layer = Layer {
                bytes: size.map_or_else(|| measure(&path), Ok)?,
                leases: 0,
                used: entry.metadata()?.modified()?,
                is_settled: size.is_some(),
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

    /// Holds a layer that is here.
    pub(super) fn lease(self: &Arc<Self>, name: &Name) -> Option<Lease> {
        // Somebody may have tidied up by hand.
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
        layer.is_settled = false;
        Some(Lease { stock: Arc::clone(self), name: name.clone(), app })
    }

    /// A place to unpack to. Blocking.
    pub(super) fn draft(&self) -> io::Result<Draft> {
        let path = self.folder.join(format!("{DRAFT}{:016x}", rand::random::<u64>()));
        fs::create_dir(&path)?;
        Ok(Draft { path: Some(path) })
    }

    /// Takes a draft that is whole and checked, and holds it. Blocking.
    pub(super) fn keep(
        self: &Arc<Self>,
        name: &Name,
        draft: Draft,
        bytes: u64,
    ) -> io::Result<Lease> {
        let to = self.folder.join(name.as_str());
        draft.rename(&to)?;
        let used = SystemTime::now();
        let layer = Layer { bytes, leases: 1, used, is_settled: false, is_on_disk: false };
        self.known.lock().insert(name.clone(), layer);
        Ok(Lease { stock: Arc::clone(self), name: name.clone(), app: to.join(APP) })
    }

    /// What all of it takes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.known.lock().values().map(|layer| layer.bytes).sum()
    }

    /// What goes first: the layer that nobody holds whose use is the longest ago.
    pub(super) fn oldest(&self) -> Option<Name> {
        let known = self.known.lock();
        let unused = known.iter().filter(|(_, layer)| layer.leases == 0);
        unused.min_by_key(|(_, layer)| layer.used).map(|(name, _)| name.clone())
    }

    /// Removes a layer, unless somebody holds it. Tells what it took. Not to be called while it is being brought.
    /// Blocking.
    pub(super) fn remove(&self, name: &Name) -> Option<u64> {
        let layer = {
            let mut known = self.known.lock();
            known.get(name).filter(|layer| layer.leases == 0)?;
            known.remove(name)?
        };
        let path = self.folder.join(name.as_str());
        let gone = self.folder.join(format!("{GONE}{:016x}", rand::random::<u64>()));
        // By its name it is whole, always: a removal that is cut must not leave half of it.
        match fs::rename(&path, &gone) {
            Ok(()) => remove(&gone),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                tracing::warn!(%err, folder = %path.display(), "A code layer could not be removed.");
                self.known.lock().insert(name.clone(), layer);
                return None;
            }
        }
        Some(layer.bytes)
    }

    /// Makes sure that what is known survives the end of the machine: layers that came, and when each was used last.
    /// Blocking, for as long as the disk takes.
    pub(super) fn settle(&self) -> io::Result<()> {
        let mut news = Vec::new();
        for (name, layer) in self.known.lock().iter_mut().filter(|(_, layer)| !layer.is_settled) {
            layer.is_settled = true;
            news.push((name.clone(), layer.used, (!layer.is_on_disk).then_some(layer.bytes)));
        }
        if news.iter().any(|(_, _, bytes)| bytes.is_some()) {
            syncfs(File::open(&self.folder)?)?;
        }
        for (name, used, bytes) in news {
            let path = self.folder.join(name.as_str());
            let written =
                bytes.map_or(Ok(()), |bytes| fs::write(path.join(SIZE), bytes.to_string()));
            if written.is_ok() && bytes.is_some() {
                self.known.lock().entry(name).and_modify(|layer| layer.is_on_disk = true);
            }
            written.and_then(|()| set_time(&path, used)).or_else(|err| match err.kind() {
                io::ErrorKind::NotFound => Ok(()), // removed meanwhile
                _ => Err(err),
            })?;
        }
        Ok(())
    }
}

/// A layer that is not removed as long as this lives.
#[derive(Debug)]
pub(super) struct Lease {
    stock: Arc<Stock>,
    name: Name,
    app: PathBuf,
}

impl Lease {
    /// The folder to mount.
    pub(super) fn app(&self) -> &Path {
        &self.app
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(layer) = self.stock.known.lock().get_mut(&self.name) {
            layer.leases = layer.leases.saturating_sub(1);
            layer.used = SystemTime::now();
            layer.is_settled = false;
        }
    }
}

/// A folder that is being filled; removed with the value unless it is kept.
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
            tracing::warn!(%err, folder = %path.display(), "Folder could not be removed; the next start will.");
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

/// What a folder takes on the disk.
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
