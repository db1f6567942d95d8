//! The task that owns one instance, from its first wish to the removal of its container. It turns the
//! world into [`Event`](super::state::Event)s for the pool and carries out the pool's effects.
//!
//! Inputs: the instance's `stop` (kill now) and `changed` (look at the timers again), the container's exit,
//! time. Output: the pool's `ready`, `start_failed`, `exited`, `gone`. Ends when the container is away; at the
//! end of the agent, with what `app.rs` removes by label.

mod background;
mod memory;
mod terminate;
mod way;

use super::{
    Instance, Reached,
    pool::{Key, Pool},
    start::{self, ExitWatch, StartFailure, Started},
    state::{Event, Why},
};
use crate::{
    engine::{EngineError, Exit},
    vm::LocalVm,
};
use epsilon_api::{chain::Chain, log::Level};
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Pause between two tries to remove a container that the engine does not let go of; doubled up to
/// [`SLOW_REMOVE`].
const FIRST_REMOVE: Duration = Duration::from_millis(50);
const SLOW_REMOVE: Duration = Duration::from_secs(5);

/// How long the exit of a process that stopped listening may take to be known.
const LAST_EXIT: Duration = Duration::from_secs(2);

/// One instance and where it belongs.
pub(crate) struct Runner {
    pub(crate) vm: Arc<LocalVm>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: Key,
    pub(crate) instance: Arc<Instance>,
}

impl Runner {
    /// Starts the instance and stays with it to its end.
    pub(crate) async fn run(self) {
        self.to_its_end(self.live()).await;
    }

    /// Stays with an instance that was found running.
    pub(crate) async fn adopt(self) {
        let container = self.instance.container();
        let exit = start::watch_exit(&self.vm, container, start::wait(&self.vm, container));
        self.to_its_end(self.supervise(exit)).await;
    }

    /// Clears away after a life, also after one that a bug of ours cut short.
    async fn to_its_end(&self, life: impl Future<Output = ()>) {
        if AssertUnwindSafe(life).catch_unwind().await.is_err() {
            tracing::error!(instance = %self.instance.id(), "A bug: the task of an instance panicked.");
            let failure = StartFailure::NoCapacity("a bug of the agent ended the start".into());
            self.pool.start_failed(self.key, failure);
        }
        self.clear_away().await;
    }

    async fn live(&self) {
        let outcome = tokio::select! {
            // The order to go first: a start that nobody wants need not be finished. Both arms may be
            // dropped: whatever was made is removed below, by name.
            biased;
            () = self.instance.stop.cancelled() => Err(StartFailure::CalledOff),
            // In a box: it is far larger than what supervises afterwards, and goes before that.
            outcome = Box::pin(self.start()) => outcome,
        };
        match outcome {
            Ok(Started { phases, exit, limits }) => {
                self.vm.metrics.started(&self.instance.version.function, &phases);
                tracing::info!(
                    function = %self.instance.version.function,
                    version = %self.instance.version.number,
                    instance = %self.instance.id(),
                    took_ms = phases.total().as_millis() as u64,
                    "Instance is ready."
                );
                self.pool.ready(self.key, phases);
                if let Some(limits) = limits {
                    self.look_after(limits);
                }
                self.supervise(exit).await;
            }
            Err(failure) => self.report(failure),
        }
    }

    /// A function that has not the limits that it asked for must not go on.
    fn look_after(&self, limits: JoinHandle<Result<(), EngineError>>) {
        let (pool, key, instance) = (Arc::clone(&self.pool), self.key, Arc::clone(&self.instance));
        self.vm.spawn(async move {
            if let Ok(Err(err)) = limits.await
                && !instance.stop.is_cancelled()
            {
                tracing::warn!(instance = %instance.id(), cause = %Chain(&err), "Its limits could not be set; it goes.");
                pool.event(key, Event::Stop(Why::Asked));
            }
        });
    }

    fn report(&self, failure: StartFailure) {
        let is_news = self.pool.start_failed(self.key, failure.clone());
        self.vm.metrics.start_failed(&self.instance.version.function, &failure);
        match &failure {
            StartFailure::Init(detail) => {
                let text = format!("could not be loaded: {detail}");
                self.vm.logs.event(&self.instance, Level::Error, None, text);
                self.warn("Code could not be loaded.", None);
            }
            StartFailure::NoCapacity(cause) if is_news => {
                self.warn("No instance could be started.", Some(cause));
            }
            // Told once; with the engine away, it is the same for each call.
            StartFailure::NoCapacity(_) | StartFailure::CalledOff => {}
        }
    }

