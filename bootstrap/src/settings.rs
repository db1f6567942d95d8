//! The settings of all programs: the file, overridden by the environment, overridden by flags. An
//! unknown key is an error that names the nearest known one. All of it is over the defaults of each
//! part's `config.default.yaml`, which also says what the keys mean.
//!
//! ```yaml
//! gateway: { max_body: 10MiB }     # or EPSILON_GATEWAY_MAX_BODY=10MiB
//! vm_agent: { queue_wait: 2s }     # or EPSILON_VM_AGENT_QUEUE_WAIT=2s
//! builder: { }
//! ```

pub mod invalid;
mod section;

pub use section::{Defaults, Removed, Section};

use crate::failure::Failure;
use epsilon_api::suggest::nearest;
use serde_yaml::{Mapping, Value};
use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

/// The sections, and the prefixes of their environment variables.
const SECTIONS: [(&str, &str); 3] = [
    ("gateway", "EPSILON_GATEWAY_"),
    ("vm_agent", "EPSILON_VM_AGENT_"),
    ("builder", "EPSILON_BUILDER_"),
];
/// Parsing time grows faster than the text; no real settings file comes near this.
const FILE_MAX: u64 = 256 << 10;

/// Default of how long running calls may go on after the first signal: longer than most calls,
/// shorter than the stop timeouts of systemd and of orchestrators.
const DRAIN_GRACE: Duration = Duration::from_secs(30);

/// A flag that stands for a setting.
#[derive(Debug)]
pub struct Flag {
    /// The flag, as it is typed.
    pub name: &'static str,
    /// The section of its setting, such as `gateway`.
    pub section: &'static str,
    /// The key of its setting.
    pub key: &'static str,
    /// The value given.
    pub value: String,
}

/// The keys of each section with value and origin (file, variable or flag).
#[derive(Debug, Default)]
pub struct Layers {
    sections: BTreeMap<String, BTreeMap<String, (Value, String)>>,
    /// Keys that the program took for itself, by section: they still count as known settings.
    consumed: Vec<(String, String)>,
}

