//! Deserializers for values as people write them: `30s`, `100MiB`, `0.5` cores. For
//! `#[serde(deserialize_with = "…")]` of the parts' settings; an error names what was written and a
//! valid example.

use crate::units::MilliCores;
use serde::{
    Deserialize, Deserializer,
    de::{self, Error as _, Visitor},
};
use std::{fmt, fmt::Display, str::FromStr, time::Duration};

/// A duration with its unit.
///
/// # Errors
/// When the text is not a duration.
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    from.deserialize_str(DurationText)
}

/// Says what a duration looks like, also where something else than a text was written.
struct DurationText;

impl Visitor<'_> for DurationText {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, such as `30s`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text)
            .map_err(|_| E::custom(format!("`{text}` is not a duration; write for example `30s`")))
    }
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
