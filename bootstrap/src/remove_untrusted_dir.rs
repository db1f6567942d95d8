//! Removes a folder that untrusted code could write to: an instance, a package's install script.
//! The container is gone; what it left may be anything, also tens of thousands of nested folders.
//! The standard library's removal recurses and overflows its stack on those: nothing here recurses,
//! and no link is followed.

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, statat, unlinkat},
    io::Errno,
};
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// How often a folder may have entries again after they were removed: others remove the same
/// folder, or a part of it.
const MAX_REFILLS: u32 = 1000;

/// Removes the folder and everything in it; a missing folder is no error.
///
/// # Errors
/// The first removal that failed.
pub fn clear(path: &Path) -> io::Result<()> {
    let Some(top) = ignore_not_found(open(rustix::fs::CWD, path))? else { return Ok(()) };
    let mut moved = 0u64;
    let mut again = 0;
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            match unlinkat(rustix::fs::CWD, path, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) if again < MAX_REFILLS => again += 1,
                removed => return ignore_not_found(removed).map(|_| ()),
            }
        }
        for name in names {
            match is_folder(&top, &name)? {
                None => {}
                Some(false) => {
                    ignore_not_found(unlinkat(&top, &name, AtFlags::empty()))?;
                }
                Some(true) => {
                    empty_folder(&top, &name, &mut moved)?;
                    match unlinkat(&top, &name, AtFlags::REMOVEDIR) {
                        Err(Errno::NOTEMPTY) if again < MAX_REFILLS => again += 1,
                        removed => {
                            ignore_not_found(removed)?;
                        }
                    }
                }
            }
        }
    }
}

/// Empties a folder below `top`: files are removed, folders are moved up beside it and are emptied
/// later.
fn empty_folder(top: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    let Some(folder) = ignore_not_found(open(top, name))? else { return Ok(()) };
    for name in names(&folder)? {
        match is_folder(&folder, &name)? {
            None => {}
            Some(false) => {
                ignore_not_found(unlinkat(&folder, &name, AtFlags::empty()))?;
            }
            Some(true) => loop {
                *moved += 1;
                match renameat(&folder, &name, top, format!("{moved}")) {
                    // The name is taken: try the next number.
                    Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                    done => {
                        ignore_not_found(done)?;
                        break;
                    }
                }
            },
        }
    }
    Ok(())
}

/// Turns "not found" into `None`: another task may have removed it.
fn ignore_not_found<T>(found: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

fn open(at: impl AsFd, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Whether it is a folder, which is then made accessible; `None` when it is gone.
fn is_folder(at: &OwnedFd, name: &CString) -> io::Result<Option<bool>> {
    let Some(about) = ignore_not_found(statat(at, name, AtFlags::SYMLINK_NOFOLLOW))? else {
        return Ok(None);
    };
    let is_folder = FileType::from_raw_mode(about.st_mode).is_dir();
    if is_folder && Mode::from_raw_mode(about.st_mode) & Mode::RWXU != Mode::RWXU {
        ignore_not_found(chmodat(at, name, Mode::RWXU, AtFlags::empty()))?;
    }
    Ok(Some(is_folder))
}

/// The names in a folder; none when the folder itself is gone.
fn names(of: &OwnedFd) -> io::Result<Vec<CString>> {
    let is_own = |name: &CString| matches!(name.as_bytes(), b"." | b"..");
    let Some(entries) = ignore_not_found(Dir::read_from(of))? else { return Ok(Vec::new()) };
    let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
    let names: Option<Vec<CString>> = ignore_not_found(names.collect())?;
    Ok(names.unwrap_or_default().into_iter().filter(|name| !is_own(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    #[test]
    fn whatever_code_leaves_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("stays"), "").unwrap();
        let folder = root.path().join("sockets");
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::create_dir(folder.join("1")).unwrap();
        fs::write(folder.join("1/file"), "").unwrap();
        fs::write(folder.join("2"), "").unwrap();
        symlink(&outside, folder.join("link")).unwrap();
        symlink(&outside, folder.join("a/b/link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("a/calls.sock")).unwrap();
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        clear(&folder).unwrap();
        assert!(!folder.exists() && outside.join("stays").exists());
        clear(&folder).unwrap();
    }

    /// A project's source is inside the folder of its build, and both are removed at once.
    #[test]
    fn several_may_remove_the_same() {
        for _ in 0..50 {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("work");
            for n in 0..20 {
                fs::create_dir_all(folder.join(format!("source/{n}/a/b/c"))).unwrap();
                fs::write(folder.join(format!("source/{n}/a/file")), "").unwrap();
            }
            std::thread::scope(|scope| {
                for path in [folder.clone(), folder.join("source"), folder.join("source/3")] {
                    scope.spawn(move || clear(&path).unwrap());
                }
            });
            assert!(!folder.exists());
        }
    }

    /// More levels than a path may have bytes.
    #[test]
    fn folders_in_folders_by_the_thousand_go() {
        const DEPTH: usize = 5_000;
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("sockets");
        fs::create_dir(&folder).unwrap();
        let mut at = open(rustix::fs::CWD, folder.as_path()).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(&at, "d").unwrap();
        }
        clear(&folder).unwrap();
        assert!(!folder.exists());
    }
}
