//! Which way a start takes. Through a cell, when the version fits one: one that waits, else one that is booted for it. From its
//! image otherwise, and whenever cells turn out not to work here: without a gap, with what was taken already.
//!
//! A start that no call waits for (of a deployment, of `minInstances`) is nobody else's wait: `background.rs`.

use super::{Runner, background::BackgroundTurn};
use crate::{
    cell::{
        AtEngine, Cell,
        assign::{NotAssigned, assign},
        kind::Kind,
        refill,
    },
    instance::{
        budget::Claim,
        start::{StartFailure, Started, image},
    },
    layers::Code,
};
use epsilon_api::{chain::Chain, units::Bytes, vm::StartPhases};
use std::{sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, SemaphorePermit},
    time::{Instant, sleep, timeout},
};

/// What a start has taken while it looked for a way.
#[derive(Default)]
struct Taken<'a> {
    has_memory: bool,
    background: Option<BackgroundTurn>,
    turn: Option<Turn<'a>>,
}

/// A place among the starts that the engine works for at once.
struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    /// Cells are not refilled at the cost of a start that a call waits for; but beside one of a function whose instances end
    /// all the time, and beside the starts of a deployment.
    _at_engine: Option<AtEngine<'a>>,
    _turbulent: Option<TurbulentTurn>,
}

/// The turn of a function whose instances end all the time. On this VM there is one such start at once. After one of a function
/// that does nothing else there is a pause that follows from what it took, so that crash loops take no more than a fifth of
/// one processor and of the engine.
struct TurbulentTurn {
    permit: Option<OwnedSemaphorePermit>,
    began: Instant,
    pauses: bool,
}

/// The pause after such a start, in starts.
const PAUSE: u32 = 4;
/// Longest pause: a slow engine is no reason to let a function wait for longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

