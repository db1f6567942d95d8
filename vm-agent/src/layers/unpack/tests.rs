//! Which entries of a tar are accepted, and what makes a layer unfit: one hand-made tar for each.

use super::*;
use crate::layers::testing;
use crate::layers::testing::Tar;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};
use tempfile::TempDir;

const PLENTY: u64 = 1 << 30;

/// A directory that must stay as it is, and in it the one that is unpacked to.
struct Target {
    folder: TempDir,
}

impl Target {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("neighbour"), "mine").unwrap();
        Self { folder }
    }

    fn app(&self) -> PathBuf {
        self.folder.path().join("app")
    }

    fn unpack(&self, tar: &Tar) -> Result<u64, UnpackError> {
        unpack(&tar.bytes()[..], &self.app(), PLENTY)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.app().join(path)).unwrap()
    }

    /// Whether nothing was written beside the directory.
    fn is_as_it_was(&self) -> bool {
        let names = fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name());
        let others: Vec<_> = names.filter(|name| name != "app").collect();
        others == ["neighbour"]
            && fs::read_to_string(self.folder.path().join("neighbour")).unwrap() == "mine"
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn code_is_unpacked_as_it_is() {
    let target = Target::new();
    let long = format!("app/{}/deep.js", "long-name/".repeat(20).trim_end_matches('/'));
    let mut tar = Tar::default();
    tar.folder("app/").folder("app/bin").file("app/index.js", "exports.a = 1").file(&long, "deep");
    tar.program("app/bin/run", "#!/bin/sh").symlink("app/link.js", "index.js");
    tar.symlink("app/out", "/etc/passwd").hard_link("app/same.js", "app/index.js");
    tar.file("./app/./dotted.js", "dotted").file("app/empty", "");
    let bytes = target.unpack(&tar).unwrap();
    let app = target.app();

    assert_eq!(target.read("index.js"), "exports.a = 1");
    assert_eq!(target.read(long.strip_prefix("app/").unwrap()), "deep");
    assert_eq!((target.read("dotted.js"), target.read("empty")), ("dotted".into(), String::new()));
    assert_eq!(fs::read_link(app.join("link.js")).unwrap(), Path::new("index.js"));
    assert_eq!(fs::read_link(app.join("out")).unwrap(), Path::new("/etc/passwd"), "not followed");
    let inode = |name: &str| fs::metadata(app.join(name)).unwrap().ino();
    assert_eq!(inode("same.js"), inode("index.js"));
    assert_eq!((mode(&app.join("bin/run")), mode(&app.join("index.js"))), (0o755, 0o644));
    assert_eq!((mode(&app), mode(&app.join("bin")), mode(&app.join("long-name"))), {
        (0o755, 0o755, 0o755)
    });
    // Web servers derive `Last-Modified` from it.
    assert_eq!(fs::metadata(app.join("index.js")).unwrap().mtime(), testing::TIME as i64);
    assert_eq!(fs::symlink_metadata(app.join("link.js")).unwrap().mtime(), testing::TIME as i64);
    assert!(bytes >= 10 * 4096, "{bytes}: each takes a block");
    assert!(target.is_as_it_was());
}

#[test]
fn entries_outside_app_are_ignored() {
    let target = Target::new();
    let mut tar = Tar::default();
    tar.folder("etc/").file("etc/passwd", "root").file("application", "no").file("app.js", "no");
    tar.add("dev/null", tar::EntryType::Char, "", 0o666).file("app/a.js", "a");
    target.unpack(&tar).unwrap();
    let names: Vec<_> =
        fs::read_dir(target.app()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["a.js"]);
    assert!(target.is_as_it_was());

    let nothing = Target::new();
    nothing.unpack(Tar::default().file("etc/x", "x")).unwrap();
    assert!(nothing.app().is_dir(), "a layer without code is an empty one");
}

#[test]
fn rights_owners_and_attributes_are_not_taken() {
    let target = Target::new();
    let mut tar = Tar::default();
    tar.attribute("SCHILY.xattr.security.capability", "\u{1}\0\0\u{2}");
    tar.add("app/suid", tar::EntryType::Regular, "x", 0o6755);
    tar.add("app/open", tar::EntryType::Regular, "x", 0o1666);
    tar.add("app/secret", tar::EntryType::Regular, "x", 0o000);
    tar.add("app/sticky/", tar::EntryType::Directory, "", 0o7777);
    target.unpack(&tar).unwrap();
    let app = target.app();
    let modes = ["suid", "open", "secret", "sticky"].map(|name| mode(&app.join(name)));
    assert_eq!(modes, [0o755, 0o644, 0o644, 0o755]);
    let me = fs::metadata(target.folder.path()).unwrap();
    for name in ["suid", "sticky"] {
        let found = fs::metadata(app.join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (me.uid(), me.gid()), "{name}: not the tar's 4711");
    }
    let attributes = rustix::fs::getxattr(app.join("suid"), "security.capability", &mut [0; 64]);
    assert_eq!(attributes.unwrap_err(), rustix::io::Errno::NODATA);
}

