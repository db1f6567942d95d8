//! What a part declares about its section of the settings file: the defaults, a commented YAML file
//! that is compiled in, and the names that are no longer settings. [`super::Layers`] puts what an
//! operator wrote over the defaults, so each key has its default in one place, which is also the
//! place that explains it: `docs/config.md` is made from these files.
//!
//! What a value may be is not known here: the part checks it.

use serde::de::{DeserializeOwned, Error as _};
use serde_yaml::{Mapping, Value};
use std::fmt;

/// A section of the settings file, as its part declares it.
pub trait Section: DeserializeOwned {
    /// The part's `config.default.yaml`.
    const DEFAULTS: Defaults;
    /// Names that earlier releases knew.
    const REMOVED: &'static [Removed] = &[];
    /// Keys of the section that belong to the program and not to the part: `Layers::take_…`.
    const PROGRAM: &'static [&'static str] = &[];

    /// The section as this YAML sets it: for tests.
    ///
    /// # Errors
    /// When the text is not YAML, or a key or a value is wrong.
    fn read(written: &str) -> Result<Self, serde_yaml::Error> {
        Self::DEFAULTS.read_without("", written, Self::PROGRAM)
    }

    /// The section as it is where nothing is written.
    ///
    /// # Panics
    /// As [`Defaults::of`].
    fn defaults() -> Self {
        Self::read("{}").expect("the compiled-in defaults fit the settings")
    }
}

/// The defaults of one section: the text of a settings file that has this section only.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    section: &'static str,
    text: &'static str,
}

impl Defaults {
    /// The text of a part's `config.default.yaml`.
    pub const fn new(section: &'static str, text: &'static str) -> Self {
        Self { section, text }
    }

    /// The name of the section.
    pub const fn section(&self) -> &'static str {
        self.section
    }

    /// One area of the section (`autoscale`; empty: all of it) as this YAML sets it: for tests of
    /// that area.
    ///
    /// # Errors
    /// When the text is not YAML, or a key or a value is wrong.
    pub fn read<T: DeserializeOwned>(
        &self,
        area: &str,
        written: &str,
    ) -> Result<T, serde_yaml::Error> {
        self.read_without(area, written, &[])
    }

    fn read_without<T: DeserializeOwned>(
        &self,
        area: &str,
        written: &str,
        program: &[&str],
    ) -> Result<T, serde_yaml::Error> {
        let written: Mapping = serde_yaml::from_str(written)?;
        let mut defaults = self.mapping(area)?;
        program.iter().for_each(|key| drop(defaults.remove(*key)));
        let all = Value::Mapping(over(&defaults, written));
        serde_path_to_error::deserialize(all)
            .map_err(|err| serde_yaml::Error::custom(format!("{}: {}", err.path(), err.inner())))
    }

    /// The defaults of one area.
    ///
    /// # Panics
    /// If the file and the type do not fit: a mistake of the program that the first test of the
    /// part finds, since nothing of a machine or of an operator enters here.
    pub fn of<T: DeserializeOwned>(&self, area: &str) -> T {
        self.read(area, "{}").expect("the compiled-in defaults fit the settings")
    }

    /// `written` over the defaults of the section, but for the keys in `program`.
    pub(super) fn under(
        &self,
        written: Mapping,
        program: &[&str],
    ) -> Result<Mapping, serde_yaml::Error> {
        let mut defaults = self.mapping("")?;
        program.iter().for_each(|key| drop(defaults.remove(*key)));
        Ok(over(&defaults, written))
    }

    fn mapping(&self, area: &str) -> Result<Mapping, serde_yaml::Error> {
        let mut value: Value = serde_yaml::from_str(self.text)?;
        let areas = area.split('.').filter(|name| !name.is_empty());
        for name in std::iter::once(self.section).chain(areas) {
            value = value.get_mut(name).map(std::mem::take).unwrap_or_default();
        }
        serde_yaml::from_value(value)
    }
}

