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
    instance::{
        control::Line, sockets::SocketFolder, start::ExitWatch, state::Moment, unsettled::Unsettled,
    },
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
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// Cells that see nothing, before any saw something, after which there are no more.
const DOUBTS: u32 = 3;
/// Instead of a number of doubts: one saw it.
const PROVEN: u32 = u32::MAX;

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
    pub(crate) unsettled: Option<Unsettled>,
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
    /// Starts that the engine works for, in cells or not: the pool is not filled at their cost.
    at_engine: AtomicUsize,
    /// How often nothing was seen of what was mounted, until it was seen once.
    doubts: AtomicU32,
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
            at_engine: AtomicUsize::new(0),
            doubts: AtomicU32::new(0),
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

    /// A start is about to have the engine make a container; it does until the answer is dropped. Code that loads is no
    /// work for the engine, and may take for ever.
    pub(crate) fn has_engine(&self) -> AtEngine<'_> {
        self.at_engine.fetch_add(1, Ordering::Relaxed);
        AtEngine(self)
    }

    /// One start of this kind begins: what is ready is to follow.
    pub(crate) fn wants(&self, kind: &Kind, now: Moment) {
        self.pool.lock().started(kind, now);
    }

    /// A ready cell, the one that booted last, if at least `leave` others stay. Of one that has just died the engine may not
    /// know yet.
    pub(crate) fn take(&self, kind: &Kind, leave: usize) -> Option<Cell> {
        self.mounts()?;
        loop {
            let cell = self.pool.lock().take(kind, leave)?;
            self.news.notify_one();
            if cell.line.is_open() {
                return Some(cell);
            }
            tracing::warn!(cell = %cell.place.id, %kind, "A cell was dead when it was needed.");
        }
    }

    /// What is mounted for a cell was seen in it, or not. One word that it was not counts little: code that loads could
    /// have said it. Some in a row, before it ever worked, mean that it does not work here.
    pub(crate) fn told(&self, was_seen: bool) {
        if was_seen {
            self.doubts.store(PROVEN, Ordering::Relaxed);
            return;
        }
        let more = |doubts| (doubts != PROVEN).then_some(doubts + 1);
        let before = self.doubts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if before.is_ok_and(|before| before + 1 >= DOUBTS) {
            self.turn_off("containers do not see what is mounted for them");
        }
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

    /// Clears away what belongs to no known cell. Asked for each, right before: cells are made meanwhile.
    pub(crate) fn sweep(&self, is_known: impl Fn(&InstanceId) -> bool) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| InstanceId::parse(name).ok());
            if let Some(id) = id.filter(|id| !is_known(id)) {
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

/// A start that the engine works for.
pub(crate) struct AtEngine<'a>(&'a Cells);

impl Drop for AtEngine<'_> {
    fn drop(&mut self) {
        if self.0.at_engine.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.news.notify_one();
        }
    }
}
