//! Publishes to a registry. Only blobs that it lacks are sent; layers that it has in another
//! repository are mounted. The base is pushed first as an image of its own, so that its layers can
//! be mounted into every function, and an agent can pull it before the first function exists.

mod removal;
mod session;

use super::blob::{Blob, Content};
use super::export::Exported;
use super::{Base, Exports, ImageSet, Published, blob};
use crate::image::name::Name;
use crate::{cache::Cache, config::Registry, error, source::ContentDigest};
use epsilon_api::{
    build::BuildError,
    chain::Chain,
    function::{self, ImageRef, Parts},
    units,
};
use futures_util::TryStreamExt;
use oci_client::{Reference, RegistryOperation, errors::OciDistributionError};
use oci_spec::image::MediaType;
use parking_lot::Mutex;
use session::{Failure, RegistryClient, Session};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// One registry, and what is known to be in it.
pub(crate) struct Remote {
    /// `host[:port][/prefix]`.
    name: String,
    registry_client: RegistryClient,
    cache: Cache,
    exports: Arc<Exports>,
    /// The refusal of removals was already logged.
    is_removal_refused: AtomicBool,
    /// `repository digest` of blobs that exist. Only a hint: registries collect garbage.
    known: Mutex<HashSet<(String, String)>>,
    /// Bases that this process pushed, by their ids in the engine.
    bases: Mutex<HashMap<String, ImageRef>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Remote {
    pub(crate) fn new(settings: Registry, cache: Cache, exports: Arc<Exports>) -> Self {
        let name = settings.name.clone();
        Self {
            name,
            registry_client: RegistryClient::new(settings),
            cache,
            exports,
            is_removal_refused: AtomicBool::new(false),
            known: Mutex::default(),
            bases: Mutex::default(),
        }
    }

    /// `host[:port][/prefix]`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the registry has this image. Errors count as no: the push that follows reports them
    /// better.
    pub(crate) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        let Ok(reference) = image.reference.parse::<Reference>() else { return Ok(false) };
        let found = self.registry_client.run(|session| {
            let reference = &reference;
            async move {
                let digest = session.client.fetch_manifest_digest(reference, &session.auth);
                session.with_limit("asking for an image", digest).await
            }
        });
        Ok(found.await.is_ok())
    }

    /// Pushes all images of a set.
    pub(crate) async fn push(&self, image_set: &ImageSet) -> Result<Published, BuildError> {
        if let Some((_, name)) = image_set.images.first() {
            self.check_push_access(name).await?;
        }
        let base = blob::all(self.exports.layers(&image_set.base).await?, &self.cache).await?;
        let own = blob::all(image_set.layers.clone(), &self.cache).await?;
        let below = self.push_base(&image_set.base, &base).await?;
        let mut parts = image_set.parts();
        for (layer, blob) in parts.layers.iter_mut().zip(&own) {
            let bytes = units::Bytes(blob.bytes);
            layer.blob = Some(function::Blob { digest: blob.digest.clone(), bytes });
        }
        let layers: Vec<Blob> = base.into_iter().chain(own).collect();
        let mut images = Vec::with_capacity(image_set.images.len());
        let mut sources = vec![self.base_repository(&image_set.base)];
        for (image, name) in &image_set.images {
            let done = self.push_image(name, image.config.clone(), &layers, &sources).await?;
            images.push(done);
            sources.push(name.remote_repository(&self.name));
        }
        Ok(Published { images, parts: Some(Parts { base: below, ..parts }) })
    }

    /// Pushes an image that the engine built or pulled.
    pub(crate) async fn push_foreign(
        &self,
        image: &Base,
        name: &Name,
    ) -> Result<ImageRef, BuildError> {
        self.check_push_access(name).await?;
        let Exported { config, layers } = self.exports.whole(image).await?;
        let layers = blob::all(layers, &self.cache).await?;
        self.push_image(name, config, &layers, &[]).await
    }

    /// Checks that a push would be accepted, before anything large is prepared for it.
    async fn check_push_access(&self, name: &Name) -> Result<(), BuildError> {
        let target = reference(&format!("{}:{}", name.remote_repository(&self.name), name.tag))?;
        self.registry_client
            .run(|session| {
                let target = &target;
                async move { sign_in(&session, target).await }
            })
            .await
    }

    /// Pushes the base with its own configuration, once per process.
    async fn push_base(&self, base: &Base, layers: &[Blob]) -> Result<ImageRef, BuildError> {
        let repository = self.base_repository(base);
        let pushed = self.bases.lock().get(&base.image.id).cloned();
        if let Some(pushed) = pushed
            && layers.iter().all(|blob| self.knows(&repository, &blob.digest))
        {
            return Ok(pushed);
        }
        let config = self.exports.whole(base).await?.config;
        let pushed = self.push_image(&base_name(base), config, layers, &[]).await?;
        self.bases.lock().insert(base.image.id.clone(), pushed.clone());
        Ok(pushed)
    }

