//! The files of a project: all files and empty folders except those excluded by `.gitignore` and
//! `.epsilonignore`, never `.git` and `node_modules`. Refuses before the upload what the builder
//! would refuse; the builder does not rely on it and checks again.

use crate::failure::Failure;
use epsilon_api::units::Bytes;
use ignore::{WalkBuilder, overrides::OverrideBuilder};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, Metadata},
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

/// Most folders that the error for a too large project lists.
const MOST: usize = 3;

/// A project's files and empty folders, sorted by path.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    pub(super) entries: Vec<Entry>,
}

/// One file or empty folder of a project.
#[derive(Debug)]
pub(super) struct Entry {
    /// Relative to the project's root.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        bytes: u64,
        executable: bool,
    },
    Link {
        target: PathBuf,
    },
    /// An empty folder. Others follow from their files.
    Folder,
}

impl Tree {
    /// Reads a folder's tree. No file may be larger than `file_max`.
    pub(super) fn read(dir: &Path, file_max: Bytes) -> Result<Self, Failure> {
        let root = fs::canonicalize(dir).map_err(|err| {
            Failure::usage(format!("the folder `{}` cannot be read", dir.display()))
                .with_cause(&err)
                .hint("name the project's folder: `epsilon deploy DIR`")
        })?;
        if !root.is_dir() {
            return Err(Failure::usage(format!("`{}` is not a folder", dir.display()))
                .hint("name the project's folder: `epsilon deploy DIR`"));
        }
        let mut entries = Vec::new();
        for found in walk(&root)?.build() {
            let found = found.map_err(|err| refused("a file cannot be read").with_cause(&err))?;
            let path = found.path().strip_prefix(&root).unwrap_or(found.path()).to_owned();
            let meta = fs::symlink_metadata(found.path()).map_err(|err| unreadable(&path, &err))?;
            if meta.is_dir() {
                let mut inside =
                    fs::read_dir(found.path()).map_err(|err| unreadable(&path, &err))?;
                if inside.next().is_none() {
                    entries.push(Entry { path, kind: Kind::Folder });
                }
                continue;
            }
            let kind = kind(&root, &path, &meta, file_max)?;
            entries.push(Entry { path, kind });
        }
        if entries.iter().all(|entry| entry.kind == Kind::Folder) {
            return Err(Failure::usage(format!(
                "the folder `{}` has no files to deploy",
                dir.display()
            ))
            .hint("`epsilon init DIR` writes a project to start from"));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root, entries })
    }

    /// The folder's name: the project's name when it has no other.
    pub(super) fn name(&self) -> Option<String> {
        Some(self.root.file_name()?.to_str()?.to_owned())
    }

    /// Number of files.
    pub(super) fn files(&self) -> usize {
        self.entries.iter().filter(|entry| entry.kind != Kind::Folder).count()
    }

    /// The folders with the most files and bytes, for the error for a too large project.
    pub(super) fn most(&self) -> String {
        let mut folders: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.kind != Kind::Folder) {
            let mut parts = entry.path.iter();
            // A file of the root is listed itself.
            let first = parts.next().map(|part| part.to_string_lossy()).unwrap_or_default();
            let end = if parts.next().is_some() { "/" } else { "" };
            let folder = folders.entry(format!("`{first}{end}`")).or_default();
            *folder = (folder.0 + 1, folder.1.saturating_add(entry.kind.bytes()));
        }
        let top = |by: fn(&(usize, u64)) -> u64| {
            let mut sorted: Vec<_> = folders.iter().collect();
            sorted.sort_by_key(|(_, sums)| Reverse(by(sums)));
            sorted.truncate(MOST);
            sorted
        };
        let bytes = top(|(_, bytes)| *bytes).into_iter();
        let bytes: Vec<_> =
            bytes.map(|(name, (_, all))| format!("{name} {}", Bytes(*all))).collect();
        let files = top(|(files, _)| *files as u64).into_iter();
        let files: Vec<_> = files.map(|(name, (all, _))| format!("{name} {all}")).collect();
        format!(
            "most bytes are in {}; most files in {}. `.epsilonignore` leaves out what functions do not need",
            bytes.join(", "),
            files.join(", ")
        )
    }

    /// Size of all files together.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes(self.entries.iter().map(|entry| entry.kind.bytes()).sum())
    }
}

impl Kind {
    fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Link { .. } | Self::Folder => 0,
        }
    }
}

/// How a project's files are listed.
pub(in crate::commands) fn walk(root: &Path) -> Result<WalkBuilder, Failure> {
    let mut never = OverrideBuilder::new(root);
    for name in ["!.git", "!node_modules"] {
        never
            .add(name)
            .map_err(|err| Failure::new("WALK", "a pattern is wrong").with_cause(&err))?;
    }
    let never =
        never.build().map_err(|err| Failure::new("WALK", "a pattern is wrong").with_cause(&err))?;
    let mut walk = WalkBuilder::new(root);
    walk.standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        // Ignore files above the folder do not count: the same folder is the same project.
        .parents(false)
        .add_custom_ignore_filename(".epsilonignore")
        .overrides(never)
        .follow_links(false);
    Ok(walk)
}

fn kind(root: &Path, path: &Path, meta: &Metadata, file_max: Bytes) -> Result<Kind, Failure> {
    if meta.is_symlink() {
        let target = fs::read_link(root.join(path)).map_err(|err| unreadable(path, &err))?;
        check_link(root, path, &target)?;
        return Ok(Kind::Link { target });
    }
    if !meta.is_file() {
        return Err(refused(format!(
            "`{}` is neither a file nor a folder nor a link",
            path.display()
        )));
    }
    if meta.len() > file_max.get() {
        return Err(refused(format!(
            "`{}` is {}; a file may have {file_max}",
            path.display(),
            Bytes(meta.len())
        )));
    }
    let executable = meta.permissions().mode() & 0o111 != 0;
    Ok(Kind::File { bytes: meta.len(), executable })
}

/// A link stays a link, so it must mean the same inside the image: relative, and inside the
/// project.
fn check_link(root: &Path, path: &Path, target: &Path) -> Result<(), Failure> {
    let bad = |why: &str| {
        refused(format!("the link `{}` -> `{}` {why}", path.display(), target.display()))
    };
    let mut depth = path.components().count() - 1; // of the folder that holds the link
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(bad("points outside of the project"));
            }
        }
    }
    // A path through other links can end elsewhere than its text says.
    match fs::canonicalize(root.join(path)) {
        Ok(real) if real.starts_with(root) => Ok(()),
        Ok(_) => Err(bad("points outside of the project")),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()), // into node_modules, for example
        Err(err) => Err(bad("cannot be followed").with_cause(&err)),
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new("SOURCE_REFUSED", message)
        .hint("exclude what the functions do not need in `.epsilonignore`")
}

fn unreadable(path: &Path, err: &std::io::Error) -> Failure {
    Failure::new("SOURCE_UNREADABLE", format!("`{}` cannot be read", path.display()))
        .with_cause(err)
}

#[cfg(test)]
mod tests;
