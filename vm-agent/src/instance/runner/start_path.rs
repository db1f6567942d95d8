//! Chooses the path of a start. Through a cell, when the version fits one: a ready one, else one
//! that is booted for it. From its image otherwise, and whenever cells turn out not to work here;
//! the second attempt then holds what was taken already (memory, turns).
//!
//! Starts that no call waits for (of a deployment, of `minInstances`) take turns of their own:
//! `background.rs`.

use super::assign::{NotAssigned, assign};
use super::image;
use super::{Runner, background::BackgroundTurn};
use crate::cell::compatibility::Kind;
use crate::cell::{Cell, EngineStart, refill};
use crate::container::budget::Claim;
use crate::container::failure::StartFailure;
use crate::container::start::Started;
use crate::layers::Code;
use epsilon_api::{chain::Chain, units::Bytes, vm::StartPhases};
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, SemaphorePermit},
    time::{Instant, sleep, timeout},
};

/// What a start holds while it tries its paths.
#[derive(Default)]
struct StartResources<'a> {
    has_memory: bool,
    background: Option<BackgroundTurn>,
    turn: Option<Turn<'a>>,
}

/// A permit for one of the starts that the engine works on at once.
struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    /// Suspends the refill of cells while the engine works on a start that a call waits for. Not
    /// set for a function whose instances end all the time, nor for background starts.
    _engine_start: Option<EngineStart<'a>>,
    _crash_loop: Option<CrashLoopTurn>,
}

/// The turn of a function whose instances end all the time. Only one such start runs on this VM at
/// once. After a start of a function that crashes on every start there is a pause proportional to
/// its duration, so that crash loops take no more than a fifth of one CPU and of the engine.
struct CrashLoopTurn {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
    pauses: bool,
}

/// The pause after such a start, in multiples of its duration.
const PAUSE: u32 = 4;
/// Longest pause: a slow engine must not make a function wait longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

impl Drop for CrashLoopTurn {
    fn drop(&mut self) {
        let pause = (self.began.elapsed() * PAUSE).min(LONGEST_PAUSE);
        if self.pauses
            && let (Some(permit), Ok(runtime)) = (self.permit.take(), Handle::try_current())
        {
            runtime.spawn(async move {
                sleep(pause).await;
                drop(permit);
            });
        }
    }
}

impl Runner {
    pub(super) async fn start(&self) -> Result<Started, StartFailure> {
        let mut held = StartResources::default();
        if let Some(kind) = self.cells.kind_for(&self.instance.version) {
            match self.start_in_cell(kind, &mut held).await {
                Ok(started) => {
                    self.context.images.used(&self.instance.version);
                    return Ok(started);
                }
                Err(NotAssigned::Start(failure)) => return Err(failure),
                Err(NotAssigned::Cells(why)) => {
                    self.context.metrics.assigned("image");
                    self.warn(
                        "No cell can serve the version; starting from its image.",
                        Some(&why),
                    );
                }
            }
        }
        self.start_from_image(&mut held).await
    }

