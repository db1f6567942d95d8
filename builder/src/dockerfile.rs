//! `runtime: container`: an existing image, or one that the project's own Dockerfile makes. Built
//! by the engine's classic builder, which every engine has.
//!
//! Only brings the image into the engine; naming and publishing it is `publish`'s.

mod added;
mod ignored;

use crate::cache::WorkDir;
use crate::config::Config;
use crate::egress_env::EgressEnv;
use crate::engine::{Engine, Part, Scratch, StepLimits, Steps, files};
use crate::error::Hint;
use crate::image::tree;
use crate::network::Network;
use crate::publish::Base;
use crate::source::Source;
use crate::{blocking, error};
use epsilon_api::{
    build::{BuildError, BuildEvent, BuildLog},
    units::Bytes,
};
use std::{sync::Arc, time::Duration};

/// Far larger than any hand-written file.
const DOCKERFILE_MAX: Bytes = Bytes(1 << 20);
/// Lines of a failed build that its error shows.
const TAIL: usize = 30;

/// Provides images for `runtime: container`.
#[derive(Clone, Debug)]
pub(crate) struct Dockerfiles {
    engine: Engine,
    egress_env: EgressEnv,
    network: Arc<Network>,
    limits: StepLimits,
    build_limit: Duration,
    pull_limit: Duration,
}

/// An image in the engine. An image made by a Dockerfile is removed with this, unless it was given
/// another name.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) image: Base,
    _scratch: Option<Scratch>,
}

impl Dockerfiles {
    pub(crate) fn new(
        config: &Config,
        engine: Engine,
        egress_env: EgressEnv,
        network: Arc<Network>,
    ) -> Self {
        Self {
            engine,
            egress_env,
            network,
            limits: StepLimits { limits: config.install, size: config.install_size },
            build_limit: config.dockerfile_timeout,
            pull_limit: config.pull_timeout,
        }
    }

    /// The image of a reference; pulled when the engine lacks it.
    pub(crate) async fn existing(
        &self,
        reference: &str,
        log: &dyn BuildLog,
    ) -> Result<Found, BuildError> {
        if self.engine.image(reference).await?.is_none() {
            log.report(BuildEvent::Line(format!("pulling `{reference}`")));
            let pulled = self.engine.pull(reference, self.pull_limit, self.pull_limit).await;
            pulled.map_err(|err| {
                let says = err.message().unwrap_or("the registry did not answer in time");
                error::image_failed(format!("`{reference}` cannot be pulled: {says}"))
                    .hint("is the name right, and can this machine's engine pull it?")
            })?;
        }
        let image = Base::of(&self.engine, reference).await?;
        Ok(Found { image, _scratch: None })
    }

    /// Builds the project with its Dockerfile.
    pub(crate) async fn build(
        &self,
        source: &Arc<Source>,
        dockerfile: &str,
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Found, BuildError> {
        let context = work.path().join("context.tar");
        let from = Arc::clone(source);
        let to = context.clone();
        let file = dockerfile.to_owned();
        let writing = "packing the project for its Dockerfile";
        blocking::run(writing, move || {
            let text = from.read(&file, DOCKERFILE_MAX)?.unwrap_or_default();
            if let Some(line) = added::remote(&String::from_utf8_lossy(&text)) {
                return Err(error::image_failed(format!(
                    "`{file}`: `{line}` would be fetched by the engine, beyond the limits of a build"
                ))
                .hint("fetch it in a step (`RUN curl …`), or put the file into the project and `COPY` it"));
            }
            let ignored = ignored::Ignored::read(&from, &file)?;
            tree::context(&from, |path| ignored.has(path), &to)
        })
        .await?;

        let scratch = self.engine.scratch("build");
        let name = scratch.reference();
        let mut tail = std::collections::VecDeque::with_capacity(TAIL);
        let arguments = self.egress_env.build_arguments();
        let network = self.network.name().await?;
        let built = self.engine.build(
            files(vec![Part::File(context)]),
            dockerfile,
            &name,
            &arguments,
            &network,
            self.limits,
            |line| {
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line.to_owned());
                log.report(BuildEvent::Line(line.to_owned()));
            },
        );
        match tokio::time::timeout(self.build_limit, built).await {
            Ok(Ok(Steps::TooLarge)) => {
                let limit = self.limits.size;
                Err(error::image_failed(format!(
                    "a step of `{dockerfile}` writes more than {limit}"
                ))
                .hint("the operator's limit is `builder.install_size`"))
            }
            Ok(Ok(Steps::Done)) => {
                let image = Base::of(&self.engine, &name).await?;
                Ok(Found { image, _scratch: Some(scratch) })
            }
            Ok(Err(err)) => match err.message() {
                Some(says) => {
                    let says = says.to_owned();
                    let output = Vec::from(tail).join("\n");
                    let err = error::image_failed(format!(
                        "`{dockerfile}` failed to build: {says}\n{output}"
                    ));
                    // The shell's report of a killed process.
                    Err(if says.ends_with("non-zero code: 137") {
                        err.hint("it probably needs more memory than `builder.install_memory`, the operator's limit")
                    } else {
                        err
                    })
                }
                None => Err(err.into()),
            },
            Err(_) => {
                let limit = self.build_limit;
                Err(error::image_failed(format!("`{dockerfile}` took longer than {limit:?}"))
                    .hint("the operator's limit is `builder.dockerfile_timeout`"))
            }
        }
    }
}
