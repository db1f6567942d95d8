//! The code layers of functions, unpacked on this machine: what is mounted into cells. Each layer lies in a
//! folder that is named after its content, once, whoever shares it.
//!
//! ```text
//! ensure ─▶ here? ─▶ leased, and that is all
//!            │ no
//!            ├─▶ shelf     the builder of this machine keeps the tar ┐
//!            ├─▶ registry  the layer's blob, by digest, checked      ├ each layer by itself, all at the same time
//!            │      └─ neither has one of them                       ┘
//!            └─▶ engine    `/app` of the function's image, as one tree
//!                   └─▶ pour ─▶ unpack ─▶ tree    a draft, checked
//!                          └─▶ stock              renamed when it is whole, leased
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `name` | a digest that may become a path |
//! | `shelf`, `registry`, `engine` | the three sources |
//! | `pour` | from a stream to a folder whose digest was checked |
//! | `unpack`, `tree` | what of a tar is taken, and that nothing is written elsewhere |
//! | `stock` | what is here: leases, last uses, what survives a crash |
//! | `room` | the timer that keeps the stock within `vm_agent.layers_size` |
//!
//! Not the mounts themselves (`cell`), and no images (`images`). Called where a cell is given to a version, and where a
//! gateway wants one fetched.

mod counts;
mod engine;
mod error;
mod name;
mod pour;
mod registry;
pub(crate) mod room;
mod shelf;
mod stock;
#[cfg(test)]
mod tars;
mod tree;
mod unpack;

