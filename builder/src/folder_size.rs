//! Limits the disk space of an install, so that packages do not fill this machine's disk: checked
//! while it runs, and once more before the result is packed. What cannot be measured counts as too
//! large.

use crate::{
    cache::walk::{Bounds, Stopped, walk},
    error::{self, Hint},
};
use epsilon_api::{build::BuildError, chain::Chain, units::Bytes};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Time between two checks. A check takes about a tenth of a second for 50,000 files.
const EVERY: Duration = Duration::from_secs(2);

/// How the size of a file counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    /// Its blocks on disk.
    Blocks,
    /// Its length: a sparse file takes this much in a layer.
    Length,
}

/// Resolves with the error once one of the folders exceeds its limit. Cancel-safe: it only reads.
pub(crate) async fn exceeds_limit(folders: &[(PathBuf, Bytes)]) -> BuildError {
    loop {
        tokio::time::sleep(EVERY).await;
        for (folder, limit) in folders {
            let folder = folder.clone();
            let limit = *limit;
            let looked = tokio::task::spawn_blocking(move || within(&folder, Count::Blocks, limit));
            if let Ok(Err(err)) = looked.await {
                return err;
            }
        }
    }
}

/// The size of everything below a folder, if within the limit. Follows no links; files that vanish
/// meanwhile do not count.
pub(crate) fn within(folder: &Path, count: Count, limit: Bytes) -> Result<Bytes, BuildError> {
    match of(folder, count) {
        Ok(size) if size <= limit => Ok(size),
        Ok(_) => Err(too_large(limit)),
        Err(stopped) => Err(refused(&stopped, limit)),
    }
}

fn of(folder: &Path, count: Count) -> Result<Bytes, Stopped> {
    let mut total: u64 = 0;
    walk(folder, Bounds::default(), |entry| {
        total = total.saturating_add(match count {
            Count::Blocks => entry.on_disk(),
            Count::Length => entry.length(),
        });
        Ok::<_, Stopped>(())
    })?;
    Ok(Bytes(total))
}

/// The error for the developer.
fn too_large(limit: Bytes) -> BuildError {
    error::dependencies_failed(format!("the packages take more than {limit} on disk"))
        .hint("the operator's limit is `builder.install_size`")
}

fn refused(stopped: &Stopped, limit: Bytes) -> BuildError {
    if let Stopped::Unreadable(err) = stopped {
        tracing::warn!(error = %Chain(err), "Size of installed packages cannot be measured; it counts as too large.");
        return too_large(limit);
    }
    error::dependencies_failed(format!("the packages are refused: {stopped}"))
        .hint("no package needs that: check which ones have install scripts")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::walk::tests::nest;
    use std::fs;

    #[test]
    fn all_below_counts_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), [1; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("out")).unwrap();
        for count in [Count::Blocks, Count::Length] {
            let size = of(dir.path(), count).unwrap().get();
            assert!((100_000..200_000).contains(&size), "{size}");
        }
        fs::File::create(dir.path().join("holes")).unwrap().set_len(1 << 30).unwrap();
        assert!(of(dir.path(), Count::Blocks).unwrap().get() < 200_000);
        assert!(of(dir.path(), Count::Length).unwrap().get() > 1 << 30);
    }

    #[tokio::test(start_paused = true)]
    async fn growth_is_noticed_in_each_folder() {
        let (small, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("x"), [1; 100_000]).unwrap();
        let folders =
            [(small.path().to_owned(), Bytes::mib(1)), (dir.path().to_owned(), Bytes(1000))];
        let err = exceeds_limit(&folders).await;
        assert!(err.message.contains("1000B"), "{}", err.message);
    }

    #[test]
    fn what_is_too_deep_to_be_counted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        nest(dir.path(), 3000);
        let err = within(dir.path(), Count::Blocks, Bytes::mib(1)).unwrap_err();
        assert_eq!(err.code, "DEPENDENCIES_FAILED");
        assert!(err.message.contains("more than 128 nested folders"), "{}", err.message);
    }
}
