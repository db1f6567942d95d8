//! What a developer asks for, in normal form: every default filled in, every value checked.
//!
//! Made by the builder from `epsilon.yaml` and the code's own `config`; kept by the store; read by
//! gateway and agent. How the YAML looks is the builder's business, not this file's.

use crate::{
    ids::{DeploymentId, FunctionName, ProjectName, VersionId, VersionNumber},
    units::{Bytes, MilliCores},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, num::NonZeroU32, time::Duration};

/// What runs user code inside a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// The Node wrapper, over unix sockets.
    Node,
    /// Any image that listens on TCP `$PORT`.
    Container,
}

/// How a handler is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signature {
    /// Told apart by the wrapper: `handler` is Lambda's, an object with `fetch` is the web's, else
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
#[serde(rename_all = "snake_case")]
pub enum EventVersion {
    /// That of REST APIs.
    V1,
    /// That of HTTP APIs and function URLs.
    #[default]
    V2,
}

impl EventVersion {
    /// For serde, which leaves the default out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an instance may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The outside world; not the VM's metadata service, not other instances.
    #[default]
    Egress,
    /// Nothing at all.
    None,
}

/// What calls share with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// An instance, one call after the other (or `concurrency` at once).
    #[default]
    Instance,
    /// Nothing: each call has a fresh instance, which goes after it. Needs `concurrency: 1`.
    Call,
}

impl Isolation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an instance does between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// Its processes are stopped after a while without a call, and go on with the next one.
    #[default]
    Freeze,
    /// It runs on: for code that works in the background.
    Run,
}

impl Idle {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The settings of one function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// What runs it.
    pub runtime: Runtime,
    /// The file to load, relative to the project's root; empty for `runtime: container`.
    pub entry: String,
    /// The name under which the file exports the function; empty for `runtime: container`.
    pub export: String,
    /// How the handler is called.
    pub signature: Signature,
    /// Which events a handler of AWS Lambda's signature gets.
    #[serde(default, skip_serializing_if = "EventVersion::is_default")]
    pub event: EventVersion,
    /// The longest that one call may run, from the moment an instance gets it to its last byte.
    #[serde(with = "millis", rename = "timeout_ms")]
    pub timeout: Duration,
    /// Memory limit of one instance; there is no swap beyond it.
    #[serde(rename = "memory_bytes")]
    pub memory: Bytes,
    /// Processor limit of one instance.
    #[serde(rename = "cpu_millicores")]
    pub cpu: MilliCores,
    /// Calls at once in one instance.
    pub concurrency: NonZeroU32,
    /// Instances kept ready when nobody calls.
    pub min_instances: u32,
    /// Instances at most, per VM.
    pub max_instances: NonZeroU32,
    /// How long an instance beyond `min_instances` stays without a call. `None`: as the function's own pauses
    /// suggest.
    #[serde(
        default,
        with = "optional_millis",
        rename = "idle_timeout_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout: Option<Duration>,
    /// Environment of the code.
    pub env: BTreeMap<String, String>,
    /// What an instance may reach.
    pub network: Network,
    /// Whether a call may be sent again after it was executed in part, whatever its method: the code does the
    /// same when it runs twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// What calls share.
    #[serde(default, skip_serializing_if = "Isolation::is_default")]
    pub isolation: Isolation,
    /// Most of one body that the runtime wrapper reads into memory, decompressed. `None`: what follows from
    /// the memory, see [`Self::body_limit`].
    #[serde(default, rename = "max_body_bytes", skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Bytes>,
    /// How long an instance that is to go may take to end by itself, from SIGTERM to SIGKILL.
    #[serde(
        default = "default_stop_grace",
        with = "millis",
        rename = "stop_grace_ms",
        skip_serializing_if = "is_default_stop_grace"
    )]
    pub stop_grace: Duration,
    /// What an instance does between calls.
    #[serde(default, skip_serializing_if = "Idle::is_default")]
    pub idle: Idle,
}

/// Default of [`FunctionSpec::stop_grace`]: long enough to close the connections to a database, short enough
/// that a VM's memory is not held up by what is over.
pub const STOP_GRACE: Duration = Duration::from_secs(3);

/// Largest [`FunctionSpec::stop_grace`]: an instance that is over holds its memory that long.
pub const MAX_STOP_GRACE: Duration = Duration::from_secs(60);

fn default_stop_grace() -> Duration {
    STOP_GRACE
}

fn is_default_stop_grace(grace: &Duration) -> bool {
    *grace == STOP_GRACE
}

/// A parsed body takes up to some twenty times its bytes (a list of empty lists), and not all of the memory is
/// the body's: a sixty-fourth of it is safe, 4 MiB at the default of 256 MiB.
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

    /// Most of one body that the runtime wrapper reads into memory, decompressed: `max_body`, else what the
    /// memory of an instance bears.
    pub fn body_limit(&self) -> Bytes {
        self.max_body.unwrap_or(Bytes(self.memory.0 / BODY_SHARE))
    }
}

/// An image that an engine can run: a reference that `docker run` takes, and the digest it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// `name:tag` in this machine's engine, or `registry/name@sha256:…`.
    pub reference: String,
    /// `sha256:…` of the image's configuration (its id in the engine): what it *is*, wherever it lies.
    pub digest: String,
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference)
    }
}

/// What a function's image is made of, so that a VM can have its code without the image: layers that are mounted
/// into a booted container of the runtime base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The runtime base.
    pub base: ImageRef,
    /// What lies above it, bottom first. Files of the function are below `app` in each.
    pub layers: Vec<ImageLayer>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageLayer {
    /// `sha256:…` of the plain tar: what the layer *is*, wherever it lies.
    pub diff_id: String,
    /// How it lies in the registry, beside the function's image; `None` where there is no registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Blob>,
}

/// A layer as a registry keeps it: compressed (gzip).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// `sha256:…` of its bytes.
    pub digest: String,
    /// How many they are.
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
    /// What instances are made of.
    pub image: ImageRef,
    /// What the image comes apart into. `None` for images that nobody here composed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// How they are run.
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

/// Durations as whole milliseconds on the wire.
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

/// [`millis`] of what may be absent.
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