use crate::{
    config::Config,
    engine::{Denied, Engine, EngineError},
};
pub(crate) use counts::Counts;
use counts::Source;
use engine::Readers;
use epsilon_api::{
    chain::Chain,
    function::{Blob, ImageLayer, Version},
    ids::{InstanceId, VmId},
};
use epsilon_registry::Host;
use epsilon_wire::together::Together;
pub(crate) use error::LayersError;
use futures_util::future::try_join_all;
use name::Name;
use parking_lot::Mutex;
use pour::{Packing, Spilled, Unpacked, Wanted};
use registry::Registries;
use std::{
    collections::HashMap,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use stock::{Lease, Stock};
use tokio::{
    sync::{Notify, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use unpack::Trouble;

/// Unfit layers that are known not to be worth another look.
const UNFIT: usize = 1024;
/// Most that a start waits on one silent registry, as a share of the whole limit: the engine's turn must be left.
const PATIENCE: u32 = 4;

/// The layers of this VM.
#[derive(Debug)]
pub(crate) struct Layers {
    stock: Arc<Stock>,
    /// Fetches and removals, one at a time for each layer.
    at_work: Together<Name, LayersError>,
    unfit: Mutex<HashMap<Name, String>>,
    /// Fetches at once.
    turns: Semaphore,
    /// For all that one version lacks.
    limit: Duration,
    /// Most that all of them may take.
    size: u64,
    shelf: Option<PathBuf>,
    registries: Registries,
    readers: Readers,
    counts: Counts,
    /// The stock has outgrown its size.
    is_full: Notify,
}

/// Why a source gave no layer.
#[derive(Debug)]
enum Miss {
    /// It has none; perhaps another one has. With the reason where there is more to say.
    Absent(Option<Box<dyn Error + Send + Sync>>),
    /// It gave something else.
    Corrupt(Box<dyn Error + Send + Sync>),
    /// No other source would make it better.
    Final(LayersError),
}

impl Layers {
    /// The folder `DATA/vm/layers`; made when absent. What an interrupted unpacking left behind is removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub(crate) fn open(config: &Config, vm: &VmId, counts: Counts) -> io::Result<Self> {
        let limit = config.pull_timeout;
        let access = config.registries.clone();
        let plain = config.dangerous_registry_plain_http;
        let certificates = Path::new(registry::CERTIFICATES);
        let stock = Stock::open(&config.folder.join("layers"))?;
        counts.holds(stock.bytes());
        Ok(Self {
            stock,
            at_work: Together::default(),
            unfit: Mutex::default(),
            turns: Semaphore::new(config.layers_at_once),
            limit,
            size: config.layers_size.get(),
            shelf: config.layer_shelf.clone(),
            registries: Registries::new(access, plain, certificates, limit / PATIENCE),
            readers: Readers::new(vm.clone(), config.limits.clone()),
            counts,
            is_full: Notify::new(),
        })
    }

    /// Everything above the base that a version's code needs, unpacked on this machine; brings what is lacking, within
    /// `vm_agent.pull_timeout`. What is here costs a look each.
    ///
    /// # Errors
    /// [`LayersError`]; [`LayersError::leaves_the_image`] says whether the version's image may do what layers cannot.
    pub(crate) async fn ensure(
        &self,
        engine: &dyn Engine,
        version: &Version,
    ) -> Result<Code, LayersError> {
        let here = self.layers_of(version).or_else(|| Some(vec![self.tree_of(version)?]));
        if let Some(held) = here {
            return Ok(Code { held });
        }
        // Boxed: a start that finds its layers here need not be as large as a fetch.
        let bring = Box::pin(async {
            match self.bring(engine, version).await {
                Err(err) if err.is_full() && self.shrink(self.stock.bytes() / 2).await => {
                    self.bring(engine, version).await
                }
                brought => brought,
            }
        });
        let brought = timeout(self.limit, bring).await;
        brought.unwrap_or_else(|_| Err(self.too_slow(version).into()))
    }

    /// Holds all that is here of a version, without bringing anything: for instances of an earlier agent, which have it
    /// mounted in one way or the other. Not to be mounted.
    pub(crate) fn here(&self, version: &Version) -> Option<Code> {
        let mut held = self.layers_of(version).unwrap_or_default();
        held.extend(self.tree_of(version));
        (!held.is_empty()).then_some(Code { held })
    }

    /// All layers, or nothing.
    fn layers_of(&self, version: &Version) -> Option<Vec<Lease>> {
        let layers = version.parts.iter().flat_map(|parts| &parts.layers);
        let held: Option<Vec<Lease>> =
            layers.map(|layer| self.stock.lease(&Name::layer(&layer.diff_id).ok()?)).collect();
        held.filter(|held| !held.is_empty())
    }

    fn tree_of(&self, version: &Version) -> Option<Lease> {
        self.stock.lease(&Name::image(&version.image.digest).ok()?)
    }

    /// Whether a container of this id is one of those that layers are read from.
    pub(crate) fn reads(&self, id: &InstanceId) -> bool {
        self.readers.has(id)
    }

    async fn bring(&self, engine: &dyn Engine, version: &Version) -> Result<Code, LayersError> {
        let layers = version.parts.iter().flat_map(|parts| &parts.layers);
        let brought = try_join_all(layers.map(|layer| self.layer(version, layer))).await;
        let held = match brought {
            Ok(held) if !held.is_empty() => held,
            Ok(_) => vec![self.whole(engine, version).await?],
            Err(err) if err.is_absent() => vec![self.whole(engine, version).await?],
            Err(err) => return Err(err),
        };
        if self.stock.bytes() > self.size {
            self.is_full.notify_one();
        }
        Ok(Code { held })
    }

    /// One layer, from the shelf or a registry.
    async fn layer(&self, version: &Version, layer: &ImageLayer) -> Result<Lease, LayersError> {
        let name = Name::layer(&layer.diff_id)?;
        let fetch = async {
            let _turn = self.turns.acquire().await;
            if let Some(shelf) = &self.shelf {
                let taken =
                    self.counted(Source::Shelf, &name, self.take_from_shelf(shelf, &name)).await;
                match taken {
                    Ok(lease) => return Ok(lease),
                    Err(Miss::Final(err)) => return Err(err),
                    Err(Miss::Absent(None)) => {}
                    Err(Miss::Absent(Some(cause)) | Miss::Corrupt(cause)) => {
                        tracing::warn!(layer = %name, cause = %Chain(&*cause), "The shelf's layer is of no use.");
                    }
                }
            }
            match &layer.blob {
                Some(blob) => self.fetch_twice(version, &name, blob).await,
                None => Err(LayersError::Absent { layer: name.to_string() }),
            }
        };
        self.once(&name, fetch).await
    }

    /// All of the code, from the function's image.
    async fn whole(&self, engine: &dyn Engine, version: &Version) -> Result<Lease, LayersError> {
        let name = Name::image(&version.image.digest)?;
        let fetch = async {
            let _turn = self.turns.acquire().await;
            let read = self.read_image(engine, version, &name);
            self.counted(Source::Engine, &name, read).await.map_err(|miss| match miss {
                Miss::Final(err) => err,
                Miss::Absent(None) => LayersError::Absent { layer: name.to_string() },
                Miss::Absent(Some(cause)) | Miss::Corrupt(cause) => EngineError::Down(cause).into(),
            })
        };
        self.once(&name, fetch).await
    }

    /// One attempt at a time for each layer, and none for one that is known to be unfit.
    async fn once(
        &self,
        name: &Name,
        fetch: impl Future<Output = Result<Lease, LayersError>>,
    ) -> Result<Lease, LayersError> {
        if let Some(why) = self.unfit.lock().get(name).cloned() {
            return Err(LayersError::Unfit { layer: name.to_string(), why });
        }
        let there = || self.stock.lease(name);
        if let Some(lease) = there() {
            return Ok(lease);
        }
        self.at_work.ensure(name, there, fetch).await.map_err(LayersError::Same)
    }

    async fn take_from_shelf(&self, shelf: &Path, name: &Name) -> Result<Unpacked, Miss> {
        let (stock, shelf, wanted) = (Arc::clone(&self.stock), shelf.to_owned(), self.wanted(name));
        let work = move || match shelf::find(&shelf, &wanted.name) {
            Ok(Some(tar)) => Some(Ok(pour::from_reader(&stock, &wanted, tar))),
            Ok(None) => None,
            Err(err) => Some(Err(err)),
        };
        match spawn_blocking(work).await {
            Ok(None) => Err(Miss::Absent(None)),
            Ok(Some(Ok(done))) => done.map_err(|trouble| self.miss(name, trouble)),
            Ok(Some(Err(err))) => Err(Miss::Absent(Some(err.into()))),
            Err(err) => Err(Miss::Absent(Some(err.into()))),
        }
    }

    /// A layer that arrives as something else is asked for once more; after that, somebody has to know.
    async fn fetch_twice(
        &self,
        version: &Version,
        name: &Name,
        blob: &Blob,
    ) -> Result<Lease, LayersError> {
        let mut again = true;
        loop {
            let fetch = self.fetch_blob(version, name, blob);
            match self.counted(Source::Registry, name, fetch).await {
                Ok(lease) => return Ok(lease),
                Err(Miss::Final(err)) => return Err(err),
                Err(Miss::Absent(cause)) => {
                    if let Some(cause) = cause {
                        tracing::warn!(
                            layer = %name, image = %version.image, cause = %Chain(&*cause),
                            "The registry does not give a layer; the engine is asked for the image."
                        );
                    }
                    return Err(LayersError::Absent { layer: name.to_string() });
                }
                Err(Miss::Corrupt(cause)) if again => {
                    tracing::warn!(
                        layer = %name, image = %version.image, cause = %Chain(&*cause),
                        "The registry gave a layer that is not what it should be; once more."
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
        let wanted = self.wanted(name);
        match pour::from_stream(&self.stock, wanted, Packing::Gzip, most, pieces).await {
            Ok(done) => Ok(done),
            Err(Spilled::Sent(trouble)) => Err(self.miss(name, trouble)),
            Err(Spilled::Sender(err)) if registry::is_other_content(&*err) => {
                Err(Miss::Corrupt(err))
            }
            Err(Spilled::Sender(err)) => Err(Miss::Absent(Some(err))),
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
            let wanted = Wanted { is_digest: false, ..self.wanted(name) };
            match pour::from_stream(&self.stock, wanted, Packing::Plain, None, pieces).await {
                Ok(done) => Ok(done),
                Err(Spilled::Sent(trouble)) => Err(self.miss(name, trouble)),
                Err(Spilled::Sender(err)) => Err(match err.downcast::<EngineError>() {
                    Ok(err) => refused(*err),
                    Err(err) => Miss::Absent(Some(err)),
                }),
            }
        };
        let read = read.await;
        reader.close(engine).await;
        read
    }

    /// Keeps what a source gave, and counts it.
    async fn counted(
        &self,
        source: Source,
        name: &Name,
        fetch: impl Future<Output = Result<Unpacked, Miss>>,
    ) -> Result<Lease, Miss> {
        let began = Instant::now();
        let fetched = match fetch.await {
            Ok((draft, bytes)) => {
                let (stock, name) = (Arc::clone(&self.stock), name.clone());
                let kept = spawn_blocking(move || stock.keep(&name, draft, bytes)).await;
                let kept = kept.unwrap_or_else(|err| Err(io::Error::other(err)));
                kept.map_err(|err| Miss::Final(self.disk(err)))
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
        self.counts.holds(self.stock.bytes());
        fetched
    }

    /// Unpacks within what all layers may take: a larger one could never stay.
    fn wanted(&self, name: &Name) -> Wanted {
        Wanted { name: name.clone(), is_digest: true, most: self.size }
    }

    fn miss(&self, name: &Name, trouble: Trouble) -> Miss {
        match trouble {
            Trouble::Corrupt(err) => Miss::Corrupt(err.into()),
            Trouble::Disk(err) => Miss::Final(self.disk(err)),
            Trouble::Unfit(why) => {
                let mut unfit = self.unfit.lock();
                if unfit.len() >= UNFIT {
                    unfit.clear(); // they are found out again
                }
                unfit.insert(name.clone(), why.clone());
                Miss::Final(LayersError::Unfit { layer: name.to_string(), why })
            }
        }
    }

    fn disk(&self, err: io::Error) -> LayersError {
        LayersError::disk(self.stock.folder().to_owned(), err)
    }

    fn too_slow(&self, version: &Version) -> EngineError {
        let host = Host::of(&version.image.reference);
        let limit = humantime::format_duration(self.limit);
        EngineError::Registry(Box::new(Denied {
            hint: format!(
                "look whether `{host}` is slow or `vm_agent.layers_at_once` too small, or raise \
                 `vm_agent.pull_timeout`"
            ),
            what: format!("did not give the layers of `{}` within {limit}", version.id()),
            host,
            source: None,
        }))
    }
}

/// The code of one version as folders of this machine. Held as long as they are mounted: none of them is removed
/// before it is dropped.
#[derive(Debug)]
pub(crate) struct Code {
    held: Vec<Lease>,
}

impl Code {
    /// What to mount over each other, bottom first: each is a layer's `app` folder. There is at least one.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.held.iter().map(Lease::app)
    }
}

#[cfg(test)]
mod tests;
