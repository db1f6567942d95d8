//! The rules of a source's tree, in memory while it is written: valid paths, nothing below a
//! file or a link, nothing twice, and where links lead. No I/O.
//!
//! The folder on disk is new and written by one task only, so this tree mirrors it exactly.

use super::SourceLimits;
use crate::error;
use epsilon_api::build::BuildError;
use std::collections::{BTreeMap, VecDeque};

/// Longest name of one file on Linux' file systems, in bytes.
const NAME_MAX: usize = 255;

/// Links that one path may lead through; Linux has the same limit.
const MAX_HOPS: usize = 40;

/// Folders that are never part of a source.
const LEFT_OUT: [(&str, &str); 2] = [
    ("node_modules", "dependencies are installed from `package.json` and its lockfile"),
    (".git", "the history is not part of a function"),
];

/// The entry at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    File,
    /// A link with its target.
    Symlink(String),
}

/// Everything added so far.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    limits: &'a SourceLimits,
    places: BTreeMap<String, Entry>,
    left_out: [bool; LEFT_OUT.len()],
}

/// A text for an error message: short and printable.
pub(super) fn printable_short(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(200).collect()
}

fn refused(path: &[u8], why: &str) -> BuildError {
    error::source_refused(format!("`{}` {why}", printable_short(path)))
}

impl<'a> Tree<'a> {
    pub(super) fn new(limits: &'a SourceLimits) -> Self {
        Self { limits, places: BTreeMap::new(), left_out: [false; LEFT_OUT.len()] }
    }

    /// Checks and normalises a member's path. `None`: it is the root, or left out.
    pub(super) fn path(&mut self, raw: &[u8]) -> Result<Option<String>, BuildError> {
        let text = printable(raw)?;
        if text.len() > self.limits.path {
            let why = format!("is longer than {} bytes", self.limits.path);
            return Err(refused(raw, &why));
        }
        if text.starts_with('/') {
            return Err(refused(raw, "is an absolute path"));
        }
        let mut names = Vec::new();
        for name in text.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if name == ".." {
                return Err(refused(raw, "points outside of the project with `..`"));
            }
            if name.len() > NAME_MAX {
                return Err(refused(raw, "has a name of more than 255 bytes"));
            }
            names.push(name);
        }
        for (seen, (left_out, _)) in self.left_out.iter_mut().zip(LEFT_OUT) {
            if names.contains(&left_out) {
                *seen = true;
                return Ok(None);
            }
        }
        if names.len() > self.limits.depth + 1 {
            let why = format!("is nested deeper than {} folders", self.limits.depth);
            return Err(refused(raw, &why));
        }
        Ok((!names.is_empty()).then(|| names.join("/")))
    }

    /// Adds an entry and returns the parent folders to create first, outermost first.
    pub(super) fn put(&mut self, path: &str, place: Entry) -> Result<Vec<String>, BuildError> {
        let mut folders = Vec::new();
        for (end, _) in path.match_indices('/') {
            let folder = &path[..end];
            match self.places.get(folder) {
                Some(Entry::Folder) => {}
                Some(Entry::File) => return Err(under(path, folder, "a file")),
                Some(Entry::Symlink(_)) => return Err(under(path, folder, "a link")),
                None => folders.push(folder.to_owned()),
            }
        }
        match self.places.get(path) {
            Some(Entry::Folder) if place == Entry::Folder => return Ok(Vec::new()),
            Some(_) => return Err(refused(path.as_bytes(), "is in the archive twice")),
            None if place == Entry::Folder => folders.push(path.to_owned()),
            None => {
                self.places.insert(path.to_owned(), place);
            }
        }
        self.places.extend(folders.iter().map(|folder| (folder.clone(), Entry::Folder)));
        if self.places.len() > self.limits.files {
            let text = format!("the archive has more than {} files and folders", self.limits.files);
            return Err(error::source_too_large(text));
        }
        Ok(folders)
    }

    /// The entry at this path.
    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        self.places.get(path)
    }

    /// Checks a link's target as text. Where it leads is checked once all members are there.
    pub(super) fn target(&self, path: &str, raw: &[u8]) -> Result<String, BuildError> {
        let target = printable(raw)?;
        if target.is_empty() || target.len() > self.limits.path {
            return Err(refused(path.as_bytes(), "is a link with an empty or very long target"));
        }
        if target.starts_with('/') {
            let why = format!("is a link to the absolute path `{}`", printable_short(raw));
            return Err(refused(path.as_bytes(), &why));
        }
        Ok(target.to_owned())
    }

    /// Follows every link: none may leave the project or lead back to itself.
    pub(super) fn check_links(&self) -> Result<(), BuildError> {
        for (path, place) in &self.places {
            let Entry::Symlink(target) = place else { continue };
            let end = self.follow(path, target)?;
            // A link to a folder that contains the link: walking it would never end.
            if end.is_empty() || path.strip_prefix(&end).is_some_and(|rest| rest.starts_with('/')) {
                return Err(link_cycle(path, target));
            }
        }
        Ok(())
    }

    /// Where a link ends, as a path from the root (empty for the root). It may not exist.
    fn follow(&self, path: &str, target: &str) -> Result<String, BuildError> {
        let mut at: Vec<&str> = path.split('/').collect();
        at.pop();
        let mut todo: VecDeque<&str> = target.split('/').collect();
        let mut hops = 0;
        while let Some(name) = todo.pop_front() {
            match name {
                "" | "." => continue,
                ".." if at.pop().is_none() => {
                    let why = format!("is a link that points outside of the project: `{target}`");
                    return Err(refused(path.as_bytes(), &why));
                }
                ".." => continue,
                name => at.push(name),
            }
            if let Some(Entry::Symlink(next)) = self.places.get(&at.join("/")) {
                hops += 1;
                if hops > MAX_HOPS {
                    return Err(link_cycle(path, target));
                }
                at.pop();
                next.split('/').rev().for_each(|name| todo.push_front(name));
            }
        }
        Ok(at.join("/"))
    }

    /// Folders without content, sorted.
    pub(super) fn empty_folders(&self) -> Vec<String> {
        let is_empty = |path: &str| {
            let inside = format!("{path}/");
            let next = self.places.range::<String, _>(&inside..).next();
            !next.is_some_and(|(path, _)| path.starts_with(&inside))
        };
        let folders = self.places.iter().filter(|(_, place)| **place == Entry::Folder);
        folders.map(|(path, _)| path).filter(|path| is_empty(path)).cloned().collect()
    }

    /// What was left out, as notes for the developer.
    pub(super) fn notes(&self) -> Vec<String> {
        let seen = self.left_out.iter().zip(LEFT_OUT).filter(|(seen, _)| **seen);
        seen.map(|(_, (name, why))| format!("`{name}` is left out: {why}")).collect()
    }
}

fn printable(raw: &[u8]) -> Result<&str, BuildError> {
    let text = std::str::from_utf8(raw).map_err(|_| refused(raw, "is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(refused(raw, "has control characters in its name"));
    }
    Ok(text)
}

fn under(path: &str, folder: &str, what: &str) -> BuildError {
    refused(path.as_bytes(), &format!("is below `{folder}`, which is {what}"))
}

fn link_cycle(path: &str, target: &str) -> BuildError {
    refused(path.as_bytes(), &format!("is a link that goes in circles: `{target}`"))
}
