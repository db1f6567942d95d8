//! Why a version's layers are not here. For the operator; shared by all who waited for the same layer.

use crate::engine::EngineError;
use std::{io, sync::Arc};

/// Why a version's layers are not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayersError {
    /// It is no plain tree of files above its base: only its image can be run.
    #[error("layer {layer} cannot be mounted: {why}")]
    Unfit {
        /// Its digest.
        layer: String,
        /// What it holds that a tree of code does not.
        why: String,
    },
    /// This machine's disk.
    #[error("layers cannot be unpacked on this machine")]
    Disk(#[from] io::Error),
    /// The engine or the registry.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What somebody else met who wanted the same layer.
    #[error(transparent)]
    Same(Arc<LayersError>),
}

impl LayersError {
    /// The version's layers can never be mounted: it takes the image path.
    pub(crate) fn is_unfit(&self) -> bool {
        match self {
            Self::Unfit { .. } => true,
            Self::Same(other) => other.is_unfit(),
            Self::Disk(_) | Self::Engine(_) => false,
        }
    }
}
