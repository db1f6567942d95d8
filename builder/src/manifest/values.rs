//! Parsers of single values. Each error completes "`key` …" and names a valid value.

use crate::{text::short, value_tree::Node};
use epsilon_api::units::{Bytes, MilliCores};
use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

/// Prefixes and names of variables that belong to the platform.
const RESERVED: [&str; 2] = ["EPSILON_", "PORT"];

/// Bytes of one function's environment at most. It is part of the image's configuration and of each
/// start.
const ENV_MAX: usize = 64 << 10;

pub(super) fn text(node: &Node) -> Result<String, String> {
    match node {
        Node::Text(text) if text.is_empty() => Err("is empty".into()),
        Node::Text(text) if text.chars().any(char::is_control) => {
            Err("has control characters".into())
        }
        Node::Text(text) => Ok(text.clone()),
        _ => Err(format!("must be a text, not {}", node.kind())),
    }
}

/// One of a few keywords.
pub(super) fn word<T: Copy>(node: &Node, words: &[(&'static str, T)]) -> Result<T, String> {
    let given = text(node)?;
    let found = words.iter().find(|(word, _)| *word == given);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("is `{}`; it can be {}", short(&given), all.join(" or "))
    })
}

/// `true` or `false`. Other YAML 1.1 booleans are texts.
pub(super) fn yes_or_no(node: &Node) -> Result<bool, String> {
    match node {
        Node::Bool(value) => Ok(*value),
        _ => Err(format!("must be `true` or `false`, not {}", node.kind())),
    }
}

/// `10s`, `1.5s`, `5m`, `250ms`, `1h`, or a number of milliseconds.
pub(super) fn duration(node: &Node, max: Duration) -> Result<Duration, String> {
    let example = "write for example `10s`, `1500ms` or `5m`; a bare number is milliseconds";
    let millis = match node {
        Node::Number(millis) => *millis,
        Node::Text(text) => {
            let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
            let (number, unit) = text.split_at(end);
            let unit = match unit.trim_end() {
                "" | "ms" => 1.0,
                "s" => 1_000.0,
                "m" | "min" => 60_000.0,
                "h" => 3_600_000.0,
                _ => {
                    return Err(format!(
                        "is `{}`, which is not a duration; {example}",
                        short(text)
                    ));
                }
            };
            let number: Option<f64> = number.trim().replace('_', "").parse().ok();
            number.ok_or_else(|| {
                format!("is `{}`, which is not a duration; {example}", short(text))
            })? * unit
        }
        _ => return Err(format!("must be a duration, not {}; {example}", node.kind())),
    };
    if millis < 1.0 || millis.is_nan() {
        return Err("must be at least 1ms".into());
    }
    if millis > max.as_secs_f64() * 1000.0 {
        return Err(format!("is more than the operator's ceiling of {}", written(max)));
    }
    Ok(Duration::from_millis(millis.round() as u64))
}

