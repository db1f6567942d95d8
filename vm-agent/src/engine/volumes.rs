//! Volumes that an image declares (`VOLUME /data`): each becomes a bounded tmpfs, if it can. Pure.
//! Used by the engine that inspects an image and by the start of an instance.

use std::collections::BTreeSet;

/// More than any server image declares; each is one more mount in the container.
const VOLUMES_MAX: usize = 16;
/// Paths that the engine itself mounts, or that a container needs.
const RESERVED: [&str; 5] = ["/proc", "/sys", "/dev", "/etc", super::SOCKETS];

/// Removes duplicates and trailing slashes.
pub(super) fn normalized(declared: impl IntoIterator<Item = String>) -> Vec<String> {
    let trimmed = declared.into_iter().map(|path| match path.trim_end_matches('/') {
        "" => "/".to_owned(),
        path => path.to_owned(),
    });
    trimmed.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Why these volumes cannot be provided, for the author of the image. Expects the output of
/// [`normalized`].
pub(super) fn unfit(volumes: &[String]) -> Option<String> {
    if volumes.len() > VOLUMES_MAX {
        let count = volumes.len();
        return Some(format!(
            "the image declares {count} volumes, and at most {VOLUMES_MAX} are allowed: remove `VOLUME` lines"
        ));
    }
    let bad = volumes.iter().find(|path| !is_fit(path))?;
    Some(format!(
        "the image declares the volume `{bad}`, which cannot be a tmpfs: remove its `VOLUME` line"
    ))
}

fn is_fit(path: &str) -> bool {
    let is_plain = path.starts_with('/')
        && path.len() > 1
        && !path.contains("//")
        && path.split('/').all(|part| part != "." && part != "..");
    let is_reserved = RESERVED.iter().any(|reserved| {
        path == *reserved || path.strip_prefix(reserved).is_some_and(|rest| rest.starts_with('/'))
    });
    is_plain && !is_reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[&str]) -> Option<String> {
        unfit(&normalized(paths.iter().map(ToString::to_string)))
    }

    #[test]
    fn data_paths_are_allowed_and_system_paths_are_not() {
        for good in ["/data", "/data/", "/var/lib/mysql", "/run", "/tmp", "/procs", "/etcetera"] {
            assert_eq!(of(&[good]), None, "{good}");
        }
        for bad in [
            "/",
            "//",
            "",
            "data",
            "/a/../etc",
            "/a/./b",
            "/a//b",
            "/proc",
            "/sys/fs/cgroup",
            "/dev/shm",
            "/etc",
            "/etc/nginx",
            "/run/epsilon",
        ] {
            let why = of(&["/data", bad]);
            assert!(why.as_ref().is_some_and(|why| why.contains("VOLUME")), "{bad}: {why:?}");
        }
    }

    #[test]
    fn duplicate_volumes_are_merged_and_number_is_limited() {
        let twice = normalized(["/b/".to_owned(), "/a".to_owned(), "/b".to_owned()]);
        assert_eq!(twice, ["/a", "/b"]);
        let many: Vec<String> = (0..=VOLUMES_MAX).map(|n| format!("/data/{n}")).collect();
        assert_eq!(unfit(&many[1..]), None);
        assert!(unfit(&many).is_some_and(|why| why.contains("17 volumes")));
    }
}
