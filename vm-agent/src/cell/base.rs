//! The runtime base that the pool of cells is for: that of the newest version seen on this VM.
//! Stored in `DATA/vm/base.json`, so that a restarted agent has cells before the first call. It is
//! a hint: a wrong or missing file costs nothing, and it is not flushed.

use epsilon_api::{chain::Chain, function::ImageRef};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{fs, path::PathBuf};

#[derive(Debug)]
pub(crate) struct Base {
    file: PathBuf,
    newest: Mutex<Option<NewestBase>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NewestBase {
    base: ImageRef,
    /// Creation time of the newest version on it.
    created_at: Timestamp,
}

impl Base {
    pub(crate) fn open(file: PathBuf) -> Self {
        let stored = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { file, newest: Mutex::new(stored) }
    }

    pub(crate) fn newest(&self) -> Option<ImageRef> {
        self.newest.lock().as_ref().map(|seen| seen.base.clone())
    }

    /// Records that a version on `base` is used here. Returns whether the newest base changed.
    pub(crate) fn note_version(&self, base: ImageRef, created_at: Timestamp) -> bool {
        let mut newest = self.newest.lock();
        if newest.as_ref().is_some_and(|seen| seen.base == base || created_at < seen.created_at) {
            return false;
        }
        let seen = NewestBase { base, created_at };
        let text = serde_json::to_vec(&seen).unwrap_or_default();
        let draft = self.file.with_extension("new");
        if let Err(err) = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.file)) {
            tracing::debug!(error = %Chain(&err), file = %self.file.display(), "Newest base could not be stored; a restarted agent boots cells after the first call.");
        }
        *newest = Some(seen);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str) -> ImageRef {
        ImageRef { reference: "base".into(), digest: digest.into() }
    }

    #[test]
    fn the_base_of_the_newest_version_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("base.json");
        let at = |second| Timestamp::from_second(second).unwrap();
        let base = Base::open(file.clone());
        assert_eq!(base.newest(), None);
        assert!(base.note_version(image("a"), at(5)));
        assert!(!base.note_version(image("a"), at(6)), "the same base is no change");
        assert!(base.note_version(image("b"), at(7)));
        assert!(!base.note_version(image("a"), at(6)), "an old version is called");
        assert_eq!(Base::open(file.clone()).newest(), Some(image("b")));
        fs::write(&file, "torn").unwrap();
        assert_eq!(Base::open(file).newest(), None);
    }
}