    fn base_repository(&self, base: &Base) -> String {
        base_name(base).remote_repository(&self.name)
    }

    async fn push_image(
        &self,
        name: &Name,
        config: Vec<u8>,
        layers: &[Blob],
        sources: &[String],
    ) -> Result<ImageRef, BuildError> {
        let repository = name.remote_repository(&self.name);
        let config = Blob::in_memory(config);
        let manifest = blob::manifest(&config, layers)?;
        let digest = ContentDigest::of(&manifest).to_string();
        // The manifest's digest is part of the tag: moving a tag would leave an untagged image that
        // a version still names, and registries remove untagged images.
        let target = reference(&format!("{repository}:{}-{}", name.tag, &digest[..8]))?;
        self.registry_client.ensure_repository(&repository).await?;
        let sent = Sent { target: &target, repository: &repository, sources };
        let send = || {
            self.registry_client.run(|session| {
                let sent = &sent;
                let config = &config;
                let manifest = &manifest;
                async move {
                    sign_in(&session, sent.target).await?;
                    for blob in layers.iter().chain([config]) {
                        self.ensure(&session, sent, blob).await?;
                    }
                    let kind = http_value(MediaType::ImageManifest.as_ref())?;
                    let push =
                        session.client.push_manifest_raw(sent.target, manifest.clone(), kind);
                    session.with_limit("pushing an image", push).await.map(drop)
                }
            })
        };
        if let Err(err) = send().await {
            // The known blobs may be gone: once more from the start.
            let was_known = std::mem::take(&mut *self.known.lock());
            if was_known.is_empty() {
                return Err(err);
            }
            send().await?;
        }
        Ok(ImageRef { reference: format!("{repository}@sha256:{digest}"), digest: config.digest })
    }

    /// Ensures that a blob is in a repository.
    async fn ensure(&self, session: &Session, to: &Sent<'_>, blob: &Blob) -> Result<(), Failure> {
        if self.knows(to.repository, &blob.digest) {
            return Ok(());
        }
        let exists = session.client.blob_exists(to.target, &blob.digest);
        if !session.with_limit("asking for a layer", exists).await?
            && !self.mount(session, to, blob).await
        {
            send(session, to.target, blob).await?;
        }
        self.known.lock().insert((to.repository.to_owned(), blob.digest.clone()));
        Ok(())
    }

    /// Mounts the blob from another repository of the same registry. If the registry refuses, it is
    /// sent.
    async fn mount(&self, session: &Session, to: &Sent<'_>, blob: &Blob) -> bool {
        for source in to.sources.iter().filter(|source| self.knows(source, &blob.digest)) {
            let Ok(from) = reference(source) else { continue };
            let mounted = session.client.mount_blob(to.target, &from, &blob.digest);
            match tokio::time::timeout(session.limit(), mounted).await {
                Ok(Ok(())) => return true,
                Ok(Err(err)) => {
                    tracing::debug!(error = %Chain(&err), "Registry does not mount a layer; sending it.");
                }
                Err(_) => tracing::debug!("Registry does not answer a mount; sending the layer."),
            }
        }
        false
    }

    fn knows(&self, repository: &str, digest: &str) -> bool {
        self.known.lock().contains(&(repository.to_owned(), digest.to_owned()))
    }
}

/// Name of the base in a registry.
fn base_name(base: &Base) -> Name {
    Name::in_engine(&base.reference)
}

/// Target of an image, and repositories that may already have some of its blobs.
struct Sent<'a> {
    target: &'a Reference,
    repository: &'a str,
    sources: &'a [String],
}

/// Authenticates for a push.
async fn sign_in(session: &Session, target: &Reference) -> Result<(), Failure> {
    let token = session.client.auth(target, &session.auth, RegistryOperation::Push);
    session.with_limit("signing in", token).await.map(drop)
}

async fn send(session: &Session, target: &Reference, blob: &Blob) -> Result<(), Failure> {
    let push = async {
        match &blob.content {
            Content::Memory(bytes) => {
                session.client.push_blob(target, bytes.clone(), &blob.digest).await.map(drop)
            }
            Content::File(path) | Content::Part(path, _) => {
                let mut file = tokio::fs::File::open(path).await?;
                if let Content::Part(_, at) = &blob.content {
                    file.seek(std::io::SeekFrom::Start(*at)).await?;
                }
                let file = file.take(blob.bytes);
                let pieces = tokio_util::io::ReaderStream::with_capacity(file, 1 << 20)
                    .map_err(OciDistributionError::from);
                let size = Some(blob.bytes);
                session.client.push_blob_stream(target, pieces, &blob.digest, size).await.map(drop)
            }
        }
    };
    session.with_limit("pushing a layer", push).await
}

fn reference(text: &str) -> Result<Reference, BuildError> {
    text.parse().map_err(|err| error::broken("naming an image for the registry", &err))
}

fn http_value(text: &str) -> Result<http::HeaderValue, BuildError> {
    text.parse().map_err(|err| error::broken("pushing an image", &err))
}

#[cfg(test)]
mod tests;
