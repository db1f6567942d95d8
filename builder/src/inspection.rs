//! The code's exports, as reported by a language's inspector from a container without network.
//!
//! The report is written by a process that ran the developer's code, so it is untrusted: the file
//! is opened without following links, its size is capped, unknown fields are refused, and every
//! name in it is parsed again before it is used. A forged report can only harm its own project.

use crate::{
    error::{self, Hint},
    value_tree::Node,
};
use epsilon_api::{build::BuildError, function::Signature, units::Bytes};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::Deserialize;
use std::{fs::File, io::Read, path::Path};

/// Largest report. It lists each file of the project once per entry that reaches it.
const MAX_BYTES: Bytes = Bytes::mib(16);

/// Completes "while …" when reading fails.
const READING: &str = "reading what the code exports";

/// Longest message and stack of the code's own that are passed on, in characters.
const MESSAGE_MAX: usize = 1000;
const STACK_MAX: usize = 4000;

/// Longest excerpt of a line of code, in characters.
const SHOWN_MAX: usize = 300;

/// Exports of all entries of a project. Empty for `runtime: container`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspection {
    /// One per requested entry.
    pub entries: Vec<Entry>,
}

/// One entry: a loaded file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its path in the source.
    pub entry: String,
    /// Why it could not be loaded.
    pub error: Option<LoadError>,
    /// Its callable exports.
    pub exports: Vec<Export>,
    /// The project's own files that it reaches.
    pub files: Vec<String>,
    /// Places that load a module whose name is known at run time only.
    pub dynamic: Vec<Dynamic>,
    /// Why the files could not be attributed to single exports, where that was tried.
    #[serde(default)]
    pub together: Option<String>,
}

/// The error that the code threw while it was loaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadError {
    /// The error's message.
    pub message: String,
    /// The error's stack.
    pub stack: Option<String>,
}

/// A callable export.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Its name, `default` for the default export.
    pub name: String,
    /// How the runtime would call it.
    pub signature: Signature,
    /// The `config` beside it in the code.
    pub config: Option<Node>,
    /// Its parameters, if it looks like a helper and not like a handler: `(a, b)`.
    #[serde(default)]
    pub helper: Option<String>,
    /// What it reaches; absent: everything that its entry reaches.
    #[serde(default)]
    pub reach: Option<Reach>,
}

/// What one export reaches, according to a bundler's module graph.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Files of the project.
    pub files: Vec<String>,
    /// Digest of the code that remains of them when everything that this export does not use is
    /// dropped, and of the packages that its entry loads.
    pub code: String,
}

/// A `require` or `import` whose argument is computed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dynamic {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: u32,
    /// Its source text.
    pub text: String,
}

impl Inspection {
    /// Reads the file that the inspector wrote. Blocking, but short: the size is capped.
    ///
    /// # Errors
    /// `LOAD_FAILED` when the file is missing (the code ended the process) or invalid.
    pub fn load(file: &Path) -> Result<Self, BuildError> {
        // The code could put a link to any file of this machine here, or a pipe without a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(file, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(no_report()),
            Err(Errno::LOOP) => return Err(invalid_report("it is a link")),
            Err(cause) => return Err(error::file(READING, &cause.into())),
        };
        let metadata = file.metadata().map_err(|cause| error::file(READING, &cause))?;
        if !metadata.is_file() {
            return Err(invalid_report("it is not a file"));
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_BYTES.get() + 1).read_to_end(&mut bytes);
        read.map_err(|cause| error::file(READING, &cause))?;
        Self::parse(&bytes)
    }

    /// Parses the report.
    ///
    /// # Errors
    /// `LOAD_FAILED` when it is invalid.
    pub fn parse(bytes: &[u8]) -> Result<Self, BuildError> {
        if bytes.is_empty() {
            return Err(no_report());
        }
        if bytes.len() as u64 > MAX_BYTES.get() {
            return Err(invalid_report(&format!("it is larger than {MAX_BYTES}")));
        }
        serde_json::from_slice(bytes)
            .map_err(|cause| invalid_report(&printable(&cause.to_string(), 300)))
    }

    /// The entry with this path, if it was loaded. `hint` has one for the text of the error that
    /// the code threw, in its language.
    ///
    /// # Errors
    /// `LOAD_FAILED` with that error.
    pub(crate) fn found(
        &self,
        path: &str,
        hint: impl FnOnce(&str) -> Option<String>,
    ) -> Result<&Entry, BuildError> {
        let entry = self.entries.iter().find(|entry| entry.entry == path);
        let entry = entry.ok_or_else(|| invalid_report(&format!("nothing of `{path}`")))?;
        match &entry.error {
            Some(why) => {
                let error_text = why.error_text();
                let err = error::load_failed(format!("`{path}` could not be loaded: {error_text}"));
                Err(match hint(&error_text) {
                    Some(hint) => err.hint(hint),
                    None => err,
                })
            }
            None => Ok(entry),
        }
    }
}

