//! Why a build failed: one constructor per stable code, used by every file of the builder. The text
//! for the developer is written where the error occurs; status and code are decided here.
//!
//! Codes with status 4xx mean that the source is wrong, 5xx that the builder or its machine failed.
//! `Display` texts never contain a path of the builder's machine: those go to the log.

use epsilon_api::{
    build::{BuildError, BuildEvent},
    chain::Chain,
};
use http::StatusCode;
use std::{error::Error, io};

fn error(code: &'static str, status: StatusCode, message: impl Into<String>) -> BuildError {
    BuildError { code: code.into(), status, message: message.into(), hint: None }
}

/// Declares one constructor per code.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $code:literal, $status:ident;)*) => {
        $($(#[$doc])* pub fn $name(message: impl Into<String>) -> BuildError {
            error($code, StatusCode::$status, message)
        })*
    };
}

codes! {
    /// The archive holds something that is always refused: a path that leaves the tree, a device,
    /// no gzip.
    source_refused => "SOURCE_REFUSED", UNPROCESSABLE_ENTITY;
    /// The archive exceeds one of the operator's limits.
    source_too_large => "SOURCE_TOO_LARGE", PAYLOAD_TOO_LARGE;
    /// The archive ended or was cut early.
    source_incomplete => "SOURCE_INCOMPLETE", BAD_REQUEST;
    /// `epsilon.yaml`, or a `config` in the code, is wrong.
    manifest_invalid => "MANIFEST_INVALID", UNPROCESSABLE_ENTITY;
    /// The project has no functions.
    no_functions => "NO_FUNCTIONS", UNPROCESSABLE_ENTITY;
    /// The manifest names an export that the code does not have.
    export_not_found => "EXPORT_NOT_FOUND", UNPROCESSABLE_ENTITY;
    /// `--only` names a function that the project does not have.
    function_not_found => "FUNCTION_NOT_FOUND", NOT_FOUND;
    /// npm did not install the dependencies.
    dependencies_failed => "DEPENDENCIES_FAILED", UNPROCESSABLE_ENTITY;
    /// The project's `build` command failed, or left what cannot be deployed.
    build_failed => "BUILD_FAILED", UNPROCESSABLE_ENTITY;
    /// The code threw, exited or hung while it was loaded for inspection.
    load_failed => "LOAD_FAILED", UNPROCESSABLE_ENTITY;
    /// The project's own Dockerfile failed, or its image cannot be pulled.
    image_failed => "IMAGE_FAILED", UNPROCESSABLE_ENTITY;
    /// The runtime base image is missing and could not be made.
    runtime_failed => "RUNTIME_FAILED", SERVICE_UNAVAILABLE;
    /// The container engine failed.
    engine_failed => "ENGINE_FAILED", BAD_GATEWAY;
    /// The registry did not accept or deliver an image.
    registry_failed => "REGISTRY_FAILED", BAD_GATEWAY;
    /// The builder's disk is full.
    disk_full => "DISK_FULL", INSUFFICIENT_STORAGE;
    /// All build slots are taken and the queue is full.
    busy => "BUILDER_BUSY", SERVICE_UNAVAILABLE;
    /// The builder ended before the build did.
    stopped => "BUILDER_STOPPED", SERVICE_UNAVAILABLE;
    /// A bug, or a failure of the machine. The cause is in the log.
    internal => "INTERNAL", INTERNAL_SERVER_ERROR;
}

/// Adds a hint to an error.
pub trait Hint {
    /// The same error with this hint.
    #[must_use]
    fn hint(self, hint: impl Into<String>) -> Self;
}

impl Hint for BuildError {
    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// A note to the developer, which stays visible when the build succeeds; other lines are a tool's
/// output.
pub fn note(text: impl std::fmt::Display) -> BuildEvent {
    BuildEvent::Line(format!("note: {text}"))
}

/// An error of the builder's own files: a full disk has its own code, anything else is logged with
/// its cause. `doing` completes "while …": `writing the source`.
pub fn file(doing: &str, cause: &io::Error) -> BuildError {
    if is_disk_full(cause) {
        return disk_full(format!("the builder's disk is full (while {doing})"))
            .hint("the operator has to free space under the builder's data folder");
    }
    broken(doing, cause)
}

/// A failure that no input caused: logged with its causes, reported without them.
pub fn broken(doing: &str, cause: &(dyn Error + 'static)) -> BuildError {
    tracing::error!(doing, error = %Chain(cause), "Build failed because of an internal error of the builder.");
    internal(format!("the builder failed while {doing}")).hint("the builder's log says why")
}

/// Whether a disk or a quota is full; also found in sources of the error.
pub fn is_disk_full(cause: &io::Error) -> bool {
    find(cause, |io: &io::Error| {
        matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    })
    .is_some()
}

/// The first error of this type in a chain of sources for which `fits` is true.
pub fn find<'a, E: Error + 'static>(
    cause: &'a (dyn Error + 'static),
    fits: impl Fn(&E) -> bool,
) -> Option<&'a E> {
    let mut next = Some(cause);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>().filter(|found| fits(found)) {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // `source()` of an io error skips the error that it wraps.
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_found_below_other_errors() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(file("writing", &full()).code, "DISK_FULL");
        assert_eq!(file("writing", &io::Error::other(full())).code, "DISK_FULL");
        assert_eq!(file("writing", &io::Error::other("x")).code, "INTERNAL");
    }

    #[test]
    fn the_developer_never_sees_the_machine() {
        let err = file("writing the source", &io::Error::other("/var/lib/epsilon/x"));
        assert_eq!(err.to_string(), "the builder failed while writing the source");
    }
}
