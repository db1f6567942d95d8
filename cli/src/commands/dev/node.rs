//! Finds the developer's own Node and checks its version. Installs nothing.

use crate::failure::Failure;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// The first Node with all that the wrapper uses: `require` of ES modules and TypeScript without
/// flags.
const OLDEST: (u32, u32) = (22, 18);
/// Major version of Node on the platform.
pub(super) const PLATFORM: u32 = 24;
/// Timeout of asking Node for its version.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// npm's path below Node's installation prefix.
const NPM: &str = "lib/node_modules/npm/bin/npm-cli.js";
/// JavaScript that prints version and path, parsed below.
const ASK: &str = "process.versions.node + '\\n' + process.execPath";

/// A Node that functions can run on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Path of the program.
    pub(super) program: PathBuf,
    /// Version, such as `24.1.0`.
    pub(super) version: String,
}

impl Node {
    /// The configured one, else the one on PATH.
    pub(super) async fn find(named: Option<&Path>) -> Result<Self, Failure> {
        let program = named.unwrap_or(Path::new("node"));
        let mut command = Command::new(program);
        command.args(["-p", ASK]).env_remove("NODE_OPTIONS").kill_on_drop(true);
        let shown = program.display();
        let answer = match timeout(ANSWERS_WITHIN, command.output()).await {
            Ok(Ok(answer)) if answer.status.success() => answer.stdout,
            Ok(Ok(_)) => return Err(missing(format!("`{shown}` is not a working Node"))),
            Ok(Err(err)) => {
                return Err(missing(format!("`{shown}` cannot be run")).with_cause(&err));
            }
            Err(_) => return Err(missing(format!("`{shown}` did not answer"))),
        };
        let text = String::from_utf8_lossy(&answer);
        let mut lines = text.lines();
        let (Some(version), Some(program)) = (lines.next(), lines.next()) else {
            return Err(missing(format!("`{shown}` is not a working Node")));
        };
        match parse(version) {
            Some(found) if found >= OLDEST => {
                Ok(Self { program: program.into(), version: version.to_owned() })
            }
            _ => Err(missing(format!("Node {version} is too old"))),
        }
    }

    /// Whether deployed functions run on the same major version.
    pub(super) fn is_the_platforms(&self) -> bool {
        parse(&self.version).is_some_and(|(major, _)| major == PLATFORM)
    }

    /// npm comes with Node; if it is not beside it, the one on PATH is used.
    pub(super) fn npm(&self) -> Command {
        let own = self.program.parent().and_then(Path::parent).map(|prefix| prefix.join(NPM));
        match own.filter(|own| own.exists()) {
            Some(own) => {
                let mut npm = Command::new(&self.program);
                npm.arg(own);
                npm
            }
            None => Command::new("npm"),
        }
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn missing(what: String) -> Failure {
    let (major, minor) = OLDEST;
    Failure::new("NODE_MISSING", what).hint(format!(
        "`epsilon dev` runs functions on this machine's Node, {major}.{minor} or newer; functions run on Node \
         {PLATFORM} when they are deployed: install it (https://nodejs.org/download, `nvm install {PLATFORM}`) or \
         name one with `--node FILE`. Without Node, `epsilon up` and `epsilon deploy` run functions in Docker"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, fits) in [
            ("24.1.0", true),
            ("22.18.0", true),
            ("22.9.0", false),
            ("20.20.2", false),
            ("x", false),
        ] {
            assert_eq!(parse(version).is_some_and(|found| found >= OLDEST), fits, "{version}");
        }
    }

    #[tokio::test]
    async fn missing_node_gets_a_hint() {
        let failure = Node::find(Some(Path::new("/nowhere/node"))).await.unwrap_err();
        let text = format!("{failure:?}");
        assert!(
            text.contains("`/nowhere/node` cannot be run") && text.contains("--node"),
            "{text}"
        );
    }
}
