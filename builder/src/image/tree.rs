//! Writes a layer: a tar whose bytes depend only on paths, contents and executable bits. No owners,
//! no directory order, no times of this machine. Blocking.
//!
//! The time of a project's file is derived from its content, that of a package's file from the
//! `package.json` above it, which has its version. Web servers make `ETag` and `Last-Modified` of
//! size and time: with one time for all, a browser would keep an old page after a deployment that
//! changes it without changing its length.

use super::Layer;
use crate::{
    cache::Held,
    error,
    hashing::Hashing,
    source::{ContentDigest, FileKind, Source, SourceFile},
};
use epsilon_api::build::BuildError;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tar::{EntryType, Header};

/// The code layer: the project's files under `/app`, without the ones that `skip` names.
pub(crate) fn code(
    source: &Source,
    skip: impl Fn(&SourceFile) -> bool,
    to: &Path,
) -> Result<Layer, BuildError> {
    written(|| {
        let mut layer = Writer::create(to)?;
        layer.folder("app")?;
        for file in source.files.iter().filter(|file| !skip(file)) {
            layer.source(source, file, &format!("app/{}", file.path))?;
        }
        for path in &source.empty_folders {
            layer.folder(&format!("app/{path}"))?;
        }
        layer.finish()
    })
}

/// The project as its Dockerfile sees it.
pub(crate) fn context(
    source: &Source,
    skip: impl Fn(&str) -> bool,
    to: &Path,
) -> Result<(), BuildError> {
    written(|| {
        let mut tar = Writer::create(to)?;
        for file in source.files.iter().filter(|file| !skip(&file.path)) {
            tar.source(source, file, &file.path)?;
        }
        for path in source.empty_folders.iter().filter(|path| !skip(path)) {
            tar.folder(path)?;
        }
        tar.finish()
    })
    .map(drop)
}

/// A layer with one folder of this machine at `inside` (relative to the root of the image), and
/// with these `empty` folders.
pub(crate) fn folder(
    from: &Path,
    inside: &str,
    empty: &[&str],
    to: &Path,
) -> Result<Layer, BuildError> {
    written(|| {
        let mut layer = Writer::create(to)?;
        for path in empty {
            layer.folder(path)?;
        }
        layer.walk(from, inside, None)?;
        layer.finish()
    })
}

/// A layer with a folder of packages.
pub(crate) fn packages(from: &Path, inside: &str, to: &Path) -> Result<Layer, BuildError> {
    written(|| {
        let mut layer = Writer::create(to)?;
        layer.walk(from, inside, Some(0))?;
        layer.finish()
    })
}

fn written(write: impl FnOnce() -> io::Result<Layer>) -> Result<Layer, BuildError> {
    write().map_err(|err| error::file("writing a layer", &err))
}

/// A layer being written.
struct Writer {
    tar: tar::Builder<Hashing<BufWriter<File>>>,
    path: PathBuf,
    /// Folders already written.
    folders: BTreeSet<String>,
}

impl Writer {
    fn create(path: &Path) -> io::Result<Self> {
        let to = Hashing::new(BufWriter::new(File::create(path)?));
        Ok(Self { tar: tar::Builder::new(to), path: path.to_owned(), folders: BTreeSet::new() })
    }

    /// A folder and its parents, each once.
    fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        let mut header = header(EntryType::Directory, 0o755, 0);
        self.tar.append_data(&mut header, format!("{path}/"), io::empty())?;
        self.folders.insert(path.to_owned());
        Ok(())
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.folder(parent))
    }

    fn file(
        &mut self,
        path: &str,
        executable: bool,
        time: u64,
        bytes: u64,
        content: File,
    ) -> io::Result<()> {
        self.parents(path)?;
        let mode = if executable { 0o755 } else { 0o644 };
        let mut header = header(EntryType::Regular, mode, bytes);
        header.set_mtime(time);
        // `take`: a file that grew since it was measured must not break the archive.
        self.tar.append_data(&mut header, path, content.take(bytes))
    }

    fn link(&mut self, path: &str, target: &Path) -> io::Result<()> {
        self.parents(path)?;
        self.tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)
    }

    fn source(&mut self, source: &Source, file: &SourceFile, path: &str) -> io::Result<()> {
        match &file.kind {
            FileKind::Symlink { target } => self.link(path, Path::new(target)),
            FileKind::File => {
                let content = File::open(source.root.join(&file.path))?;
                self.file(path, file.executable, time_of(&file.sha256), file.bytes, content)
            }
        }
    }

    /// A folder with everything below it. Sockets, pipes and devices are left out: no package has
    /// them. With a `time`, files get that of their package.
    fn walk(&mut self, from: &Path, inside: &str, time: Option<u64>) -> io::Result<()> {
        // Untrusted content: following a link to a folder would pack this machine's own files.
        if !fs::symlink_metadata(from)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        self.folder(inside)?;
        let mut names: Vec<_> =
            fs::read_dir(from)?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        let time = match time {
            Some(time) => Some(time_of_package(from)?.unwrap_or(time)),
            None => None,
        };
        for name in names {
            let here = from.join(&name);
            let Some(name) = name.to_str() else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a file's name is not UTF-8",
                ));
            };
            let path = format!("{inside}/{name}");
            let about = fs::symlink_metadata(&here)?;
            if about.is_dir() {
                self.walk(&here, &path, time)?;
            } else if about.is_symlink() {
                self.link(&path, &fs::read_link(&here)?)?;
            } else if about.is_file() {
                let executable = about.permissions().mode() & 0o100 != 0;
                self.file(&path, executable, time.unwrap_or(0), about.len(), File::open(&here)?)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> io::Result<Layer> {
        let mut written = self.tar.into_inner()?;
        written.flush()?;
        let (_, digest, bytes) = written.finish();
        let diff_id = format!("sha256:{digest}");
        Ok(Layer { diff_id, tar: self.path, bytes, held: Held::default() })
    }
}

