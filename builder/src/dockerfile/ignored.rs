//! `.dockerignore`: files of a project that a Dockerfile does not see. Docker's own command applies
//! it before anything is sent to the engine, so other clients of the engine have to do it too.

use crate::{
    error::{self, Hint},
    source::Source,
};
use epsilon_api::{build::BuildError, units::Bytes};
use ignore::gitignore::{Gitignore, GitignoreBuilder};

const FILE: &str = ".dockerignore";
/// Far larger than any hand-written file.
const MAX_BYTES: Bytes = Bytes(256 << 10);

/// The rules of one project.
#[derive(Debug)]
pub(super) struct Ignored {
    rules: Gitignore,
    dockerfile: String,
}

impl Ignored {
    /// Reads a project's rules; without a file, nothing is ignored.
    pub(super) fn read(source: &Source, dockerfile: &str) -> Result<Self, BuildError> {
        let text = source.read(FILE, MAX_BYTES)?.unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&text), dockerfile)
    }

    fn parse(text: &str, dockerfile: &str) -> Result<Self, BuildError> {
        let wrong = |why: &ignore::Error| {
            error::image_failed(format!("`{FILE}`: {why}"))
                .hint("the patterns are those of `docker build`")
        };
        let mut rules = GitignoreBuilder::new("");
        for line in text.lines().filter_map(anchored) {
            rules.add_line(None, &line).map_err(|err| wrong(&err))?;
        }
        let rules = rules.build().map_err(|err| wrong(&err))?;
        Ok(Self { rules, dockerfile: dockerfile.to_owned() })
    }

    /// Whether the Dockerfile does not see this file. The Dockerfile itself is never ignored: the
    /// engine reads it from the context.
    pub(super) fn has(&self, path: &str) -> bool {
        path != self.dockerfile
            && path != FILE
            && self.rules.matched_path_or_any_parents(path, false).is_ignore()
    }
}

/// A line for the matcher: Docker's patterns start at the root, git's anywhere. `None` for lines
/// without a pattern.
fn anchored(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (not, pattern) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest.trim()));
    let pattern = pattern.trim_start_matches("./").trim_matches('/');
    (!pattern.is_empty() && pattern != ".").then(|| format!("{not}/{pattern}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! ignored {
        ($($name:ident: $rules:expr, $path:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(Ignored::parse($rules, "Dockerfile").unwrap().has($path), $want);
            }
        )*};
    }

    ignored! {
        nothing: "", "a.txt" => false;
        by_name: ".env", ".env" => true;
        only_at_the_root: ".env", "sub/.env" => false;
        at_any_depth: "**/.env", "sub/deep/.env" => true;
        a_star_stays_in_its_folder: "*.md", "docs/x.md" => false;
        a_star: "*.md", "x.md" => true;
        a_folder: "target/", "target/debug/x" => true;
        with_a_slash_before: "/secrets", "secrets/key" => true;
        an_exception: "*.md\n!README.md", "README.md" => false;
        an_exception_in_a_folder: "docs\n!docs/keep.md", "docs/keep.md" => false;
        beside_the_exception: "docs\n!docs/keep.md", "docs/other.md" => true;
        a_comment: "# a.txt", "a.txt" => false;
        everything_but_the_dockerfile: "*", "Dockerfile" => false;
        everything: "*", "server.js" => true;
    }
}
