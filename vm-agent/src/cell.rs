//! Cells: booted containers of a runtime base that wait for code. A start takes one, mounts its version's layers into it
//! and has them loaded: milliseconds, where making a container takes a fifth of a second.
//!
//! ```text
//! refill ─▶ boot ─▶ ready (pool) ─▶ taken ─▶ layers mounted, code loaded (assign) ─▶ an instance like any other
//!             └────────┴──── died, too many, memory is needed, init failed ────┴──▶ thrown away (place)
//! ```
//!
//! A cell serves one version, once: nothing leads from an instance back to a cell. Which versions fit is said by `kind.rs`,
//! how many wait by `demand.rs`. [`Cells`] is the VM's whole of it; where nothing can be mounted, or an operator wants
//! no cells, it is off, and instances are made from images as if there were none. `instance/runner.rs` asks for cells,
//! `reconcile.rs` clears up behind an earlier life, `app.rs` opens and closes.

pub(crate) mod assign;
pub(crate) mod base;
pub(crate) mod boot;
pub(crate) mod demand;
pub(crate) mod fetch;
pub(crate) mod kind;
pub(crate) mod mounts;
pub(crate) mod place;
pub(crate) mod pool;
pub(crate) mod refill;

use crate::{
    config::Config,
    engine::Engine,
    instance::{control::Line, sockets::SocketFolder, start::ExitWatch, state::Moment},
    logs::attach::Tap,
};
use base::Base;
use demand::Range;
use epsilon_api::{chain::Chain, function::Version, ids::InstanceId, vm::CellCount};
use kind::Kind;
use mounts::Mounts;
use parking_lot::Mutex;
use place::Place;
use pool::Pool;
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// A booted container that waits for code. Dropping it removes it.
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// Its output, which is nobody's yet.
    pub(crate) tap: Tap,
    pub(crate) exit: ExitWatch,
    /// An open connection to its wrapper.
    pub(crate) line: Line,
    pub(crate) sockets: SocketFolder,
}

/// The cells of this VM.
#[derive(Debug)]
pub(crate) struct Cells {
    root: PathBuf,
    /// `None` where nothing can be mounted, or nothing is to be.
    mounts: Option<Mounts>,
    /// The engine turned out not to see what is mounted.
    is_off: AtomicBool,
    pool: Mutex<Pool>,
    base: Base,
    range: Range,
    /// Starts of instances under way, in cells or not: the pool is not filled at their cost.
    starts: AtomicUsize,
    /// Something happened that the refill has to look at.
    news: Notify,
}

impl Cells {
    /// Looks once whether this machine can have cells, and says so when it cannot.
    pub(crate) fn open(config: &Config, engine: &dyn Engine) -> Self {
        let root = config.folder.join("cells");
        let range = config.cells;
        let mounts = match range.max {
            0 => None,
            _ if !engine.sees_mounts() => None,
            _ => Mounts::open(&root)
                .inspect_err(|err| {
                    tracing::warn!(
                        cause = %Chain(err),
                        folder = %root.display(),
                        "No cells: each cold start makes a container from its image. Run the agent as root, on the engine's own \
                         machine and outside of sandboxes that give it mounts of its own, or set `vm_agent.cells_max: 0`."
                    );
                })
                .ok(),
        };
        Self {
            base: Base::open(config.folder.join("base.json")),
            mounts,
            is_off: AtomicBool::new(false),
            pool: Mutex::default(),
            range,
            starts: AtomicUsize::new(0),
            news: Notify::new(),
            root,
        }
    }

    /// The way to mount, while there are cells.
    fn mounts(&self) -> Option<&Mounts> {
        self.mounts.as_ref().filter(|_| !self.is_off.load(Ordering::Relaxed))
    }

