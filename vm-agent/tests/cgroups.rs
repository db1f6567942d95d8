//! How the agent finds and writes control groups of both versions: on trees that were captured or
//! written by the kernel's documents (`cgroups/README.md`), and version 2 on this kernel itself,
//! whatever version the engine here uses. The latter needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use epsilon_vm_agent::engine::{Freezer, docker::freezer::CgroupFreezer};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};
use tempfile::TempDir;

const TREES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cgroups");
const CONTAINER: &str = "7d2c0e5b9a41f36880cc5e1f4b27a9d3e6f01b8c4d5a92730e1f6b8c2d4a5e70";
const PROCESS: i64 = 4711;

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).status().unwrap();
    assert!(done.success(), "{program} {arguments:?}: {done} (run this as root)");
}

/// A writable copy of a tree.
fn tree(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    run("cp", &["-r", &format!("{TREES}/{name}/."), copy.path().to_str().unwrap()]);
    copy
}

fn freezer(tree: &Path, container: &str) -> Option<CgroupFreezer> {
    CgroupFreezer::open_in(&tree.join("proc"), &tree.join("cgroup"), container, PROCESS)
}

/// All files of a tree and their content.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_containers_group_is_found_in_every_layout() {
    let docker = format!("docker/{CONTAINER}");
    let scope = format!("docker-{CONTAINER}.scope");
    let user = "user.slice/user-1000.slice/user@1000.service/user.slice";
    for (name, file, [running, frozen, thawed]) in [
        ("hybrid", format!("freezer/{docker}/freezer.state"), ["THAWED\n", "FROZEN\n", "THAWED\n"]),
        ("v2-systemd", format!("system.slice/{scope}/cgroup.freeze"), ["0\n", "1\n", "0\n"]),
        ("v2-cgroupfs", format!("{docker}/cgroup.freeze"), ["0\n", "1\n", "0\n"]),
        ("v2-rootless", format!("{user}/{scope}/cgroup.freeze"), ["0\n", "1\n", "0\n"]),
    ] {
        let tree = tree(name);
        let file = tree.path().join("cgroup").join(file);
        let before = files(tree.path());
        let freezer = freezer(tree.path(), CONTAINER).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(fs::read_to_string(&file).unwrap(), running, "{name}");
        freezer.freeze().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), frozen, "{name}");
        let changed: Vec<_> =
            files(tree.path()).into_iter().filter(|now| !before.contains(now)).collect();
        assert_eq!(changed, [(file.clone(), frozen.to_owned())], "{name}: nothing else is written");
        freezer.thaw().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), thawed, "{name}");
    }
}

#[test]
fn no_other_group_is_ever_written() {
    for name in ["hybrid", "v2-systemd", "v2-cgroupfs", "v2-rootless"] {
        let tree = tree(name);
        // The process has ended, and its number is reused.
        assert!(freezer(tree.path(), &CONTAINER.replace('7', "8")).is_none(), "{name}");
        assert!(freezer(tree.path(), "").is_none(), "{name}");
        // A namespace of groups shows a path above its own root.
        let list = tree.path().join(format!("proc/{PROCESS}/cgroup"));
        fs::write(&list, format!("0::/../docker/{CONTAINER}\n")).unwrap();
        assert!(freezer(tree.path(), CONTAINER).is_none(), "{name}");
        fs::remove_file(&list).unwrap();
        assert!(freezer(tree.path(), CONTAINER).is_none(), "{name}");
    }
}

/// Version 2, mounted for this test, with a group in which a process sleeps.
struct Kernel {
    mount: TempDir,
    group: PathBuf,
    process: Child,
}

impl Kernel {
    fn new() -> Self {
        let mount = tempfile::tempdir().unwrap();
        run("mount", &["-t", "cgroup2", "cgroup2", mount.path().to_str().unwrap()]);
        let group = mount.path().join(format!("epsilon-test-{}", std::process::id()));
        // From here on, dropping it removes both.
        let process = Command::new("sleep").arg("1000").spawn().unwrap();
        let kernel = Self { mount, group, process };
        fs::create_dir(&kernel.group).unwrap();
        fs::write(kernel.group.join("cgroup.procs"), kernel.process.id().to_string()).unwrap();
        kernel
    }

    /// Waits until the kernel says so: `cgroup.events` has it once the last process has stopped.
    fn until(&self, line: &str) {
        let mut seen = String::new();
        for _ in 0..1000 {
            seen = fs::read_to_string(self.group.join("cgroup.events")).unwrap();
            if seen.lines().any(|l| l == line) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no `{line}` in {seen}");
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.group);
        run("umount", &[self.mount.path().to_str().unwrap()]);
    }
}

#[test]
fn version_two_on_this_kernel() {
    let mut kernel = Kernel::new();
    let (pid, name) = (i64::from(kernel.process.id()), kernel.group.file_name().unwrap());
    let name = name.to_str().unwrap();
    // Without the lines of version 1, as on a machine that has only version 2.
    let processes = tempfile::tempdir().unwrap();
    fs::create_dir(processes.path().join(pid.to_string())).unwrap();
    let all = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let second: String = all.lines().filter(|line| line.starts_with("0::")).collect();
    assert_eq!(second, format!("0::/{name}"));
    fs::write(processes.path().join(format!("{pid}/cgroup")), second + "\n").unwrap();

    let freezer = CgroupFreezer::open_in(processes.path(), kernel.mount.path(), name, pid).unwrap();
    for _ in 0..3 {
        freezer.freeze().unwrap();
        kernel.until("frozen 1");
        freezer.thaw().unwrap();
        kernel.until("frozen 0");
    }
    // A frozen process can be killed, and the group's events say that it is gone.
    freezer.freeze().unwrap();
    kernel.until("frozen 1");
    kernel.process.kill().unwrap();
    kernel.process.wait().unwrap();
    kernel.until("populated 0");
    fs::remove_dir(&kernel.group).unwrap();
    assert!(freezer.thaw().is_err());
}
