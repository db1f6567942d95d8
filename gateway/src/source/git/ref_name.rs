//! Whether a text can be the name of a branch or tag. Used by both sources of deployments.

/// Longest name of a branch or tag; GitHub's own limit is lower.
pub(crate) const MAX_NAME: usize = 255;

/// Whether git accepts this after `refs/heads/` (see `git check-ref-format`), and it cannot be
/// taken for an option.
pub(crate) fn is_ref_name(text: &str) -> bool {
    let is_forbidden = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    (1..=MAX_NAME).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains(is_forbidden)
        && !["..", "@{"].iter().any(|pair| text.contains(pair))
        && text != "@"
        && text
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}
