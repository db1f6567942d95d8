//! Parameters of a build besides the archive: the query of `POST /v1/builds`.

use crate::ids::{DeploymentId, FunctionName};
use std::fmt::Write;

/// Path of a builder's listener that accepts builds.
pub const PATH: &str = "/v1/builds";

/// A build without its archive and its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildOrder {
    /// The deployment that this build belongs to.
    pub deployment: DeploymentId,
    /// Name of the project's folder.
    pub folder: Option<String>,
    /// Only these functions; empty for all.
    pub only: Vec<FunctionName>,
}

impl BuildOrder {
    /// Path and query.
    pub fn uri(&self) -> String {
        let mut uri = format!("{PATH}?deployment={}", self.deployment);
        if let Some(folder) = &self.folder {
            uri.push_str("&folder=");
            escape(folder, &mut uri);
        }
        for name in &self.only {
            uri.push_str("&only=");
            uri.push_str(name.as_str()); // letters, digits, `-` and `_`
        }
        uri
    }

    /// Reads a query that [`Self::uri`] wrote; `None` for any other.
    pub fn from_query(query: &str) -> Option<Self> {
        let mut deployment = None;
        let mut folder = None;
        let mut only = Vec::new();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=')?;
            let value = unescape(value)?;
            match key {
                "deployment" if deployment.is_none() => {
                    deployment = Some(DeploymentId::parse(&value).ok()?);
                }
                "folder" if folder.is_none() => folder = Some(value),
                "only" => only.push(FunctionName::parse(&value).ok()?),
                _ => return None,
            }
        }
        Some(Self { deployment: deployment?, folder, only })
    }
}

/// Percent-encodes all bytes that are not known to be harmless in a query.
fn escape(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            into.push(char::from(byte));
        } else {
            let _ = write!(into, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(query: &str) -> Option<BuildOrder> {
        BuildOrder::from_query(query)
    }

    proptest! {
        #[test]
        fn an_order_arrives_as_it_went(folder in proptest::option::of(".*"), only in "[A-Za-z][A-Za-z0-9_-]{0,9}") {
            let order = BuildOrder {
                deployment: DeploymentId::random(),
                folder,
                only: vec![FunctionName::parse(&only).unwrap(); 2],
            };
            let uri: http::Uri = order.uri().parse().unwrap();
            prop_assert_eq!((uri.path(), read(uri.query().unwrap())), (PATH, Some(order)));
        }

        #[test]
        fn reading_never_panics(query in "\\PC*") {
            let _ = read(&query);
            let _ = read(&format!("deployment=d-0123456789abcdef&folder={query}"));
        }
    }

    #[test]
    fn what_no_gateway_writes_is_refused() {
        let good = "deployment=d-0123456789abcdef";
        assert!(read(good).is_some());
        for wrong in [
            String::new(),
            "deployment=d-1".into(),
            "folder=x".into(),
            format!("{good}&{good}"),
            format!("{good}&only=1st"),
            format!("{good}&folder=%"),
            format!("{good}&folder=%4"),
            format!("{good}&folder=%zz"),
            format!("{good}&folder=%ff"),
            format!("{good}&colour=red"),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
