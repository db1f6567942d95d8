//! A registry as a place for images. Only blobs that it lacks are sent; layers that it has under another
//! name are mounted there. The base is pushed as an image of its own first, so that its layers can be
//! mounted into every function, and an agent can have it before the first function comes.

use super::{Base, Exports, Name, Parcel, export::Exported};
use crate::{
    blocking,
    cache::Cache,
    config::Registry,
    error::{self, Hint},
    hashing::Hashing,
    image::Layer,
    source::ContentDigest,
};
use bytes::Bytes;
use epsilon_api::{build::BuildError, chain::Chain, function::ImageRef};
use flate2::{Compression, GzBuilder};
use futures_util::TryStreamExt;
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use oci_spec::image::{DescriptorBuilder, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    fs::{self, File},
    future::Future,
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// Compression of layers: 6 is what everyone uses; a new level would be a new digest for every layer.
const LEVEL: Compression = Compression::new(6);

/// One registry, and what is known to be in it.
pub(crate) struct Remote {
    client: Client,
    settings: Registry,
    auth: RegistryAuth,
    cache: Cache,
    exports: Arc<Exports>,
    /// `repository digest` of blobs that are there. Only a hint: registries collect garbage.
    known: Mutex<HashSet<(String, String)>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

/// What a registry keeps: a compressed layer or a configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Blob {
    digest: String,
    bytes: u64,
    #[serde(skip)]
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    File(PathBuf),
    Memory(Bytes),
}

impl Default for Content {
    fn default() -> Self {
        Self::Memory(Bytes::new())
    }
}

impl Remote {
    pub(crate) fn new(settings: Registry, cache: Cache, exports: Arc<Exports>) -> Self {
        let host = settings.name.split('/').next().unwrap_or_default();
        let protocol = if is_loopback(host) { ClientProtocol::Http } else { ClientProtocol::Https };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(settings.timeout),
            read_timeout: Some(settings.timeout),
            ..ClientConfig::default()
        });
        let auth = match &settings.login {
            Some((user, password)) => RegistryAuth::Basic(user.clone(), password.reveal().clone()),
            None => RegistryAuth::Anonymous,
        };
        Self { client, settings, auth, cache, exports, known: Mutex::default() }
    }

    /// Whether the registry has this image. Trouble counts as no: the push that follows tells it better.
    pub(super) async fn has(&self, image: &ImageRef) -> Result<bool, BuildError> {
        let Ok(reference) = image.reference.parse::<Reference>() else { return Ok(false) };
        let asked = self.client.fetch_manifest_digest(&reference, &self.auth);
        Ok(tokio::time::timeout(self.settings.timeout, asked)
            .await
            .is_ok_and(|found| found.is_ok()))
    }

    /// Pushes all images of a parcel.
    pub(super) async fn push(&self, parcel: &Parcel) -> Result<Vec<ImageRef>, BuildError> {
        if let Some((_, name)) = parcel.images.first() {
            self.sign_in(&self.target(name)?).await?;
        }
        let base = self.compressed(self.exports.layers(&parcel.base).await?).await?;
        let own = self.compressed(parcel.layers.clone()).await?;
        let below = self.push_base(&parcel.base, &base).await?;
        let layers: Vec<Blob> = base.into_iter().chain(own).collect();
        let mut pushed = Vec::with_capacity(parcel.images.len());
        let mut sources = vec![below];
        for (image, name) in &parcel.images {
            let done = self.push_image(name, image.config.clone(), &layers, &sources).await?;
            pushed.push(done);
            sources.push(name.remote_repository(&self.settings.name));
        }
        Ok(pushed)
    }

    /// Pushes an image that the engine built or pulled.
    pub(super) async fn push_foreign(
        &self,
        image: &Base,
        name: &Name,
    ) -> Result<ImageRef, BuildError> {
        self.sign_in(&self.target(name)?).await?;
        let Exported { config, layers } = self.exports.whole(image).await?;
        let layers = self.compressed(layers).await?;
        self.push_image(name, config, &layers, &[]).await
    }

    /// Pushes the base with its own configuration, once per process; tells its repository.
    async fn push_base(&self, base: &Base, layers: &[Blob]) -> Result<String, BuildError> {
        let tag = base.reference.rsplit(':').next().unwrap_or_default();
        let name = Name::runtime(tag);
        let repository = name.remote_repository(&self.settings.name);
        let all_known = layers.iter().all(|blob| self.knows(&repository, &blob.digest));
        if !all_known {
            let config = self.exports.whole(base).await?.config;
            self.push_image(&name, config, layers, &[]).await?;
        }
        Ok(repository)
    }

    async fn push_image(
        &self,
        name: &Name,
        config: Vec<u8>,
        layers: &[Blob],
        sources: &[String],
    ) -> Result<ImageRef, BuildError> {
        let repository = name.remote_repository(&self.settings.name);
        let config = Blob::in_memory(config);
        let manifest = manifest(&config, layers)?;
        let target = self.target(name)?;
        self.sign_in(&target).await?;
        let send = async || {
            for blob in layers.iter().chain([&config]) {
                self.ensure(&target, &repository, blob, sources).await?;
            }
            let kind = http_value(MediaType::ImageManifest.as_ref())?;
            let push = self.client.push_manifest_raw(&target, manifest.clone(), kind);
            self.bounded("pushing an image", async { push.await.map(drop) }).await
        };
        if let Err(err) = send().await {
            // What was known may be gone: once more from the start.
            let was_known = std::mem::take(&mut *self.known());
            if was_known.is_empty() {
                return Err(err);
            }
            send().await?;
        }
        let digest = ContentDigest::of(&manifest);
        Ok(ImageRef { reference: format!("{repository}@sha256:{digest}"), digest: config.digest })
    }

    fn target(&self, name: &Name) -> Result<Reference, BuildError> {
        let repository = name.remote_repository(&self.settings.name);
        reference(&format!("{repository}:{}", name.tag))
    }

    /// Asks the registry for leave to push; also told before anything large is made ready for it.
    async fn sign_in(&self, target: &Reference) -> Result<(), BuildError> {
        let asked = self.client.auth(target, &self.auth, RegistryOperation::Push);
        self.bounded("signing in", async { asked.await.map(drop) }).await
    }

    /// Makes sure that a blob is in a repository.
    async fn ensure(
        &self,
        target: &Reference,
        repository: &str,
        blob: &Blob,
        sources: &[String],
    ) -> Result<(), BuildError> {
        if self.knows(repository, &blob.digest) {
            return Ok(());
        }
        let asked = self.client.blob_exists(target, &blob.digest);
        if !self.bounded("asking for a layer", asked).await?
            && !self.mount(target, blob, sources).await
        {
            self.send(target, blob).await?;
        }
        self.known().insert((repository.to_owned(), blob.digest.clone()));
        Ok(())
    }

    /// Takes the blob from another repository of the same registry. Registries may refuse; it is sent then.
    async fn mount(&self, target: &Reference, blob: &Blob, sources: &[String]) -> bool {
        for source in sources.iter().filter(|source| self.knows(source, &blob.digest)) {
            let Ok(from) = reference(source) else { continue };
            let mounted = self.client.mount_blob(target, &from, &blob.digest);
            match tokio::time::timeout(self.settings.timeout, mounted).await {
                Ok(Ok(())) => return true,
                Ok(Err(err)) => {
                    tracing::debug!(error = %Chain(&err), "The registry does not mount a layer.");
                }
                Err(_) => tracing::debug!("The registry does not answer to a mount."),
            }
        }
        false
    }

    async fn send(&self, target: &Reference, blob: &Blob) -> Result<(), BuildError> {
        let push = async {
            match &blob.content {
                Content::Memory(bytes) => {
                    self.client.push_blob(target, bytes.clone(), &blob.digest).await.map(drop)
                }
                Content::File(path) => {
                    let file = tokio::fs::File::open(path).await?;
                    let pieces = tokio_util::io::ReaderStream::with_capacity(file, 1 << 20)
                        .map_err(OciDistributionError::from);
                    let sent = self.client.push_blob_stream(
                        target,
                        pieces,
                        &blob.digest,
                        Some(blob.bytes),
                    );
                    sent.await.map(drop)
                }
            }
        };
        self.bounded("pushing a layer", push).await
    }

    /// The layers as a registry keeps them; compressed once, then kept.
    async fn compressed(&self, layers: Vec<Layer>) -> Result<Vec<Blob>, BuildError> {
        let cache = self.cache.clone();
        let doing = "compressing a layer";
        blocking::run(doing, move || layers.iter().map(|layer| compressed(layer, &cache)).collect())
            .await
    }

    async fn bounded<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, BuildError> {
        let limit = self.settings.timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(err)) => {
                tracing::error!(doing, error = %Chain(&err), "The registry failed.");
                let refused = matches!(
                    err,
                    OciDistributionError::UnauthorizedError { .. }
                        | OciDistributionError::AuthenticationFailure(_)
                );
                let error = error::registry_failed(format!("the registry failed while {doing}"));
                Err(error.hint(if refused {
                    "the settings are `builder.registry_user` and `builder.registry_password`"
                } else {
                    "the builder's log says why"
                }))
            }
            Err(_) => Err(error::registry_failed(format!(
                "the registry did not answer within {limit:?} while {doing}"
            ))
            .hint("the limit is `builder.registry_timeout`")),
        }
    }

    fn knows(&self, repository: &str, digest: &str) -> bool {
        self.known().contains(&(repository.to_owned(), digest.to_owned()))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<(String, String)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blob {
    fn in_memory(content: Vec<u8>) -> Self {
        Self {
            digest: format!("sha256:{}", ContentDigest::of(&content)),
            bytes: content.len() as u64,
            content: Content::Memory(content.into()),
        }
    }
}

/// Whether a registry is on this machine: those speak plain HTTP, as engines assume too.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.starts_with("127.") || name == "[::1]"
}

