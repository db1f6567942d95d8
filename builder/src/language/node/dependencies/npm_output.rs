//! Filters the output of npm and of packages' scripts to what explains a failure.
//!
//! npm ends with its own report, `npm error …`, whose beginning names the cause: usage text and the
//! path of a removed log follow. Output of scripts comes before it, and there the end matters.

use crate::{
    engine::container::{Exit, Limits},
    error::{self, Hint},
};
use epsilon_api::build::BuildError;
use std::collections::VecDeque;

/// Lines of a script's output that are shown.
const OUTPUT: usize = 25;
/// Lines of npm's report that are shown.
const REPORT: usize = 15;
/// Longest name of a package (npm's own limit).
const NAME: usize = 214;
/// How each line of the report begins.
const REPORTED: &str = "npm error";
/// Beginnings of npm's usage text, and the path of a file that no longer exists.
const POINTLESS: [&str; 3] = [
    "npm error Clean install a project",
    "npm error Usage:",
    "npm error A complete log of this run",
];

/// The lines that explain the failure.
#[derive(Debug, Default)]
pub(super) struct NpmOutput {
    output: VecDeque<String>,
    report: Vec<String>,
    is_over: bool,
}

impl NpmOutput {
    /// Takes a line; returns whether it is worth showing.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let Some(text) = line.strip_prefix(REPORTED) else {
            if self.output.len() == OUTPUT {
                self.output.pop_front();
            }
            self.output.push_back(line.to_owned());
            return true;
        };
        self.is_over |= POINTLESS.iter().any(|start| line.starts_with(start));
        if self.is_over || text.trim().is_empty() || self.report.len() == REPORT {
            return false;
        }
        self.report.push(line.to_owned());
        true
    }

    fn text(&self) -> String {
        let lines: Vec<_> = self.output.iter().chain(&self.report).map(String::as_str).collect();
        lines.join("\n")
    }
}

/// The error of a failed `npm VERB`, with a hint.
pub(super) fn failed(exit: Exit, words: &NpmOutput, verb: &str, limits: Limits) -> BuildError {
    let text = words.text();
    let says = |words: &str| text.contains(words);
    if exit == Exit::Code(1)
        && let Some(name) = not_in_registry(&text)
    {
        return error::dependencies_failed(format!("`npm {verb}` failed:\n{text}")).hint(format!(
            "is `{name}` a package of your own, in another folder of your repository? deploy the folder that holds both (with \
             `workspaces` in its package.json, and an `epsilon.yaml` whose `entry` names the file). Is it private? its registry \
             and token belong into an `.npmrc`, the project's or the operator's (`builder.npmrc`). Else: is the name right?"
        ));
    }
    let hint = match exit {
        Exit::TimedOut => {
            let limit = limits.time;
            return error::dependencies_failed(format!(
                "`npm {verb}` took longer than {limit:?}\n{text}"
            ))
            .hint("the operator's limit is `builder.install_timeout`");
        }
        Exit::OutOfMemory => {
            let limit = limits.memory;
            return error::dependencies_failed(format!(
                "`npm {verb}` needs more than {limit}\n{text}"
            ))
            .hint("the operator's limit is `builder.install_memory`");
        }
        Exit::Code(_) if says("E404") => {
            "is the package's name right, and may this machine read it?"
        }
        Exit::Code(_) if says("ETARGET") => "does the package have such a version?",
        Exit::Code(_) if says("spawn git") => {
            "packages from git are not installed, the base has no git: name a release, or a tarball's URL"
        }
        Exit::Code(_) if says("EUSAGE") => "run `npm install` and push the new lockfile too",
        Exit::Code(_) if says("ERESOLVE") => "two packages want different versions of a third",
        Exit::Code(_) if says("node-gyp") || says("gyp ERR") => {
            "the base has no compiler: take a version of the package that has a prebuilt binary"
        }
        Exit::Code(_) if says("EFBIG") => "the operator's limit is `builder.install_size`",
        Exit::Code(_) if says("ENOTFOUND") || says("EAI_AGAIN") || says("ECONNREFUSED") => {
            "the registry cannot be reached from the builder"
        }
        Exit::Code(_) => "npm's output is above",
    };
    error::dependencies_failed(format!("`npm {verb}` failed:\n{text}")).hint(hint)
}

