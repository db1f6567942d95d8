//! One map of settings, read key by key. Reading a key makes it known: [`Section::end`] then
//! refuses every other one and suggests the nearest known.

use crate::value_tree::Node;
use epsilon_api::suggest;

/// An error and the keys above it. [`super::document`] finds their position in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(path: &[String], message: impl Into<String>) -> Self {
        Self { path: path.to_vec(), message: message.into() }
    }
}

/// A map of settings under a path of keys.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: Vec<String>,
    entries: &'a [(String, Node)],
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Opens a node that must be a map. `null` is an empty map: `hello:` uses the defaults.
    pub(super) fn open(path: Vec<String>, node: &'a Node) -> Result<Self, Problem> {
        let entries: &[_] = match node {
            Node::Map(entries) => entries,
            Node::Null => &[],
            Node::Bool(_) | Node::Number(_) | Node::Text(_) | Node::List(_) => {
                let message = format!("must be a map of settings, not {}", node.kind());
                return Err(Problem { path, message });
            }
        };
        Ok(Self { path, entries, known: Vec::new() })
    }

    /// Its keys and values, where the keys are the developer's own names.
    pub(super) fn entries(&self) -> &'a [(String, Node)] {
        self.entries
    }

    /// The path of a key in it.
    pub(super) fn path_of(&self, key: &str) -> Vec<String> {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    /// Takes the value of a key, if present, through `read`, whose error completes "`key` …".
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(node) = self.take_node(key)? else { return Ok(None) };
        read(node).map(Some).map_err(|message| Problem { path: self.path_of(key), message })
    }

    /// The value of a key, without taking it.
    pub(super) fn peek(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// Takes the value of a key unparsed.
    pub(super) fn take_node(&mut self, key: &'static str) -> Result<Option<&'a Node>, Problem> {
        self.known.push(key);
        match self.entries.iter().find(|(name, _)| name == key) {
            Some((_, Node::Null)) => {
                Err(Problem { path: self.path_of(key), message: "has no value".into() })
            }
            Some((_, node)) => Ok(Some(node)),
            None => Ok(None),
        }
    }

    /// Refuses keys that are valid settings, but not here. They are not suggested for others.
    pub(super) fn refuse(&self, keys: &[&str], why: &str) -> Result<(), Problem> {
        match self.entries.iter().find(|(key, _)| keys.contains(&key.as_str())) {
            Some((key, _)) => Err(Problem { path: self.path_of(key), message: why.into() }),
            None => Ok(()),
        }
    }

    /// Fails if any key is left.
    pub(super) fn end(self) -> Result<(), Problem> {
        let unknown = self.entries.iter().find(|(key, _)| !self.known.contains(&key.as_str()));
        let Some((key, _)) = unknown else { return Ok(()) };
        let message = match suggest::nearest(key, self.known.iter().copied()) {
            Some(near) => format!("is an unknown key; did you mean `{near}`?"),
            None => format!("is an unknown key; known are `{}`", self.known.join("`, `")),
        };
        Err(Problem { path: self.path_of(key), message })
    }
}