fn reference(text: &str) -> Result<Reference, BuildError> {
    text.parse().map_err(|err| error::broken("naming an image for the registry", &err))
}

fn http_value(text: &str) -> Result<http::HeaderValue, BuildError> {
    text.parse().map_err(|err| error::broken("pushing an image", &err))
}

fn manifest(config: &Blob, layers: &[Blob]) -> Result<Vec<u8>, BuildError> {
    let describe = |blob: &Blob, kind: MediaType| {
        let digest: oci_spec::image::Digest = blob.digest.parse()?;
        DescriptorBuilder::default().media_type(kind).digest(digest).size(blob.bytes).build()
    };
    let make = || {
        let layers: Result<Vec<_>, _> =
            layers.iter().map(|blob| describe(blob, MediaType::ImageLayerGzip)).collect();
        ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(describe(config, MediaType::ImageConfig)?)
            .layers(layers?)
            .build()
    };
    let manifest = make().map_err(|err| error::broken("describing an image", &err))?;
    serde_json::to_vec(&manifest).map_err(|err| error::broken("describing an image", &err))
}

fn compressed(layer: &Layer, cache: &Cache) -> Result<Blob, BuildError> {
    let name = ContentDigest::of(layer.diff_id.as_bytes()).to_string();
    let path = cache.kept("layers", &format!("{name}.gz"));
    let known: Option<Blob> = cache.recall("layers", &name);
    if let Some(blob) = known
        && fs::metadata(&path).is_ok_and(|file| file.len() == blob.bytes)
    {
        return Ok(Blob { content: Content::File(path), ..blob });
    }
    let work = cache.work()?;
    let draft = work.path().join("layer.gz");
    let (digest, bytes) = write_compressed(layer, &draft)
        .and_then(|written| fs::rename(&draft, &path).map(|()| written))
        .map_err(|err| error::file("compressing a layer", &err))?;
    let blob = Blob { digest: format!("sha256:{digest}"), bytes, content: Content::File(path) };
    cache.remember("layers", &name, &blob)?;
    Ok(blob)
}

