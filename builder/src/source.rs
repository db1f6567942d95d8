//! A developer's archive → a checked folder. The first step of every build.
//!
//! ```text
//! body ─▶ bounded channel ─▶ [blocking task: gunzip → limits → tar → rules] ─▶ Source
//! ```
//!
//! Nothing of the archive is trusted: paths that leave the folder, links out of it or in circles,
//! special files, and anything over a limit are refused with their path. The result is normalised:
//! only content, path and the executable bit survive. The code in it is data here; nothing of it is
//! run or parsed.

mod archive;
mod digest;
mod folder;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod upload;

pub use digest::{ContentDigest, Hasher};

use crate::{
    cache::walk::{Bounds, Stopped, walk},
    error,
};
use archive::{Member, MemberKind, Unpacked};
use epsilon_api::{body::CallBody, build::BuildError, units::Bytes};
use folder::Folder;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task;
use tree::{Entry, Tree, printable_short};
use upload::Upload;

/// Limits of an archive. All are the operator's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLimits {
    /// The compressed archive. Default 100 MiB.
    pub compressed: Bytes,
    /// Everything unpacked. Default 512 MiB.
    pub unpacked: Bytes,
    /// One file. Default 256 MiB.
    pub file: Bytes,
    /// Files, links and folders. Default 20,000.
    pub files: usize,
    /// Length of one path in bytes. Default 1,024.
    pub path: usize,
    /// Folders above one file. Default 32.
    pub depth: usize,
    /// Unpacked bytes per compressed byte, checked from 16 MiB on. Default 200: source code
    /// compresses 5 to 20 times, a bomb 1,000 times.
    pub ratio: u64,
    /// Longest silence in an upload. Default 60 s.
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
    /// Files and links, sorted by path; their folders follow from them.
    pub files: Vec<SourceFile>,
    /// Folders without content, sorted.
    pub empty_folders: Vec<String>,
    /// Digest of paths, contents, executable bits and empty folders: the same project has the same
    /// digest.
    pub digest: ContentDigest,
    /// Notes for the developer, one line each: "`node_modules` is left out: …".
    pub notes: Vec<String>,
    /// Removes the folder when dropped.
    _folder: Folder,
}

/// One file or link of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Relative to the root, with `/`, without `.` and `..`, without control characters.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of the content; of the target for a link.
    pub sha256: ContentDigest,
    /// Executable: its mode on disk is 0755, else 0644.
    pub executable: bool,
    /// File or link.
    pub kind: FileKind,
}

/// Kind of a path in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A symbolic link that stays inside the source. Its target may not exist.
    Symlink {
        /// As written, relative to the link's folder.
        target: String,
    },
}

/// Unpacks a tar.gz into a new folder under `work_dir` (which must exist) and checks it meanwhile.
///
/// Cancel-safe: dropping the future stops the unpacking and removes what was written.
///
/// # Errors
/// `SOURCE_REFUSED`, `SOURCE_TOO_LARGE`, `SOURCE_INCOMPLETE`, `DISK_FULL`.
pub async fn receive(
    body: CallBody,
    limits: &SourceLimits,
    work_dir: &Path,
) -> Result<Source, BuildError> {
    let (pieces, upload) = upload::channel();
    let own_limits = limits.clone();
    let work_dir = work_dir.to_owned();
    let unpacking = task::spawn_blocking(move || unpack(upload, &own_limits, &work_dir));
    let fed = upload::feed(body, pieces, limits).await;
    let unpacked = unpacking.await;
    fed?;
    unpacked.map_err(|cause| error::broken("unpacking the source", &cause))?
}

fn unpack(upload: Upload, limits: &SourceLimits, work_dir: &Path) -> Result<Source, BuildError> {
    let folder = Folder::make(work_dir)?;
    let mut unpacking =
        Unpacking { folder, limits, tree: Tree::new(limits), files: Vec::new(), linked: 0 };
    archive::read(Unpacked::new(upload, limits), |member, content| {
        unpacking.take(member, content)
    })?;
    unpacking.finish()
}