/// A duration of less than a second that was written as a bare number: probably seconds were meant.
pub(super) fn bare_millis(node: &Node) -> Option<f64> {
    let number = match node {
        Node::Number(number) => *number,
        Node::Text(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number < 1000.0).then_some(number)
}

/// A duration as people write it.
fn written(duration: Duration) -> String {
    match duration.as_millis() {
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// `256MiB`. A bare number is refused: it could be bytes or megabytes.
pub(super) fn size(node: &Node, min: Bytes, max: Bytes) -> Result<Bytes, String> {
    let Node::Text(text) = node else {
        return Err(format!("must be a size with a unit, like `256MiB`, not {}", node.kind()));
    };
    let size: Bytes = text.parse().map_err(|_| {
        format!("is `{}`, which is not a size; write for example `256MiB` or `1GiB`", short(text))
    })?;
    if size < min {
        return Err(format!("must be at least {min}"));
    }
    if size > max {
        return Err(format!("is more than the operator's ceiling of {max}"));
    }
    Ok(size)
}

/// A number of cores: `1`, `0.5`.
pub(super) fn cores(node: &Node, max: MilliCores) -> Result<MilliCores, String> {
    let Node::Number(cores) = node else {
        return Err(format!("must be a number of cores, like `0.5`, not {}", node.kind()));
    };
    // The engine accepts no less than a hundredth of a core.
    match MilliCores::from_cores(*cores).filter(|cores| cores.0 >= 10) {
        None => Err("must be at least 0.01 cores".into()),
        Some(cores) if cores > max => Err(format!("is more than the operator's ceiling of {max}")),
        Some(cores) => Ok(cores),
    }
}

/// A whole number from 0.
pub(super) fn count(node: &Node, max: u32) -> Result<u32, String> {
    match node {
        Node::Number(number) if number.fract() == 0.0 && *number >= 0.0 => {
            if *number > f64::from(max) {
                return Err(format!("is more than the operator's ceiling of {max}"));
            }
            Ok(*number as u32)
        }
        Node::Number(number) => Err(format!("is {number}; it must be a whole number from 0")),
        _ => Err(format!("must be a whole number, not {}", node.kind())),
    }
}

/// A whole number from 1.
pub(super) fn positive(node: &Node, max: u32) -> Result<NonZeroU32, String> {
    NonZeroU32::new(count(node, max)?).ok_or_else(|| "must be at least 1".into())
}

/// A normalised path in the project.
pub(super) fn path(node: &Node) -> Result<String, String> {
    let given = text(node)?;
    if given.starts_with('/') || given.split('/').any(|name| name == "..") {
        return Err(format!("is `{}`; it must be inside the project", short(&given)));
    }
    let names: Vec<_> = given.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.is_empty() {
        return Err("must name a file".into());
    }
    Ok(names.join("/"))
}

/// A shell command.
pub(super) fn command(node: &Node) -> Result<String, String> {
    const LONGEST: usize = 4096;
    match node {
        Node::Text(text) if text.trim().is_empty() => Err("is empty".into()),
        Node::Text(text) if text.len() > LONGEST => {
            Err(format!("has more than {LONGEST} bytes; put it into a script of the project"))
        }
        Node::Text(text) if text.contains('\0') => Err("has control characters".into()),
        Node::Text(text) => Ok(text.clone()),
        _ => Err(format!("must be a command for a shell, not {}", node.kind())),
    }
}

/// An image reference. Only ambiguous texts are refused; the engine checks the rest.
pub(super) fn image(node: &Node) -> Result<String, String> {
    let given = text(node)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let starts_well = given.starts_with(|c: char| c.is_ascii_alphanumeric());
    if given.len() > 512 || !starts_well || !given.chars().all(fits) {
        return Err(format!("is `{}`, which is not an image reference", short(&given)));
    }
    Ok(given)
}

/// Environment variables. Numbers, `true` and `false` are taken as text.
pub(super) fn env(node: &Node) -> Result<BTreeMap<String, String>, String> {
    let Node::Map(entries) = node else {
        return Err(format!("must be a map of names and values, not {}", node.kind()));
    };
    let mut env = BTreeMap::new();
    for (name, value) in entries {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let name = short(name);
            return Err(format!("has `{name}`; a name is letters, digits and `_`, no digit first"));
        }
        if RESERVED.iter().any(|reserved| match reserved.strip_suffix('_') {
            Some(_) => name.starts_with(reserved),
            None => name == reserved,
        }) {
            return Err(format!("sets `{name}`, which belongs to the platform"));
        }
        let value = match value {
            Node::Text(text) if text.contains('\0') => {
                return Err(format!("has a zero byte in `{name}`"));
            }
            Node::Text(text) => text.clone(),
            Node::Number(number) => number.to_string(),
            Node::Bool(value) => value.to_string(),
            Node::Null => {
                return Err(format!("gives `{name}` no value; write `\"\"` for an empty one"));
            }
            Node::List(_) | Node::Map(_) => {
                return Err(format!("gives `{name}` {}; a value is one text", value.kind()));
            }
        };
        env.insert(name.clone(), value);
    }
    if env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() > ENV_MAX {
        return Err(format!("has more than {} in all", Bytes(ENV_MAX as u64)));
    }
    Ok(env)
}
