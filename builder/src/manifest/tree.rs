//! Settings as a developer wrote them, from YAML or from JSON, before anyone knows what they mean.
//!
//! Two dangers end here: keys given twice (serde takes the last one without a word) and files that grow
//! when they are read (YAML aliases; a page of text can stand for gigabytes).

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use std::{cell::Cell, collections::HashSet, fmt};

/// Most values in one document, with aliases written out. A project with 200 functions has some 3,000.
const MAX_NODES: u32 = 20_000;

/// The key below which scalars are kept as written: `VERSION: 1.10` is the text `1.10`, not the number 1.1.
const ENV: &str = "env";

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Nothing: `key:` or `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// Any text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in their order, no key twice.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What it is, in the words of an error message.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "`true` or `false`",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// JSON, where a number is a number; YAML goes through [`from_yaml`].
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value { left: &Cell::new(MAX_NODES), written: Written::Never }.deserialize(from)
    }
}

/// Reads one YAML document; nothing at all is an empty map.
pub(super) fn from_yaml(text: &str) -> Result<Node, serde_yaml::Error> {
    let blank = |line: &str| matches!(line.trim().chars().next(), None | Some('#'));
    if text.lines().all(blank) {
        return Ok(Node::Map(Vec::new()));
    }
    let seed = Value { left: &Cell::new(MAX_NODES), written: Written::BelowEnv };
    seed.deserialize(serde_yaml::Deserializer::from_str(text))
}

/// Whether scalars keep the developer's spelling.
#[derive(Clone, Copy, PartialEq)]
enum Written {
    /// Not in this document.
    Never,
    /// Not here, but in a map named [`ENV`] below.
    BelowEnv,
    /// In this map, if it is one.
    InMap,
    /// Here.
    Here,
}

/// Reads one value; `left` is by how many values the document may still grow.
#[derive(Clone, Copy)]
struct Value<'a> {
    left: &'a Cell<u32>,
    written: Written,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom("too many values in one document"))?);
        match self.written {
            Written::Here => from.deserialize_option(self),
            Written::Never | Written::BelowEnv | Written::InMap => from.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.written {
            Written::Here => f.write_str("a text, a number, `true` or `false`"),
            Written::Never | Written::BelowEnv | Written::InMap => {
                f.write_str("a plain value, a list or a map")
            }
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        from.deserialize_str(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let (mut seen, mut nodes) = (HashSet::new(), Vec::new());
        while let Some(key) = map.next_key_seed(NewKey(&mut seen))? {
            let written = match self.written {
                Written::BelowEnv if key == ENV => Written::InMap,
                Written::InMap => Written::Here,
                same => same,
            };
            nodes.push((key, map.next_value_seed(Self { written, ..self })?));
        }
        Ok(Node::Map(nodes))
    }
}

/// Reads a key that its map does not have yet. The error is made here, where YAML knows the key's place.
struct NewKey<'a>(&'a mut HashSet<String>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        if self.0.insert(key.to_owned()) {
            Ok(key.to_owned())
        } else {
            Err(E::custom(format_args!("the key `{key}` is given twice")))
        }
    }
}