/// Takes over a folder that untrusted code has left, checked like an archive. Blocking.
/// `node_modules` in it are skipped.
pub(crate) fn adopt(
    from: &Path,
    limits: &SourceLimits,
    work_dir: &Path,
) -> Result<Source, BuildError> {
    let folder = Folder::make(work_dir)?;
    let mut unpacking =
        Unpacking { folder, limits, tree: Tree::new(limits), files: Vec::new(), linked: 0 };
    let mut bytes: u64 = 0;
    walk(from, Bounds::default(), |entry| {
        bytes = bytes.saturating_add(entry.length());
        if bytes > limits.unpacked.get() {
            return Err(error::source_too_large(format!("it has more than {}", limits.unpacked)));
        }
        let unreadable = |err: io::Error| error::file("reading what a build left", &err);
        let mut content: Box<dyn Read> = Box::new(io::empty());
        let kind = match entry.kind() {
            kind if kind.is_dir() => MemberKind::Folder,
            kind if kind.is_file() => {
                content = Box::new(entry.open().map_err(unreadable)?);
                MemberKind::File
            }
            kind if kind.is_symlink() => MemberKind::Symlink(entry.target().map_err(unreadable)?),
            _ => MemberKind::Other("a device, a pipe or a socket"),
        };
        let path = entry.path.to_vec();
        let executable = entry.is_executable();
        unpacking.take(Member { path, kind, bytes: entry.length(), executable }, &mut content)
    })?;
    Ok(Source { notes: Vec::new(), ..unpacking.finish()? })
}

impl From<Stopped> for BuildError {
    fn from(stopped: Stopped) -> Self {
        match &stopped {
            Stopped::Unreadable(cause) => error::file("reading what a build left", cause),
            Stopped::Deep(..) | Stopped::Long(..) | Stopped::Many(_) => {
                error::source_refused(stopped.to_string())
            }
        }
    }
}

/// A source being unpacked.
struct Unpacking<'a> {
    folder: Folder,
    limits: &'a SourceLimits,
    tree: Tree<'a>,
    files: Vec<SourceFile>,
    /// Bytes of files that came as hard links: small in the archive, large on disk.
    linked: u64,
}

