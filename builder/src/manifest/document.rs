//! The text of a manifest and the positions in it: parsed once, and searched again for the line
//! when a later check fails.

use super::section::Problem;
use crate::{
    error,
    text::{decode, short},
    value_tree::{self, Node},
};
use epsilon_api::{build::BuildError, units::Bytes};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor},
};
use std::fmt;

/// Largest manifest. The parser's time grows with the square of the nesting (0.3 s for 100 KB of
/// `[`), and a project of 200 functions needs about 40 KB.
pub(super) const MAX_BYTES: Bytes = Bytes(256 << 10);

/// A settings file.
#[derive(Debug)]
pub(super) struct Document {
    name: String,
    text: String,
}

impl Document {
    /// Checks the encoding. The size was checked when it was read.
    pub(super) fn new(name: &str, bytes: Vec<u8>) -> Result<Self, BuildError> {
        Ok(Self { name: name.to_owned(), text: decode(name, bytes)? })
    }

    /// The tree of its values.
    pub(super) fn parse(&self) -> Result<Node, BuildError> {
        value_tree::from_yaml(&self.text).map_err(|cause| {
            let place = cause.location().map(|at| (at.line(), at.column()));
            match place.filter(|(line, _)| self.is_indented_by_a_tab(*line)) {
                Some(at) => self.error(Some(at), "a tab; YAML indents with spaces only"),
                None => self.error(place, &message(&cause)),
            }
        })
    }

    /// An error that points at the position of the problem.
    pub(super) fn problem(&self, problem: &Problem) -> BuildError {
        let message = match problem.path.as_slice() {
            [] => problem.message.clone(),
            path => {
                let keys: Vec<_> = path.iter().map(|key| short(key)).collect();
                format!("`{}` {}", keys.join("."), problem.message)
            }
        };
        self.error(self.place_of(&problem.path), &message)
    }

    fn error(&self, place: Option<(usize, usize)>, message: &str) -> BuildError {
        let name = &self.name;
        error::manifest_invalid(match place {
            Some((line, column)) => format!("{name}:{line}:{column}: {message}"),
            None => format!("{name}: {message}"),
        })
    }

    /// Whether this line is indented with a tab.
    fn is_indented_by_a_tab(&self, line: usize) -> bool {
        let line = line.checked_sub(1).and_then(|at| self.text.lines().nth(at)).unwrap_or_default();
        line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t')
    }

    /// Line and column of the innermost existing key of a path.
    fn place_of(&self, path: &[String]) -> Option<(usize, usize)> {
        // The parser reports positions only in its errors: walk to the key again, and fail there on
        // purpose.
        (1..=path.len()).rev().find_map(|length| {
            let walk = Walk { path: path.get(..length)? };
            let cause = walk.deserialize(serde_yaml::Deserializer::from_str(&self.text)).err()?;
            let at = cause.location().filter(|_| cause.to_string().contains(HERE))?;
            Some((at.line(), at.column()))
        })
    }
}

/// The parser's message without the position at its end, which is printed first.
fn message(cause: &serde_yaml::Error) -> String {
    let text = cause.to_string();
    let Some(at) = cause.location() else { return text };
    let tail = format!(" at line {} column {}", at.line(), at.column());
    text.replacen(&tail, "", 1)
}

/// The message of the error that ends a walk. No document can make the parser report it elsewhere.
const HERE: &str = "\u{0}here";

/// Fails at the position of the last key of a path.
#[derive(Clone, Copy)]
struct Walk<'a> {
    path: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(on_path) = map.next_key_seed(Key(self.path))? {
            match self.path.get(1..) {
                Some(rest) if on_path => map.next_value_seed(Walk { path: rest })?,
                _ => map.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
}

/// Deserializes to whether a key is the first of a path, and fails if it is also the last.
struct Key<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match self.0 {
            [last] if last == key => Err(E::custom(HERE)),
            [first, ..] => Ok(first == key),
            [] => Ok(false),
        }
    }
}
