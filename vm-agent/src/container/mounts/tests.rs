//! Real mounts in a directory of the test's own. Need root, as the agent does for cells; without
//! it, only the error is checked.

use super::*;

#[test]
fn the_kernels_table_is_read() {
    let table = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
42 27 254:0 /a /var/with\\040blank\\134slash rw,relatime shared:1 - ext4 /dev/vda rw
43 42 0:50 / /var/slave rw master:1 propagate_from:2 - overlay epsilon ro
44 42 0:51 / /var/both rw master:1 shared:7 - overlay shared:9 ro
torn";
    let read: Vec<_> = points(table).collect();
    let want = [
        ("/proc", false),
        ("/var/with blank\\slash", true),
        ("/var/slave", false),
        ("/var/both", true),
    ];
    assert_eq!(read, want.map(|(point, shared)| (PathBuf::from(point), shared)));
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that is unmounted on drop.
struct Data(tempfile::TempDir);

impl Data {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("with, comma:colon and blank/cells")
    }

    fn open(&self) -> Mounts {
        Mounts::open(&self.root()).unwrap()
    }

    fn layer(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.0.path().join(name);
        for (path, text) in files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn target(&self) -> PathBuf {
        let target = self.root().join("0123456789ab/app");
        fs::create_dir_all(&target).unwrap();
        target
    }

    fn table(&self) -> Vec<(PathBuf, bool)> {
        let all = fs::read_to_string(TABLE).unwrap();
        points(&all).filter(|(point, _)| point.starts_with(self.0.path())).collect()
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        for (point, _) in self.table().into_iter().rev() {
            drop(detach(&point));
        }
    }
}

#[test]
fn without_root_there_are_no_mounts_and_a_reason() {
    let data = Data::new();
    if !is_root() {
        assert!(matches!(Mounts::open(&data.root()), Err(MountError::NotRoot)));
    }
}

#[test]
fn shared_mount_is_made_once_and_removed() {
    if !is_root() {
        return;
    }
    let data = Data::new();
    drop(data.open());
    drop(data.open());
    assert_eq!(data.table(), [(data.root(), true)]);
    // Mounted twice, or private: as a killed agent, or another program, left it.
    mount_bind(data.root(), data.root()).unwrap();
    assert_eq!(data.table().len(), 2);
    drop(data.open());
    assert_eq!(data.table(), [(data.root(), true)]);
    mount_change(data.root(), MountPropagationFlags::PRIVATE).unwrap();
    drop(data.open());
    assert_eq!(data.table(), [(data.root(), true)]);
    close(&data.root()).unwrap();
    assert_eq!(data.table(), []);
}

#[test]
fn layers_lie_over_each_other_and_cannot_be_written() {
    if !is_root() {
        return;
    }
    let (data, mounts) = {
        let data = Data::new();
        let mounts = data.open();
        (data, mounts)
    };
    let bottom = data.layer("bottom,a:b", &[("a", "bottom"), ("deep/b", "bottom")]);
    let top = data.layer("top", &[("a", "top"), ("deep/c", "top")]);
    let target = data.target();
    mounts.overlay([bottom.as_path(), top.as_path()].into_iter(), &target).unwrap();
    let read = |path: &str| fs::read_to_string(target.join(path)).unwrap();
    assert_eq!(
        (read("a"), read("deep/b"), read("deep/c")),
        ("top".into(), "bottom".into(), "top".into())
    );
    let err = fs::write(target.join("new"), "x").unwrap_err();
    assert_eq!(err.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    let table = fs::read_to_string(TABLE).unwrap();
    let line = table.lines().find(|line| line.contains("0123456789ab/app")).unwrap();
    assert!(line.contains(" ro,nosuid,nodev"), "{line}");
    let below = || found(&target).unwrap();
    assert_eq!(below(), vec![target.clone()], "once, not again in a peer");
    detach(&target).unwrap();
    detach(&target).unwrap();
    assert_eq!(below(), Vec::<PathBuf>::new());
    close(&data.root()).unwrap();
}

#[test]
fn one_layer_can_be_mounted_too_many_cannot() {
    if !is_root() {
        return;
    }
    let data = Data::new();
    let mounts = data.open();
    let only = data.layer("only", &[("a", "1")]);
    let target = data.target();
    mounts.overlay(std::iter::once(only.as_path()), &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
    detach(&target).unwrap();
    let many: Vec<PathBuf> =
        (0..=LAYERS_MAX).map(|n| data.layer(&format!("l{n}"), &[("a", "x")])).collect();
    mounts.overlay(many.iter().take(LAYERS_MAX).map(PathBuf::as_path), &target).unwrap();
    detach(&target).unwrap();
    let err = mounts.overlay(many.iter().map(PathBuf::as_path), &target).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
    // A missing path, and a link to a directory.
    assert!(mounts.overlay(std::iter::once(Path::new("/nowhere")), &target).is_err());
    let link = data.0.path().join("link");
    std::os::unix::fs::symlink(&only, &link).unwrap();
    assert!(mounts.overlay(std::iter::once(link.as_path()), &target).is_err());
    close(&data.root()).unwrap();
}

#[test]
fn shutdown_unmounts_leftover_cells() {
    if !is_root() {
        return;
    }
    let data = Data::new();
    let mounts = data.open();
    let only = data.layer("only", &[("a", "1")]);
    mounts.overlay(std::iter::once(only.as_path()), &data.target()).unwrap();
    close(&data.root()).unwrap();
    assert_eq!(data.table(), []);
}
