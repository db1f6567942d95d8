//! The task that owns one instance, from the request for it to the removal of its container. It
//! turns what happens into [`Event`](super::state::Event)s for the pool and carries out the pool's
//! effects.
//!
//! Inputs: the instance's `stop` (kill now) and `changed` (read the timers again), the container's
//! exit, time. Output: the pool's `ready`, `start_failed`, `exited`, `gone`. Ends when the
//! container is removed; at the shutdown of the agent, with what `app.rs` removes by label.

pub(crate) mod assign;
mod background;
pub(crate) mod image;
mod memory;
mod start_path;
mod terminate;

use super::pool::{Key, Pool};
use super::state::{Event, StopReason};
use super::{Instance, StartProgress};
use crate::container::exit::{self, ExitWatch};
use crate::container::failure::StartFailure;
use crate::container::start::Started;
use crate::{
    cell::Cells,
    context::VmContext,
    engine::{EngineError, Exit},
};
use epsilon_api::{chain::Chain, log::Level};
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Pause between two attempts to remove a container that the engine does not remove; doubled up to
/// [`SLOW_REMOVE_PAUSE`].
const FIRST_REMOVE_PAUSE: Duration = Duration::from_millis(50);
const SLOW_REMOVE_PAUSE: Duration = Duration::from_secs(5);

/// How long to wait for the exit status of a process that stopped listening.
const EXIT_STATUS_WAIT: Duration = Duration::from_secs(2);

/// One instance, with its pool and what it shares with the others.
pub(crate) struct Runner {
    pub(crate) context: Arc<VmContext>,
    pub(crate) cells: Arc<Cells>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) key: Key,
    pub(crate) instance: Arc<Instance>,
}

impl Runner {
    /// Starts the instance and supervises it to its end.
    pub(crate) async fn run(self) {
        self.run_to_removal(self.live()).await;
    }

    /// Supervises an adopted instance.
    pub(crate) async fn adopt(self) {
        let container = self.instance.container();
        let exit = exit::watch_exit(&self.context, container, exit::wait(&self.context, container));
        self.run_to_removal(self.supervise(exit)).await;
    }

    /// Runs `life`, then removes the instance, also if a bug made `life` panic.
    async fn run_to_removal(&self, life: impl Future<Output = ()>) {
        if AssertUnwindSafe(life).catch_unwind().await.is_err() {
            tracing::error!(instance = %self.instance.id(), "Task of an instance panicked (a bug); removing the instance.");
            let failure = StartFailure::NoCapacity("a bug of the agent ended the start".into());
            self.pool.start_failed(self.key, &failure);
        }
        self.remove_instance().await;
    }

    async fn live(&self) {
        let outcome = tokio::select! {
            // The stop first: an unwanted start need not be finished. Both arms may be dropped:
            // whatever was made is removed below, by name.
            biased;
            () = self.instance.stop.cancelled() => Err(StartFailure::Cancelled),
            // Boxed: it is far larger than `supervise`, and freed before that.
            outcome = Box::pin(self.start()) => outcome,
        };
        match outcome {
            Ok(Started { phases, exit, limits }) => {
                self.context.metrics.started(&self.instance.version.function, &phases);
                tracing::info!(
                    function = %self.instance.version.function,
                    version = %self.instance.version.number,
                    instance = %self.instance.id(),
                    took_ms = phases.total().as_millis() as u64,
                    "Instance is ready."
                );
                self.pool.ready(self.key, phases);
                if let Some(limits) = limits {
                    self.watch_limits(limits);
                }
                self.supervise(exit).await;
            }
            Err(failure) => self.report(failure),
        }
    }

    /// Stops the instance if its limits could not be set: it must not run without them.
    fn watch_limits(&self, limits: JoinHandle<Result<(), EngineError>>) {
        let pool = Arc::clone(&self.pool);
        let key = self.key;
        let instance = Arc::clone(&self.instance);
        self.context.spawn(async move {
            if let Ok(Err(err)) = limits.await
                && !instance.stop.is_cancelled()
            {
                tracing::warn!(instance = %instance.id(), error = %Chain(&err), "Limits of the instance could not be set; stopping it.");
                pool.event(key, Event::Stop(StopReason::Requested));
            }
        });
    }

    fn report(&self, failure: StartFailure) {
        let is_new = self.pool.start_failed(self.key, &failure);
        self.context.metrics.start_failed(&self.instance.version.function, &failure);
        match &failure {
            StartFailure::Init(detail) => {
                let text = format!("could not be loaded: {detail}");
                self.context.logs.event(
                    &self.instance.version,
                    self.instance.id(),
                    Level::Error,
                    None,
                    text,
                );
                self.warn("Code could not be loaded.", None);
            }
            StartFailure::NoCapacity(cause) if is_new => {
                self.warn("Instance could not be started.", Some(cause));
            }
            // Logged once; while the engine is down, it is the same for each call.
            StartFailure::NoCapacity(_) | StartFailure::Cancelled => {}
        }
    }

