//! Whether a text can be an image's reference: a check that settings, the engine and the
//! registry share. Pure.

/// Whether a text may be part of a path of the engine's API: bollard does not escape it.
pub(crate) fn is_reference(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !text.contains("..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
}
