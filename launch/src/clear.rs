//! Removes a folder that other people's code could write to: an instance, a package's install script. Its container is gone;
//! what it left may be anything, folders in folders by the ten thousand too. The standard library's removal goes down into
//! them by recursion, and its stack ends before they do: nothing here recurses, and no link is followed.

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, statat, unlinkat},
    io::Errno,
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

/// Removes the folder with all that is in it; that there is none is fine.
///
/// # Errors
/// The first thing that could not be removed.
pub fn clear(path: &Path) -> io::Result<()> {
    let top = match open(rustix::fs::CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    let mut moved = 0u64;
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            return fs::remove_dir(path);
        }
        for name in names {
            if is_folder(&top, &name)? {
                empty(&top, &name, &mut moved)?;
                unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
            } else {
                unlinkat(&top, &name, AtFlags::empty())?;
            }
        }
    }
}

/// Takes all out of a folder below `top`: files go, folders move up beside it and have their turn there.
fn empty(top: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    let folder = open(top, name)?;
    for name in names(&folder)? {
        if !is_folder(&folder, &name)? {
            unlinkat(&folder, &name, AtFlags::empty())?;
            continue;
        }
        loop {
            *moved += 1;
            match renameat(&folder, &name, top, format!("{moved}")) {
                // Something else is called so: the next number.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                done => break done?,
            }
        }
    }
    Ok(())
}

fn open(at: impl AsFd, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Says whether it is a folder, and makes sure that it can be opened.
fn is_folder(at: &OwnedFd, name: &CString) -> io::Result<bool> {
    let about = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_folder = FileType::from_raw_mode(about.st_mode).is_dir();
    if is_folder && Mode::from_raw_mode(about.st_mode) & Mode::RWXU != Mode::RWXU {
        chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
    }
    Ok(is_folder)
}

fn names(of: &OwnedFd) -> io::Result<Vec<CString>> {
    let is_own = |name: &CString| matches!(name.as_bytes(), b"." | b"..");
    let entries = Dir::read_from(of)?.map(|entry| Ok(entry?.file_name().to_owned()));
    let names: io::Result<Vec<CString>> = entries.collect();
    Ok(names?.into_iter().filter(|name| !is_own(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn whatever_code_leaves_goes_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
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
        assert!(!folder.exists() && outside.join("kept").exists());
        clear(&folder).unwrap();
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
