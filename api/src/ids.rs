//! Names and numbers as newtypes. Parsing is validation: a value is always well formed. Used by
//! every part; made at the edges only.

use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{fmt, num::NonZeroU32, str::FromStr, sync::Arc};

/// A text that is not a valid id of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: {rule}")]
pub struct InvalidId {
    /// The expected kind, for people.
    pub what: &'static str,
    /// The rule that the text breaks.
    pub rule: &'static str,
    /// The text, shortened to what fits on a line.
    pub text: String,
}

impl InvalidId {
    fn new(what: &'static str, rule: &'static str, text: &str) -> Self {
        let short: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        Self { what, rule, text: short }
    }
}

/// Declares a newtype over a shared string: cheap to clone, parsed by `$valid`. `$pattern` states the
/// same rule in the OpenAPI document.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $pattern:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = $pattern))]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the id.
            ///
            /// # Errors
            /// When the text breaks the rule of this kind.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err(InvalidId::new($what, $rule, text)) }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Longest name of a function or a project, in bytes (they are ASCII).
pub const NAME_MAX: usize = 63;

text_id!(
    /// The name of a function, as exported and as called; case-sensitive.
    FunctionName,
    "function name",
    "a letter, then up to 62 letters, digits, `-` or `_`",
    "^[A-Za-z][A-Za-z0-9_-]{0,62}$",
    |text| {
        let bytes = text.as_bytes();
        bytes.len() <= NAME_MAX
            && bytes.first().is_some_and(u8::is_ascii_alphabetic)
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    }
);

text_id!(
    /// The name of a project: one pushed folder.
    ProjectName,
    "project name",
    "a letter or digit, then up to 62 letters, digits, `.`, `-` or `_`",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
    |text| {
        let bytes = text.as_bytes();
        bytes.len() <= NAME_MAX
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    }
);