    async fn start_in_cell<'a>(
        &'a self,
        kind: Kind,
        held: &mut StartResources<'a>,
    ) -> Result<Started, NotAssigned> {
        let cells = &self.cells;
        // The demand of such a function must not size the pool of cells.
        let is_calm = !self.pool.is_crash_looping();
        if is_calm {
            cells.note_demand(&kind, self.context.now());
        }
        let mut phases = StartPhases::default();
        let began = Instant::now();
        if !cells.has(&kind) {
            self.report_memory_shortage();
        }
        if !self.pool.is_start_needed() {
            return Err(NotAssigned::Start(StartFailure::Cancelled));
        }
        let code = self.layers().await?;
        phases.layers = began.elapsed();
        held.background = self.take_background_turn().await.map_err(NotAssigned::Start)?;

        let since = Instant::now();
        if is_calm
            && self.claim_extra_memory(&kind)
            && let Some(cell) = self.take_cell(&kind, held)
        {
            return self.assign(cell, code, phases, since, "ready").await;
        }
        self.take_turn(held).await.map_err(NotAssigned::Start)?;
        let since = Instant::now();
        if is_calm && let Some(mut cell) = self.take_cell(&kind, held) {
            drop(cell.resources.memory.take()); // the start holds all of its memory already
            return self.assign(cell, code, phases, since, "ready").await;
        }
        if !cells.is_on() {
            return Err(NotAssigned::Cells("cells were turned off".into()));
        }
        let booted = refill::begin(&self.cells, kind, None).await;
        let (cell, boot) = match booted {
            Ok(Ok(booted)) => booted,
            Ok(Err(why)) => return Err(NotAssigned::Cells(why)),
            Err(_) => return Err(NotAssigned::Start(StartFailure::Cancelled)),
        };
        held.turn = None; // as with a ready one
        held.background = None;
        let phases = StartPhases { layers: phases.layers, ..boot };
        self.assign(cell, code, phases, Instant::now(), "booted").await
    }

    /// Takes a ready cell; the last one is left for a start that a call waits for. The start gives
    /// up its turns: what follows is the loading of code, which may take any time.
    fn take_cell(&self, kind: &Kind, held: &mut StartResources<'_>) -> Option<Cell> {
        let min_left = if self.pool.has_waiting_calls() { 0 } else { 1 };
        let cell = self.cells.take(kind, min_left)?;
        held.turn = None;
        held.background = None;
        Some(cell)
    }

    async fn assign(
        &self,
        cell: Cell,
        code: Code,
        phases: StartPhases,
        since: Instant,
        how: &str,
    ) -> Result<Started, NotAssigned> {
        let assigned = assign(&self.cells, &self.instance, cell, code, phases, since).await;
        match &assigned {
            Ok(_) => self.context.metrics.assigned(how),
            Err(NotAssigned::Start(failure)) => self.context.metrics.assigned(failure.outcome()),
            Err(NotAssigned::Cells(_)) => {}
        }
        assigned
    }

    async fn layers(&self) -> Result<Code, NotAssigned> {
        let version = &self.instance.version;
        let found = self.context.layers.ensure(&*self.context.engine, version).await;
        found.map_err(|err| match (err.allows_image(), Chain(&err).to_string()) {
            (true, why) => NotAssigned::Cells(why),
            (false, why) => NotAssigned::Start(StartFailure::NoCapacity(why)),
        })
    }

    /// Claims the memory that the function has beyond its cell's. Only what is free at once: else
    /// the start waits for all of its memory, and takes a cell then.
    fn claim_extra_memory(&self, kind: &Kind) -> bool {
        let memory = self.instance.version.spec.memory;
        let beyond = memory.get().saturating_sub(kind.memory.get());
        if beyond == 0 || !self.cells.has(kind) {
            return beyond == 0;
        }
        match self.context.budget.claim(Bytes(beyond)) {
            Claim::Granted(grant) => {
                self.instance.add_memory(grant);
                true
            }
            Claim::Later { .. } | Claim::Never => false,
        }
    }

    async fn start_from_image<'a>(
        &'a self,
        held: &mut StartResources<'a>,
    ) -> Result<Started, StartFailure> {
        // Memory and pulls are waited for without a permit: holding one would block other starts.
        let began = Instant::now();
        if !held.has_memory {
            self.report_memory_shortage();
        }
        if !self.pool.is_start_needed() {
            return Err(StartFailure::Cancelled);
        }
        let image =
            self.context.images.ensure(&*self.context.engine, &self.instance.version).await?;
        let pull = began.elapsed();
        if held.background.is_none() {
            held.background = self.take_background_turn().await?;
        }
        self.take_turn(held).await?;
        image::start(&self.context, &self.instance, image, pull).await
    }

    /// Waits for the turn no longer than a call waits for a slot: a start whose code never finishes
    /// loading may hold it.
    async fn take_crash_loop_turn(&self) -> Result<CrashLoopTurn, StartFailure> {
        let starts = Arc::clone(&self.context.crash_loop_starts);
        match timeout(self.context.config.queue_wait, starts.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(CrashLoopTurn {
                permit: Some(permit),
                began: Instant::now(),
                pauses: self.pool.crashes_early(),
            }),
            Ok(Err(_)) => Err(StartFailure::Cancelled),
            Err(_) => Err(StartFailure::NoCapacity(
                "instances of the function, and of others, end all the time; its start has no turn"
                    .into(),
            )),
        }
    }

    /// Takes memory for the whole instance, then a permit to start.
    async fn take_turn<'a>(&'a self, held: &mut StartResources<'a>) -> Result<(), StartFailure> {
        if !held.has_memory {
            self.instance.release_memory(); // a part of it
            if !self.try_take_memory().await? {
                // It may take long, and smaller background starts may go on.
                held.background = None;
                self.take_memory().await?;
            }
            held.has_memory = true;
        }
        if held.turn.is_none() {
            let closed = |_| StartFailure::Cancelled;
            let mut crash_loop = if self.pool.is_crash_looping() {
                Some(self.take_crash_loop_turn().await?)
            } else {
                None
            };
            let permit = self.context.starts.acquire().await.map_err(closed)?;
            if let Some(turn) = &mut crash_loop {
                turn.began = Instant::now(); // the wait for the permit does not count
            }
            let is_waited_for = crash_loop.is_none() && self.pool.has_waiting_calls();
            let engine_start = is_waited_for.then(|| self.cells.begin_engine_start());
            held.turn = Some(Turn {
                _permit: permit,
                _engine_start: engine_start,
                _crash_loop: crash_loop,
            });
        }
        if !self.pool.is_start_needed() {
            return Err(StartFailure::Cancelled); // the waiting calls were served meanwhile
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[tokio::test(start_paused = true)]
    async fn crash_loop_start_is_followed_by_a_pause() {
        for (took, pauses, paused) in [(100, true, 400), (10_000, true, 3_000), (100, false, 0)] {
            let starts = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&starts).acquire_owned().await.unwrap();
            let turn = CrashLoopTurn { permit: Some(permit), began: Instant::now(), pauses };
            sleep(Duration::from_millis(took)).await;
            drop(turn);
            let ended = Instant::now();
            let _next = starts.acquire().await.unwrap();
            let waited = ended.elapsed().as_millis();
            assert!((paused..paused + 10).contains(&waited), "{waited} ms after {took} ms");
        }
    }
}
