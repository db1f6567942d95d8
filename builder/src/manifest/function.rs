//! The settings of one function as they are written, in `epsilon.yaml` or in the code's `config`:
//! the same keys, the same checks. The file takes precedence over the code; what neither sets has a
//! documented default.

use super::section::{Problem, Section};
use super::values;
use super::values::word;
use crate::ceilings::Ceilings;
use crate::value_tree::Node;
use epsilon_api::{
    function::{
        EventVersion, FunctionSpec, Idle, Isolation, MAX_STOP_GRACE, Network, Runtime, Signature,
    },
    ids::FunctionName,
    units::{Bytes, MilliCores},
};
use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

/// Settings as written: each checked by itself, no defaults yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FunctionKeys {
    pub(crate) entry: Option<String>,
    pub(crate) export: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) dockerfile: Option<String>,
    signature: Option<Signature>,
    event: Option<EventVersion>,
    timeout: Option<Duration>,
    memory: Option<Bytes>,
    cpu: Option<MilliCores>,
    concurrency: Option<NonZeroU32>,
    min_instances: Option<u32>,
    max_instances: Option<NonZeroU32>,
    idle_timeout: Option<Duration>,
    env: BTreeMap<String, String>,
    network: Option<Network>,
    idempotent: Option<bool>,
    isolation: Option<Isolation>,
    max_body: Option<Bytes>,
    stop_grace: Option<Duration>,
    idle: Option<Idle>,
    /// Durations below a second that were written as bare numbers, by key.
    bare: Vec<(&'static str, f64)>,
}

/// Where settings are written: it decides which keys apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    /// In `epsilon.yaml`, for a function of this runtime.
    InFile(Runtime),
    /// Beside the function in the code.
    InCode,
}

impl FunctionKeys {
    /// Reads the `config` of an export. The path of a problem begins with `config`.
    pub(crate) fn from_code(config: &Node, ceilings: &Ceilings) -> Result<Self, (String, String)> {
        let section = Section::open(vec!["config".into()], config);
        let keys = section.and_then(|section| Self::read(section, KeySource::InCode, ceilings));
        keys.map_err(|problem| (problem.path.join("."), problem.message))
    }

    pub(super) fn read(
        mut section: Section<'_>,
        source: KeySource,
        ceilings: &Ceilings,
    ) -> Result<Self, Problem> {
        let mut keys = Self::default();
        match source {
            KeySource::InFile(Runtime::Node) => {
                keys.entry = section.take("entry", values::path)?;
                keys.export = section.take("export", values::text)?;
                section.refuse(&IMAGE_KEYS, "has no meaning with `runtime: node`")?;
            }
            KeySource::InFile(Runtime::Container) => {
                keys.image = section.take("image", values::image)?;
                keys.dockerfile = section.take("dockerfile", values::path)?;
                section.refuse(&CODE_KEYS, "has no meaning with `runtime: container`")?;
                section
                    .refuse(&["signature", "event"], "has no meaning with `runtime: container`")?;
            }
            KeySource::InCode => {
                let here = "belongs in `epsilon.yaml`, not in the code";
                section.refuse(&CODE_KEYS, here)?;
                section.refuse(&IMAGE_KEYS, here)?;
            }
        }
        if source != KeySource::InFile(Runtime::Container) {
            keys.signature = section.take("signature", |node| word(node, &SIGNATURES))?;
            keys.event = section.take("event", |node| word(node, &EVENTS))?;
        }

        let Ceilings { timeout, idle_timeout, memory_floor, memory, cpu, .. } = *ceilings;
        let instances = ceilings.max_instances;
        keys.timeout = section.take("timeout", |node| values::duration(node, timeout))?;
        keys.memory = section.take("memory", |node| values::size(node, memory_floor, memory))?;
        keys.cpu = section.take("cpu", |node| values::cores(node, cpu))?;
        keys.concurrency =
            section.take("concurrency", |node| values::positive(node, ceilings.concurrency))?;
        keys.min_instances = section.take("minInstances", |node| values::count(node, instances))?;
        keys.max_instances =
            section.take("maxInstances", |node| values::positive(node, instances))?;
        keys.idle_timeout =
            section.take("idleTimeout", |node| values::duration(node, idle_timeout))?;
        keys.env = section.take("env", values::env)?.unwrap_or_default();
        section.take("secrets", no_secrets)?;
        keys.network = section.take("network", |node| word(node, &NETWORKS))?;
        keys.idempotent = section.take("idempotent", values::yes_or_no)?;
        keys.isolation = section.take("isolation", |node| word(node, &ISOLATIONS))?;
        keys.max_body = section.take("maxBody", |node| values::size(node, Bytes(1), memory))?;
        keys.stop_grace =
            section.take("stopGrace", |node| values::duration(node, MAX_STOP_GRACE))?;
        keys.idle = section.take("idle", |node| word(node, &IDLES))?;
        let bare = |key| Some((key, values::bare_millis(section.peek(key)?)?));
        keys.bare = DURATIONS.into_iter().filter_map(bare).collect();
        section.take("auth", only_public)?;
        section.end()?;
        Ok(keys)
    }

