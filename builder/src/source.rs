//! A developer's archive → a checked folder. The first step of every build.
//!
//! ```text
//! body ─▶ bounded channel ─▶ [blocking task: gunzip → limits → tar → rules] ─▶ Source
//! ```
//!
//! Nothing of the archive is trusted: what leaves the folder, links out of it, goes in circles, is no
//! file, or is over a limit is refused with its path. What is kept is normalised: only content, path and
//! the executable bit survive. The code in it is data here; nothing of it is run or parsed.

mod digest;

pub use digest::{ContentDigest, Hasher};

use crate::error;
use epsilon_api::{body::CallBody, build::BuildError, units::Bytes};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// What an archive may be at most. All are the operator's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// The archive as it comes in. Default 100 MiB.
    pub compressed: Bytes,
    /// All that comes out of it. Default 512 MiB.
    pub unpacked: Bytes,
    /// One file. Default 256 MiB.
    pub file: Bytes,
    /// Files, links and folders. Default 20,000.
    pub files: usize,
    /// Length of one path in bytes. Default 1,024.
    pub path: usize,
    /// Folders above one file. Default 32.
    pub depth: usize,
    /// Unpacked bytes per compressed byte, looked at from 16 MiB on. Default 200: source code packs 5 to
    /// 20 times, a bomb 1,000 times.
    pub ratio: u64,
    /// The longest silence in an upload. Default 60 s.
    pub stall: Duration,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self {
            compressed: Bytes::mib(100),
            unpacked: Bytes::mib(512),
            file: Bytes::mib(256),
            files: 20_000,
            path: 1024,
            depth: 32,
            ratio: 200,
            stall: Duration::from_secs(60),
        }
    }
}

/// A checked folder with a developer's project. Dropping it removes the folder.
#[derive(Debug)]
pub struct Source {
    /// The folder on this machine. Only this build uses it.
    pub root: PathBuf,
    /// Files and links, sorted by path; folders follow from them (empty ones do not count).
    pub files: Vec<SourceFile>,
    /// Of paths, contents and executable bits: the same project has the same digest.
    pub digest: ContentDigest,
    /// What the developer should know, one line each: "`node_modules` is left out: …".
    pub notes: Vec<String>,
}

/// One file or link of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Relative to the root, with `/`, without `.` and `..`, without control characters.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Of its content; of the target's text for a link.
    pub sha256: ContentDigest,
    /// Whether it may be executed. Its mode on disk is 0755 then, else 0644.
    pub executable: bool,
    /// File or link.
    pub kind: FileKind,
}

/// What a path of a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A symbolic link that stays inside the source. It may point at nothing.
    Symlink {
        /// As written, relative to the link's folder.
        target: String,
    },
}

/// Unpacks a tar.gz into a fresh folder under `work_dir` (which must exist) and checks it on the way.
///
/// Cancel-safe: dropping the future stops the unpacking, and whatever was written is removed.
///
/// # Errors
/// `SOURCE_REFUSED`, `SOURCE_TOO_LARGE`, `SOURCE_INCOMPLETE`, `DISK_FULL`.
pub async fn receive(
    body: CallBody,
    limits: &SourceLimits,
    work_dir: &Path,
) -> Result<Source, BuildError> {
    let _ = (body, limits, work_dir);
    Err(error::source_refused("being written"))
}

impl Source {
    /// The file or link at this path.
    pub fn get(&self, path: &str) -> Option<&SourceFile> {
        let at = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        self.files.get(at)
    }
}