/// Puts `written` over `defaults`, key by key, also inside mappings. A default whose key is `<…>`
/// stands for names that the operator chooses: it is below each of them.
fn over(defaults: &Mapping, mut written: Mapping) -> Mapping {
    let is_template = |key: &Value| key.as_str().is_some_and(|key| key.starts_with('<'));
    let mut merged = Mapping::new();
    for (key, default) in defaults.iter().filter(|(key, _)| !is_template(key)) {
        let value = match (default, written.remove(key)) {
            (Value::Mapping(default), None) => over(default, Mapping::new()).into(),
            (Value::Mapping(default), Some(Value::Mapping(own))) => over(default, own).into(),
            // A key without a value is as if it were not written.
            (default, own) => own.filter(|own| !own.is_null()).unwrap_or_else(|| default.clone()),
        };
        merged.insert(key.clone(), value);
    }
    let template = defaults.iter().find(|(key, _)| is_template(key)).map(|(_, value)| value);
    for (key, own) in written {
        let value = match (template, own) {
            (Some(Value::Mapping(template)), Value::Mapping(own)) => over(template, own).into(),
            (_, own) => own,
        };
        merged.insert(key, value);
    }
    merged
}

/// A name that is no longer a setting. It is refused with the reason, so that an operator who
/// relied on it learns that it has no effect.
#[derive(Clone, Copy, Debug)]
pub struct Removed {
    key: &'static str,
    now: Now,
}

#[derive(Clone, Copy, Debug)]
enum Now {
    Fixed { at: &'static str, why: &'static str },
    Renamed { to: &'static str },
}

impl Removed {
    /// The key, without the section: `linger`, `autoscale.lease`.
    pub const fn key(&self) -> &'static str {
        self.key
    }

    /// It has one value for everyone.
    pub const fn fixed(key: &'static str, at: &'static str, why: &'static str) -> Self {
        Self { key, now: Now::Fixed { at, why } }
    }

    /// It has another name.
    pub const fn renamed(key: &'static str, to: &'static str) -> Self {
        Self { key, now: Now::Renamed { to } }
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.now {
            Now::Fixed { at, why } => write!(f, "it is fixed at {at} ({why})"),
            Now::Renamed { to } => write!(f, "its name is `{to}` now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(defaults: &str, written: &str) -> Value {
        let read = |text| serde_yaml::from_str(text).unwrap();
        over(&read(defaults), read(written)).into()
    }

    fn value(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn what_is_written_is_above_the_defaults_key_by_key() {
        let defaults = "{a: 1, b: [1, 2], c: {d: 1, e: 2}}";
        assert_eq!(merged(defaults, "{}"), value(defaults));
        let written = "{b: [3], c: {e: 3}, f: 4}";
        assert_eq!(merged(defaults, written), value("{a: 1, b: [3], c: {d: 1, e: 3}, f: 4}"));
        assert_eq!(merged(defaults, "{c: x}"), value("{a: 1, b: [1, 2], c: x}"));
    }

    #[test]
    fn a_template_is_below_each_name_and_none_itself() {
        let defaults = "{hooks: {'<project>': {branch: main, token: }}}";
        assert_eq!(merged(defaults, "{}"), value("{hooks: {}}"));
        let written = "{hooks: {shop: {token: x}, blog: {branch: live}}}";
        let both = "{hooks: {shop: {branch: main, token: x}, blog: {branch: live, token: }}}";
        assert_eq!(merged(defaults, written), value(both));
    }

    #[test]
    fn an_area_is_read_alone() {
        const DEFAULTS: Defaults = Defaults::new("part", "part: {area: {least: 1, most: 9}}");
        type Limits = std::collections::BTreeMap<String, u8>;
        let limits: Limits = DEFAULTS.read("area", "{most: 3}").unwrap();
        assert_eq!((limits["least"], limits["most"]), (1, 3));
        assert_eq!(DEFAULTS.of::<Limits>("area")["most"], 9);
    }
}
