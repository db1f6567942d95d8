//! Where a function of a project is declared: an entry of the manifest, or a file by convention.

/// Origin of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The runtime base and the project's code.
    Code,
    /// An existing image: any reference. Two plans may name the same.
    Image(String),
    /// The project built with this Dockerfile, a path in the source.
    Dockerfile(String),
}
