//! Test support: tars made by hand, also invalid ones, and a small disk.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
};
use tar::{EntryType, Header};
use tempfile::TempDir;

/// The modification time of everything in [`Tar`], in seconds since 1970.
pub(super) const TIME: u64 = 1_234_567_890;

/// A tar; entries are written unchecked.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn folder(&mut self, path: &str) -> &mut Self {
        self.add(path, EntryType::Directory, "", 0o755)
    }

    pub(super) fn file(&mut self, path: &str, content: &str) -> &mut Self {
        self.add(path, EntryType::Regular, content, 0o644)
    }

    pub(super) fn program(&mut self, path: &str, content: &str) -> &mut Self {
        self.add(path, EntryType::Regular, content, 0o755)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, EntryType::Symlink, target, "", 0o777)
    }

    pub(super) fn hard_link(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, EntryType::Link, target, "", 0o644)
    }

    pub(super) fn add(
        &mut self,
        path: &str,
        kind: EntryType,
        content: &str,
        mode: u32,
    ) -> &mut Self {
        self.put(path, kind, "", content, mode)
    }

    /// A PAX attribute for the next entry.
    pub(super) fn attribute(&mut self, key: &str, value: &str) -> &mut Self {
        let rest = format!(" {key}={value}\n");
        // The length includes its own digits.
        let length = (1..5)
            .map(|digits| digits + rest.len())
            .find(|n| n.to_string().len() + rest.len() == *n);
        let record = format!("{}{rest}", length.unwrap());
        self.put("PaxHeaders/next", EntryType::XHeader, "", &record, 0o644)
    }

    fn put(
        &mut self,
        path: &str,
        kind: EntryType,
        target: &str,
        content: &str,
        mode: u32,
    ) -> &mut Self {
        if path.len() > 100 {
            self.put("././@LongLink", EntryType::GNULongName, "", &format!("{path}\0"), 0o644);
        }
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        let shown = &path.as_bytes()[..path.len().min(100)];
        old.name[..shown.len()].copy_from_slice(shown);
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(4711);
        header.set_gid(4711);
        header.set_mtime(TIME);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The complete tar, with its end marker.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    /// The same, compressed, as registries store it.
    pub(super) fn gzip(&self) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        to.write_all(&self.bytes()).unwrap();
        to.finish().unwrap()
    }

    /// `sha256:…` of the tar.
    pub(super) fn diff_id(&self) -> String {
        digest(&self.bytes())
    }
}

/// `sha256:…` of some bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    use sha2::Digest;
    let sum = sha2::Sha256::digest(bytes);
    sum.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A small tmpfs, unmounted on drop.
pub(super) struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// `None` without the right to mount; tests of cells need root anyway, and say so.
    pub(super) fn mount(bytes: u64) -> Option<Self> {
        let folder = TempDir::with_prefix("epsilon-small-disk-").unwrap();
        let disk = Self { folder };
        let size = std::ffi::CString::new(format!("size={bytes},mode=0755")).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID;
        match rustix::mount::mount("tmpfs", disk.path(), "tmpfs", flags, size.as_c_str()) {
            Ok(()) => Some(disk),
            Err(rustix::io::Errno::PERM) => None,
            Err(err) => panic!("tmpfs: {err}"),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}
