//! The container engine as the builder uses it: images in and out here, temporary containers in
//! [`container`]. The only module that names bollard.
//!
//! Not the agent's engine: nothing here serves calls. Called by `runtime`, `dependencies`,
//! `inspect`, `publish` and `dockerfile`.

mod commit;
pub(crate) mod container;
mod lines;
mod network;
mod steps;

use crate::image::reference::is_reference;
pub(crate) use steps::StepLimits;

use crate::{
    config::Config,
    error::{self, Hint},
};
use bollard::{
    Docker,
    auth::DockerCredentials,
    body_try_stream,
    errors::Error as Bollard,
    models::{BuildInfo, ImageInspect, SystemInfoCgroupDriverEnum},
    query_parameters::{
        BuildImageOptionsBuilder, CreateImageOptionsBuilder, ImportImageOptionsBuilder,
        ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder,
        RemoveImageOptionsBuilder, TagImageOptionsBuilder,
    },
};
use bytes::Bytes;
use epsilon_api::{build::BuildError, chain::Chain, ids::InstanceId};
use futures_util::{Stream, StreamExt, TryStreamExt};
use std::{collections::HashMap, io, path::PathBuf, time::Duration};
use tokio::io::AsyncWriteExt as _;
use tokio_util::task::TaskTracker;

/// The label of the builder's temporary containers; its value is the builder's id.
pub(crate) const CONTAINER_LABEL: &str = "epsilon.builder";
/// The label of the builder's images: `runtime` or `function`.
pub(crate) const IMAGE_LABEL: &str = "epsilon.image";
/// Repository of temporary images; their tags start with the builder's id.
pub(crate) const SCRATCH: &str = "epsilon/scratch";
/// How often, and at which interval, removing a temporary image is tried: containers go within a
/// second, on a busy machine within a few.
const UNTAG_TRIES: u32 = 60;
const UNTAG_AGAIN: Duration = Duration::from_millis(250);

/// A failed operation of the engine. The source is for the log only: it names paths and addresses.
#[derive(Debug, thiserror::Error)]
#[error("the container engine failed while {doing}")]
pub(crate) struct EngineError {
    /// Completes "while …".
    pub(crate) doing: &'static str,
    #[source]
    pub(crate) cause: Cause,
}

/// The reason.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Engine(#[from] Bollard),
    #[error("no answer within {0:?}")]
    TooSlow(Duration),
}

impl EngineError {
    fn new(doing: &'static str) -> impl FnOnce(Bollard) -> Self {
        move |cause| Self { doing, cause: Cause::Engine(cause) }
    }

    pub(crate) fn too_slow(doing: &'static str, limit: Duration) -> Self {
        Self { doing, cause: Cause::TooSlow(limit) }
    }

    /// The engine's own words, where it answered at all: for lines of a developer's Dockerfile, or
    /// of a pull.
    pub(crate) fn message(&self) -> Option<&str> {
        match &self.cause {
            Cause::Engine(Bollard::DockerResponseServerError { message, .. }) => Some(message),
            Cause::Engine(Bollard::DockerStreamError { error }) => Some(error),
            Cause::Engine(_) | Cause::TooSlow(_) => None,
        }
    }

    fn is_disk_full(&self) -> bool {
        self.message().is_some_and(|m| m.contains("no space left on device"))
    }
}

impl From<EngineError> for BuildError {
    fn from(err: EngineError) -> Self {
        tracing::error!(error = %Chain(&err), "Container engine failed; the build is refused.");
        if err.is_disk_full() {
            return error::disk_full("the container engine's disk is full")
                .hint("the operator has to free space; `docker system df` shows what takes it");
        }
        error::engine_failed(err.to_string()).hint("the builder's log says why")
    }
}

/// An image in the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineImage {
    /// `sha256:…`: the engine's id of it.
    pub(crate) id: String,
    /// Digests of the uncompressed layers, bottom first.
    pub(crate) diff_ids: Vec<String>,
    /// Entries as `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// How the steps of a Dockerfile ended, when the engine itself reported no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steps {
    Done,
    /// One step wrote more than its limit.
    TooLarge,
}