impl Entry {
    /// A log line about files that cannot be attributed to single exports: where, or why.
    pub fn unknown(&self) -> Option<String> {
        let path = &self.entry;
        match (self.dynamic.as_slice(), &self.together) {
            ([first, rest @ ..], _) => {
                let Dynamic { file, line, text } = first;
                let more = match rest.len() {
                    0 => String::new(),
                    more => format!(" (and {more} more such places)"),
                };
                let place = printable(&format!("{file}:{line}: {text}"), SHOWN_MAX);
                Some(format!(
                    "every file counts for the functions of `{path}`: what is loaded at {place}{more} is known at run time only"
                ))
            }
            ([], Some(why)) => Some(format!(
                "every file of `{path}` counts for each of its functions: {}",
                printable(why, SHOWN_MAX)
            )),
            ([], None) => None,
        }
    }
}

impl LoadError {
    /// The text for the developer: the stack if there is one (it starts with the message), else the
    /// message.
    pub fn error_text(&self) -> String {
        let message = printable(&self.message, MESSAGE_MAX);
        let stack = self.stack.as_deref().filter(|stack| !stack.trim().is_empty());
        match stack.map(|stack| printable(stack, STACK_MAX)) {
            Some(stack) if stack.contains(message.as_str()) => stack,
            Some(stack) => format!("{message}\n{stack}"),
            None => message,
        }
    }
}

/// Without what could steer a terminal, and not longer than this.
fn printable(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').take(max).collect()
}

fn no_report() -> BuildError {
    error::load_failed("the code ended its process while it was loaded")
        .hint("code that calls `process.exit()` at its top level cannot be a function")
}

fn invalid_report(why: &str) -> BuildError {
    error::load_failed(format!("the inspection report is invalid: {why}"))
        .hint("does the code write files while it is loaded?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn the_answer_is_read_without_following_or_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let message = |name: &str| Inspection::load(&path(name)).unwrap_err().message;
        fs::write(path("good"), r#"{"entries":[]}"#).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("cut"), r#"{"entries":["#).unwrap();
        fs::write(path("more"), r#"{"entries":[],"root":true}"#).unwrap();
        symlink("good", path("link")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status();
        assert!(made.unwrap().success());

        assert_eq!(Inspection::load(&path("good")).unwrap(), Inspection::default());
        for absent in ["absent", "empty"] {
            assert!(message(absent).contains("ended its process"), "{absent}");
        }
        for (name, why) in [("cut", "EOF"), ("more", "unknown field `root`"), ("link", "a link")] {
            assert!(message(name).contains(why), "{name}: {}", message(name));
        }
        assert!(message("pipe").contains("not a file"));
        assert!(message(".").contains("not a file"));
    }

    /// A report of the runtime's `inspect.js`, character by character.
    #[test]
    fn a_real_answer_is_read_whole() {
        let real = r#"{"entries":[{"entry":"index.js","error":null,"exports":[{"name":"hello","signature":"express","config":{"timeout":10000,"env":{"A":1.5}},"reach":{"files":["index.js"],"code":"96d8"}},{"name":"default","signature":"fetch","config":null}],"files":["index.js","lib/a.js"],"together":"no","dynamic":[{"file":"index.js","line":3,"text":"require(n);"}]},{"entry":"broken.js","error":{"message":"boom","stack":"Error: boom\n    at Object.<anonymous> (/app/broken.js:1:7)"},"exports":[],"files":["broken.js"],"dynamic":[]}]}"#;
        let inspection = Inspection::parse(real.as_bytes()).unwrap();
        let index = inspection.found("index.js", |_| None).unwrap();
        assert_eq!(index.exports[1].signature, Signature::Fetch);
        assert_eq!((index.files.len(), index.dynamic[0].line), (2, 3));
        assert_eq!(index.exports[0].reach.as_ref().unwrap().files, ["index.js"]);
        assert!(index.unknown().unwrap().contains("is loaded at index.js:3: require(n);"));
        let broken = inspection.found("broken.js", |_| None).unwrap_err();
        assert_eq!(
            broken.message,
            "`broken.js` could not be loaded: Error: boom\n    at Object.<anonymous> (/app/broken.js:1:7)"
        );
    }

    #[test]
    fn an_errors_text_cannot_steer_a_terminal() {
        let error = LoadError { message: "a\u{1b}[2Jb".into(), stack: Some("at x\n\tat y".into()) };
        assert_eq!(error.error_text(), "a[2Jb\nat x\n\tat y");
        let error = LoadError { message: "no x".into(), stack: Some("Error: no x\n  at y".into()) };
        assert_eq!(error.error_text(), "Error: no x\n  at y");
        let error = LoadError { message: "too slow".into(), stack: Some(String::new()) };
        assert_eq!(error.error_text(), "too slow");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,200}", cut in 0usize..300) {
            let _ = Inspection::parse(text.as_bytes());
            let good = br#"{"entries":[{"entry":"a.js","error":null,"exports":[{"name":"a","signature":"express","config":{"timeout":1}}],"files":["a.js"],"dynamic":[{"file":"a.js","line":1,"text":"require(x)"}]}]}"#;
            let _ = Inspection::parse(&good[..cut.min(good.len())]);
        }
    }
}
