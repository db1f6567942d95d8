//! Settings of a function in normal form: every default filled in, every value checked.
//!
//! Made by the builder from `epsilon.yaml` and the code's own `config`; stored by the store; read
//! by gateway and agent. The YAML syntax is the builder's business, not this file's.

use crate::{
    ids::{DeploymentId, FunctionName, ProjectName, VersionId, VersionNumber},
    units::{Bytes, MilliCores},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, num::NonZeroU32, time::Duration};

/// What runs user code inside a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The Node wrapper, over unix sockets.
    Node,
    /// Any image that listens on TCP `$PORT`.
    Container,
}

/// Calling convention of a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Signature {
    /// Detected by the wrapper: `handler` is Lambda's, an object with `fetch` is the web's, else
    /// Express.
    #[default]
    Auto,
    /// `(req, res)` of Express 5.
    Express,
    /// AWS Lambda's proxy event.
    Lambda,
    /// `fetch(request, env, ctx)` of the web platform.
    Fetch,
}

/// The version of API Gateway's proxy event that a Lambda handler gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventVersion {
    /// The event of REST APIs.
    V1,
    /// The event of HTTP APIs and function URLs.
    #[default]
    V2,
}

impl EventVersion {
    /// For serde, which leaves the default out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Network access of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The outside world; not the VM's metadata service, not other instances.
    #[default]
    Egress,
    /// No network.
    None,
}

/// What calls share with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// An instance, one call after the other (or `concurrency` at once).
    #[default]
    Instance,
    /// Nothing: each call gets a fresh instance, which is removed after it. Needs `concurrency: 1`.
    Call,
}

impl Isolation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an instance does between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// Its processes are frozen after a while without a call, and thawed by the next one.
    #[default]
    Freeze,
    /// It keeps running: for code that works in the background.
    Run,
}

impl Idle {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The settings of one function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// Its runtime.
    pub runtime: Runtime,
    /// The file to load, relative to the project's root; empty for `runtime: container`.
    pub entry: String,
    /// The name under which the file exports the function; empty for `runtime: container`.
    pub export: String,
    /// Calling convention of the handler.
    pub signature: Signature,
    /// Version of the events for handlers of AWS Lambda's signature.
    #[serde(default, skip_serializing_if = "EventVersion::is_default")]
    pub event: EventVersion,
    /// The longest that one call may run, from its hand-over to an instance until its last byte.
    #[serde(with = "millis", rename = "timeout_ms")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub timeout: Duration,
    /// Memory limit of one instance; there is no swap beyond it.
    #[serde(rename = "memory_bytes")]
    pub memory: Bytes,
    /// CPU limit of one instance.
    #[serde(rename = "cpu_millicores")]
    pub cpu: MilliCores,
    /// Calls at once in one instance.
    #[cfg_attr(feature = "openapi", schema(value_type = u32, minimum = 1))]
    pub concurrency: NonZeroU32,
    /// Instances that stay ready without calls.
    pub min_instances: u32,
    /// Instances at most, per VM.
    #[cfg_attr(feature = "openapi", schema(value_type = u32, minimum = 1))]
    pub max_instances: NonZeroU32,
    /// How long an instance beyond `min_instances` stays without a call. `None`: derived from the
    /// function's own pauses between calls.
    #[serde(
        default,
        with = "optional_millis",
        rename = "idle_timeout_ms",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub idle_timeout: Option<Duration>,
    /// Environment variables of the code.
    pub env: BTreeMap<String, String>,
    /// What an instance may reach.
    pub network: Network,
    /// Whether a call may be sent again after it was executed in part, whatever its method: running
    /// the code twice has the same effect as once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// What calls share with each other.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// Bytes of one body that the runtime wrapper reads into memory at most, decompressed. `None`:
    /// derived from the memory, see [`Self::body_limit`].
    #[serde(default, rename = "max_body_bytes", skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Bytes>,
    /// How long a stopping instance may take from SIGTERM to SIGKILL.
    #[serde(
        default = "default_stop_grace",
        with = "millis",
        rename = "stop_grace_ms",
        skip_serializing_if = "is_default_stop_grace"
    )]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub stop_grace: Duration,
    /// What an instance does between calls.
    #[serde(default, skip_serializing_if = "Idle::is_default")]
    pub idle: Idle,
}

