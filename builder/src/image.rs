//! An image as data: a configuration over layers. Composed, not built: nothing is run, and the same
//! parts give the same bytes, hence the same digests.
//!
//! ```text
//! runtime base │ dependencies │ code      layers, bottom to top ([`tree`] writes them)
//! └────────── configuration ──────┘       names them by digest; its own digest is the image's id
//! ```
//!
//! Publishing images is `publish`'s business.

pub(crate) mod archive;
pub(crate) mod name;
pub(crate) mod reference;
pub(crate) mod tree;
pub(crate) mod user;

use crate::{
    cache::Held,
    engine::{EngineImage, IMAGE_LABEL},
    error,
    source::ContentDigest,
};
use epsilon_api::{
    build::BuildError,
    function::{EventVersion, FunctionSpec},
    ids::FunctionName,
};
use oci_spec::image::{Arch, ConfigBuilder, ImageConfigurationBuilder, Os, RootFsBuilder};
use serde::Serialize;
use serde_json::{Map, Value};
use std::{collections::HashMap, path::PathBuf};
use user::USER;

/// Path of the code in an image.
pub(crate) const APP: &str = "/app";
/// The one time in images, so that the same source gives the same image.
const EPOCH: &str = "1970-01-01T00:00:00Z";
/// The default of engines.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A layer on this machine as an uncompressed tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    /// `sha256:…` of the tar's bytes.
    pub(crate) diff_id: String,
    pub(crate) tar: PathBuf,
    pub(crate) bytes: u64,
    /// Holds the tar in the cache, if it is there.
    pub(crate) held: Held,
}

/// How the containers of a language's images start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) entrypoint: &'static [&'static str],
    /// `NAME=value`.
    pub(crate) env: &'static [&'static str],
}

/// An image whose layers may be stored anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// The configuration as JSON: [`Image::id`] is its digest.
    pub(crate) config: Vec<u8>,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<String>,
}

impl Image {
    /// `sha256:…` of the configuration.
    pub(crate) fn id(&self) -> String {
        format!("sha256:{}", ContentDigest::of(&self.config))
    }

    /// The runtime: a base that has the language, and the wrapper's layer.
    pub(crate) fn runtime(
        base: &EngineImage,
        wrapper: &Layer,
        launch: Launch,
    ) -> Result<Self, BuildError> {
        let env = launch.env.iter().copied().chain(["PORT=8080"]).map(str::to_owned);
        let env = merged(&base.env, env);
        compose(base, [wrapper.diff_id.clone()], env, launch, "runtime")
    }

    /// The image of one function: the runtime, its dependencies if any, its code.
    pub(crate) fn function(
        runtime: &EngineImage,
        launch: Launch,
        layers: impl IntoIterator<Item = String>,
        name: &FunctionName,
        spec: &FunctionSpec,
    ) -> Result<Self, BuildError> {
        let own = spec.env.iter().map(|(name, value)| format!("{name}={value}"));
        let function = serde_json::to_string(&WrapperSpec::new(name, spec))
            .map_err(|err| error::broken("describing a function to its runtime", &err))?;
        let env = merged(&runtime.env, own.chain([format!("EPSILON_FUNCTION={function}")]));
        compose(runtime, layers, env, launch, "function")
    }
}

/// Content of `EPSILON_FUNCTION`, for the wrapper.
#[derive(Debug, Serialize)]
struct WrapperSpec<'a> {
    function: &'a FunctionName,
    entry: &'a str,
    export: &'a str,
    signature: epsilon_api::function::Signature,
    #[serde(skip_serializing_if = "EventVersion::is_default")]
    event: EventVersion,
    timeout_ms: u64,
    body_limit_bytes: u64,
    concurrency: u32,
}

impl<'a> WrapperSpec<'a> {
    fn new(function: &'a FunctionName, spec: &'a FunctionSpec) -> Self {
        Self {
            function,
            entry: &spec.entry,
            export: &spec.export,
            signature: spec.signature,
            event: spec.event,
            timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
            body_limit_bytes: spec.body_limit().0,
            concurrency: spec.concurrency.get(),
        }
    }
}

fn compose(
    below: &EngineImage,
    above: impl IntoIterator<Item = String>,
    env: Vec<String>,
    launch: Launch,
    kind: &str,
) -> Result<Image, BuildError> {
    let broken = |err: &oci_spec::OciSpecError| error::broken("composing an image", err);
    let diff_ids: Vec<String> = below.diff_ids.iter().cloned().chain(above).collect();
    let config = ConfigBuilder::default()
        .user(format!("{USER}:{USER}"))
        .exposed_ports(["8080/tcp".to_owned()])
        .env(env)
        .entrypoint(launch.entrypoint.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
        .working_dir(APP)
        .labels(HashMap::from([(IMAGE_LABEL.to_owned(), kind.to_owned())]))
        .build()
        .map_err(|err| broken(&err))?;
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(diff_ids.clone())
        .build()
        .map_err(|err| broken(&err))?;
    let image = ImageConfigurationBuilder::default()
        .created(EPOCH)
        .architecture(Arch::from(below.architecture.as_str()))
        .os(Os::from(below.os.as_str()))
        .config(config)
        .rootfs(rootfs)
        .build()
        .map_err(|err| broken(&err))?;
    let config = serde_json::to_value(image)
        .and_then(|value| serde_json::to_vec(&sorted(value)))
        .map_err(|err| error::broken("composing an image", &err))?;
    Ok(Image { config, diff_ids })
}

/// Variables of the image below and ours; ours replace those of the same name, in their place.
fn merged(below: &[String], ours: impl IntoIterator<Item = String>) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut env = below.to_vec();
    if !env.iter().any(|variable| name(variable) == "PATH") {
        env.insert(0, PATH.to_owned());
    }
    for variable in ours {
        match env.iter_mut().find(|old| name(old) == name(&variable)) {
            Some(old) => *old = variable,
            None => env.push(variable),
        }
    }
    env
}

/// The same JSON with sorted keys: some of `oci-spec`'s maps are unordered.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(pairs))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::function::Runtime;

    const LAUNCH: Launch = Launch { entrypoint: &["node", "/epsilon/wrapper/main.js"], env: &[] };

    fn runtime() -> EngineImage {
        EngineImage {
            id: "sha256:aa".into(),
            diff_ids: vec!["sha256:01".into()],
            env: vec!["PATH=/bin".into(), "NODE_ENV=production".into(), "PORT=8080".into()],
            architecture: "amd64".into(),
            os: "linux".into(),
        }
    }

    fn spec() -> FunctionSpec {
        let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
        spec.env.insert("CURRENCY".into(), "EUR".into());
        spec.env.insert("PORT".into(), "9".into());
        spec
    }

    fn hello() -> FunctionName {
        FunctionName::parse("hello").unwrap()
    }

    #[test]
    fn function_image_has_all_that_docker_run_needs() {
        let image =
            Image::function(&runtime(), LAUNCH, ["sha256:02".to_owned()], &hello(), &spec())
                .unwrap();
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        insta::assert_json_snapshot!(config);
    }

    #[test]
    fn the_same_parts_give_the_same_bytes() {
        let make =
            || Image::function(&runtime(), LAUNCH, ["sha256:02".to_owned()], &hello(), &spec());
        let first = make().unwrap();
        for _ in 0..20 {
            assert_eq!(make().unwrap(), first);
        }
        assert_eq!(first.id(), format!("sha256:{}", ContentDigest::of(&first.config)));
    }
}
