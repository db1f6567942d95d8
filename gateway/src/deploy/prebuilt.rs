//! Images built elsewhere, by `epsilon build` or by another pipeline: checks here, before the
//! deployment starts, what our own builder would have checked. Whether the images can be pulled
//! shows when the VMs fetch them.
//!
//! Pure. Used by the control API; the rest of the deployment is in `deploy.rs`, as for a pushed
//! project.

pub(crate) mod ceilings;

pub(crate) use ceilings::Ceilings;
use epsilon_api::{
    build::{Built, BuiltFunction},
    function::{FunctionSpec, ImageRef, Isolation, MAX_STOP_GRACE, Parts, Runtime},
    ids::FunctionName,
    suggest::nearest,
};
use std::{collections::BTreeSet, fmt, time::Duration};

/// Environment variables that the platform sets.
const RESERVED_PREFIX: &str = "EPSILON_";
const RESERVED: &str = "PORT";
/// Longest environment of one function in bytes, as for projects.
const MAX_ENV: usize = 64 << 10;
/// Most layers above a runtime base. Our builder makes two; an engine mounts some tens at most.
const MAX_LAYERS: usize = 16;
/// Longest name of an image or a file.
const MAX_NAME: usize = 512;

/// Errors in a document of images, for its author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PrebuiltError {
    /// It contains no functions.
    #[error("it names no functions")]
    Empty,
    /// It contains more functions than the operator allows.
    #[error("it names {0} functions; the operator's ceiling is {1}")]
    TooMany(usize, usize),
    /// Two functions have the same name.
    #[error("it names `{0}` twice")]
    Duplicate(FunctionName),
    /// The name is a path of the platform.
    #[error("`{0}` is a path of the platform and cannot be a function's name; choose another one")]
    Reserved(FunctionName),
    /// `--only` names a function that the document does not contain.
    #[error("it does not name `{0}`{1}")]
    NotInDocument(FunctionName, Nearest),
    /// A setting or an image of one function is invalid.
    #[error("`{function}`: {key} {what}")]
    Invalid {
        /// The function.
        function: FunctionName,
        /// The key, in backticks.
        key: &'static str,
        /// The rest of the message, after the key.
        what: String,
    },
}

/// The existing name that is most similar, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nearest(Option<String>);

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "; it names `{name}`"),
            None => Ok(()),
        }
    }
}

/// Checks a document and keeps only the functions in `only`, or all if it is empty. With
/// `has_engine`, images may be in the engine of this machine; otherwise they have to be in a
/// registry.
pub(crate) fn checked(
    mut built: Built,
    only: &[FunctionName],
    ceilings: &Ceilings,
    has_engine: bool,
) -> Result<Built, PrebuiltError> {
    if built.functions.is_empty() {
        return Err(PrebuiltError::Empty);
    }
    if built.functions.len() > ceilings.max_functions {
        return Err(PrebuiltError::TooMany(built.functions.len(), ceilings.max_functions));
    }
    let mut names = BTreeSet::new();
    for function in &built.functions {
        if function.name.is_reserved() {
            return Err(PrebuiltError::Reserved(function.name.clone()));
        }
        if !names.insert(function.name.clone()) {
            return Err(PrebuiltError::Duplicate(function.name.clone()));
        }
        check(function, ceilings, has_engine).map_err(|(key, what)| PrebuiltError::Invalid {
            function: function.name.clone(),
            key,
            what,
        })?;
    }
    for name in only {
        if !names.contains(name) {
            let near = nearest(name.as_str(), names.iter().map(FunctionName::as_str));
            return Err(PrebuiltError::NotInDocument(
                name.clone(),
                Nearest(near.map(str::to_owned)),
            ));
        }
    }
    if !only.is_empty() {
        built.functions.retain(|function| only.contains(&function.name));
    }
    built.functions.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(built)
}