    /// No cells from now on. Those that wait go.
    pub(crate) fn turn_off(&self, why: &str) {
        if !self.is_off.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                why,
                "No more cells: each cold start makes a container from its image. The engine has to see what this agent \
                 mounts: run both on one machine, outside of sandboxes that give either of them mounts of its own."
            );
        }
        self.news.notify_one();
    }

    pub(crate) fn is_on(&self) -> bool {
        self.mounts().is_some()
    }

    /// The kind of cell in which the version is to be started; `None`: it takes its image.
    pub(crate) fn kind_for(&self, version: &Version) -> Option<Kind> {
        self.mounts()?;
        match Kind::of(version) {
            Ok(kind) => Some(kind),
            Err(why) => {
                tracing::debug!(function = %version.function, version = %version.number, %why, "It fits no cell.");
                None
            }
        }
    }

    /// A version is about to be used here: the base that it stands on is worth cells.
    pub(crate) fn saw(&self, version: &Version) {
        if let Some(kind) = self.kind_for(version)
            && self.base.saw(kind.base, version.created_at)
        {
            self.news.notify_one();
        }
    }

    /// A start begins; it is under way until the answer is dropped.
    pub(crate) fn begin_start(&self) -> UnderWay<'_> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    /// One start of this kind begins: what is ready is to follow.
    pub(crate) fn wants(&self, kind: &Kind, now: Moment) {
        self.pool.lock().started(kind, now);
    }

    /// A ready cell, the one that booted last.
    pub(crate) fn take(&self, kind: &Kind) -> Option<Cell> {
        self.mounts()?;
        let taken = self.pool.lock().take(kind);
        if taken.is_some() {
            self.news.notify_one();
        }
        taken
    }

    /// Whether one waits.
    pub(crate) fn has(&self, kind: &Kind) -> bool {
        self.mounts().is_some() && self.pool.lock().has(kind)
    }

    /// A waiting cell ended.
    fn lost(&self, id: &InstanceId) {
        let lost = self.pool.lock().remove(id);
        if let Some(cell) = lost {
            tracing::warn!(cell = %id, kind = %cell.kind, "A cell ended by itself while it waited.");
            self.news.notify_one();
        }
    }

    /// Memory that cells hold which wait for nobody in particular.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.pool.lock().bytes()
    }

    /// Makes waiting cells leave until so much is on its way; says how much is.
    pub(crate) fn give_way(&self, bytes: u64) -> u64 {
        let leaving = self.pool.lock().give_way(bytes);
        leaving.iter().map(|cell| cell.kind.memory.get()).sum()
    }

    pub(crate) fn count(&self) -> CellCount {
        self.pool.lock().count()
    }

    /// The folder of one cell.
    pub(crate) fn folder(&self, id: &InstanceId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// What of a version is mounted on; inside, it is the folder with the code.
    pub(crate) fn app(&self, id: &InstanceId) -> PathBuf {
        self.folder(id).join("app")
    }

    /// Whether layers are mounted there.
    pub(crate) fn is_mounted(&self, id: &InstanceId) -> bool {
        mounts::found(&self.folder(id)).is_ok_and(|all| !all.is_empty())
    }

    /// Takes a cell's mount and folder away, once its container is gone. What fails is done by the next sweep.
    pub(crate) fn clear(&self, id: &InstanceId) {
        let removed =
            mounts::close(&self.folder(id)).and_then(|()| remove_folder(&self.folder(id)));
        if let Err(err) = removed {
            tracing::warn!(cell = %id, %err, "What a cell leaves behind could not be removed; it is tried again.");
        }
    }

    /// Clears away what belongs to none of the `known` cells.
    pub(crate) fn sweep(&self, known: &HashSet<InstanceId>) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| InstanceId::parse(name).ok());
            if let Some(id) = id.filter(|id| !known.contains(id)) {
                self.clear(&id);
            }
        }
    }

    /// Takes all mounts off, the one of the folder itself last. Nobody may use a cell any more.
    pub(crate) fn close(&self) {
        if let Err(err) = mounts::close(&self.root) {
            tracing::error!(%err, folder = %self.root.display(), "Mounts of cells stay.");
        }
    }
}

/// A tree of ours: nothing is mounted in it any more, so nobody else's files are below it.
fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A start that is under way.
pub(crate) struct UnderWay<'a>(&'a Cells);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.0.starts.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.news.notify_one();
        }
    }
}
