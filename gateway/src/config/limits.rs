//! Limits that are the same for every operator, as [`super::Settings`] carries them: a test of the
//! whole gateway reaches them with other numbers. Limits that no such test needs are constants
//! beside the code that uses them.

use epsilon_api::units::Bytes;
use std::time::Duration;

/// Fixed limits of the gateway.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest deployment, including the wait for another one of the same project: a Dockerfile's
    /// ten minutes, twice, and a slow registry.
    pub deploy_timeout: Duration,
    /// Largest head of a request (431 beyond it): room for large cookies and tokens.
    pub max_header: Bytes,
    /// Most header fields of a request (431 beyond it): more do not occur within `max_header`.
    pub max_headers: usize,
    /// A caller that closed its sending half and is sent nothing for this long counts as gone.
    /// Whether it still reads shows only when something is written; a reset is noticed at once.
    pub half_close_timeout: Duration,
    /// Concurrent joins and heartbeats of members; more get 429 and retry. What a small database
    /// handles besides its other work.
    pub max_joining: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deploy_timeout: Duration::from_secs(30 * 60),
            max_header: Bytes(64 << 10),
            max_headers: 1024,
            half_close_timeout: Duration::from_secs(2),
            max_joining: 8,
        }
    }
}
