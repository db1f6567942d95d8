//! The file of `epsilon backup`: one tar, perhaps compressed, whose first entry lists all others with size and digest.
//!
//! ```text
//! backup.json                       the list, and what is in it: versions, images, what was left out
//! data/epsilon.db, data/admin.key   what the data folder had
//! images/oci-layout, index.json     an OCI image layout, which `docker load` takes too
//! images/blobs/sha256/…             layers, each once; configurations; manifests
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `manifest` | the list, and which paths may be on it |
//! | `folder` | what of a data folder is taken along |
//! | `write` | makes the file: whole, or not at all |
//! | `read` | checks it, and unpacks it into a draft |
//! | `place` | the draft becomes the data folder |
//!
//! Pure but for files; the engine and the store are asked by `commands/backup.rs` and `commands/restore.rs`.

pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod place;
pub(crate) mod read;
pub(crate) mod write;

/// Where files of the data folder lie in it.
pub(crate) const DATA: &str = "data";
/// Where the OCI image layout lies in it.
pub(crate) const IMAGES: &str = "images";
/// The store's file in a data folder.
pub(crate) const STORE: &str = "epsilon.db";
