//! A value tree of settings from YAML or JSON, before it is interpreted.
//!
//! Guards against duplicate keys (serde silently takes the last one) and against documents that
//! expand (YAML aliases: a page of text can expand to gigabytes).

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, Visitor},
};
use std::{cell::Cell, collections::HashSet, fmt};

/// Values in one document at most, aliases expanded. A project with 200 functions has about 3,000.
const MAX_NODES: u32 = 20_000;

/// Limit for [`open_brackets`].
const MAX_OPEN: usize = 128;

/// The key below which scalars stay as written: `VERSION: 1.10` is the text `1.10`, not the number
/// 1.1.
const ENV: &str = "env";

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `key:` or `null`.
    Null,
    /// `true`, `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// Any text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in order, without duplicates.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// Its type, for an error message.
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

/// For JSON, where a number is a number; YAML goes through [`from_yaml`].
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value { left: &Cell::new(MAX_NODES), written: Spelling::Never }.deserialize(from)
    }
}

/// Parses one YAML document; an empty one is an empty map.
pub(crate) fn from_yaml(text: &str) -> Result<Node, serde_yaml::Error> {
    if open_brackets(text) > MAX_OPEN {
        return Err(serde_yaml::Error::custom("too many nested brackets"));
    }
    let blank = |line: &str| matches!(line.trim().chars().next(), None | Some('#'));
    if text.lines().all(blank) {
        return Ok(Node::Map(Vec::new()));
    }
    let seed = Value { left: &Cell::new(MAX_NODES), written: Spelling::BelowEnv };
    seed.deserialize(serde_yaml::Deserializer::from_str(text))
}

/// Largest number of brackets open at one position, quoted ones included. The parser scans all open
/// ones at each step: 256 KiB of them took it 18 s (unoptimised). It refuses deeper nesting than
/// this anyway.
fn open_brackets(text: &str) -> usize {
    let mut open = 0usize;
    let mut most = 0;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Whether scalars stay as the developer wrote them.
#[derive(Clone, Copy, PartialEq)]
enum Spelling {
    /// Nowhere in this document.
    Never,
    /// In maps named [`ENV`] below.
    BelowEnv,
    /// In this map, if it is one.
    InMap,
    /// Here.
    Here,
}

/// Deserializes one value; `left` is the number of values that the document may still have.
#[derive(Clone, Copy)]
struct Value<'a> {
    left: &'a Cell<u32>,
    written: Spelling,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Node, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom("too many values in one document"))?);
        match self.written {
            Spelling::Here => from.deserialize_option(self),
            Spelling::Never | Spelling::BelowEnv | Spelling::InMap => from.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.written {
            Spelling::Here => f.write_str("a text, a number, `true` or `false`"),
            Spelling::Never | Spelling::BelowEnv | Spelling::InMap => {
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

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom("tags, like `!name`, have no meaning here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut seen = HashSet::new();
        let mut nodes = Vec::new();
        while let Some(key) = map.next_key_seed(NewKey(&mut seen))? {
            let written = match self.written {
                Spelling::BelowEnv if key == ENV => Spelling::InMap,
                Spelling::InMap => Spelling::Here,
                same => same,
            };
            nodes.push((key, map.next_value_seed(Self { written, ..self })?));
        }
        Ok(Node::Map(nodes))
    }
}

/// Deserializes a key that its map does not have yet. The error is made here, where YAML knows the
/// position.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn numbers_keep_their_text_below_env_only() {
        let node =
            from_yaml("a: 1.10\nenv: {A: 1.10, B: 0o17, C: yes, D: null, E: \"null\"}\n").unwrap();
        let Node::Map(top) = &node else { panic!("{node:?}") };
        assert_eq!(top[0].1, Node::Number(1.1));
        let texts = ["1.10", "0o17", "yes"].map(|text| Node::Text(text.into()));
        let Node::Map(env) = &top[1].1 else { panic!("{node:?}") };
        assert_eq!([&env[0].1, &env[1].1, &env[2].1], [&texts[0], &texts[1], &texts[2]]);
        assert_eq!((&env[3].1, &env[4].1), (&Node::Null, &Node::Text("null".into())));
    }

    #[test]
    fn json_refuses_a_key_twice_and_reads_everything_else() {
        let read = |text| serde_json::from_str::<Node>(text).map_err(|err| err.to_string());
        assert!(read(r#"{"a":1,"a":2}"#).unwrap_err().contains("`a` is given twice"));
        let node = read(r#"{"env":{"A":1.5,"B":null,"C":18446744073709551615}}"#).unwrap();
        assert!(format!("{node:?}").contains("Number(1.5)"), "{node:?}");
    }

    #[test]
    fn the_largest_hostile_manifests_end_soon() {
        let most = 256 << 10;
        let began = Instant::now();
        for text in ["[", "{a: ", "[]{}[", "- ", "&a ", "? ", "a: *a\n"] {
            assert!(from_yaml(&text.repeat(most / text.len())).is_err(), "{text}");
        }
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z:{}\\[\\]&*!|>#'\"%@, \\n\\t0-9-]{0,200}", any in "\\PC{0,100}") {
            let _ = from_yaml(&text);
            let _ = from_yaml(&any);
        }
    }
}
