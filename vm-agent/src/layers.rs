//! The code layers of functions, unpacked on this machine to be mounted into cells. Each layer is
//! stored once, in a directory that is named after its digest, for all versions that share it.
//!
//! ```text
//! ensure ─▶ here? ─▶ leased, done
//!            │ no
//!            ├─▶ shelf     the tar in the cache of a builder on this machine ┐
//!            ├─▶ registry  the layer's blob, by digest, verified             ├ each layer by itself, concurrently
//!            │      └─ a layer is missing in both                            ┘
//!            └─▶ engine    `/app` of the function's image, as one tree
//!                   └─▶ extract ─▶ unpack ─▶ tree    a draft, verified
//!                          └─▶ store              renamed when it is complete, leased
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `name` | a digest that is safe to use as a path |
//! | `builder_cache`, `registry`, `engine` | the three sources |
//! | `extract` | extracts a stream into a directory and verifies its digest |
//! | `unpack`, `tree` | which entries of a tar are accepted; writes nowhere else |
//! | `store` | the unpacked layers: leases, last uses, crash safety |
//! | `gc` | the timer that keeps the store within `vm_agent.layers_size` |
//!
//! Not the mounts themselves (`cell`), and no images (`images`). Called when a cell is assigned to
//! a version, and when a gateway prewarms one.

mod builder_cache;
mod counts;
mod engine;
mod error;
mod extract;
pub(crate) mod gc;
mod name;
mod registry;
mod store;
#[cfg(test)]
mod testing;
mod tree;
mod unpack;

