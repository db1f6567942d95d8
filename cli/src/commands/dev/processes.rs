//! Node processes: some are spare, booted and warm, so that a reload pays for the developer's code
//! and not for Node's start. Each is a process group of its own, so that Ctrl-C in the terminal
//! does not reach it and its children end with it.

use super::{node::Node, wrapper};
use epsilon_api::chain::Chain;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
    sync::Notify,
    time::sleep,
};

/// Spare processes: one for the next inspection, two for functions in use. About 50 MiB each.
const SPARES: usize = 3;
/// Delay before a replacement spare boots: the reload goes first.
const AFTER: Duration = Duration::from_millis(250);
/// Variables of the developer's environment that code may see: those that programs need to work at
/// all. The rest would be missing on the platform, so it is missing here too.
const INHERITED: [&str; 8] =
    ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"];

/// The order that turns a spare process into an instance or an inspector.
#[derive(Debug, Serialize)]
pub(super) struct Order<'a> {
    /// A file of the wrapper: `./main.js`.
    pub(super) run: &'static str,
    pub(super) arguments: &'a [String],
    pub(super) env: BTreeMap<String, String>,
    /// Port for a debugger.
    pub(super) inspect: Option<u16>,
}

/// Starts processes of one project.
#[derive(Debug)]
pub(super) struct Processes {
    node: Node,
    wrapper: PathBuf,
    pub(super) project: PathBuf,
    spares: Mutex<VecDeque<Process>>,
    taken: Notify,
}

impl Processes {
    pub(super) fn new(node: Node, wrapper: PathBuf, project: PathBuf) -> Arc<Self> {
        let spares = Mutex::default();
        let taken = Notify::new();
        Arc::new(Self { node, wrapper, project, spares, taken })
    }

    /// A spare process, or a new one if there is none.
    pub(super) fn take(&self) -> io::Result<Process> {
        loop {
            let spare = self.spares.lock().pop_front();
            self.taken.notify_one();
            let Some(mut spare) = spare else { return self.spawn() };
            if let Ok(None) = spare.child.try_wait() {
                return Ok(spare);
            } // else it was killed from outside
        }
    }

    /// Keeps spares booted, until dropped.
    pub(super) async fn keep_spares(self: Arc<Self>) {
        loop {
            while self.spares.lock().len() < SPARES {
                match self.spawn() {
                    Ok(spare) => self.spares.lock().push_back(spare),
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "Spare Node process could not be started; trying again with the next reload.");
                        break;
                    }
                }
            }
            self.taken.notified().await;
            sleep(AFTER).await;
        }
    }

    /// Kills the spares.
    pub(super) fn close(&self) {
        self.spares.lock().clear();
    }

    fn spawn(&self) -> io::Result<Process> {
        let inherited =
            INHERITED.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut child = Command::new(&self.node.program)
            .arg(self.wrapper.join(wrapper::PROCESS_FILE))
            .current_dir(&self.project)
            .env_clear()
            .envs(inherited)
            .env("NODE_ENV", "development")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let orders = child.stdin.take();
        Ok(Process { child, orders, group: Group(group) })
    }
}

/// One process. Dropping it kills its group.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    /// Closing it ends the process.
    pub(super) orders: Option<ChildStdin>,
    pub(super) group: Group,
}

impl Process {
    /// Sends the order. Only the first one counts.
    pub(super) async fn order(&mut self, order: &Order<'_>) -> io::Result<()> {
        let mut text = serde_json::to_vec(order)?;
        text.push(b'\n');
        match &mut self.orders {
            Some(orders) => orders.write_all(&text).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A process group; dropping it kills it.
#[derive(Debug)]
pub(super) struct Group(Option<Pid>);

impl Group {
    /// Kills every process of the group.
    pub(super) fn kill(&self) {
        if let Some(group) = self.0 {
            // An error means that it is already gone.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Sends SIGTERM to its first process.
    pub(super) fn terminate(&self) {
        if let Some(first) = self.0 {
            let _ = kill_process(first, Signal::TERM); // as below
        }
    }

    /// Its first process has ended and was reaped: kills the rest, and gives up the group id before
    /// it can be reused.
    pub(super) fn ended(mut self) {
        self.kill();
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