/// gzip without a time or a name in its head: the same layer gives the same blob.
fn write_compressed(layer: &Layer, to: &PathBuf) -> io::Result<(ContentDigest, u64)> {
    let mut from = File::open(&layer.tar)?;
    let mut to = GzBuilder::new().mtime(0).write(Hashing::new(File::create(to)?), LEVEL);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        to.write_all(&buffer[..n])?;
    }
    let (mut file, digest, bytes) = to.finish()?.finish();
    file.flush()?;
    Ok((digest, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_in_plain_http() {
        for (host, want) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("registry.example", false),
            ("localhost.example:5000", false),
        ] {
            assert_eq!(is_loopback(host), want, "{host}");
        }
    }

    #[test]
    fn a_layer_compresses_to_the_same_blob() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("layer");
        fs::write(&tar, vec![1; 100_000]).unwrap();
        let layer = Layer { diff_id: "sha256:0a".into(), tar, bytes: 100_000 };
        let (one, _) = write_compressed(&layer, &dir.path().join("1")).unwrap();
        let (two, bytes) = write_compressed(&layer, &dir.path().join("2")).unwrap();
        assert_eq!(one, two);
        assert_eq!(fs::metadata(dir.path().join("2")).unwrap().len(), bytes);
        assert_eq!(one, ContentDigest::of(&fs::read(dir.path().join("1")).unwrap()));
    }
}
