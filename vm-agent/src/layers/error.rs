//! Why a version's layers are not available. The texts are for the operator;
//! [`LayersError::allows_image`] is for the start. Shared by all starts that waited for the
//! same layer.

use crate::engine::EngineError;
use std::{io, path::PathBuf, sync::Arc};

/// Why a version's layers are not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayersError {
    /// It is no plain tree of files above its base, or too large: only the image can be run.
    #[error("layer {layer} cannot be mounted: {why}")]
    Unfit {
        /// The layer's digest.
        layer: String,
        /// The entry that a tree of code must not have.
        why: String,
    },
    /// Neither the builder's cache nor a registry has it; the image does.
    #[error("no source has layer {layer}")]
    Absent {
        /// The layer's digest.
        layer: String,
    },
    /// The disk is full. The same may work later.
    #[error(
        "this machine's disk has no room for code layers in `{folder}`; free space there, or lower \
         `vm_agent.layers_size`"
    )]
    Full {
        /// The directory of the store.
        folder: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another error of this machine's disk.
    #[error("code layers cannot be stored in `{folder}`; check its owner and its disk")]
    Disk {
        /// The directory of the store.
        folder: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An error of the engine, or of a registry.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The error of another start that fetched the same layer.
    #[error(transparent)]
    Shared(Arc<LayersError>),
}

impl LayersError {
    /// Maps an I/O error of the store.
    pub(super) fn disk(folder: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { folder, source }
            }
            _ => Self::Disk { folder, source },
        }
    }

    /// Whether the version can start from its image instead. Not if a registry failed: the image
    /// comes from the same one, and this error is more precise. Nor if the image itself was not
    /// found.
    pub(crate) fn allows_image(&self) -> bool {
        match self {
            Self::Unfit { .. } | Self::Absent { .. } | Self::Full { .. } | Self::Disk { .. } => {
                true
            }
            Self::Engine(err) => !matches!(err, EngineError::Registry(_) | EngineError::NotHere(_)),
            Self::Shared(other) => other.allows_image(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_unfit(&self) -> bool {
        match self {
            Self::Shared(other) => other.is_unfit(),
            err => matches!(err, Self::Unfit { .. }),
        }
    }

    /// Whether removing other layers may help.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Shared(other) => other.is_full(),
            err => matches!(err, Self::Full { .. }),
        }
    }

    /// Whether another source may have the layer.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Self::Absent { .. } => true,
            Self::Shared(other) => other.is_absent(),
            Self::Unfit { .. } | Self::Full { .. } | Self::Disk { .. } | Self::Engine(_) => false,
        }
    }

    /// The metric's label value.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Unfit { .. } => "unfit",
            Self::Absent { .. } => "absent",
            Self::Full { .. } | Self::Disk { .. } => "disk",
            Self::Engine(_) => "failed",
            Self::Shared(other) => other.outcome(),
        }
    }
}
