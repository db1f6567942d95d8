//! Sizes with their unit in the type. Parsed from what people write (`256MiB`, `0.5`), printed the
//! same way. Used by manifests, settings and tables.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A number of bytes. Text form: a whole or decimal number with `B`, `KiB`, `MiB`, `GiB` (powers of
/// two) or `KB`, `MB`, `GB` (powers of ten).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size; write for example `256MiB` or `1.5GiB`")]
pub struct InvalidBytes(String);

const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl Bytes {
    /// `n` × 2²⁰ bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = InvalidBytes;

    fn from_str(text: &str) -> Result<Self, InvalidBytes> {
        let invalid = || InvalidBytes(text.chars().take(80).collect());
        let trimmed = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, size)| Some((trimmed.strip_suffix(name)?, *size)))
            .ok_or_else(invalid)?;
        let number: f64 = number.trim().parse().map_err(|_| invalid())?;
        let bytes = number * unit as f64;
        if !(0.0..=(1u64 << 50) as f64).contains(&bytes) {
            return Err(invalid());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, name) = match self.0 {
            n if n >= 1 << 30 => (1u64 << 30, "GiB"),
            n if n >= 1 << 20 => (1 << 20, "MiB"),
            n if n >= 1 << 10 => (1 << 10, "KiB"),
            n => return write!(f, "{n}B"),
        };
        if self.0.is_multiple_of(size) {
            write!(f, "{}{name}", self.0 / size)
        } else {
            write!(f, "{:.1}{name}", self.0 as f64 / size as f64)
        }
    }
}

/// CPU time in thousandths of a core.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct MilliCores(pub u32);

impl MilliCores {
    /// One whole core.
    pub const ONE: Self = Self(1000);

    /// From a number of cores, rounded to thousandths. `None` when it is not a positive number.
    pub fn from_cores(cores: f64) -> Option<Self> {
        let milli = (cores * 1000.0).round();
        (milli >= 1.0 && milli <= f64::from(u32::MAX)).then_some(Self(milli as u32))
    }
}

impl fmt::Display for MilliCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes, printed) in [
            ("256MiB", 256 << 20, "256MiB"),
            ("1.5GiB", 3 << 29, "1.5GiB"),
            ("1KiB", 1024, "1KiB"),
            ("100 MB", 100_000_000, "95.4MiB"),
            ("0B", 0, "0B"),
        ] {
            let size: Bytes = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, printed), "{text}");
        }
        for text in ["", "MiB", "-1MiB", "256", "256mib", "1e300GiB", "NaNMiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_positive() {
        assert_eq!(MilliCores::from_cores(0.5), Some(MilliCores(500)));
        assert_eq!(MilliCores::from_cores(0.0), None);
        assert_eq!(MilliCores::from_cores(f64::NAN), None);
        assert_eq!(MilliCores(1500).to_string(), "1.5");
    }
}