/// Default of [`FunctionSpec::stop_grace`]: long enough to close the connections to a database,
/// short enough not to hold up a VM's memory.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// Largest [`FunctionSpec::stop_grace`]: a stopping instance holds its memory that long.
pub const MAX_STOP_GRACE: Duration = Duration::from_secs(60);

fn default_stop_grace() -> Duration {
    STOP_GRACE
}

fn is_default_stop_grace(grace: &Duration) -> bool {
    *grace == STOP_GRACE
}

/// Divisor of the memory. A parsed body takes up to twenty times its bytes (a list of empty lists),
/// and not all of the memory is the body's: a sixty-fourth is safe, 4 MiB at the default of 256
/// MiB.
const BODY_SHARE: u64 = 64;

impl FunctionSpec {
    /// The documented defaults for a function of this runtime.
    pub fn new(runtime: Runtime, entry: impl Into<String>, export: impl Into<String>) -> Self {
        Self {
            runtime,
            entry: entry.into(),
            export: export.into(),
            signature: Signature::Auto,
            event: EventVersion::default(),
            timeout: Duration::from_secs(60),
            memory: Bytes::mib(256),
            cpu: MilliCores::ONE,
            concurrency: NonZeroU32::MIN,
            min_instances: 0,
            max_instances: NonZeroU32::MIN.saturating_add(19),
            idle_timeout: None,
            env: BTreeMap::new(),
            network: Network::Egress,
            idempotent: false,
            isolation: Isolation::Instance,
            max_body: None,
            stop_grace: STOP_GRACE,
            idle: Idle::Freeze,
        }
    }

    /// Bytes of one body that the runtime wrapper reads into memory at most, decompressed:
    /// `max_body`, else a share of the instance's memory.
    pub fn body_limit(&self) -> Bytes {
        self.max_body.unwrap_or(Bytes(self.memory.0 / BODY_SHARE))
    }
}

/// An image that an engine can run: a reference that `docker run` takes, and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageRef {
    /// `name:tag` in this machine's engine, or `registry/name@sha256:…`.
    pub reference: String,
    /// `sha256:…` of the image's configuration (its id in the engine): identifies the content,
    /// wherever it is stored.
    pub digest: String,
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference)
    }
}

/// The composition of a function's image, so that a VM can have its code without the image: layers
/// that are mounted into a booted container of the runtime base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Parts {
    /// The runtime base image.
    pub base: ImageRef,
    /// The layers above it, bottom first. Files of the function are below `app` in each.
    pub layers: Vec<ImageLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageLayer {
    /// `sha256:…` of the uncompressed tar: identifies the content, wherever it is stored.
    pub diff_id: String,
    /// The layer in the registry, beside the function's image; `None` without a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
}

/// A layer as stored in a registry: compressed (gzip).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Blob {
    /// `sha256:…` of the compressed bytes.
    pub digest: String,
    /// Compressed size.
    pub bytes: Bytes,
}

/// One immutable build of one function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The function.
    pub function: FunctionName,
    /// Its number.
    pub number: VersionNumber,
    /// The project that it came from.
    pub project: ProjectName,
    /// The deployment that made it.
    pub deployment: DeploymentId,
    /// The image that instances run.
    pub image: ImageRef,
    /// The layers of the image. `None` for images that the platform did not compose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// Settings of the function.
    pub spec: FunctionSpec,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Version {
    /// Function and number.
    pub fn id(&self) -> VersionId {
        VersionId { function: self.function.clone(), number: self.number }
    }
}

/// Durations as whole milliseconds in JSON.
pub mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Writes whole milliseconds.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads whole milliseconds.
    ///
    /// # Errors
    /// The deserializer's own.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// [`millis`] of an optional duration.
pub mod optional_millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    /// Writes whole milliseconds, or nothing.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    /// Reads whole milliseconds, or nothing.
    ///
    /// # Errors
    /// The deserializer's own.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}