type Violation = (&'static str, String);

fn check(function: &BuiltFunction, ceilings: &Ceilings, has_engine: bool) -> Result<(), Violation> {
    image("`image`", &function.image, has_engine)?;
    if let Some(composed) = &function.parts {
        parts(composed, function.spec.runtime, has_engine)?;
    }
    let FunctionSpec {
        runtime,
        entry,
        export,
        signature: _,
        event: _,
        timeout,
        memory,
        cpu,
        concurrency,
        min_instances,
        max_instances,
        idle_timeout,
        env: _,
        network: _,
        idempotent: _,
        isolation,
        max_body,
        stop_grace,
        idle: _,
    } = &function.spec;
    match runtime {
        Runtime::Node => {
            for (key, text) in [("`entry`", entry), ("`export`", export)] {
                let is_name = !text.is_empty()
                    && text.len() <= MAX_NAME
                    && !text.chars().any(char::is_control);
                ensure(is_name, key, || "must be a name".into())?;
            }
        }
        Runtime::Container => {}
    }
    within("`timeout_ms`", *timeout, Duration::from_millis(1), ceilings.max_timeout)?;
    if let Some(idle) = *idle_timeout {
        within("`idle_timeout_ms`", idle, Duration::ZERO, ceilings.max_idle_timeout)?;
    }
    if let Some(limit) = *max_body {
        ensure(limit.0 > 0, "`max_body_bytes`", || "must be at least 1".into())?;
    }
    within("`stop_grace_ms`", *stop_grace, Duration::ZERO, MAX_STOP_GRACE)?;
    let is_alone = *isolation == Isolation::Instance || concurrency.get() == 1;
    ensure(is_alone, "`isolation`", || "`call` needs a `concurrency` of 1".into())?;
    ensure(*memory >= ceilings.min_memory, "`memory_bytes`", || {
        format!("must be at least {}", ceilings.min_memory)
    })?;
    ensure(*memory <= ceilings.max_memory, "`memory_bytes`", || {
        format!("is more than the operator's ceiling of {}", ceilings.max_memory)
    })?;
    ensure(cpu.0 > 0, "`cpu_millicores`", || "must be at least 1".into())?;
    at_most("`cpu_millicores`", cpu.0, ceilings.max_cpu.0)?;
    at_most("`concurrency`", concurrency.get(), ceilings.max_concurrency)?;
    at_most("`max_instances`", max_instances.get(), ceilings.max_instances)?;
    ensure(*min_instances <= max_instances.get(), "`min_instances`", || {
        format!("is more than `max_instances` ({max_instances})")
    })?;
    environment(&function.spec)
}

fn ensure(holds: bool, key: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err((key, what())) }
}

fn at_most(key: &'static str, value: u32, most: u32) -> Result<(), Violation> {
    ensure(value <= most, key, || format!("is more than the operator's ceiling of {most}"))
}

fn within(
    key: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), Violation> {
    ensure(value >= least, key, || format!("must be at least {}", least.as_millis()))?;
    ensure(value <= most, key, || {
        format!("is more than the operator's ceiling of {}", humantime::format_duration(most))
    })
}

fn environment(spec: &FunctionSpec) -> Result<(), Violation> {
    const KEY: &str = "`env`";
    let mut bytes = 0;
    for (name, value) in &spec.env {
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let is_name = starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        ensure(is_name, KEY, || {
            format!("has {name:?}; a name is letters, digits and `_`, no digit first")
        })?;
        let is_free = !name.starts_with(RESERVED_PREFIX) && name != RESERVED;
        ensure(is_free, KEY, || format!("sets `{name}`, which belongs to the platform"))?;
        ensure(!value.contains('\0'), KEY, || format!("has a zero byte in `{name}`"))?;
        bytes += name.len() + value.len();
    }
    ensure(bytes <= MAX_ENV, KEY, || format!("is longer than {} KiB", MAX_ENV >> 10))
}

fn parts(parts: &Parts, runtime: Runtime, has_engine: bool) -> Result<(), Violation> {
    const KEY: &str = "`parts`";
    ensure(runtime == Runtime::Node, KEY, || "has no meaning with `runtime: container`".into())?;
    image("`parts.base`", &parts.base, has_engine)?;
    let count = parts.layers.len();
    ensure((1..=MAX_LAYERS).contains(&count), KEY, || {
        format!("has {count} layers; it can have 1 to {MAX_LAYERS}")
    })?;
    for layer in &parts.layers {
        let blob = layer.blob.as_ref().map(|blob| &blob.digest);
        let are_digests =
            [Some(&layer.diff_id), blob].into_iter().flatten().all(|it| is_digest(it));
        ensure(are_digests, KEY, || {
            "must identify layers and blobs by `sha256:` and 64 hexadecimal digits".into()
        })?;
    }
    Ok(())
}

fn image(key: &'static str, image: &ImageRef, has_engine: bool) -> Result<(), Violation> {
    ensure(is_digest(&image.digest), key, || {
        "must have a `digest` of the form `sha256:` and 64 hexadecimal digits".into()
    })?;
    let name = &image.reference;
    let is_name = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && !name.contains("..")
        && !name.contains("//")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-/:@[]".contains(&b));
    ensure(is_name, key, || format!("is {name:?}, which is not a valid image name"))?;
    match name.split_once('@') {
        Some((repository, digest)) => {
            let is_whole = repository.contains('/') && is_digest(digest);
            ensure(is_whole, key, || {
                format!("is `{name}`; write `host/path@sha256:…` with 64 hexadecimal digits")
            })
        }
        None => ensure(has_engine, key, || {
            format!(
                "is `{name}`, which is in one machine's engine; VMs of a fleet need it in a registry, by digest \
                 (`host/path@sha256:…`)"
            )
        }),
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests;