/// The package that npm did not find: `npm error 404  '@acme/shared@*' is not in this registry.`
fn not_in_registry(text: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("npm error 404"));
    let wanted = lines.filter_map(|line| line.split('\'').nth(1)).next()?;
    let name = match wanted.get(1..)?.find('@') {
        Some(at) => &wanted[..=at],
        None => wanted,
    };
    let is_name =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '@' | '/' | '-' | '_' | '.' | '~');
    (name.len() <= NAME && name.chars().all(is_name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::units::{Bytes, MilliCores};
    use std::time::Duration;

    fn failure(exit: Exit, lines: &[&str]) -> BuildError {
        let time = Duration::from_secs(300);
        let limits = Limits { memory: Bytes::mib(512), cpu: MilliCores::ONE, pids: 64, time };
        let mut words = NpmOutput::default();
        for line in lines {
            words.take(line);
        }
        failed(exit, &words, "ci", limits)
    }

    #[test]
    fn failure_shows_npms_report_and_a_hint() {
        for (exit, line, message, hint) in [
            (
                Exit::Code(1),
                "npm error 404  '@acme/shared@^1.0.0' is not in this registry.",
                "`npm ci` failed:\nnpm error 404",
                "is `@acme/shared` a package of your own",
            ),
            (
                Exit::Code(1),
                "npm error 404  'lodahs' is not in this registry.",
                "404",
                "is `lodahs` a package of your own",
            ),
            (Exit::Code(1), "npm error 404  '../x y`@1' is not in", "404", "npm's output"),
            (Exit::Code(1), "npm error code E404", "`npm ci` failed:\nnpm error code E404", "name"),
            (Exit::Code(1), "npm error code EUSAGE", "EUSAGE", "lockfile"),
            (Exit::Code(1), "gyp ERR! find Python", "gyp", "compiler"),
            (Exit::OutOfMemory, "x", "needs more than 512MiB", "install_memory"),
            (Exit::TimedOut, "x", "longer than 300s", "install_timeout"),
        ] {
            let err = failure(exit, &[line]);
            assert_eq!(err.code, "DEPENDENCIES_FAILED");
            assert!(err.message.contains(message), "{}", err.message);
            assert!(err.hint.as_ref().is_some_and(|h| h.contains(hint)), "{:?}", err.hint);
        }
    }

    #[test]
    fn the_cause_is_shown_and_the_usage_is_not() {
        let usage = vec!["npm error   --audit"; 100];
        let lines = [
            "npm error code EUSAGE",
            "npm error",
            "npm error `npm ci` can only install packages when the two are in sync.",
            "npm error Missing: uuid@9.0.1 from lock file",
            "npm error",
            "npm error Clean install a project",
            "npm error Usage:",
        ];
        let err = failure(Exit::Code(1), &[&lines[..], &usage].concat());
        assert!(err.message.contains("Missing: uuid"), "{}", err.message);
        assert!(!err.message.contains("--audit"), "{}", err.message);
        assert!(err.hint.is_some_and(|hint| hint.contains("lockfile")));
    }

    #[test]
    fn the_end_of_a_scripts_output_is_shown() {
        let noise: Vec<_> = (0..100).map(|n| format!("compiling {n}")).collect();
        let mut lines: Vec<_> = noise.iter().map(String::as_str).collect();
        lines.extend(["gyp ERR! not ok", "npm error code 1", "npm error path /app/node_modules/x"]);
        let err = failure(Exit::Code(1), &lines);
        for part in ["compiling 99", "gyp ERR! not ok", "path /app/node_modules/x"] {
            assert!(err.message.contains(part), "{}", err.message);
        }
        assert!(!err.message.contains("compiling 1\n"));
    }
}