    /// These settings, completed by the other ones. Environments are merged by name.
    pub(crate) fn over(self, other: Self) -> Self {
        let mut env = other.env;
        env.extend(self.env);
        let is_ours = |key| match key {
            "timeout" => self.timeout.is_some(),
            "idleTimeout" => self.idle_timeout.is_some(),
            _ => self.stop_grace.is_some(),
        };
        let mut bare = self.bare;
        bare.extend(other.bare.into_iter().filter(|(key, _)| !is_ours(*key)));
        Self {
            entry: self.entry.or(other.entry),
            export: self.export.or(other.export),
            image: self.image.or(other.image),
            dockerfile: self.dockerfile.or(other.dockerfile),
            signature: self.signature.or(other.signature),
            event: self.event.or(other.event),
            timeout: self.timeout.or(other.timeout),
            memory: self.memory.or(other.memory),
            cpu: self.cpu.or(other.cpu),
            concurrency: self.concurrency.or(other.concurrency),
            min_instances: self.min_instances.or(other.min_instances),
            max_instances: self.max_instances.or(other.max_instances),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            env,
            network: self.network.or(other.network),
            idempotent: self.idempotent.or(other.idempotent),
            isolation: self.isolation.or(other.isolation),
            max_body: self.max_body.or(other.max_body),
            stop_grace: self.stop_grace.or(other.stop_grace),
            idle: self.idle.or(other.idle),
            bare,
        }
    }

    /// Notes about settings that may be unintended, one line each.
    pub(crate) fn remarks(&self, function: &FunctionName) -> Vec<String> {
        let remark = |(key, number): &(&str, f64)| {
            format!(
                "`{key}: {number}` of `{function}` is {number} ms, as every bare number; write `{number}s` if seconds \
                 are meant"
            )
        };
        self.bare.iter().map(remark).collect()
    }

    /// All settings with defaults, checked against each other. The error completes "`function` …".
    pub(crate) fn spec(
        self,
        runtime: Runtime,
        entry: &str,
        export: &str,
    ) -> Result<FunctionSpec, String> {
        let default = FunctionSpec::new(runtime, entry, export);
        let min_instances = self.min_instances.unwrap_or(default.min_instances);
        let max_instances = self.max_instances.unwrap_or(default.max_instances);
        if min_instances > max_instances.get() {
            let from = if self.max_instances.is_none() { ", the default" } else { "" };
            return Err(format!(
                "has `minInstances: {min_instances}`, which is more than `maxInstances` \
                 ({max_instances}{from})"
            ));
        }
        let concurrency = self.concurrency.unwrap_or(default.concurrency);
        let isolation = self.isolation.unwrap_or(default.isolation);
        if isolation == Isolation::Call && concurrency != NonZeroU32::MIN {
            return Err(format!(
                "has `concurrency: {concurrency}`, but `isolation: call` needs `concurrency: 1`: each call \
                 has an instance of its own"
            ));
        }
        let mut signature = self.signature.unwrap_or(default.signature);
        if self.event.is_some() {
            match signature {
                Signature::Auto | Signature::Lambda => signature = Signature::Lambda,
                Signature::Express | Signature::Fetch => {
                    return Err("has an `event`, which only `signature: lambda` has".into());
                }
            }
        }
        Ok(FunctionSpec {
            signature,
            event: self.event.unwrap_or(default.event),
            timeout: self.timeout.unwrap_or(default.timeout),
            memory: self.memory.unwrap_or(default.memory),
            cpu: self.cpu.unwrap_or(default.cpu),
            concurrency,
            min_instances,
            max_instances,
            idle_timeout: self.idle_timeout.or(default.idle_timeout),
            env: self.env,
            network: self.network.unwrap_or(default.network),
            idempotent: self.idempotent.unwrap_or(default.idempotent),
            isolation,
            max_body: self.max_body.or(default.max_body),
            stop_grace: self.stop_grace.unwrap_or(default.stop_grace),
            idle: self.idle.unwrap_or(default.idle),
            ..default
        })
    }
}

/// Keys whose values are durations.
const DURATIONS: [&str; 3] = ["timeout", "idleTimeout", "stopGrace"];
/// Keys that locate a function in the code.
const CODE_KEYS: [&str; 2] = ["entry", "export"];
/// Keys that name the origin of an image.
const IMAGE_KEYS: [&str; 2] = ["image", "dockerfile"];

const SIGNATURES: [(&str, Signature); 4] = [
    ("auto", Signature::Auto),
    ("express", Signature::Express),
    ("lambda", Signature::Lambda),
    ("fetch", Signature::Fetch),
];

const EVENTS: [(&str, EventVersion); 2] = [("v1", EventVersion::V1), ("v2", EventVersion::V2)];

const NETWORKS: [(&str, Network); 2] = [("egress", Network::Egress), ("none", Network::None)];

const ISOLATIONS: [(&str, Isolation); 2] =
    [("instance", Isolation::Instance), ("call", Isolation::Call)];

const IDLES: [(&str, Idle); 2] = [("freeze", Idle::Freeze), ("run", Idle::Run)];

fn no_secrets(node: &Node) -> Result<(), String> {
    match node {
        Node::List(names) if names.is_empty() => Ok(()),
        Node::List(_) => Err("is not supported yet; nothing would keep the values secret".into()),
        _ => Err(format!("must be a list of names, not {}", node.kind())),
    }
}

fn only_public(node: &Node) -> Result<(), String> {
    match word(node, &[("public", "public"), ("key", "key"), ("jwt", "jwt")])? {
        "public" => Ok(()),
        later => Err(format!(
            "is `{later}`, which is not supported yet; every function is `public` for now"
        )),
    }
}