/// The engine of this machine.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    docker: Docker,
    /// Value of [`CONTAINER_LABEL`].
    owner: String,
    /// Removals of containers that outlive the build that started them.
    tasks: TaskTracker,
}

impl Engine {
    /// A handle on the configured engine; does not connect yet.
    pub(crate) fn new(
        config: &Config,
        owner: String,
        tasks: TaskTracker,
    ) -> Result<Self, EngineError> {
        let docker = epsilon_engine_socket::connect(&config.engine, config.engine_timeout)
            .map_err(EngineError::new("being connected"))?;
        Ok(Self { docker, owner, tasks })
    }

    /// Checks that the engine answers.
    pub(crate) async fn check(&self) -> Result<(), EngineError> {
        self.docker.ping().await.map(drop).map_err(EngineError::new("being pinged"))
    }

    /// The image of a reference, if the engine has it.
    pub(crate) async fn image(&self, reference: &str) -> Result<Option<EngineImage>, EngineError> {
        if !is_reference(reference) {
            return Ok(None);
        }
        match self.docker.inspect_image(reference).await {
            Ok(found) => Ok(Some(EngineImage::from(found))),
            Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(err) => Err(EngineError::new("looking for an image")(err)),
        }
    }

    /// Loads an archive in the format of `docker save`.
    pub(crate) async fn load<S>(&self, archive: S) -> Result<(), EngineError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let options = ImportImageOptionsBuilder::default().quiet(true).build();
        self.docker
            .import_image(options, body_try_stream(archive), None)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(EngineError::new("loading an image"))
    }

    /// Makes a named image of one layer from a file system's tar.
    pub(crate) async fn import<S>(&self, tar: S, name: &str, tag: &str) -> Result<(), EngineError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let options =
            CreateImageOptionsBuilder::default().from_src("-").repo(name).tag(tag).build();
        self.docker
            .create_image(Some(options), Some(body_try_stream(tar)), None)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(EngineError::new("importing a file system"))
    }

    /// Adds a name to an image.
    pub(crate) async fn tag(&self, image: &str, name: &str, tag: &str) -> Result<(), EngineError> {
        let options = TagImageOptionsBuilder::default().repo(name).tag(tag).build();
        let tagged = self.docker.tag_image(image, Some(options)).await;
        tagged.map_err(EngineError::new("naming an image"))
    }

    /// A name for a temporary image.
    pub(crate) fn scratch(&self, purpose: &str) -> Scratch {
        let tag = format!("{}-{purpose}-{}", self.owner, InstanceId::random());
        Scratch { engine: self.clone(), tag }
    }

    /// Removes one name of an image; without another name, the image is removed too.
    async fn untag(&self, reference: &str) -> Result<(), Bollard> {
        let options = RemoveImageOptionsBuilder::default().build();
        match self.docker.remove_image(reference, Some(options), None).await {
            Ok(_) | Err(Bollard::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    /// Removes one of our names of an image. It stays while a container uses it.
    pub(crate) async fn remove_name(&self, reference: &str) -> Result<(), EngineError> {
        match self.untag(reference).await {
            Ok(()) | Err(Bollard::DockerResponseServerError { status_code: 409, .. }) => Ok(()),
            Err(err) => Err(EngineError::new("removing an image")(err)),
        }
    }

    /// The image and all its layers in the format of `docker save`.
    pub(crate) fn save(&self, reference: &str) -> impl Stream<Item = io::Result<Bytes>> + use<> {
        self.docker.export_image(reference).map_err(io::Error::other).boxed()
    }

    /// Several images and all their layers in the format of `docker save`, each layer once.
    /// `on_progress` receives the number of bytes so far.
    pub(crate) async fn save_all(
        &self,
        references: &[&str],
        to: &mut tokio::fs::File,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> io::Result<()> {
        let mut bytes = 0;
        let mut images = std::pin::pin!(self.docker.export_images(references));
        while let Some(piece) = images.try_next().await.map_err(io::Error::other)? {
            to.write_all(&piece).await?;
            bytes += piece.len() as u64;
            on_progress(bytes);
        }
        to.flush().await
    }

    /// Pulls an image by name. `first_sign` bounds the wait for the registry's first answer,
    /// `limit` the whole.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        first_sign: Duration,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let doing = "pulling an image";
        let (name, tag) = split_tag(reference);
        let options = CreateImageOptionsBuilder::default().from_image(name).tag(tag).build();
        let mut progress =
            Box::pin(self.docker.create_image(Some(options), None, None::<DockerCredentials>));
        let slow = |limit| move |_| EngineError { doing, cause: Cause::TooSlow(limit) };
        let first =
            tokio::time::timeout(first_sign, progress.next()).await.map_err(slow(first_sign))?;
        first.transpose().map_err(EngineError::new(doing))?;
        tokio::time::timeout(limit, progress.try_for_each(|_| async { Ok(()) }))
            .await
            .map_err(slow(limit))?
            .map_err(EngineError::new(doing))
    }

    /// Builds a Dockerfile with the engine's own builder, each step within the limits. `context` is
    /// a tar of the folder.
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(crate) async fn build<S>(
        &self,
        context: S,
        dockerfile: &str,
        name: &str,
        arguments: &HashMap<String, String>,
        network: &str,
        limits: StepLimits,
        mut on_line: impl FnMut(&str),
    ) -> Result<Steps, EngineError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let labels = HashMap::from([(IMAGE_LABEL.to_owned(), "function".to_owned())]);
        let options = BuildImageOptionsBuilder::default()
            .dockerfile(dockerfile)
            .t(name)
            .buildargs(arguments)
            .labels(&labels)
            .networkmode(network)
            .rm(true)
            .forcerm(true)
            .build();
        let steps = steps::Steps::new(self.clone(), limits, self.has_systemd().await);
        // Replaces the modification of other requests, which is about credentials: a build sends
        // none.
        let docker = self.docker.clone().with_request_modifier(steps.modifier());
        let build = async {
            let mut lines = lines::Lines::default();
            let mut output =
                Box::pin(docker.build_image(options, None, Some(body_try_stream(context))));
            while let Some(info) = output.next().await {
                let info: BuildInfo = info.map_err(EngineError::new("building the Dockerfile"))?;
                let text = info.stream.or(info.status.map(|status| format!("{status}\n")));
                lines.push(text.unwrap_or_default().as_bytes(), &mut on_line);
            }
            lines.finish(&mut on_line);
            Ok(Steps::Done)
        };
        // Dropping the request ends the build, and the engine ends its step.
        tokio::select! {
            built = build => built,
            () = steps.exceeds_limit(network) => Ok(Steps::TooLarge),
        }
    }

    /// Whether systemd manages the engine's cgroups.
    async fn has_systemd(&self) -> bool {
        let about = self.docker.info().await.ok().and_then(|about| about.cgroup_driver);
        about == Some(SystemInfoCgroupDriverEnum::SYSTEMD)
    }

    /// Removes containers and temporary images that a killed builder with this id left; returns how
    /// many.
    pub(crate) async fn remove_leftovers(&self) -> Result<usize, EngineError> {
        let doing = "removing leftovers";
        let label = format!("{CONTAINER_LABEL}={}", self.owner);
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.docker.list_containers(Some(options)).await;
        let containers = found.map_err(EngineError::new(doing))?;
        let force = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let ids: Vec<String> = containers.into_iter().filter_map(|c| c.id).collect();
        for id in &ids {
            match self.docker.remove_container(id, Some(force.clone())).await {
                Ok(()) | Err(Bollard::DockerResponseServerError { status_code: 404 | 409, .. }) => {
                }
                Err(err) => return Err(EngineError::new(doing)(err)),
            }
        }
        let name = format!("{SCRATCH}:{}-*", self.owner);
        let filters = HashMap::from([("reference", vec![name])]);
        let options = ListImagesOptionsBuilder::default().filters(&filters).build();
        let images = self.docker.list_images(Some(options)).await;
        let images = images.map_err(EngineError::new(doing))?;
        let names: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
        let ours = format!("{SCRATCH}:{}-", self.owner);
        for name in names.iter().filter(|name| name.starts_with(&ours)) {
            self.untag(name).await.map_err(EngineError::new(doing))?;
        }
        Ok(ids.len() + names.len())
    }
}

/// The name of a temporary image. Dropping it removes the name in the background; an image with
/// another name stays.
#[derive(Debug)]
pub(crate) struct Scratch {
    engine: Engine,
    pub(crate) tag: String,
}

impl Scratch {
    /// `name:tag`.
    pub(crate) fn reference(&self) -> String {
        format!("{SCRATCH}:{}", self.tag)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let engine = self.engine.clone();
        let reference = self.reference();
        self.engine.tasks.spawn(async move {
            // The containers of the image are being removed in the background as well.
            for _ in 0..UNTAG_TRIES {
                match engine.untag(&reference).await {
                    Err(Bollard::DockerResponseServerError { status_code: 409, .. }) => {
                        tokio::time::sleep(UNTAG_AGAIN).await;
                    }
                    Ok(()) => return,
                    Err(err) => {
                        tracing::warn!(image = reference, error = %Chain(&err), "Temporary image could not be removed; the next start tries again.");
                        return;
                    }
                }
            }
            tracing::warn!(image = reference, "Temporary image is still in use and was not removed; the next start tries again.");
        });
    }
}

impl From<ImageInspect> for EngineImage {
    fn from(found: ImageInspect) -> Self {
        Self {
            id: found.id.unwrap_or_default(),
            diff_ids: found.root_fs.and_then(|fs| fs.layers).unwrap_or_default(),
            env: found.config.and_then(|config| config.env).unwrap_or_default(),
            architecture: found.architecture.unwrap_or_default(),
            os: found.os.unwrap_or_default(),
        }
    }
}

/// Files, one after the other, as one stream, so that an archive is not held in memory.
pub(crate) fn files(parts: Vec<Part>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    futures_util::stream::iter(parts)
        .then(|part| async move {
            match part {
                Part::Bytes(bytes) => Ok(futures_util::stream::once(async { Ok(bytes) }).boxed()),
                Part::File(path) => {
                    let file = tokio::fs::File::open(path).await?;
                    Ok::<_, io::Error>(
                        tokio_util::io::ReaderStream::with_capacity(file, 256 << 10).boxed(),
                    )
                }
            }
        })
        .try_flatten()
}

/// A piece of a stream made by [`files`].
#[derive(Debug)]
pub(crate) enum Part {
    Bytes(Bytes),
    File(PathBuf),
}

/// Splits `name:tag`; `latest` without a tag. A digest stays with the name.
fn split_tag(reference: &str) -> (&str, &str) {
    if reference.contains('@') {
        return (reference, "");
    }
    match reference.rsplit_once(':') {
        // A colon before a slash belongs to a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (reference, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_distinguished_from_ports_and_digests() {
        for (text, want) in [
            ("node:24-bookworm-slim", ("node", "24-bookworm-slim")),
            ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
            ("localhost:5000/a/b:1", ("localhost:5000/a/b", "1")),
            ("a@sha256:00", ("a@sha256:00", "")),
        ] {
            assert_eq!(split_tag(text), want, "{text}");
        }
    }

    #[test]
    fn references_cannot_leave_the_path() {
        for good in ["node:24", "localhost:5000/a-b/c_d:1", "a@sha256:00ff", "sha256:00ff"] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "../x", "a/../../containers", "a?x=1", "a#b", "a b", "-a", "a%2e"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