impl Drop for TurbulentTurn {
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
        let mut taken = Taken::default();
        if let Some(kind) = self.vm.cells.kind_for(&self.instance.version) {
            match self.in_cell(kind, &mut taken).await {
                Ok(started) => {
                    self.vm.images.used(&self.instance.version);
                    return Ok(started);
                }
                Err(NotAssigned::Start(failure)) => return Err(failure),
                Err(NotAssigned::Cells(why)) => {
                    self.vm.metrics.assigned("image");
                    self.warn("No cell could serve; it is made from its image.", Some(&why));
                }
            }
        }
        self.by_image(&mut taken).await
    }

    async fn in_cell<'a>(
        &'a self,
        kind: Kind,
        taken: &mut Taken<'a>,
    ) -> Result<Started, NotAssigned> {
        let cells = &self.vm.cells;
        // What such a function takes is not what others will need.
        let is_calm = !self.pool.is_turbulent();
        if is_calm {
            cells.wants(&kind, self.vm.now());
        }
        let mut phases = StartPhases::default();
        let began = Instant::now();
        if !cells.has(&kind) {
            self.look_for_memory();
        }
        if !self.pool.is_start_needed() {
            return Err(NotAssigned::Start(StartFailure::CalledOff));
        }
        let code = self.layers().await?;
        phases.layers = began.elapsed();
        taken.background = self.take_background_turn().await.map_err(NotAssigned::Start)?;

        let since = Instant::now();
        if is_calm
            && self.top_up(&kind)
            && let Some(cell) = self.take_cell(&kind, taken)
        {
            return self.assign(cell, code, phases, since, "ready").await;
        }
        self.take_turn(taken).await.map_err(NotAssigned::Start)?;
        let since = Instant::now();
        if is_calm && let Some(mut cell) = self.take_cell(&kind, taken) {
            drop(cell.place.memory.take()); // the start has all that it needs by now
            return self.assign(cell, code, phases, since, "ready").await;
        }
        if !cells.is_on() {
            return Err(NotAssigned::Cells("cells were turned off".into()));
        }
        let booted = refill::begin(&self.vm, kind, None).await;
        let (cell, boot) = match booted {
            Ok(Ok(booted)) => booted,
            Ok(Err(why)) => return Err(NotAssigned::Cells(why)),
            Err(_) => return Err(NotAssigned::Start(StartFailure::CalledOff)),
        };
        (taken.turn, taken.background) = (None, None); // as with a ready one
        let phases = StartPhases { layers: phases.layers, ..boot };
        self.assign(cell, code, phases, Instant::now(), "booted").await
    }

    /// A ready cell; the last one is for a call that waits. What follows is the code's time, and nobody knows how much that is:
    /// the start keeps no turn for it.
    fn take_cell(&self, kind: &Kind, taken: &mut Taken<'_>) -> Option<Cell> {
        let leave = if self.pool.has_waiting_calls() { 0 } else { 1 };
        let cell = self.vm.cells.take(kind, leave)?;
        (taken.turn, taken.background) = (None, None);
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
        let assigned = assign(&self.vm, &self.instance, cell, code, phases, since).await;
        match &assigned {
            Ok(_) => self.vm.metrics.assigned(how),
            Err(NotAssigned::Start(failure)) => self.vm.metrics.assigned(failure.outcome()),
            Err(NotAssigned::Cells(_)) => {}
        }
        assigned
    }

    async fn layers(&self) -> Result<Code, NotAssigned> {
        let version = &self.instance.version;
        let found = self.vm.layers.ensure(&*self.vm.engine, version).await;
        found.map_err(|err| match (err.leaves_the_image(), Chain(&err).to_string()) {
            (true, why) => NotAssigned::Cells(why),
            (false, why) => NotAssigned::Start(StartFailure::NoCapacity(why)),
        })
    }

    /// What the function has beyond its cell. Only what is free at once: else the start waits for all of its memory, and
    /// finds a cell then.
    fn top_up(&self, kind: &Kind) -> bool {
        let memory = self.instance.version.spec.memory;
        let beyond = memory.get().saturating_sub(kind.memory.get());
        if beyond == 0 || !self.vm.cells.has(kind) {
            return beyond == 0;
        }
        match self.vm.budget.claim(Bytes(beyond)) {
            Claim::Granted(grant) => {
                self.instance.keep_memory(grant);
                true
            }
            Claim::Later { .. } | Claim::Never => false,
        }
    }

    async fn by_image<'a>(&'a self, taken: &mut Taken<'a>) -> Result<Started, StartFailure> {
        // What others must give or send is waited for without a permit: it would keep theirs from them.
        let began = Instant::now();
        if !taken.has_memory {
            self.look_for_memory();
        }
        if !self.pool.is_start_needed() {
            return Err(StartFailure::CalledOff);
        }
        let image = self.vm.images.ensure(&*self.vm.engine, &self.instance.version).await?;
        let pull = began.elapsed();
        if taken.background.is_none() {
            taken.background = self.take_background_turn().await?;
        }
        self.take_turn(taken).await?;
        image::start(&self.vm, &self.instance, image, pull).await
    }

    /// Waits no longer than a call waits for a place: one that loads for ever may hold it.
    async fn take_turbulent_turn(&self) -> Result<TurbulentTurn, StartFailure> {
        let starts = Arc::clone(&self.vm.turbulent_starts);
        match timeout(self.vm.config.queue_wait, starts.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(TurbulentTurn {
                permit: Some(permit),
                began: Instant::now(),
                pauses: self.pool.starts_in_vain(),
            }),
            Ok(Err(_)) => Err(StartFailure::CalledOff),
            Err(_) => Err(StartFailure::NoCapacity(
                "instances of the function, and of others, end all the time; its start has no turn"
                    .into(),
            )),
        }
    }

    /// Memory for all of it, then a place among those that start at once.
    async fn take_turn<'a>(&'a self, taken: &mut Taken<'a>) -> Result<(), StartFailure> {
        if !taken.has_memory {
            self.instance.give_memory_back(); // a part of it
            if !self.take_memory_at_hand().await? {
                // It may take long: others that nobody waits for may be smaller.
                taken.background = None;
                self.take_memory().await?;
            }
            taken.has_memory = true;
        }
        if taken.turn.is_none() {
            let closed = |_| StartFailure::CalledOff;
            let mut turbulent = match self.pool.is_turbulent() {
                true => Some(self.take_turbulent_turn().await?),
                false => None,
            };
            let permit = self.vm.starts.acquire().await.map_err(closed)?;
            if let Some(turn) = &mut turbulent {
                turn.began = Instant::now(); // the wait for others is no work
            }
            let is_waited_for = turbulent.is_none() && self.pool.has_waiting_calls();
            let at_engine = is_waited_for.then(|| self.vm.cells.has_engine());
            taken.turn =
                Some(Turn { _permit: permit, _at_engine: at_engine, _turbulent: turbulent });
        }
        if !self.pool.is_start_needed() {
            return Err(StartFailure::CalledOff); // those who waited were served meanwhile
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    #[tokio::test(start_paused = true)]
    async fn after_a_start_of_a_broken_function_there_is_a_pause() {
        for (took, pauses, paused) in [(100, true, 400), (10_000, true, 3_000), (100, false, 0)] {
            let starts = Arc::new(Semaphore::new(1));
            let permit = Arc::clone(&starts).acquire_owned().await.unwrap();
            let turn = TurbulentTurn { permit: Some(permit), began: Instant::now(), pauses };
            sleep(Duration::from_millis(took)).await;
            drop(turn);
            let ended = Instant::now();
            let _next = starts.acquire().await.unwrap();
            let waited = ended.elapsed().as_millis();
            assert!((paused..paused + 10).contains(&waited), "{waited} ms after {took} ms");
        }
    }
}