/// A time derived from content; in the decades after 1970, so never in the future.
fn time_of(content: &ContentDigest) -> u64 {
    /// About 34 years, in seconds.
    const RANGE: u64 = 1 << 30;
    let text = content.to_string();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(15).collect();
    u64::from_str_radix(&digits, 16).unwrap_or_default() % RANGE
}

/// The time of a folder that is a package.
fn time_of_package(folder: &Path) -> io::Result<Option<u64>> {
    /// Largest manifest of a package; npm's own largest are about 100 KiB.
    const MOST: u64 = 1 << 20;
    let path = folder.join("package.json");
    // Untrusted content: neither a link nor a pipe is followed.
    if !fs::symlink_metadata(&path).is_ok_and(|about| about.is_file()) {
        return Ok(None);
    }
    let mut text = Vec::new();
    File::open(&path)?.take(MOST).read_to_end(&mut text)?;
    Ok(Some(time_of(&ContentDigest::of(&text))))
}

fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tests::project;
    use std::{collections::BTreeMap, os::unix::fs::symlink};

    fn names(layer: &Layer) -> BTreeMap<String, (u32, u64)> {
        let mut tar = tar::Archive::new(File::open(&layer.tar).unwrap());
        let entries = tar.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 0);
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, (header.mode().unwrap(), header.size().unwrap()))
        });
        entries.collect()
    }

    fn make(root: &Path, order: &[&str]) {
        for name in order {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        fs::set_permissions(root.join("bin/run"), fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("../bin/run", root.join("lib/link")).unwrap();
    }

    #[test]
    fn directory_order_and_modes_do_not_change_layers() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make(&a, &["bin/run", "lib/x.js", "lib/deep/y.js"]);
        make(&b, &["lib/deep/y.js", "lib/x.js", "bin/run"]);
        fs::set_permissions(b.join("lib/x.js"), fs::Permissions::from_mode(0o600)).unwrap();
        let one = folder(&a, "app/node_modules", &[], &dir.path().join("a.tar")).unwrap();
        let two = folder(&b, "app/node_modules", &[], &dir.path().join("b.tar")).unwrap();
        assert_eq!(one.diff_id, two.diff_id);
        assert_eq!(one.bytes, fs::metadata(&one.tar).unwrap().len());
        let names = names(&one);
        assert_eq!(names["app/node_modules/bin/run"], (0o755, 7));
        assert_eq!(names["app/node_modules/lib/x.js"], (0o644, 8));
        assert_eq!(names["app/"], (0o755, 0));
        assert_eq!(names["app/node_modules/lib/link"].1, 0);
    }

    #[tokio::test]
    async fn the_time_of_a_file_follows_from_its_content() {
        let times = async |content: &str| {
            let files = [("a.html", content), ("b.html", "same")];
            let (work, source) = project(&files).await;
            let layer = code(&source, |_| false, &work.path().join("code.tar")).unwrap();
            let mut tar = tar::Archive::new(File::open(&layer.tar).unwrap());
            let entries = tar.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mtime().unwrap())
            });
            entries.collect::<BTreeMap<_, _>>()
        };
        let (one, again, two) = (times("one").await, times("one").await, times("two").await);
        assert_eq!(one, again);
        assert_ne!(one["app/a.html"], two["app/a.html"]);
        assert_eq!(one["app/b.html"], two["app/b.html"]);
        assert!(one["app/a.html"] < 1 << 30);
    }

    #[tokio::test]
    async fn an_empty_folder_is_in_the_layer() {
        let (work, source) = project(&[("index.js", ""), ("data/in/", "")]).await;
        let layer = code(&source, |_| false, &work.path().join("code.tar")).unwrap();
        let mut tar = tar::Archive::new(File::open(&layer.tar).unwrap());
        let paths =
            tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        assert_eq!(
            paths.collect::<Vec<_>>(),
            ["app/", "app/index.js", "app/data/", "app/data/in/"]
        );
    }

    #[test]
    fn package_version_changes_file_times() {
        let times = |version: &str| {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("m");
            for (path, text) in
                [("a/package.json", version), ("a/dist/x.css", "x"), ("b/y.js", "y")]
            {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let layer = packages(&root, "app", &dir.path().join("a.tar")).unwrap();
            let mut tar = tar::Archive::new(File::open(&layer.tar).unwrap());
            let entries = tar.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mtime().unwrap())
            });
            entries.collect::<BTreeMap<_, _>>()
        };
        let (one, again, two) = (times("{1}"), times("{1}"), times("{2}"));
        assert_eq!(one, again);
        assert_ne!(one["app/a/dist/x.css"], two["app/a/dist/x.css"]);
        assert_eq!(one["app/b/y.js"], 0);
    }

    #[test]
    fn links_to_folders_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("modules");
        symlink("/etc", &link).unwrap();
        assert!(folder(&link, "app", &[], &dir.path().join("a.tar")).is_err());
    }

    #[test]
    fn long_paths_survive() {
        let dir = tempfile::tempdir().unwrap();
        let deep = format!("{}/x.js", ["a-rather-long-name"; 12].join("/"));
        let root = dir.path().join("a");
        fs::create_dir_all(root.join(&deep).parent().unwrap()).unwrap();
        fs::write(root.join(&deep), "x").unwrap();
        let layer = folder(&root, "app", &[], &dir.path().join("a.tar")).unwrap();
        assert!(names(&layer).contains_key(&format!("app/{deep}")));
    }
}
