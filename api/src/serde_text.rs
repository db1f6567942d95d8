//! Deserializers for values as people write them: `30s`, `100MiB`, `0.5` cores. For
//! `#[serde(deserialize_with = "…")]` of the parts' settings; an error names what was written and a
//! valid example.

use crate::units::MilliCores;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{fmt::Display, str::FromStr, time::Duration};

/// A duration with its unit.
///
/// # Errors
/// When the text is not a duration.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|_| {
        D::Error::custom(format!("`{text}` is not a duration; write for example `30s`"))
    })
}

/// Anything that is parsed from text: sizes, addresses.
///
/// # Errors
/// The error of its parser.
pub fn text<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

/// Anything that is parsed from text; absence has a meaning of its own.
///
/// # Errors
/// The error of its parser.
pub fn some_text<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// A number of cores.
///
/// # Errors
/// When it is not a positive number.
pub fn cores<'de, D: Deserializer<'de>>(from: D) -> Result<MilliCores, D::Error> {
    let cores = f64::deserialize(from)?;
    MilliCores::from_cores(cores)
        .ok_or_else(|| D::Error::custom(format!("`{cores}` is not a number of cores")))
}