text_id!(
    /// One VM: stable across restarts of its agent.
    VmId,
    "VM id",
    "1 to 63 lower-case letters, digits or `-`",
    "^[a-z0-9-]{1,63}$",
    |text| {
        (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }
);

text_id!(
    /// One gateway: stable across its restarts.
    GatewayId,
    "gateway id",
    "`g-` and 12 hexadecimal digits",
    "^g-[0-9a-f]{12}$",
    |text| {
        text.strip_prefix("g-").is_some_and(|rest| {
            rest.len() == 12 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
);

text_id!(
    /// One key of a gateway or a member: its public part.
    KeyId,
    "key id",
    "12 hexadecimal digits",
    "^[0-9a-f]{12}$",
    |text| text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

text_id!(
    /// One container that serves one version.
    InstanceId,
    "instance id",
    "12 hexadecimal digits",
    "^[0-9a-f]{12}$",
    |text| text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

text_id!(
    /// One push of a project.
    DeploymentId,
    "deployment id",
    "`d-` and 16 hexadecimal digits",
    "^d-[0-9a-f]{16}$",
    |text| {
        text.strip_prefix("d-").is_some_and(|rest| {
            rest.len() == 16 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
);

text_id!(
    /// One call, from the caller's header or made by the gateway. Safe to print and to log.
    RequestId,
    "request id",
    "8 to 64 letters, digits, `-`, `_` or `.`",
    "^[A-Za-z0-9._-]{8,64}$",
    |text| {
        (8..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    }
);

/// First segments of the platform's own paths. A function of such a name could be mistaken for the
/// platform by someone who mixes up the two listeners and sends a key.
const PLATFORM_PATHS: [&str; 6] = ["v1", "healthz", "metrics", "console", "git", "mcp"];

impl FunctionName {
    /// Whether the platform reserves this name for its own paths. An existing function of that name
    /// can still be called; new deployments of it are refused.
    pub fn is_reserved(&self) -> bool {
        PLATFORM_PATHS.contains(&self.as_str())
    }
}

impl ProjectName {
    /// The nearest valid name to what a folder or a `package.json` is called: the scope of an npm
    /// name is dropped, other characters become `-`. `None` when nothing usable is left.
    pub fn from_loose(text: &str) -> Option<Self> {
        let base = text.rsplit('/').next().unwrap_or(text);
        let name: String = base
            .chars()
            .map(
                |c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' },
            )
            .skip_while(|c| !c.is_ascii_alphanumeric())
            .take(NAME_MAX)
            .collect();
        Self::parse(name.trim_end_matches(['-', '.'])).ok()
    }
}

impl InstanceId {
    /// A random id.
    pub fn random() -> Self {
        Self(format!("{:012x}", rand::rng().random::<u64>() >> 16).into())
    }
}

impl GatewayId {
    /// A random id.
    pub fn random() -> Self {
        Self(format!("g-{:012x}", rand::rng().random::<u64>() >> 16).into())
    }
}

impl DeploymentId {
    /// A random id.
    pub fn random() -> Self {
        Self(format!("d-{:016x}", rand::rng().random::<u64>()).into())
    }
}

impl RequestId {
    /// A random id of 128 bits, in hexadecimal.
    pub fn random() -> Self {
        let mut number = rand::rng().random::<u128>();
        // Each call makes one, and `format!` takes four times as long.
        let digits: [u8; 32] = std::array::from_fn(|_| {
            let digit = b"0123456789abcdef"[(number & 0xf) as usize];
            number >>= 4;
            digit
        });
        Self(String::from_utf8_lossy(&digits).into())
    }
}

/// The number of a version: 1, 2, 3… per function, never used twice, not even after a delete.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", schema(value_type = u32, minimum = 1))]
pub struct VersionNumber(NonZeroU32);

impl VersionNumber {
    /// The first version of a function.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The plain number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for VersionNumber {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse()
            .map(Self)
            .map_err(|_| InvalidId::new("version number", "a whole number from 1", text))
    }
}

/// One version of one function: what instances are made of, and what pools are keyed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionId {
    /// The function.
    pub function: FunctionName,
    /// Its version.
    pub number: VersionNumber,
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.function, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    macro_rules! names {
        ($($test:ident: $text:expr => $valid:expr;)*) => {$(
            #[test]
            fn $test() {
                assert_eq!(FunctionName::parse($text).is_ok(), $valid);
            }
        )*};
    }

    names! {
        plain: "hello" => true;
        case_is_significant: "sendMail_2-b" => true;
        sixty_three: &"a".repeat(63) => true;
        sixty_four: &"a".repeat(64) => false;
        three_hundred: &"a".repeat(300) => false;
        empty: "" => false;
        starts_with_digit: "1st" => false;
        object_prototype: "__proto__" => false;
        parent_folder: "../x" => false;
        escaped_dots: "%2e%2e" => false;
        shell: "a;rm -rf" => false;
        newline: "a\n" => false;
        not_ascii: "é" => false;
    }

    #[test]
    fn invalid_id_quotes_a_short_printable_text() {
        let err = FunctionName::parse(&"\u{1b}x".repeat(200)).unwrap_err();
        assert!(err.text.len() <= 80 && !err.text.contains('\u{1b}'));
    }

    #[test]
    fn loose_project_names() {
        let loose = |t| ProjectName::from_loose(t).map(|p| p.to_string());
        assert_eq!(loose("@shop/check out"), Some("check-out".into()));
        assert_eq!(loose("...").as_deref(), None);
        assert_eq!(loose("_a").as_deref(), Some("a"));
    }

    #[test]
    fn random_ids_are_valid() {
        for _ in 0..100 {
            assert!(InstanceId::parse(InstanceId::random().as_str()).is_ok());
            assert!(DeploymentId::parse(DeploymentId::random().as_str()).is_ok());
            assert!(RequestId::parse(RequestId::random().as_str()).is_ok());
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = FunctionName::parse(&text);
            let _ = RequestId::parse(&text);
            let _ = ProjectName::from_loose(&text);
        }
    }
}