    fn warn(&self, what: &'static str, cause: Option<&str>) {
        self.pool.warn(&self.instance, what, cause);
    }

    async fn supervise(&self, mut exit: ExitWatch) {
        loop {
            let look = self.pool.tick(self.key);
            if look.needs_freezer {
                self.find_freezer().await;
                continue;
            }
            tokio::select! {
                // The order to go first: after it, an exit is no news. All arms may be dropped: a token, the
                // watch itself (kept across rounds), a stored notice, a timer.
                biased;
                () = self.instance.stop.cancelled() => return self.stopped(exit).await,
                exit = &mut exit => return self.crashed(exit),
                () = self.instance.changed.notified() => {}
                () = sleep_until(look.at) => {}
            }
        }
    }

    /// An engine that cannot say how leaves the instance running.
    async fn find_freezer(&self) {
        tokio::select! {
            // The order to go first; an exit is told by the watch right after. Both may be dropped.
            biased;
            () = self.instance.stop.cancelled() => {}
            found = self.vm.engine.freezer(self.instance.container()) => {
                self.instance.set_freezer(found.unwrap_or_default());
            }
        }
    }

    /// Told to go. When a call found the process dead, its exit is about to be known and worth telling.
    async fn stopped(&self, exit: ExitWatch) {
        if self.pool.why_stopping(self.key) == Some(Why::Crashed) {
            let unknown = EngineError::NotFound("it stopped listening".into());
            self.crashed(timeout(LAST_EXIT, exit).await.unwrap_or(Err(unknown)));
        } else {
            self.terminate(exit).await;
        }
    }

    fn crashed(&self, exit: Result<Exit, EngineError>) {
        let calls = self.pool.exited(self.key, exit.is_ok());
        let how = match exit {
            Ok(exit) => exit.to_string(),
            Err(err) => Chain(&err).to_string(),
        };
        self.vm.metrics.crashed(&self.instance.version.function);
        let cause = format!("{how}; calls in it: {}", calls.len());
        self.warn("Instance ended by itself.", Some(&cause));
        let text = format!("the instance ended by itself: {how}");
        if calls.is_empty() {
            self.vm.logs.event(&self.instance, Level::Error, None, text);
        } else {
            for call in calls {
                self.vm.logs.event(&self.instance, Level::Error, Some(call), text.clone());
            }
        }
    }

    /// Removes the container and what belongs to it; then the place and the memory are free again.
    async fn clear_away(&self) {
        self.instance.stop.cancel(); // whoever still attends to it may go
        self.instance.thaw();
        while AssertUnwindSafe(self.remove_container()).catch_unwind().await.is_err() {
            tracing::error!(container = %self.instance.container(), "A bug: a removal panicked; trying again.");
            sleep(10 * FIRST_REMOVE).await;
        }
        self.instance.gone.cancel();
        if let Some(cell) = self.instance.cell() {
            cell.clear(&self.vm);
        }
        self.vm.remove_sockets(self.instance.first_id());
        self.vm.known.lock().remove(self.instance.first_id());
        self.instance.give_memory_back();
        self.pool.gone(self.key);
    }

    async fn remove_container(&self) {
        self.instance.engine_is_done(self.vm.config.engine_timeout).await;
        match self.instance.reached() {
            Reached::Nothing => {}
            // One try. It never ran, so it may be left to `reconcile.rs`, which removes what nobody knows.
            Reached::Container => drop(self.vm.engine.remove(self.instance.container()).await),
            Reached::Process => self.remove_process().await,
        }
    }

    /// Tries until the container is away; the memory comes back before that if the process is known to
    /// have ended.
    async fn remove_process(&self) {
        let name = self.instance.container();
        let mut pause = FIRST_REMOVE;
        let (mut is_news, mut has_ended) = (true, false);
        while let Err(err) = self.vm.engine.remove(name).await {
            if self.vm.closed.is_cancelled() {
                return; // the end of the agent removes by label what is left
            }
            if std::mem::take(&mut is_news) {
                tracing::warn!(container = %name, cause = %Chain(&err), "Container could not be removed; trying again.");
            }
            let next = Instant::now() + pause;
            if !has_ended && matches!(timeout(pause, self.vm.engine.wait(name)).await, Ok(Ok(_))) {
                has_ended = true;
                self.instance.give_memory_back();
            }
            sleep_until(next).await;
            pause = (pause * 2).min(SLOW_REMOVE);
        }
    }
}
