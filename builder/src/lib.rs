//! Source to image: what a developer pushed is checked, understood and made into one image per function.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | the archive → a checked folder within limits |
//! | [`manifest`] | `epsilon.yaml` and in-code `config` → settings, strictly |
//! | [`inspection`] | what the code exports, as the runtime saw it |
//! | [`plan`] | all of these → which functions, with what settings, keyed by content |
//! | [`error`] | why a build ended without images |

pub mod error;
pub mod inspection;
pub mod manifest;
pub mod plan;
pub mod source;
