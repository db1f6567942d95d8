//! The directory name of an unpacked layer: its digest. A digest comes from outside, so it is
//! validated before it becomes a path. Pure.

use super::LayersError;
use std::{fmt, sync::Arc};

/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;
const LAYER: &str = "sha256-";
const IMAGE: &str = "image-";

/// `sha256-HEX` for a layer (HEX of its diff id), `image-HEX` for the code of a whole image (HEX of
/// its configuration).
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(Arc<str>);

impl Name {
    /// The name of a layer, from its `sha256:…`.
    pub(super) fn layer(diff_id: &str) -> Result<Self, LayersError> {
        Self::of(LAYER, diff_id)
    }

    /// The name of an image's code, from the image's `sha256:…`.
    pub(super) fn image(digest: &str) -> Result<Self, LayersError> {
        Self::of(IMAGE, digest)
    }

    /// Parses the name of a directory on disk.
    pub(super) fn of_folder(name: &str) -> Option<Self> {
        let hex = name.strip_prefix(LAYER).or_else(|| name.strip_prefix(IMAGE))?;
        is_hex(hex).then(|| Self(name.into()))
    }

    fn of(kind: &str, digest: &str) -> Result<Self, LayersError> {
        match digest.strip_prefix("sha256:").filter(|hex| is_hex(hex)) {
            Some(hex) => Ok(Self(format!("{kind}{hex}").into())),
            None => Err(LayersError::Unfit {
                layer: digest.escape_debug().take(2 * DIGITS).collect(),
                why: "its digest is not a SHA-256".into(),
            }),
        }
    }

    /// The name of the directory.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits of the digest.
    pub(super) fn hex(&self) -> &str {
        self.0.rsplit('-').next().unwrap_or_default()
    }
}

/// In the notation of digests.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Only lower case: one content has one name.
fn is_hex(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_digest_becomes_a_path() {
        let hex = "0a".repeat(32);
        let name = Name::layer(&format!("sha256:{hex}")).unwrap();
        assert_eq!((name.as_str(), name.hex()), (&*format!("sha256-{hex}"), &*hex));
        assert_eq!(name.to_string(), format!("sha256:{hex}"));
        assert_eq!(Name::of_folder(name.as_str()), Some(name.clone()));
        assert_ne!(Name::image(&format!("sha256:{hex}")).unwrap(), name);
        for bad in [
            String::new(),
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:../{}", &hex[3..]),
        ] {
            assert!(Name::layer(&bad).unwrap_err().is_unfit(), "{bad}");
            assert_eq!(Name::of_folder(&bad), None);
        }
    }
}