/// Each row: what a layer must not contain, and the reason in the error.
#[test]
fn layer_that_is_no_code_tree_is_unfit() {
    use tar::EntryType::{Block, Char, Fifo};
    type Make = for<'a> fn(&'a mut Tar) -> &'a mut Tar;
    let rows: [(&str, Make, &str); 21] = [
        ("absolute", |t| t.file("/app/x", "x"), "absolute"),
        ("absolute elsewhere", |t| t.file("/etc/x", "x"), "absolute"),
        ("parent", |t| t.file("app/../../neighbour", "x"), "leads out"),
        ("parent first", |t| t.file("../app/x", "x"), "leads out"),
        ("parent that stays", |t| t.file("app/a/../x", "x"), "leads out"),
        ("link to a folder", |t| t.symlink("app/d", "..").file("app/d/neighbour", "x"), "collides"),
        ("link, absolute", |t| t.symlink("app/d", "/tmp").folder("app/d/epsilon-x"), "collides"),
        ("link as a file", |t| t.symlink("app/f", "../neighbour").file("app/f", "x"), "collides"),
        ("app is a link", |t| t.symlink("app", "/").file("app/tmp/epsilon-x", "x"), "collides"),
        ("app is a file", |t| t.file("app", "x"), "collides"),
        ("twice", |t| t.file("app/x", "1").file("app/x", "2"), "collides"),
        ("below a file", |t| t.file("app/x", "1").file("app/x/y", "2"), "collides"),
        ("hard link out", |t| t.hard_link("app/x", "etc/passwd"), "another layer"),
        ("hard link up", |t| t.hard_link("app/x", "app/../../neighbour"), "leads out"),
        (
            "hard link by a link",
            |t| t.symlink("app/d", "..").hard_link("app/x", "app/d/neighbour"),
            "collides",
        ),
        (
            "hard link to a link",
            |t| t.symlink("app/l", "../neighbour").hard_link("app/x", "app/l"),
            "collides",
        ),
        ("hard link to nothing", |t| t.hard_link("app/x", "app/y"), "nowhere"),
        ("character device", |t| t.add("app/null", Char, "", 0o666), "neither"),
        ("block device", |t| t.add("app/disk", Block, "", 0o666), "neither"),
        ("pipe", |t| t.add("app/pipe", Fifo, "", 0o666), "neither"),
        ("whiteout", |t| t.file("app/lib/.wh.old.js", ""), "removes something"),
    ];
    for (row, make, want) in rows {
        let target = Target::new();
        let mut tar = Tar::default();
        make(&mut tar);
        match target.unpack(&tar) {
            Err(UnpackError::Unfit(why)) => assert!(why.contains(want), "{row}: {why}"),
            other => panic!("{row}: {other:?}"),
        }
        assert!(target.is_as_it_was(), "{row}");
    }
}

#[test]
fn layer_is_refused_before_it_fills_disk_or_memory() {
    let target = Target::new();
    let mut tar = Tar::default();
    tar.file("app/a", &"a".repeat(10_000)).file("app/b", &"b".repeat(90_000));
    let most = unpack(&tar.bytes()[..], &target.app(), 60_000);
    assert!(matches!(&most, Err(UnpackError::Unfit(why)) if why.contains("app/b")), "{most:?}");
    assert!(!target.app().join("b").exists(), "refused by its header, before it is written");

    // A name of megabytes would be held in memory.
    let mut tar = Tar::default();
    tar.add("././@LongLink", tar::EntryType::GNULongName, &"n".repeat(3 << 20), 0o644);
    tar.file("app/x", "x");
    let found = Target::new().unpack(&tar);
    assert!(
        matches!(&found, Err(UnpackError::Unfit(why)) if why.contains("too long")),
        "{found:?}"
    );

    let mut tar = Tar::default();
    tar.file(&format!("app/{}x", "d/".repeat(DEPTH)), "x");
    let found = Target::new().unpack(&tar);
    assert!(
        matches!(&found, Err(UnpackError::Unfit(why)) if why.contains("too deep")),
        "{found:?}"
    );
    let mut tar = Tar::default();
    tar.file(&format!("app/{}", "n".repeat(NAME + 1)), "x");
    let found = Target::new().unpack(&tar);
    assert!(matches!(&found, Err(UnpackError::Unfit(_))), "{found:?}");
}

#[test]
fn a_tar_that_is_cut_or_none_is_corrupt() {
    let mut tar = Tar::default();
    tar.file("app/a", &"a".repeat(10_000));
    let mut bytes = tar.bytes();
    for cut in [100, 512, 5_000] {
        let target = Target::new();
        let found = unpack(&bytes[..cut], &target.app(), PLENTY);
        // A header alone ends where a file should begin.
        assert!(matches!(found, Err(UnpackError::Corrupt(_))), "{cut}: {found:?}");
    }
    bytes[10] ^= 1;
    let found = unpack(&bytes[..], &Target::new().app(), PLENTY);
    assert!(matches!(found, Err(UnpackError::Corrupt(_))), "a header's own sum: {found:?}");
}

#[test]
fn full_disk_is_a_disk_error() {
    let Some(disk) = testing::SmallDisk::mount(64 << 10) else { return };
    let mut tar = Tar::default();
    tar.file("app/a", &"a".repeat(256 << 10));
    match unpack(&tar.bytes()[..], &disk.path().join("app"), PLENTY) {
        Err(UnpackError::Disk(err)) => assert_eq!(err.kind(), io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
}
