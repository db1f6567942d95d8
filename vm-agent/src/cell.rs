//! Cells: booted, unassigned containers of a runtime base that wait for code (slots of a warm
//! pool). A start takes one, mounts its version's layers into it and has the wrapper load them:
//! milliseconds, where creating a container takes a fifth of a second.
//!
//! ```text
//! refill ─▶ boot ─▶ ready (pool) ─▶ taken ─▶ layers mounted, code loaded (assign) ─▶ an instance like any other
//!             └────────┴── died, surplus, memory needed, init failed ──┴──▶ removed (resources)
//! ```
//!
//! A cell serves one version, once: an instance never becomes a cell again. `compatibility.rs` says
//! which versions fit, `demand.rs` how many cells to keep ready. [`Cells`] owns all cells of the
//! VM; where nothing can be mounted, or the operator wants no cells, it is off, and instances are
//! created from images. `instance/runner.rs` takes cells, `reconcile.rs` removes those of an
//! earlier run, `app.rs` opens and closes.

pub(crate) mod base;
pub(crate) mod boot;
pub(crate) mod compatibility;
pub(crate) mod demand;
pub(crate) mod fetch;
pub(crate) mod pool;
pub(crate) mod refill;
pub(crate) mod resources;

use crate::container::control::ControlConnection;
use crate::container::exit::ExitWatch;
use crate::container::mounts::Mounts;
use crate::container::output::AttachedOutput;
use crate::container::sockets::SocketDir;
use crate::container::unsettled::Unsettled;
use crate::context::VmContext;
use crate::moment::Moment;
use base::Base;
use compatibility::Kind;
use demand::Range;
use epsilon_api::{chain::Chain, function::Version, ids::InstanceId, vm::CellCount};
use parking_lot::Mutex;
use pool::Pool;
use resources::CellResources;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

/// Probes that may fail before one succeeded; then cells are turned off.
const MAX_FAILED_PROBES: u32 = 3;
/// Value of `failed_probes` once a mount was visible in a cell.
const PROVEN: u32 = u32::MAX;

/// A booted container that waits for code. Dropping it removes it.
pub(crate) struct Cell {
    pub(crate) kind: Kind,
    pub(crate) resources: CellResources,
    /// Its log output, which belongs to no instance yet.
    pub(crate) output: AttachedOutput,
    pub(crate) exit: ExitWatch,
    /// An open connection to its wrapper.
    pub(crate) control: ControlConnection,
    pub(crate) sockets: SocketDir,
    pub(crate) unsettled: Option<Unsettled>,
}

/// The cells of this VM.
#[derive(Debug)]
pub(crate) struct Cells {
    pub(crate) context: Arc<VmContext>,
    root: PathBuf,
    /// `None` where nothing can be mounted, or cells are disabled.
    mounts: Option<Mounts>,
    /// Set when cells turned out not to work, because containers do not see mounts.
    is_off: AtomicBool,
    pool: Mutex<Pool>,
    base: Base,
    range: Range,
    /// Starts that the engine works on, in cells or not: the pool is not refilled meanwhile.
    engine_starts: AtomicUsize,
    /// How many cells did not see what was mounted for them, until one did.
    failed_probes: AtomicU32,
    /// Wakes the refill task.
    refill_wakeup: Notify,
}

impl Cells {
    /// Checks once whether this machine can have cells, and logs the reason if not.
    pub(crate) fn open(context: Arc<VmContext>) -> Arc<Self> {
        let config = &context.config;
        let root = config.folder.join("cells");
        let range = config.cells;
        let mounts = match range.max {
            0 => None,
            _ if !context.engine.sees_mounts() => None,
            _ => Mounts::open(&root)
                .inspect_err(|err| {
                    tracing::warn!(
                        error = %Chain(err),
                        folder = %root.display(),
                        "No cells: each cold start makes a container from its image. Run the agent as root, on the engine's own \
                         machine and outside of sandboxes that give it mounts of its own, or set `vm_agent.cells_max: 0`."
                    );
                })
                .ok(),
        };
        Arc::new(Self {
            base: Base::open(config.folder.join("base.json")),
            mounts,
            is_off: AtomicBool::new(false),
            pool: Mutex::default(),
            range,
            engine_starts: AtomicUsize::new(0),
            failed_probes: AtomicU32::new(0),
            refill_wakeup: Notify::new(),
            root,
            context,
        })
    }

    /// How to mount, while cells are on.
    pub(crate) fn mounts(&self) -> Option<&Mounts> {
        self.mounts.as_ref().filter(|_| !self.is_off.load(Ordering::Relaxed))
    }

