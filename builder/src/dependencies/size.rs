//! How much an install takes on disk, so that no package fills this machine's: looked at while it runs,
//! and once more before what came of it is packed.

use crate::error::{self, Hint};
use epsilon_api::{build::BuildError, units::Bytes};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Between two looks. A look takes about a tenth of a second for 50,000 files.
const EVERY: Duration = Duration::from_secs(2);
/// What the engine's disk gives, in the unit of `stat`.
const BLOCK: u64 = 512;

/// What of a file counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// What it takes on disk now.
    Blocks,
    /// How long it is: a file with holes takes this much in a layer.
    Length,
}

/// Ends, with the error to tell, once the folder has outgrown its limit. Cancel-safe: it only looks.
pub(super) async fn outgrown(folder: &Path, limit: Bytes) -> BuildError {
    loop {
        tokio::time::sleep(EVERY).await;
        let folder = folder.to_owned();
        let size = tokio::task::spawn_blocking(move || of(&folder, Count::Blocks)).await;
        if size.is_ok_and(|size| size > limit) {
            return too_large(limit);
        }
    }
}

/// The size of all below a folder. Follows no links. What goes while it is looked at does not count.
pub(super) fn of(folder: &Path, count: Count) -> Bytes {
    let mut total: u64 = 0;
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        let sizes = entries(&folder, count, &mut waiting).unwrap_or_default();
        total = total.saturating_add(sizes);
    }
    Bytes(total)
}

fn entries(folder: &Path, count: Count, below: &mut Vec<PathBuf>) -> io::Result<u64> {
    let mut total: u64 = 0;
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        // Of the entry itself: links are not followed.
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            below.push(entry.path());
        }
        let bytes = match count {
            Count::Blocks => about.blocks().saturating_mul(BLOCK),
            Count::Length => about.len(),
        };
        total = total.saturating_add(bytes);
    }
    Ok(total)
}

/// What the developer reads.
pub(super) fn too_large(limit: Bytes) -> BuildError {
    error::dependencies_failed(format!("the packages take more than {limit} on disk"))
        .hint("the operator's limit is `builder.install_size`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_below_counts_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), [1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("out")).unwrap();
        for count in [Count::Blocks, Count::Length] {
            let size = of(dir.path(), count).get();
            assert!((100_000..200_000).contains(&size), "{size}");
        }
        fs::File::create(dir.path().join("holes")).unwrap().set_len(1 << 30).unwrap();
        assert!(of(dir.path(), Count::Blocks).get() < 200_000);
        assert!(of(dir.path(), Count::Length).get() > 1 << 30);
    }

    #[tokio::test(start_paused = true)]
    async fn growth_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), [1; 100_000]).unwrap();
        let err = outgrown(dir.path(), Bytes(1000)).await;
        assert!(err.message.contains("1000B"), "{}", err.message);
    }
}
