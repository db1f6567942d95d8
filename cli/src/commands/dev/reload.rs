//! Saved files → a deployment to the gateway of this process, through its control API, like
//! `epsilon deploy`. So the new code is ready before the old one stops, running calls finish on the
//! old one, and code that does not load never serves: the previous version still does, which the
//! terminal says at each call.
//!
//! A save during a reload starts a new one and cancels the old one.

use super::{terminal::Terminal, watch::Change};
use crate::{
    client::Client,
    commands::deploy::{self, Archive},
    failure::Failure,
};
use epsilon_api::{
    admin::{DeployEvent, DeployedFunction, Step},
    error::ErrorBody,
    ids::FunctionName,
    log::LogQuery,
    units::Bytes,
    vm::Vm,
};
use futures_util::StreamExt as _;
use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio::sync::mpsc;

/// Largest file of a project; the builder has the same limit.
const FILE_MAX: Bytes = Bytes::mib(256);
/// Lines of the code's output that are shown when it does not load.
const LINES: usize = 20;
/// Prefix of notes to the developer.
const NOTE: &str = "note: ";

/// Performs the reloads of the project.
pub(super) struct Reloader {
    client: Client,
    project: PathBuf,
    only: Vec<FunctionName>,
    vm: Arc<dyn Vm>,
    terminal: Terminal,
    stale: Arc<AtomicBool>,
    /// Functions whose log is shown.
    followed: HashSet<FunctionName>,
    /// Notes that were already shown.
    shown_notes: HashSet<String>,
}

/// New code that serves.
struct Served {
    functions: Vec<DeployedFunction>,
    notes: Vec<String>,
    /// Duration of each step in milliseconds.
    steps: Vec<(Step, u64)>,
}

/// Why new code does not serve.
struct LoadFailure {
    error: ErrorBody,
    output: Vec<String>,
}

impl Reloader {
    pub(super) fn new(
        client: Client,
        project: PathBuf,
        only: Vec<FunctionName>,
        vm: Arc<dyn Vm>,
        terminal: Terminal,
        stale: Arc<AtomicBool>,
    ) -> Self {
        let followed = HashSet::new();
        let shown_notes = HashSet::new();
        Self { client, project, only, vm, terminal, stale, followed, shown_notes }
    }

    /// Deploys the current files, then each change; until dropped.
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut pending = Some(Change { since: Instant::now(), files: BTreeSet::new() });
        loop {
            tokio::select! {
                // The newest change first. Dropping a reload hangs up, which cancels the
                // deployment.
                biased;
                change = changes.recv() => {
                    let Some(mut change) = change else { return };
                    if let Some(mut older) = pending.take() {
                        change.files.append(&mut older.files);
                    }
                    pending = Some(change);
                }
                outcome = self.deploy(), if pending.is_some() => {
                    if let Some(change) = pending.take() {
                        self.report(change, outcome);
                    }
                }
            }
        }
    }

    fn report(&mut self, change: Change, outcome: Result<Served, LoadFailure>) {
        let terminal = &self.terminal;
        match outcome {
            Ok(Served { functions, notes, steps }) => {
                let was_stale = self.stale.swap(false, Ordering::Relaxed);
                for note in notes {
                    if self.shown_notes.insert(note.clone()) {
                        terminal.note(&note);
                    }
                }
                if was_stale || change.files.is_empty() || functions.iter().any(|one| one.changed) {
                    terminal.serves(&functions, &change.files, change.since.elapsed(), &steps);
                }
                for function in functions {
                    self.follow(function.name);
                }
            }
            Err(LoadFailure { error, output }) => {
                self.stale.store(true, Ordering::Relaxed);
                terminal.broken(&error, &output, !self.followed.is_empty());
            }
        }
    }

    /// Shows what a function logs, from its first line on.
    fn follow(&mut self, function: FunctionName) {
        if !self.followed.insert(function.clone()) {
            return;
        }
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut records = self.vm.logs(&function, query);
        let terminal = self.terminal.clone();
        tokio::spawn(async move {
            while let Some(record) = records.next().await {
                terminal.log(&record);
            }
        });
    }

    /// Deploys the current files.
    async fn deploy(&self) -> Result<Served, LoadFailure> {
        let mut output = VecDeque::new();
        let mut steps = Vec::new();
        match self.try_deploy(&mut output, &mut steps).await {
            Ok(functions) => {
                let notes = output.into_iter().filter_map(noted).collect();
                Ok(Served { functions, notes, steps })
            }
            Err(error) => {
                let output = output.into_iter().filter(|line| !line.starts_with(NOTE)).collect();
                Err(LoadFailure { error, output })
            }
        }
    }

    async fn try_deploy(
        &self,
        output: &mut VecDeque<String>,
        steps: &mut Vec<(Step, u64)>,
    ) -> Result<Vec<DeployedFunction>, ErrorBody> {
        let archive = deploy::archive(&self.project, FILE_MAX).map_err(Failure::into_body)?;
        let Archive { folder, body, packing } = archive;
        let answer = self.client.deploy(folder.as_deref(), &self.only, body).await;
        packing.await.map_err(Failure::into_body)?;
        let mut events = answer.map_err(Failure::into_body)?;
        loop {
            let event = events.next::<DeployEvent>().await.map_err(|err| cut().with_cause(&err));
            match event.map_err(Failure::into_body)? {
                Some(DeployEvent::Done { deployment }) => return Ok(deployment.functions),
                Some(DeployEvent::Failed { error }) => return Err(error),
                Some(DeployEvent::Log { line }) => {
                    if output.len() == LINES {
                        output.pop_front();
                    }
                    output.push_back(line);
                }
                Some(DeployEvent::StepDone { step, took_ms, .. }) => steps.push((step, took_ms)),
                Some(DeployEvent::Accepted { .. } | DeployEvent::StepStarted { .. }) => {}
                None => return Err(cut().into_body()),
            }
        }
    }
}

fn noted(line: String) -> Option<String> {
    line.strip_prefix(NOTE).map(str::to_owned)
}

fn cut() -> Failure {
    Failure::new("CONNECTION_LOST", "the deployment did not end")
}