    /// Turns cells off until the agent restarts. Ready ones are removed by the refill.
    pub(crate) fn turn_off(&self, why: &str) {
        if !self.is_off.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                error = why,
                "No more cells: each cold start makes a container from its image. The engine has to see what this agent \
                 mounts: run both on one machine, outside of sandboxes that give either of them mounts of its own."
            );
        }
        self.refill_wakeup.notify_one();
    }

    pub(crate) fn is_on(&self) -> bool {
        self.mounts().is_some()
    }

    /// The kind of cell in which the version can be started; `None`: it starts from its image.
    pub(crate) fn kind_for(&self, version: &Version) -> Option<Kind> {
        self.mounts()?;
        match Kind::of(version) {
            Ok(kind) => Some(kind),
            Err(why) => {
                tracing::debug!(function = %version.function, version = %version.number, %why, "Version does not fit a cell; starting from its image.");
                None
            }
        }
    }

    /// A version is about to be used here: cells are kept ready for its base if it is the newest.
    pub(crate) fn note_version(&self, version: &Version) {
        if let Some(kind) = self.kind_for(version)
            && self.base.note_version(kind.base, version.created_at)
        {
            self.refill_wakeup.notify_one();
        }
    }

    /// Counts a start that requests a container from the engine, until the guard is dropped.
    /// Loading code is not counted: it is no work for the engine, and may take forever.
    pub(crate) fn begin_engine_start(&self) -> EngineStart<'_> {
        self.engine_starts.fetch_add(1, Ordering::Relaxed);
        EngineStart(self)
    }

    /// Counts one start of this kind; the refill sizes the pool by it.
    pub(crate) fn note_demand(&self, kind: &Kind, now: Moment) {
        self.pool.lock().started(kind, now);
    }

    /// Takes a ready cell, the one that booted last, if at least `min_left` others stay. Skips
    /// cells that died a moment ago, before the engine reported it.
    pub(crate) fn take(&self, kind: &Kind, min_left: usize) -> Option<Cell> {
        self.mounts()?;
        loop {
            let cell = self.pool.lock().take(kind, min_left)?;
            self.refill_wakeup.notify_one();
            if cell.control.is_open() {
                return Some(cell);
            }
            tracing::warn!(cell = %cell.resources.id, %kind, "Ready cell was dead when it was taken; trying the next one.");
        }
    }

    /// Records whether a cell saw what was mounted for it. One negative report counts little: code
    /// that loads could have sent it. Several in a row, before it ever worked, mean that mounts do
    /// not reach containers here.
    pub(crate) fn note_mount_visible(&self, was_seen: bool) {
        if was_seen {
            self.failed_probes.store(PROVEN, Ordering::Relaxed);
            return;
        }
        let more = |failed_probes| (failed_probes != PROVEN).then_some(failed_probes + 1);
        let before = self.failed_probes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if before.is_ok_and(|before| before + 1 >= MAX_FAILED_PROBES) {
            self.turn_off("containers do not see what is mounted for them");
        }
    }

    /// Whether a cell of this kind is ready.
    pub(crate) fn has(&self, kind: &Kind) -> bool {
        self.mounts().is_some() && self.pool.lock().has(kind)
    }

    /// A ready cell ended by itself.
    fn remove_dead(&self, id: &InstanceId) {
        let lost = self.pool.lock().remove(id);
        if let Some(cell) = lost {
            tracing::warn!(cell = %id, kind = %cell.kind, "Ready cell ended by itself; it is replaced.");
            self.refill_wakeup.notify_one();
        }
    }

    /// Memory of all ready cells, in bytes.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.pool.lock().bytes()
    }

    /// Evicts ready cells until `bytes` are being freed; returns how many bytes are.
    pub(crate) fn release(&self, bytes: u64) -> u64 {
        let leaving = self.pool.lock().release(bytes);
        leaving.iter().map(|cell| cell.kind.memory.get()).sum()
    }

    pub(crate) fn count(&self) -> CellCount {
        self.pool.lock().count()
    }

    /// The directory of one cell.
    pub(crate) fn folder(&self, id: &InstanceId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Where a version's layers are mounted; in the container, it is the directory with the code.
    pub(crate) fn app(&self, id: &InstanceId) -> PathBuf {
        self.folder(id).join("app")
    }

    /// Whether layers are mounted in the cell.
    pub(crate) fn is_mounted(&self, id: &InstanceId) -> bool {
        crate::container::mounts::found(&self.folder(id)).is_ok_and(|all| !all.is_empty())
    }

    /// Removes a cell's mount and directory, once its container is removed. The next sweep repeats
    /// what fails.
    pub(crate) fn clear(&self, id: &InstanceId) {
        let removed = crate::container::mounts::close(&self.folder(id))
            .and_then(|()| remove_folder(&self.folder(id)));
        if let Err(err) = removed {
            tracing::warn!(cell = %id, error = %Chain(&err), "Directory of a removed cell could not be removed; the next sweep tries again.");
        }
    }

    /// Removes what belongs to no known cell. `is_known` is called right before each removal,
    /// because cells are created meanwhile.
    pub(crate) fn sweep(&self, is_known: impl Fn(&InstanceId) -> bool) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| InstanceId::parse(name).ok());
            if let Some(id) = id.filter(|id| !is_known(id)) {
                self.clear(&id);
            }
        }
    }

    /// Unmounts everything, the shared mount of the directory itself last. No cell may be in use
    /// any more.
    pub(crate) fn close(&self) {
        if let Err(err) = crate::container::mounts::close(&self.root) {
            tracing::error!(error = %Chain(&err), folder = %self.root.display(), "Mounts of cells could not be removed at shutdown; the next start of the agent takes them over.");
        }
    }
}

/// Removes a directory of ours in which nothing is mounted any more, so that no other files are
/// below it.
fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A start that the engine works on.
pub(crate) struct EngineStart<'a>(&'a Cells);

impl Drop for EngineStart<'_> {
    fn drop(&mut self) {
        if self.0.engine_starts.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.refill_wakeup.notify_one();
        }
    }
}
