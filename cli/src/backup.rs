//! The file of `epsilon backup`: one tar, compressed if its name says so, whose first entry lists
//! all others with size and digest.
//!
//! ```text
//! backup.json                       the manifest: list of files, versions, images, what was left out
//! data/epsilon.db, data/admin.key   what the data folder had
//! images/oci-layout, index.json     an OCI image layout, which `docker load` takes too
//! images/blobs/sha256/…             layers, each once; configurations; manifests
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `manifest` | the manifest, and which paths it may list |
//! | `folder` | which files of a data folder are backed up |
//! | `write` | writes the file, completely or not at all |
//! | `read` | verifies it, and unpacks it into a draft |
//! | `draft` | the draft, and how it becomes the data folder |
//!
//! Works on files only; `commands/backup.rs` and `commands/restore.rs` use the engine and the
//! store.

pub(crate) mod draft;
pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod read;
pub(crate) mod write;

/// Folder of the data folder's files in a backup.
pub(crate) const DATA: &str = "data";
/// Folder of the OCI image layout in a backup.
pub(crate) const IMAGES: &str = "images";
/// The store's file in a data folder.
pub(crate) const STORE: &str = "epsilon.db";
