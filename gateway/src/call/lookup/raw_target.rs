//! A target as its caller wrote it, where `http::Uri` cannot hold it
//! ([`epsilon_api::headers::RawTarget`]), for a function that is called by path.

use epsilon_api::headers::RawTarget;
use http::HeaderValue;

/// The part of a raw target that the function sees: what follows the first segment.
pub(crate) fn below_name(raw: &RawTarget) -> Option<RawTarget> {
    let path = raw.0.as_bytes().strip_prefix(b"/")?;
    let end = path.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(path.len());
    let rest = match &path[end..] {
        rest if rest.first() == Some(&b'/') => HeaderValue::from_bytes(rest),
        rest => HeaderValue::from_bytes(&[b"/", rest].concat()),
    };
    rest.ok().map(RawTarget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_off_as_from_the_path() {
        for (raw, want) in [("/f/a<", "/a<"), ("/f?<", "/?<"), ("/f", "/"), ("/f@3//<", "//<")] {
            let raw = RawTarget(HeaderValue::from_static(raw));
            assert_eq!(below_name(&raw).unwrap().0, want);
        }
    }
}