impl Layers {
    /// Reads all sources.
    ///
    /// # Errors
    /// Wrong usage: a source that cannot be read, or an unknown section.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[Flag],
    ) -> Result<Self, Failure> {
        let mut layers = Self::default();
        if let Some(path) = file {
            layers.add_file(path)?;
        }
        layers.add_env(env)?;
        for flag in flags {
            layers.set(flag.section, flag.key, Value::String(flag.value.clone()), flag.name);
        }
        Ok(layers)
    }

    fn set(&mut self, section: &str, key: &str, value: Value, origin: &str) {
        let section = self.sections.entry(section.to_owned()).or_default();
        section.insert(key.to_owned(), (value, origin.to_owned()));
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Failure> {
        let origin = format!("`{}`", path.display());
        let unreadable = |err: std::io::Error| {
            Failure::usage(format!("the settings file {origin} cannot be read")).with_cause(&err)
        };
        if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_MAX {
            return Err(Failure::usage(format!(
                "{origin} is larger than a settings file may be (256 KiB)"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let sections: Option<BTreeMap<String, Option<Mapping>>> = serde_yaml::from_str(&text)
            .map_err(|err| {
                Failure::usage(format!("{origin} is not a settings file"))
                    .with_cause(&err)
                    .hint("it has the sections `gateway:`, `vm_agent:` and `builder:`")
            })?;
        for (section, keys) in sections.unwrap_or_default() {
            if !SECTIONS.iter().any(|(known, _)| *known == section) {
                let known = SECTIONS.map(|(known, _)| known);
                return Err(unknown(
                    &format!("the section `{section}` in {origin}"),
                    &section,
                    &known,
                ));
            }
            for (key, value) in keys.unwrap_or_default() {
                let Value::String(key) = key else {
                    return Err(Failure::usage(format!(
                        "a key of `{section}` in {origin} is not a name"
                    )));
                };
                self.set(&section, &key, value, &format!("`{section}.{key}` in {origin}"));
            }
        }
        Ok(())
    }

    fn add_env(
        &mut self,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), Failure> {
        // CI systems pass missing variables as empty ones.
        for (name, value) in env.into_iter().filter(|(_, value)| !value.is_empty()) {
            let Some(name) = name.to_str() else { continue };
            for (section, prefix) in SECTIONS {
                let Some(key) = name.strip_prefix(prefix).filter(|key| !key.is_empty()) else {
                    continue;
                };
                let value = value
                    .to_str()
                    .ok_or_else(|| Failure::usage(format!("{name} is not valid UTF-8")))?;
                // As in the file: `8` is a number, `[a, b]` a list, `30s` a text.
                let value = serde_yaml::from_str(value).map_err(|err| {
                    Failure::usage(format!("{name} has no value")).with_cause(&err)
                })?;
                self.set(section, &key.to_lowercase(), value, name);
            }
        }
        Ok(())
    }

    /// `gateway.drain_grace`: needed by the program that shuts the parts down.
    ///
    /// # Errors
    /// Wrong usage: not a duration.
    pub fn take_drain_grace(&mut self) -> Result<Duration, Failure> {
        Ok(self.take_duration("gateway", "drain_grace")?.unwrap_or(DRAIN_GRACE))
    }

    /// Takes a key out of its section: for keys that the program itself needs, and no part.
    ///
    /// # Errors
    /// Wrong usage: not a duration.
    pub fn take_duration(&mut self, section: &str, key: &str) -> Result<Option<Duration>, Failure> {
        let Some((value, origin)) = self.take(section, key) else { return Ok(None) };
        let read = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
        let wrong =
            || Failure::usage(format!("{origin} is not a duration")).hint("write it like `30s`");
        read.map(Some).ok_or_else(wrong)
    }

    /// Takes a key out of its section, as text: for keys that the program itself needs, and no
    /// part.
    ///
    /// # Errors
    /// Wrong usage: not a text.
    pub fn take_text(&mut self, section: &str, key: &str) -> Result<Option<String>, Failure> {
        let Some((value, origin)) = self.take(section, key) else { return Ok(None) };
        match value {
            Value::String(text) => Ok(Some(text)),
            _ => Err(Failure::usage(format!("{origin} is not a text"))),
        }
    }

    fn take(&mut self, section: &str, key: &str) -> Option<(Value, String)> {
        self.consumed.push((section.to_owned(), key.to_owned()));
        self.sections.get_mut(section)?.remove(key)
    }

    /// One section: its defaults, with what is written over them.
    ///
    /// # Errors
    /// Wrong usage, with the key and its origin.
    pub fn section<S: Section>(&self) -> Result<S, Failure> {
        let section = S::DEFAULTS.section();
        let empty = BTreeMap::new();
        let keys = self.sections.get(section).unwrap_or(&empty);
        refuse_removed(section, keys, S::REMOVED)?;
        let written: Mapping =
            keys.iter().map(|(key, (value, _))| (key.clone().into(), value.clone())).collect();
        let all = S::DEFAULTS.under(written, S::PROGRAM).map_err(|err| {
            Failure::new("DEFAULTS", "the compiled-in defaults are not valid").with_cause(&err)
        })?;
        serde_path_to_error::deserialize(Value::Mapping(all)).map_err(|err| {
            let path = err.path().to_string();
            let message = err.inner().to_string();
            let key = path.split(['.', '[']).next().unwrap_or_default();
            let (named, mut known) = unknown_field(&message);
            let own = self.consumed.iter().filter(|(of, _)| of == section);
            known.extend(own.map(|(_, key)| key.as_str()));
            let origin = match (keys.get(key), named.and_then(|name| keys.get(name))) {
                (Some((_, origin)), _) | (None, Some((_, origin))) => origin.clone(),
                (None, None) => format!("the section `{section}`"),
            };
            match named {
                Some(name) => unknown(&origin, name, &known),
                None => Failure::usage(format!("{origin}: {message}")),
            }
        })
    }
}

/// Names of earlier releases have no effect; an operator who relies on one has to know.
fn refuse_removed(
    section: &str,
    keys: &BTreeMap<String, (Value, String)>,
    removed: &[Removed],
) -> Result<(), Failure> {
    for old in removed {
        let (first, inner) =
            old.key().split_once('.').map_or((old.key(), None), |(a, b)| (a, Some(b)));
        let Some((value, origin)) = keys.get(first) else { continue };
        let hint = match inner {
            None => format!("remove {origin}"),
            Some(inner) if value.get(inner).is_some() => format!("remove it from {origin}"),
            Some(_) => continue,
        };
        let message = format!("`{section}.{}` is no longer a setting: {old}", old.key());
        return Err(Failure::usage(message).hint(hint));
    }
    Ok(())
}

/// Parses serde's "unknown field `x`, expected one of `a`, `b`": serde offers no other way.
fn unknown_field(message: &str) -> (Option<&str>, Vec<&str>) {
    let Some((_, rest)) = message.split_once("unknown field ") else { return (None, Vec::new()) };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    (quoted.next(), quoted.collect())
}

fn unknown(what: &str, given: &str, known: &[&str]) -> Failure {
    let hint = match nearest(given, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are: {}", known.join(", ")),
    };
    Failure::usage(format!("{what} is not a setting")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        listen: String,
        workers: u32,
        limits: Limits,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        body: String,
    }

    impl Section for Part {
        const DEFAULTS: Defaults = Defaults::new(
            "gateway",
            "gateway: { listen: here, workers: 3, limits: { body: 9MiB }, store: sqlite }",
        );
        const REMOVED: &'static [Removed] = &[
            Removed::fixed("pace", "5 s", "one size fits all"),
            Removed::fixed("limits.head", "64KiB", "browsers send less"),
            Removed::renamed("threads", "workers"),
        ];
        const PROGRAM: &'static [&'static str] = &["store"];
    }

    fn read(file: &str, env: &[(&str, &str)], flags: &[Flag]) -> Result<Part, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.yaml");
        std::fs::write(&path, file).unwrap();
        let mut layers = Layers::default();
        layers.add_file(&path)?;
        layers.add_env(env.iter().map(|(name, value)| (name.into(), value.into())))?;
        for flag in flags {
            layers.set(flag.section, flag.key, Value::String(flag.value.clone()), flag.name);
        }
        layers.section()
    }

    fn error(file: &str, env: &[(&str, &str)]) -> String {
        format!("{:?}", read(file, env, &[]).unwrap_err())
    }

    #[test]
    fn flags_win_over_environment_and_that_over_the_file() {
        let file = "gateway: { listen: file, workers: 1, limits: { body: 1MiB } }\nvm_agent:\n";
        let env = [("EPSILON_GATEWAY_LISTEN", "env"), ("EPSILON_GATEWAY_WORKERS", "2")];
        let other = [("EPSILON_GATEWAY", "http://x"), ("EPSILON_KEY", "k")];
        let env = [&env[..], &other, &[("EPSILON_GATEWAY_LISTEN", "")]].concat();
        let flag =
            Flag { name: "--listen", section: "gateway", key: "listen", value: "flag".into() };
        let part = read(file, &env, &[flag]).unwrap();
        let limits = Limits { body: "1MiB".into() };
        assert_eq!(part, Part { listen: "flag".into(), workers: 2, limits });
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        let part = read("# nothing\n", &[], &[]).unwrap();
        let limits = Limits { body: "9MiB".into() };
        assert_eq!(part, Part { listen: "here".into(), workers: 3, limits });
        assert_eq!(part, Part::defaults());
        assert_eq!(read("gateway: { workers: }", &[], &[]).unwrap(), part, "a key without a value");
    }

    #[test]
    fn a_removed_setting_is_refused_with_the_reason() {
        let text = error("gateway: { pace: 1s }", &[]);
        let want = "`gateway.pace` is no longer a setting: it is fixed at 5 s (one size fits all)";
        assert!(text.contains(want) && text.contains("remove `gateway.pace` in `"), "{text}");
        let text = error("", &[("EPSILON_GATEWAY_PACE", "5s")]);
        assert!(text.contains("remove EPSILON_GATEWAY_PACE"), "{text}");
        let text = error("gateway: { limits: { body: 1MiB, head: 1KiB } }", &[]);
        let want = "`gateway.limits.head` is no longer a setting: it is fixed at 64KiB";
        assert!(text.contains(want) && text.contains("remove it from `gateway.limits`"), "{text}");
        let text = error("gateway: { threads: 2 }", &[]);
        assert!(text.contains("its name is `workers` now"), "{text}");
    }

    #[test]
    fn unknown_keys_are_named_with_origin_and_suggestion() {
        let text = error("gateway: { lisen: x }", &[]);
        assert!(
            text.contains("`gateway.lisen` in `") && text.contains("did you mean `listen`?"),
            "{text}"
        );
        let text = error("gateway: { limits: { bdy: x } }", &[]);
        assert!(text.contains("`gateway.limits` in") && text.contains("`body`"), "{text}");
        let text = error("", &[("EPSILON_GATEWAY_WORKRS", "1")]);
        assert!(text.contains("EPSILON_GATEWAY_WORKRS") && text.contains("`workers`"), "{text}");
        let text = error("gatway: {}", &[]);
        assert!(text.contains("the section `gatway`") && text.contains("`gateway`"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let text = error("gateway: { workers: many }", &[]);
        assert!(text.contains("`gateway.workers` in") && text.contains("invalid type"), "{text}");
        let text = error("", &[("EPSILON_GATEWAY_WORKERS", "-1")]);
        assert!(text.contains("EPSILON_GATEWAY_WORKERS: invalid value"), "{text}");
    }

    #[test]
    fn what_the_program_took_is_among_what_there_is() {
        let mut layers = Layers::default();
        assert_eq!(layers.take_text("gateway", "store").unwrap(), None);
        layers.set("gateway", "zzz", "x".into(), "EPSILON_GATEWAY_ZZZ");
        let error = format!("{:?}", layers.section::<Part>().unwrap_err());
        assert!(error.contains("workers") && error.contains("store"), "{error}");
    }
}