use crate::{
    config::Config,
    engine::{Engine, EngineError, ImageUnavailable},
};
pub(crate) use counts::Counts;
use counts::Source;
use engine::Readers;
use epsilon_api::{
    chain::Chain,
    function::{Blob, ImageLayer, Version},
    ids::{InstanceId, VmId},
};
use epsilon_fleet_link::single_flight::SingleFlight;
use epsilon_registry::Host;
pub(crate) use error::LayersError;
use extract::{Compression, Expected, ExtractError, Unpacked};
use futures_util::future::try_join_all;
use name::Name;
use parking_lot::Mutex;
use registry::Registries;
use std::{
    collections::HashMap,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use store::{LayerLease, LayerStore};
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use unpack::UnpackError;

/// Most unfit layers that are remembered, so that they are not fetched again.
const MAX_UNFIT: usize = 1024;
/// Timeout of one silent registry, as a share of the whole limit: the engine must get its turn.
const TIMEOUT_SHARE: u32 = 4;

/// The layers of this VM.
#[derive(Debug)]
pub(crate) struct Layers {
    store: Arc<LayerStore>,
    /// Fetches and removals: one at a time for each layer.
    in_progress: SingleFlight<Name, LayersError>,
    unfit: Mutex<HashMap<Name, String>>,
    /// Permits for concurrent fetches.
    turns: Semaphore,
    /// Time limit for all layers of one version.
    limit: Duration,
    /// Size limit of the store, in bytes.
    size: u64,
    builder_cache: Option<PathBuf>,
    registries: Registries,
    readers: Readers,
    counts: Counts,
    /// Signals that the store has outgrown its size.
    over_size: Notify,
}

/// Why a source did not provide a layer.
#[derive(Debug)]
enum Miss {
    /// It does not have the layer; another source may. With the cause, where there is one.
    Absent(Option<Box<dyn Error + Send + Sync>>),
    /// Its content does not match the digest.
    Corrupt(Box<dyn Error + Send + Sync>),
    /// No other source can help.
    Final(LayersError),
}

impl Layers {
    /// Opens the store in `DATA/vm/layers`; creates it when absent, and removes drafts of an
    /// earlier run.
    ///
    /// # Errors
    /// The directory cannot be created or read.
    pub(crate) fn open(config: &Config, vm: &VmId, counts: Counts) -> io::Result<Self> {
        let limit = config.pull_timeout;
        let access = config.registries.clone();
        let plain = config.dangerous_registry_plain_http;
        let certificates = Path::new(registry::CERTIFICATES);
        let store = LayerStore::open(&config.folder.join("layers"))?;
        counts.holds(store.bytes());
        Ok(Self {
            store,
            in_progress: SingleFlight::default(),
            unfit: Mutex::default(),
            turns: Semaphore::new(config.layers_at_once),
            limit,
            size: config.layers_size.get(),
            builder_cache: config.layer_cache.clone(),
            registries: Registries::new(access, plain, certificates, limit / TIMEOUT_SHARE),
            readers: Readers::new(vm.clone(), config.limits.clone()),
            counts,
            over_size: Notify::new(),
        })
    }

    /// Provides everything above the base that a version's code needs, unpacked on this machine;
    /// fetches what is missing, within `vm_agent.pull_timeout`. Layers that are here cost one
    /// lookup each.
    ///
    /// # Errors
    /// [`LayersError`]; [`LayersError::allows_image`] says whether the version may start from
    /// its image instead.
    pub(crate) async fn ensure(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<Code, LayersError> {
        let here = self.layers_of(version).or_else(|| Some(vec![self.tree_of(version)?]));
        if let Some(held) = here {
            return Ok(Code { held });
        }
        // Boxed: the future of a start that finds its layers here need not be as large as a fetch.
        let fetch_missing = Box::pin(async {
            match self.fetch_missing(engine, version).await {
                Err(err) if err.is_full() && self.shrink(self.store.bytes() / 2).await => {
                    self.fetch_missing(engine, version).await
                }
                fetched => fetched,
            }
        });
        let fetched = timeout(self.limit, fetch_missing).await;
        fetched.unwrap_or_else(|_| Err(self.too_slow(version).into()))
    }

    /// Leases all that is here of a version, without fetching: for adopted instances, which have it
    /// mounted in one form or the other. Not to be mounted.
    pub(crate) fn lease_present(&self, version: &Version) -> Option<Code> {
        let mut held = self.layers_of(version).unwrap_or_default();
        held.extend(self.tree_of(version));
        (!held.is_empty()).then_some(Code { held })
    }

    /// All layers of the version, or none.
    fn layers_of(&self, version: &Version) -> Option<Vec<LayerLease>> {
        let layers = version.parts.iter().flat_map(|parts| &parts.layers);
        let held: Option<Vec<LayerLease>> =
            layers.map(|layer| self.store.lease(&Name::layer(&layer.diff_id).ok()?)).collect();
        held.filter(|held| !held.is_empty())
    }

    fn tree_of(&self, version: &Version) -> Option<LayerLease> {
        self.store.lease(&Name::image(&version.image.digest).ok()?)
    }

    /// Whether a container of this id is one that layers are read from.
    pub(crate) fn reads(&self, id: &InstanceId) -> bool {
        self.readers.has(id)
    }

    async fn fetch_missing(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<Code, LayersError> {
        let layers = version.parts.iter().flat_map(|parts| &parts.layers);
        let fetched = try_join_all(layers.map(|layer| self.layer(version, layer))).await;
        let held = match fetched {
            Ok(held) if !held.is_empty() => held,
            Ok(_) => vec![self.fetch_from_image(engine, version).await?],
            Err(err) if err.is_absent() => vec![self.fetch_from_image(engine, version).await?],
            Err(err) => return Err(err),
        };
        if self.store.bytes() > self.size {
            self.over_size.notify_one();
        }
        Ok(Code { held })
    }

    /// Fetches one layer, from the builder's cache or a registry.
    async fn layer(
        &self,
        version: &Version,
        layer: &ImageLayer,
    ) -> Result<LayerLease, LayersError> {
        let name = Name::layer(&layer.diff_id)?;
        let fetch = async {
            let _turn = self.turns.acquire().await;
            if let Some(builder_cache) = &self.builder_cache {
                let taken = self
                    .store_and_count(
                        Source::BuilderCache,
                        &name,
                        self.take_from_builder_cache(builder_cache, &name),
                    )
                    .await;
                match taken {
                    Ok(lease) => return Ok(lease),
                    Err(Miss::Final(err)) => return Err(err),
                    Err(Miss::Absent(None)) => {}
                    Err(Miss::Absent(Some(cause)) | Miss::Corrupt(cause)) => {
                        tracing::warn!(layer = %name, error = %Chain(&*cause), "Layer in the builder's cache is unusable; asking the registry.");
                    }
                }
            }
            match &layer.blob {
                Some(blob) => self.fetch_twice(version, &name, blob).await,
                None => Err(LayersError::Absent { layer: name.to_string() }),
            }
        };
        self.single_attempt(&name, fetch).await
    }

    /// Reads all of the code from the function's image.
    async fn fetch_from_image(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<LayerLease, LayersError> {
        let name = Name::image(&version.image.digest)?;
        let fetch = async {
            let _turn = self.turns.acquire().await;
            let read = self.read_image(engine, version, &name);
            self.store_and_count(Source::Engine, &name, read).await.map_err(|miss| match miss {
                Miss::Final(err) => err,
                Miss::Absent(None) => LayersError::Absent { layer: name.to_string() },
                Miss::Absent(Some(cause)) | Miss::Corrupt(cause) => EngineError::Down(cause).into(),
            })
        };
        self.single_attempt(&name, fetch).await
    }

    /// Runs one attempt at a time for each layer, and none for a layer that is known to be unfit.
    async fn single_attempt(
        &self,
        name: &Name,
        fetch: impl Future<Output = Result<LayerLease, LayersError>>,
    ) -> Result<LayerLease, LayersError> {
        if let Some(why) = self.unfit.lock().get(name).cloned() {
            return Err(LayersError::Unfit { layer: name.to_string(), why });
        }
        let there = || self.store.lease(name);
        if let Some(lease) = there() {
            return Ok(lease);
        }
        self.in_progress.ensure(name, there, fetch).await.map_err(LayersError::Shared)
    }

    async fn take_from_builder_cache(
        &self,
        builder_cache: &Path,
        name: &Name,
    ) -> Result<Unpacked, Miss> {
        let store = Arc::clone(&self.store);
        let builder_cache = builder_cache.to_owned();
        let expected = self.expected(name);
        let work = move || match builder_cache::find(&builder_cache, &expected.name) {
            Ok(Some(tar)) => Some(Ok(extract::from_reader(&store, &expected, tar))),
            Ok(None) => None,
            Err(err) => Some(Err(err)),
        };
        match spawn_blocking(work).await {
            Ok(None) => Err(Miss::Absent(None)),
            Ok(Some(Ok(done))) => done.map_err(|failure| self.miss(name, failure)),
            Ok(Some(Err(err))) => Err(Miss::Absent(Some(err.into()))),
            Err(err) => Err(Miss::Absent(Some(err.into()))),
        }
    }

    /// Fetches a blob; one that arrives corrupt is fetched once more, then reported as an error.
    async fn fetch_twice(
        &self,
        version: &Version,
        name: &Name,
        blob: &Blob,
    ) -> Result<LayerLease, LayersError> {
        let mut again = true;
        loop {
            let fetch = self.fetch_blob(version, name, blob);
            match self.store_and_count(Source::Registry, name, fetch).await {
                Ok(lease) => return Ok(lease),
                Err(Miss::Final(err)) => return Err(err),
                Err(Miss::Absent(cause)) => {
                    if let Some(cause) = cause {
                        tracing::warn!(
                            layer = %name, image = %version.image, error = %Chain(&*cause),
                            "Registry does not provide a layer; reading it from the image."
                        );
                    }
                    return Err(LayersError::Absent { layer: name.to_string() });
                }
                Err(Miss::Corrupt(cause)) if again => {
                    tracing::warn!(
                        layer = %name, image = %version.image, error = %Chain(&*cause),
                        "Layer of the registry does not match its digest; fetching it once more."
                    );
                    again = false;
                }
                Err(Miss::Corrupt(cause)) => {
                    return Err(registry::corrupt(&version.image, blob, cause).into());
                }
            }
        }
    }

    async fn fetch_blob(
        &self,
        version: &Version,
        name: &Name,
        blob: &Blob,
    ) -> Result<Unpacked, Miss> {
        let opened = self.registries.open(&version.image, blob).await;
        let pieces = opened.map_err(|err| Miss::Absent(Some(err.into())))?;
        let most = Some(blob.bytes.get());
        let expected = self.expected(name);
        match extract::from_stream(&self.store, expected, Compression::Gzip, most, pieces).await {
            Ok(done) => Ok(done),
            Err(ExtractError::Content(failure)) => Err(self.miss(name, failure)),
            Err(ExtractError::Source(err)) if registry::is_other_content(&*err) => {
                Err(Miss::Corrupt(err))
            }
            Err(ExtractError::Source(err)) => Err(Miss::Absent(Some(err))),
        }
    }

    async fn read_image(
        &self,
        engine: &dyn Engine,
        version: &Version,
        name: &Name,
    ) -> Result<Unpacked, Miss> {
        let refused = |err: EngineError| Miss::Final(err.into());
        let reader = self.readers.open(engine, version).await.map_err(refused)?;
        let read = async {
            let pieces = reader.code(engine).await.map_err(refused)?;
            let expected = Expected { is_digest: false, ..self.expected(name) };
            match extract::from_stream(&self.store, expected, Compression::Plain, None, pieces)
                .await
            {
                Ok(done) => Ok(done),
                Err(ExtractError::Content(failure)) => Err(self.miss(name, failure)),
                Err(ExtractError::Source(err)) => Err(match err.downcast::<EngineError>() {
                    Ok(err) => refused(*err),
                    Err(err) => Miss::Absent(Some(err)),
                }),
            }
        };
        let read = read.await;
        reader.close(engine).await;
        read
    }

    /// Stores what a source provided, and counts the fetch.
    async fn store_and_count(
        &self,
        source: Source,
        name: &Name,
        fetch: impl Future<Output = Result<Unpacked, Miss>>,
    ) -> Result<LayerLease, Miss> {
        let began = Instant::now();
        let fetched = match fetch.await {
            Ok((draft, bytes)) => {
                let store = Arc::clone(&self.store);
                let name = name.clone();
                let inserted = spawn_blocking(move || store.insert(&name, draft, bytes)).await;
                let inserted = inserted.unwrap_or_else(|err| Err(io::Error::other(err)));
                inserted.map_err(|err| Miss::Final(self.disk(err)))
            }
            Err(miss) => Err(miss),
        };
        let (outcome, took) = match &fetched {
            Ok(_) => ("ok", Some(began.elapsed())),
            Err(Miss::Absent(_)) => ("absent", None),
            Err(Miss::Corrupt(_)) => ("corrupt", None),
            Err(Miss::Final(err)) => (err.outcome(), None),
        };
        self.counts.fetched(source, outcome, took);
        self.counts.holds(self.store.bytes());
        fetched
    }

    /// Limits a layer to the size of the whole store: a larger one could never stay.
    fn expected(&self, name: &Name) -> Expected {
        Expected { name: name.clone(), is_digest: true, most: self.size }
    }

    fn miss(&self, name: &Name, failure: UnpackError) -> Miss {
        match failure {
            UnpackError::Corrupt(err) => Miss::Corrupt(err.into()),
            UnpackError::Disk(err) => Miss::Final(self.disk(err)),
            UnpackError::Unfit(why) => {
                let mut unfit = self.unfit.lock();
                if unfit.len() >= MAX_UNFIT {
                    unfit.clear(); // they are found again
                }
                unfit.insert(name.clone(), why.clone());
                Miss::Final(LayersError::Unfit { layer: name.to_string(), why })
            }
        }
    }

    fn disk(&self, err: io::Error) -> LayersError {
        LayersError::disk(self.store.folder().to_owned(), err)
    }

    fn too_slow(&self, version: &Version) -> EngineError {
        let host = Host::of(&version.image.reference);
        let limit = humantime::format_duration(self.limit);
        EngineError::Registry(Box::new(ImageUnavailable {
            hint: format!(
                "check whether `{host}` is slow, or raise `vm_agent.pull_timeout` and `gateway.fetch_timeout`"
            ),
            what: format!("did not provide the layers of `{}` within {limit}", version.id()),
            host,
            source: None,
        }))
    }
}

/// The code of one version as directories of this machine. Held while they are mounted: none of
/// them is removed before it is dropped.
#[derive(Debug)]
pub(crate) struct Code {
    held: Vec<LayerLease>,
}

impl Code {
    /// The directories to mount over each other, bottom first: each is a layer's `app` directory.
    /// There is at least one.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.held.iter().map(LayerLease::app)
    }
}

#[cfg(test)]
mod tests;
