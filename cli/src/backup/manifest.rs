//! `backup.json`: what is in a backup. Anyone may have written it: nothing in it is trusted before
//! [`Manifest::parse`] has checked it.

use super::{DATA, IMAGES};
use epsilon_builder::images::Image;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Name of the manifest in the backup.
pub(crate) const NAME: &str = "backup.json";
/// Raised when a backup of this release could not be read by the one before.
pub(crate) const FORMAT: u32 = 1;
/// Largest manifest, in bytes: some hundred thousand files.
pub(crate) const LARGEST: u64 = 64 << 20;
/// Longest path.
const LONGEST_PATH: usize = 200;
/// Folders in folders.
const DEEPEST: usize = 8;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    /// The release that made it.
    pub(crate) epsilon: String,
    pub(crate) created_at: Timestamp,
    pub(crate) store: Store,
    pub(crate) functions: usize,
    pub(crate) versions: usize,
    /// Images in the layout.
    pub(crate) images: Vec<Image>,
    /// Versions whose images are not in the layout.
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) files: Vec<File>,
}

/// Where the state of the gateway is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Store {
    /// In this backup.
    Sqlite,
    /// In a database server, which has its own backups.
    Elsewhere,
}

/// A version without its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeftOut {
    /// `pay@3`.
    pub(crate) version: String,
    pub(crate) image: String,
    pub(crate) serves: bool,
    pub(crate) why: Why,
}

/// Why an image is not in the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// It is in the registry that its name names.
    InRegistry,
    /// The engine does not have it.
    NotInEngine,
}

/// A file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// `data/admin.key`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// Hexadecimal.
    pub(crate) sha256: String,
}

/// The part that manifests of all formats have.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("it is in format {0}, and this `epsilon` reads {known}", known = FORMAT)]
    Format(u32),
    #[error("its list cannot be read")]
    Text(#[from] serde_json::Error),
    #[error("its list has a path that leads elsewhere: `{}`", .0.escape_default())]
    Path(String),
    #[error("its list names `{0}` twice")]
    Twice(String),
}

impl Manifest {
    /// Parses a manifest and checks all its paths.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ListError> {
        let Head { format } = serde_json::from_slice(text)?;
        if format != FORMAT {
            return Err(ListError::Format(format));
        }
        let manifest: Self = serde_json::from_slice(text)?;
        let mut seen = HashSet::new();
        for File { path, .. } in &manifest.files {
            if !is_safe(path) {
                return Err(ListError::Path(path.clone()));
            }
            if !seen.insert(path) {
                return Err(ListError::Twice(path.clone()));
            }
        }
        Ok(manifest)
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Versions that serve and whose image is neither in the backup nor in a registry.
    pub(crate) fn lost(&self) -> impl Iterator<Item = &LeftOut> {
        self.left_out.iter().filter(|one| one.serves && one.why == Why::NotInEngine)
    }
}

/// Whether a path stays inside the draft's two folders, whatever it is joined to, and fits an
/// entry's header, which splits it at a `/` into at most 155 and 100 bytes.
pub(crate) fn is_safe(path: &str) -> bool {
    let Some((top, below)) = path.split_once('/') else { return false };
    (top == DATA || top == IMAGES)
        && path.len() <= LONGEST_PATH
        && below.split('/').count() <= DEEPEST
        && below.split('/').all(|part| {
            !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control)
        })
        && tar::Header::new_ustar().set_path(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, want) in [
            ("data/epsilon.db", true),
            ("data/tls/gateway.key", true),
            ("images/blobs/sha256/00ff", true),
            ("data/a name", true),
            ("data", false),
            ("data/", false),
            ("/data/x", false),
            ("data//x", false),
            ("data/../x", false),
            ("data/x/..", false),
            ("data/./x", false),
            ("../data/x", false),
            ("other/x", false),
            ("data/a\nb", false),
            ("data/a\0b", false),
            ("", false),
        ] {
            assert_eq!(is_safe(path), want, "{path:?}");
        }
        assert!(!is_safe(&format!("data/{}", "x".repeat(LONGEST_PATH))));
        assert!(!is_safe(&format!("data/{}x", "y/".repeat(DEEPEST))));
        for (parts, want) in [
            (&[100][..], true),
            (&[101], false),
            (&[80, 100], true),
            (&[93, 58, 42], false), // short enough, and no `/` where it would have to be cut
        ] {
            let parts: Vec<_> = parts.iter().map(|bytes| "x".repeat(*bytes)).collect();
            assert_eq!(is_safe(&format!("data/{}", parts.join("/"))), want, "{parts:?}");
        }
    }

    #[test]
    fn a_list_of_another_kind_says_so() {
        let whole = Manifest {
            format: FORMAT,
            epsilon: "0.1.0".into(),
            created_at: Timestamp::UNIX_EPOCH,
            store: Store::Sqlite,
            functions: 0,
            versions: 0,
            images: Vec::new(),
            left_out: Vec::new(),
            files: vec![File { path: "data/x".into(), bytes: 1, sha256: "00".into() }],
        };
        let text = |manifest: &Manifest| serde_json::to_vec(manifest).unwrap();
        assert_eq!(Manifest::parse(&text(&whole)).unwrap(), whole);
        let error = |text: &[u8]| Manifest::parse(text).unwrap_err().to_string();
        // A later format may differ in everything else.
        assert!(error(br#"{"format":2,"new":[]}"#).contains("format 2"));
        assert!(error(b"[]").contains("cannot be read"));
        let mut twice = whole.clone();
        twice.files.push(whole.files[0].clone());
        assert!(error(&text(&twice)).contains("twice"));
        let mut out = whole;
        out.files[0].path = "data/../../etc/passwd".into();
        assert!(error(&text(&out)).contains("elsewhere"));
    }
}