impl Unpacking<'_> {
    fn take(&mut self, member: Member, content: &mut dyn Read) -> Result<(), BuildError> {
        let Some(path) = self.tree.path(&member.path)? else { return Ok(()) };
        match member.kind {
            MemberKind::Folder => self.put(&path, Entry::Folder),
            MemberKind::File => self.file(path, member.bytes, member.executable, content),
            MemberKind::Symlink(target) => {
                let target = self.tree.target(&path, &target)?;
                self.put(&path, Entry::Symlink(target.clone()))?;
                let sha256 = ContentDigest::of(target.as_bytes());
                let bytes = target.len() as u64;
                let kind = FileKind::Symlink { target };
                self.files.push(SourceFile { path, bytes, sha256, executable: false, kind });
                Ok(())
            }
            MemberKind::HardLink(target) => self.hard_link(path, &target),
            MemberKind::Other(what) => Err(error::source_refused(format!(
                "`{path}` is {what}; only files, folders and links are taken"
            ))),
        }
    }

    fn put(&mut self, path: &str, place: Entry) -> Result<(), BuildError> {
        self.tree.put(path, place)?.iter().try_for_each(|folder| self.folder.folder(folder))
    }

    fn file(
        &mut self,
        path: String,
        bytes: u64,
        executable: bool,
        content: &mut dyn Read,
    ) -> Result<(), BuildError> {
        if bytes > self.limits.file.get() {
            let size = Bytes(bytes);
            let limit = self.limits.file;
            let text = format!("`{path}` has {size}; one file may have {limit}");
            return Err(error::source_too_large(text));
        }
        self.put(&path, Entry::File)?;
        let (written, sha256) = self.folder.file(&path, executable, content)?;
        if written != bytes {
            return Err(error::source_incomplete(format!("the archive ends inside `{path}`")));
        }
        self.files.push(SourceFile { path, bytes, sha256, executable, kind: FileKind::File });
        Ok(())
    }

    /// A hard link becomes a file of its own, and counts as one.
    fn hard_link(&mut self, path: String, target: &[u8]) -> Result<(), BuildError> {
        let original = self.tree.path(target)?.filter(|to| self.tree.get(to) == Some(&Entry::File));
        let original = original.and_then(|to| self.files.iter().find(|file| file.path == to));
        let Some(original) = original.cloned() else {
            let text = format!(
                "`{path}` is a hard link to `{}`, no earlier file of the archive",
                printable_short(target)
            );
            return Err(error::source_refused(text));
        };
        self.linked += original.bytes;
        if self.linked > self.limits.unpacked.get() {
            let text = format!("the archive unpacks to more than {}", self.limits.unpacked);
            return Err(error::source_too_large(text));
        }
        let mut content = self.folder.open(&original.path)?;
        self.file(path, original.bytes, original.executable, &mut content)
    }

    fn finish(mut self) -> Result<Source, BuildError> {
        self.tree.check_links()?;
        // Links come last: while files are written, no path on disk can lead through one.
        for file in &self.files {
            if let FileKind::Symlink { target } = &file.kind {
                self.folder.symlink(&file.path, target)?;
            }
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        let digest = self.files.iter().fold(Hasher::default(), |all, file| file.digest_into(all));
        let empty_folders = self.tree.empty_folders();
        Ok(Source {
            root: self.folder.path().to_owned(),
            files: self.files,
            digest: folders_into(&empty_folders, digest).finish(),
            empty_folders,
            notes: self.tree.notes(),
            _folder: self.folder,
        })
    }
}

impl SourceFile {
    /// Adds path, kind, executable bit and content to a digest.
    pub fn digest_into(&self, hasher: Hasher) -> Hasher {
        let kind = match (&self.kind, self.executable) {
            (FileKind::File, false) => "file",
            (FileKind::File, true) => "executable",
            (FileKind::Symlink { .. }, _) => "link",
        };
        let content = self.sha256.to_string();
        hasher.part(self.path.as_bytes()).part(kind.as_bytes()).part(content.as_bytes())
    }
}

/// Adds empty folders to a digest.
fn folders_into(folders: &[String], hasher: Hasher) -> Hasher {
    folders.iter().fold(hasher, |hasher, path| hasher.part(path.as_bytes()).part(b"folder"))
}

impl Source {
    /// Adds the empty folders to a digest.
    pub fn empty_folders_into(&self, hasher: Hasher) -> Hasher {
        folders_into(&self.empty_folders, hasher)
    }

    /// The file or link at this path.
    pub fn get(&self, path: &str) -> Option<&SourceFile> {
        let at = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        self.files.get(at)
    }

    /// The content of one small file, if it exists. Blocking.
    ///
    /// # Errors
    /// `MANIFEST_INVALID` when it is larger than `max`, or a link to a folder.
    pub fn read(&self, path: &str, max: Bytes) -> Result<Option<Vec<u8>>, BuildError> {
        const READING: &str = "reading the source";
        if self.get(path).is_none() {
            return Ok(None);
        }
        // A link was checked to stay inside; its target may not exist.
        let file = match File::open(self.root.join(path)) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(error::file(READING, &cause)),
        };
        let mut bytes = Vec::new();
        let read = file.take(max.get() + 1).read_to_end(&mut bytes);
        read.map_err(|cause| match cause.kind() {
            io::ErrorKind::IsADirectory => error::manifest_invalid(format!("{path} is a folder")),
            _ => error::file(READING, &cause),
        })?;
        if bytes.len() as u64 > max.get() {
            return Err(error::manifest_invalid(format!("{path} is larger than {max}")));
        }
        Ok(Some(bytes))
    }
}
