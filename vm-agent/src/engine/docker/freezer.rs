//! Freezes the control group of one container by one write to a file: some microseconds, where the
//! engine's own `pause` takes tens of milliseconds. Only where the engine is on this machine and
//! this process may write there.
//!
//! Version 1 (`freezer/…/freezer.state`) and version 2 (`…/cgroup.freeze`) of control groups:
//! <https://docs.kernel.org/admin-guide/cgroup-v1/freezer-subsystem.html>,
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#core-interface-files>.

use crate::engine::Freezer;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const PROCESSES: &str = "/proc";
const CGROUPS: &str = "/sys/fs/cgroup";

/// The control group of one container.
#[derive(Debug)]
pub struct CgroupFreezer {
    file: File,
    words: Words,
}

/// The values to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Words {
    freeze: &'static str,
    thaw: &'static str,
}

const V1: Words = Words { freeze: "FROZEN", thaw: "THAWED" };
const V2: Words = Words { freeze: "1", thaw: "0" };

impl CgroupFreezer {
    /// The group of a container, found through its first process. `None` where it is not writable.
    pub(super) fn open(container: &str, pid: i64) -> Option<Self> {
        Self::open_in(Path::new(PROCESSES), Path::new(CGROUPS), container, pid)
    }

    /// The same below other folders than the kernel's.
    pub fn open_in(processes: &Path, cgroups: &Path, container: &str, pid: i64) -> Option<Self> {
        let groups = fs::read_to_string(processes.join(format!("{pid}/cgroup"))).ok()?;
        let (path, words) = find(&groups, cgroups, container)?;
        let file = File::options().write(true).open(path).ok()?;
        Some(Self { file, words })
    }
}

impl Freezer for CgroupFreezer {
    fn freeze(&self) -> io::Result<()> {
        self.file.write_all_at(self.words.freeze.as_bytes(), 0)
    }

    fn thaw(&self) -> io::Result<()> {
        self.file.write_all_at(self.words.thaw.as_bytes(), 0)
    }
}

/// The freezer's file, found by a text like `/proc/PID/cgroup`. A path without the container's id
/// is that of another group: the process has ended and its number is reused, or the engine does not
/// say.
fn find(groups: &str, cgroups: &Path, container: &str) -> Option<(PathBuf, Words)> {
    let of = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if container.is_empty() || !path.contains(container) || path.contains("..") {
            return None;
        }
        let path = path.trim_start_matches('/');
        match controllers {
            "freezer" => Some((cgroups.join("freezer").join(path).join("freezer.state"), V1)),
            "" => Some((cgroups.join(path).join("cgroup.freeze"), V2)),
            _ => None,
        }
    };
    let mut found: Vec<_> = groups.lines().filter_map(of).collect();
    // In a hybrid of both versions, version 2 has another mount point.
    found.sort_by_key(|(_, words)| *words != V1);
    found.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_in_either_version() {
        let id = "0123abcd";
        for (row, groups, want) in [
            (
                "version 1",
                "9:freezer:/docker/0123abcd\n3:memory:/docker/0123abcd\n",
                Some(("/sys/fs/cgroup/freezer/docker/0123abcd/freezer.state", V1)),
            ),
            (
                "a hybrid",
                "0::/system.slice/docker-0123abcd.scope\n9:freezer:/docker/0123abcd\n",
                Some(("/sys/fs/cgroup/freezer/docker/0123abcd/freezer.state", V1)),
            ),
            (
                "version 2",
                "0::/system.slice/docker-0123abcd.scope\n",
                Some(("/sys/fs/cgroup/system.slice/docker-0123abcd.scope/cgroup.freeze", V2)),
            ),
            ("another's number by now", "0::/system.slice/sshd.service\n", None),
            ("not below the groups", "0::/../docker-0123abcd.scope\n", None),
            ("nothing", "", None),
        ] {
            let want = want.map(|(path, words)| (PathBuf::from(path), words));
            assert_eq!(find(groups, Path::new(CGROUPS), id), want, "{row}");
        }
        assert_eq!(find("0::/docker/x\n", Path::new(CGROUPS), ""), None);
    }
}
