//! Why there was no image, derived from the error text of an engine or a registry. Engines pass a
//! registry's answer on as text only, and with a status of their own, so the text decides. Pure.

/// What failed between an engine and a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryFailure {
    /// The registry requires credentials, or other ones.
    Refused,
    /// The registry does not have the image.
    Absent,
    /// The registry's address does not answer.
    Unreachable,
    /// The engine does not trust the registry's certificate.
    UnknownAuthority,
    /// The registry uses plain HTTP, and the engine does not allow that.
    PlainHttp,
    /// This machine's disk is full.
    DiskFull,
    /// Anything else.
    Other,
}

/// Parts of the error texts of each failure; the first match counts. Collected from Docker 20.10 to
/// 29 and containerd.
const PATTERNS: [(RegistryFailure, &[&str]); 6] = [
    (RegistryFailure::DiskFull, &["no space left on device", "disk quota exceeded"]),
    (
        RegistryFailure::PlainHttp,
        &["server gave http response to https client", "invalidcontenttype"],
    ),
    (
        RegistryFailure::UnknownAuthority,
        &[
            "x509:",
            "certificate signed by unknown authority",
            "tls: failed to verify",
            "invalid peer certificate",
        ],
    ),
    (
        RegistryFailure::Refused,
        &[
            "unauthorized",
            "not authorized",
            "no basic auth credentials",
            "authentication required",
            "authorization token has expired",
            "access denied",
            "denied:",
            "403 forbidden",
            "insufficient_scope",
            "authorization failed",
        ],
    ),
    (RegistryFailure::Absent, &["manifest unknown", "name unknown", "not found", "does not exist"]),
    (
        RegistryFailure::Unreachable,
        &[
            "connection refused",
            "no such host",
            "dns error",
            "timed out",
            "i/o timeout",
            "timeout exceeded",
            "handshake timeout",
            "no route to host",
            "network is unreachable",
            "connection reset",
            "server misbehaving",
            ": eof",
        ],
    ),
];

impl RegistryFailure {
    /// Classifies the error text of a failed pull or push.
    pub fn of(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        let known = PATTERNS
            .iter()
            .find(|(_, patterns)| patterns.iter().any(|pattern| text.contains(pattern)));
        known.map_or(Self::Other, |(failure, _)| *failure)
    }

    /// What happened, for the operator; follows the registry's name in a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::Refused => "refused this machine's credentials, or requires some",
            Self::Absent => "does not have the image",
            Self::Unreachable => "cannot be reached",
            Self::UnknownAuthority => "has a certificate that is not trusted here",
            Self::PlainHttp => "speaks plain HTTP, which is not allowed here",
            Self::DiskFull => "provided an image that does not fit on this machine's disk",
            Self::Other => "did not provide the image",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_classified_by_their_texts() {
        for (text, want) in [
            (
                "Get \"https://r.example/v2/\": unauthorized: authentication required",
                RegistryFailure::Refused,
            ),
            (
                "Head \"http://127.0.0.1:1/v2/a/manifests/b\": no basic auth credentials",
                RegistryFailure::Refused,
            ),
            (
                "pull access denied for r.example/a, repository does not exist or may require 'docker login'",
                RegistryFailure::Refused,
            ),
            (
                "denied: Your authorization token has expired. Reauthenticate and try again.",
                RegistryFailure::Refused,
            ),
            (
                "unexpected status from HEAD request to https://r.example/v2/: 401 Unauthorized",
                RegistryFailure::Refused,
            ),
            (
                "manifest for r.example/a@sha256:00 not found: manifest unknown",
                RegistryFailure::Absent,
            ),
            ("name unknown: The repository with name 'a' does not exist", RegistryFailure::Absent),
            (
                "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                RegistryFailure::Unreachable,
            ),
            (
                "dial tcp: lookup r.example on 10.0.0.2:53: no such host",
                RegistryFailure::Unreachable,
            ),
            (
                "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
                RegistryFailure::Unreachable,
            ),
            ("x509: certificate signed by unknown authority", RegistryFailure::UnknownAuthority),
            ("http: server gave HTTP response to HTTPS client", RegistryFailure::PlainHttp),
            (
                "error sending request: client error (Connect): dns error: failed to lookup",
                RegistryFailure::Unreachable,
            ),
            (
                "client error (Connect): invalid peer certificate: UnknownIssuer",
                RegistryFailure::UnknownAuthority,
            ),
            ("received corrupt message of type InvalidContentType", RegistryFailure::PlainHttp),
            ("write /var/lib/docker/tmp/x: no space left on device", RegistryFailure::DiskFull),
            ("toomanyrequests: Rate exceeded", RegistryFailure::Other),
        ] {
            assert_eq!(RegistryFailure::of(text), want, "{text}");
        }
    }
}
