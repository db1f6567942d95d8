//! A project's folder from a few lines, and the archive that a deployment sends.

use flate2::{Compression, write::GzEncoder};
use std::path::Path;
use tempfile::TempDir;

/// A folder with a project in it; removed with the value.
///
/// ```
/// let shop = epsilon_e2e::project!("shop", { "index.js" => "exports.buy = (req, res) => res.send('!')" });
/// assert!(shop.path().join("index.js").is_file());
/// ```
#[derive(Debug)]
pub struct Project {
    folder: TempDir,
    name: String,
}

/// Writes a project's folder: its name, then path and text of each file.
#[macro_export]
macro_rules! project {
    ($name:expr, { $($path:expr => $text:expr),* $(,)? }) => {{
        let project = $crate::project::Project::new($name);
        $(project.write($path, $text);)*
        project
    }};
}

impl Project {
    /// An empty folder.
    ///
    /// # Panics
    /// When the machine refuses.
    pub fn new(name: &str) -> Self {
        let folder = TempDir::with_prefix("epsilon-project-").unwrap();
        std::fs::create_dir(folder.path().join(name)).unwrap();
        Self { folder, name: name.to_owned() }
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder's path.
    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Writes a file and its parent folders.
    ///
    /// # Panics
    /// When it fails.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Creates a symbolic link.
    ///
    /// # Panics
    /// When it fails.
    pub fn link(&self, path: &str, to: &str) {
        std::os::unix::fs::symlink(to, self.path().join(path)).unwrap();
    }

    /// The folder as tar.gz, links as links.
    ///
    /// # Panics
    /// When a file cannot be read.
    pub fn archive(&self) -> Vec<u8> {
        archive(|tar| {
            tar.follow_symlinks(false);
            tar.append_dir_all(".", self.path()).unwrap();
        })
    }
}

/// A tar.gz with the entries that `fill` adds.
///
/// # Panics
/// When writing fails.
pub fn archive(fill: impl FnOnce(&mut tar::Builder<GzEncoder<Vec<u8>>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    fill(&mut tar);
    tar.into_inner().unwrap().finish().unwrap()
}

/// The header of a tar entry with a path that the `tar` crate itself would refuse.
///
/// # Panics
/// When the path is longer than a header allows.
pub fn raw_header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    let name = &mut header.as_gnu_mut().expect("it was made as one").name;
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

/// Copies a folder of the repository, such as one of `examples/`, so that a test may change it.
///
/// # Panics
/// When it cannot be read.
pub fn copy_of(folder: &Path) -> Project {
    let name = folder.file_name().and_then(|name| name.to_str()).expect("a folder with a name");
    let project = Project::new(name);
    copy_all(folder, &project.path());
    project
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
