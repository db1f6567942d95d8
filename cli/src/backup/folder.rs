//! Which files of a data folder go into a backup: keys, tokens, and certificates that were put
//! there. Not caches, not what belongs to this machine, not what developers have themselves. The
//! store is copied separately.

use super::STORE;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Left out: the machine's identity, instances, logs and layers (`vm`), caches (`builder`), what
/// developers pushed and have themselves (`git`), the working folders of webhook deliveries
/// (`hooks`), and a file system's own `lost+found`, which only root can read.
const EXCLUDED: [&str; 8] =
    ["up.lock", "vm", "builder", "git", "hooks", "epsilon.db-wal", "epsilon.db-shm", "lost+found"];
/// Largest file: a key or a certificate is some KiB.
const LARGEST: u64 = 1 << 20;
/// Most files.
const MOST: usize = 1000;
/// Folders in folders.
const DEEPEST: usize = 4;

/// The files of a data folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// By path in the folder; sorted.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Paths of files that are too large, too many or have too long a name for a key. Sorted.
    pub(crate) skipped: Vec<String>,
}

/// Reads the files to back up. Links to files are followed, links to folders are not. A file that
/// is removed meanwhile is left out: a running platform replaces key files by renaming.
pub(crate) fn collect(data: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    walk(data, Path::new(""), 0, &mut found)?;
    found.files.sort();
    found.skipped.sort();
    Ok(found)
}

fn walk(data: &Path, below: &Path, depth: usize, found: &mut Found) -> io::Result<()> {
    let entries = match fs::read_dir(data.join(below)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound && depth > 0 => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_own = depth == 0 && (EXCLUDED.iter().any(|own| name == *own) || name == STORE);
        if is_own || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = below.join(&name);
        // A dangling link is skipped.
        let Ok(kind) = fs::metadata(entry.path()) else { continue };
        if entry.file_type()?.is_dir() && depth < DEEPEST {
            walk(data, &path, depth + 1, found)?;
        } else if kind.is_file() {
            take(&entry.path(), path, kind.len(), found)?;
        } else if kind.is_dir() {
            found.skipped.push(path.display().to_string());
        }
    }
    Ok(())
}

fn take(file: &Path, path: PathBuf, bytes: u64, found: &mut Found) -> io::Result<()> {
    let text = path.to_str().filter(|text| super::manifest::is_safe(&format!("data/{text}")));
    match text {
        Some(text) if bytes <= LARGEST && found.files.len() < MOST => match fs::read(file) {
            Ok(content) => found.files.push((text.to_owned(), content)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {} // gone
            Err(err) => return Err(err),
        },
        _ => found.skipped.push(path.display().to_string()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn keys_and_certificates_are_taken_and_nothing_else() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = dir.path();
        let put = |name: &str, content: &[u8]| {
            fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
            fs::write(data.join(name), content).unwrap();
        };
        for name in ["admin.key", "gateway.key", "fleet.token", "tls/own.pem"] {
            put(name, name.as_bytes());
        }
        for name in [
            "epsilon.db",
            "epsilon.db-wal",
            "up.lock",
            "vm/id",
            "builder/shelf/00.tar",
            "git/shop.git/HEAD",
            "hooks/1/x",
            "lost+found/#1",
            ".draft",
        ] {
            put(name, b"not this");
        }
        put("old.db", &vec![0; LARGEST as usize + 1]);
        let long = "x".repeat(101);
        put(&long, b"no name of ours");
        fs::write(outside.path().join("secret"), b"linked").unwrap();
        symlink(outside.path().join("secret"), data.join("linked.token")).unwrap();
        symlink(outside.path(), data.join("folder")).unwrap();
        symlink("/nowhere", data.join("broken")).unwrap();

        let found = collect(data).unwrap();
        let names: Vec<_> = found.files.iter().map(|(name, _)| name.as_str()).collect();
        let want = ["admin.key", "fleet.token", "gateway.key", "linked.token", "tls/own.pem"];
        assert_eq!(names, want);
        assert_eq!(found.files[3].1, b"linked");
        assert_eq!(found.skipped, ["folder", "old.db", &long]);
    }

    #[test]
    fn what_goes_meanwhile_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Found::default();
        take(&dir.path().join("admin.new"), "admin.new".into(), 9, &mut found).unwrap();
        walk(dir.path(), Path::new("tls"), 1, &mut found).unwrap();
        assert_eq!(found, Found::default());
        let gone = collect(&dir.path().join("data")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound, "the folder itself has to be there");
    }
}
