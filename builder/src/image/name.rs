//! Names of the images that a build makes.

use epsilon_api::ids::FunctionName;
use epsilon_api::ids::ProjectName;
use std::fmt;

/// Prefix of our names in an engine.
pub(crate) const NAMES: &str = "epsilon/";

/// Name of an image: `epsilon/PATH:TAG` in an engine, `PATH` after the name of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) path: String,
    pub(crate) tag: String,
}

impl Name {
    /// The runtime base of a language.
    pub(crate) fn runtime(language: &str, tag: &str) -> Self {
        Self { path: format!("runtime-{language}"), tag: tag.to_owned() }
    }

    /// The image in which projects are inspected.
    pub(crate) fn inspector(language: &str, tag: &str) -> Self {
        Self { path: format!("inspector-{language}"), tag: tag.to_owned() }
    }

    /// The name that an image of ours has in an engine.
    pub(crate) fn in_engine(reference: &str) -> Self {
        let (repository, tag) = reference.rsplit_once(':').unwrap_or((reference, ""));
        let path = repository.strip_prefix(NAMES).unwrap_or(repository);
        Self { path: path.to_owned(), tag: tag.to_owned() }
    }

    /// A function's image; the tag is derived from its id.
    pub(crate) fn function(project: &ProjectName, function: &FunctionName, id: &str) -> Self {
        let path = format!("{}/{}", part(project.as_str()), part(function.as_str()));
        Self { path, tag: id.trim_start_matches("sha256:").chars().take(12).collect() }
    }

    /// Repository in the engine, without the tag.
    pub(crate) fn repository(&self) -> String {
        format!("{NAMES}{}", self.path)
    }

    /// Repository in the registry of this name, without the tag.
    pub(crate) fn remote_repository(&self, registry: &str) -> String {
        format!("{registry}/{}", self.path)
    }
}

/// Full name in the engine.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAMES}{}:{}", self.path, self.tag)
    }
}

/// Converts a name to a component of an image's name: lower case, and separators only between
/// letters and digits. Two names may become the same; the tag, a digest that covers the function's
/// name, distinguishes them.
pub(crate) fn part(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            text.push(c.to_ascii_lowercase());
        } else if text.ends_with(|last: char| last.is_ascii_alphanumeric()) {
            text.push('-');
        }
    }
    text.trim_end_matches('-').to_owned()
}