    fn warn(&self, what: &'static str, cause: Option<&str>) {
        self.pool.warn(&self.instance, what, cause);
    }

    async fn supervise(&self, mut exit: ExitWatch) {
        loop {
            let check = self.pool.tick(self.key);
            if check.needs_freezer {
                self.find_freezer().await;
                continue;
            }
            tokio::select! {
                // The stop first: after it, an exit is expected. All arms may be dropped: a token,
                // the watch itself (reused across rounds), a stored notification, a timer.
                biased;
                () = self.instance.stop.cancelled() => return self.stopped(exit).await,
                exit = &mut exit => return self.crashed(exit),
                () = self.instance.changed.notified() => {}
                () = sleep_until(check.at) => {}
            }
        }
    }

    /// Looks up the freezer. If the engine has none, the instance is never frozen.
    async fn find_freezer(&self) {
        tokio::select! {
            // The stop first; an exit is reported by the watch right after. Both may be dropped.
            biased;
            () = self.instance.stop.cancelled() => {}
            found = self.context.engine.freezer(self.instance.container()) => {
                self.instance.set_freezer(found.unwrap_or_default());
            }
        }
    }

    /// Ends a stopping instance. If a call found the process dead, its exit is about to be known
    /// and is reported as a crash.
    async fn stopped(&self, exit: ExitWatch) {
        if self.pool.why_stopping(self.key) == Some(StopReason::Crashed) {
            let unknown = EngineError::NotFound("it stopped listening".into());
            self.crashed(timeout(EXIT_STATUS_WAIT, exit).await.unwrap_or(Err(unknown)));
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
        self.context.metrics.crashed(&self.instance.version.function);
        let cause = format!("{how}; calls in it: {}", calls.len());
        self.warn("Instance ended by itself.", Some(&cause));
        let text = format!("the instance ended by itself: {how}");
        if calls.is_empty() {
            self.context.logs.event(
                &self.instance.version,
                self.instance.id(),
                Level::Error,
                None,
                text,
            );
        } else {
            for call in calls {
                self.context.logs.event(
                    &self.instance.version,
                    self.instance.id(),
                    Level::Error,
                    Some(call),
                    text.clone(),
                );
            }
        }
    }

    /// Removes the container and what belongs to it; then its place in the pool and its memory are
    /// free.
    async fn remove_instance(&self) {
        self.instance.stop.cancel(); // ends the tasks that still use it
        self.instance.thaw();
        while AssertUnwindSafe(self.remove_container()).catch_unwind().await.is_err() {
            tracing::error!(container = %self.instance.container(), "Removal of a container panicked (a bug); trying again.");
            sleep(10 * FIRST_REMOVE_PAUSE).await;
        }
        self.instance.gone.cancel();
        if let Some(cell) = self.instance.cell() {
            cell.clear(&self.cells);
        }
        self.context.remove_sockets(self.instance.original_id());
        self.context.known.lock().remove(self.instance.original_id());
        self.instance.release_memory();
        self.pool.gone(self.key);
    }

    async fn remove_container(&self) {
        self.instance.wait_for_engine(self.context.config.engine_timeout).await;
        match self.instance.progress() {
            StartProgress::Nothing => {}
            // One attempt. It never ran, so it may be left to `reconcile.rs`, which removes unknown
            // containers.
            StartProgress::Container => {
                drop(self.context.engine.remove(self.instance.container()).await);
            }
            StartProgress::Process => self.remove_process().await,
        }
    }

    /// Retries until the container is removed; the memory is given back before that if the process
    /// is known to have ended.
    async fn remove_process(&self) {
        let name = self.instance.container();
        let mut pause = FIRST_REMOVE_PAUSE;
        let mut is_new = true;
        let mut has_ended = false;
        while let Err(err) = self.context.engine.remove(name).await {
            if self.context.closed.is_cancelled() {
                return; // the shutdown of the agent removes by label what is left
            }
            if std::mem::take(&mut is_new) {
                tracing::warn!(container = %name, error = %Chain(&err), "Container could not be removed; trying again.");
            }
            let next = Instant::now() + pause;
            if !has_ended
                && matches!(timeout(pause, self.context.engine.wait(name)).await, Ok(Ok(_)))
            {
                has_ended = true;
                self.instance.release_memory();
            }
            sleep_until(next).await;
            pause = (pause * 2).min(SLOW_REMOVE_PAUSE);
        }
    }
}
