//! Why a version's layers are not here. For the operator, but for [`LayersError::leaves_the_image`], which is for whoever
//! starts instances. Shared by all who waited for the same layer.

use crate::engine::EngineError;
use std::{io, path::PathBuf, sync::Arc};

/// Why a version's layers are not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayersError {
    /// It is no plain tree of files above its base, or one that is too large: only its image can be run.
    #[error("layer {layer} cannot be mounted: {why}")]
    Unfit {
        /// Its digest.
        layer: String,
        /// What it holds that a tree of code does not.
        why: String,
    },
    /// Neither this machine's shelf nor a registry has it: its image does.
    #[error("no source gives layer {layer}")]
    Absent {
        /// Its digest.
        layer: String,
    },
    /// There is no room for it. The same may work later.
    #[error(
        "this machine's disk has no room for code layers in `{folder}`; free space there, or lower \
         `vm_agent.layers_size`"
    )]
    Full {
        /// Where they are kept.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another trouble with this machine's disk.
    #[error("code layers cannot be kept in `{folder}`; look at its owner and its disk")]
    Disk {
        /// Where they are kept.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The engine, or a registry.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What somebody else met who wanted the same layer.
    #[error(transparent)]
    Same(Arc<LayersError>),
}

impl LayersError {
    /// What the disk said.
    pub(super) fn disk(folder: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { folder, source }
            }
            _ => Self::Disk { folder, source },
        }
    }

    /// Whether the version's image can do what its layers cannot. Not where a registry failed: the image comes from the
    /// same one, and this error says better what is wrong. Nor where the image itself was looked for in vain.
    pub(crate) fn leaves_the_image(&self) -> bool {
        match self {
            Self::Unfit { .. } | Self::Absent { .. } | Self::Full { .. } | Self::Disk { .. } => {
                true
            }
            Self::Engine(err) => !matches!(err, EngineError::Registry(_) | EngineError::NotHere(_)),
            Self::Same(other) => other.leaves_the_image(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_unfit(&self) -> bool {
        match self {
            Self::Same(other) => other.is_unfit(),
            err => matches!(err, Self::Unfit { .. }),
        }
    }

    /// Less has to lie here first.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Same(other) => other.is_full(),
            err => matches!(err, Self::Full { .. }),
        }
    }

    /// Another source may have it.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Self::Absent { .. } => true,
            Self::Same(other) => other.is_absent(),
            Self::Unfit { .. } | Self::Full { .. } | Self::Disk { .. } | Self::Engine(_) => false,
        }
    }

    /// The metric label.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Unfit { .. } => "unfit",
            Self::Absent { .. } => "absent",
            Self::Full { .. } | Self::Disk { .. } => "disk",
            Self::Engine(_) => "failed",
            Self::Same(other) => other.outcome(),
        }
    }
}
