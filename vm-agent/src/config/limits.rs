//! Limits that are the same for every operator, with their reasons. [`super::Config`] carries them
//! beside the settings: tests run agents with other numbers.

use std::time::Duration;

/// Timeout of one request to the engine: a busy one on a slow disk needs seconds for a container; a
/// minute means that it hangs.
pub(super) const ENGINE_TIMEOUT: Duration = Duration::from_secs(60);
/// Image pulls at once: as many as the layers that an engine fetches at once for one image, so that
/// the first pull is not slowed down by all that follow.
pub(super) const PULLS_AT_ONCE: usize = 3;
/// Waiting calls of one version; one more is answered 429. Each costs a few kilobytes and an open
/// connection at the gateway.
pub(super) const QUEUE_DEPTH: usize = 1000;
/// Age at which an idle connection to an instance is closed. Well below the instance's own
/// keep-alive, or a call could be sent on a closing connection: common servers keep connections for
/// 2 s (gunicorn) or 5 s (Node, uvicorn).
pub(super) const CONNECTION_IDLE: Duration = Duration::from_millis(1500);
/// Lower limit of an idle time that is derived from a function's pauses: much less would turn a
/// short gap in a busy function's calls into starts.
pub(super) const INSTANCE_IDLE_MIN: Duration = Duration::from_secs(30);
/// Open files of one instance.
pub(super) const OPEN_FILES: u32 = 16_384;
/// Longest line or message of a log, in bytes; the rest of it is cut.
pub(super) const LOG_LINE: usize = 16 << 10;
/// Code layers fetched and unpacked at once, each within `pull_timeout`: most are small and cost
/// one round trip to the registry.
pub(super) const LAYERS_AT_ONCE: usize = 8;
/// How often the engine's containers are compared with the agent's state.
pub(super) const RECONCILE_EVERY: Duration = Duration::from_secs(10);
/// Connections of gateways: a call takes one, and a VM rarely runs a thousand.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// A TLS handshake, and the first head on a connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection of a gateway: longer than gateways keep one, so that no call is sent into a
/// connection that closes.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
