//! Node processes: some wait, booted and warm, so that a reload pays for the developer's code and not for Node's
//! start. Each is a group of its own, so that Ctrl-C in the terminal does not reach it and its end takes along
//! whatever user code has started.

use super::{node::Node, wrapper};
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

/// Processes that wait: one for the next look at the code, two for functions that are in use. Some 50 MiB each.
const SPARES: usize = 3;
/// A new spare begins to boot so long after one was taken: the reload goes first.
const AFTER: Duration = Duration::from_millis(250);
/// What code may see of the developer's environment: what programs need to work at all. The rest would be missing
/// when the function is deployed, so it is missing here too.
const INHERITED: [&str; 8] =
    ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"];

/// What a process is told to be.
#[derive(Debug, Serialize)]
pub(super) struct Order<'a> {
    /// A file of the wrapper: `./main.js`.
    pub(super) run: &'static str,
    pub(super) arguments: &'a [String],
    pub(super) env: BTreeMap<String, String>,
    /// Where a debugger finds it.
    pub(super) inspect: Option<u16>,
}

/// Makes processes of one project.
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
        let (spares, taken) = (Mutex::default(), Notify::new());
        Arc::new(Self { node, wrapper, project, spares, taken })
    }

    /// One that waits, or a new one where none does.
    pub(super) fn take(&self) -> io::Result<Process> {
        loop {
            let spare = self.spares.lock().pop_front();
            self.taken.notify_one();
            let Some(mut spare) = spare else { return self.spawn() };
            if let Ok(None) = spare.child.try_wait() {
                return Ok(spare);
            } // else somebody killed it
        }
    }

    /// Keeps some waiting, until dropped.
    pub(super) async fn keep_spares(self: Arc<Self>) {
        loop {
            while self.spares.lock().len() < SPARES {
                match self.spawn() {
                    Ok(spare) => self.spares.lock().push_back(spare),
                    Err(error) => {
                        tracing::warn!(%error, "Node could not be started ahead.");
                        break;
                    }
                }
            }
            self.taken.notified().await;
            sleep(AFTER).await;
        }
    }

    /// Ends those that wait.
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

/// One process. Dropping it kills it with all that it started.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    /// Its end is the process's end.
    pub(super) orders: Option<ChildStdin>,
    pub(super) group: Group,
}

impl Process {
    /// Tells it what to be. Only the first order counts.
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
    /// Ends every process of the group.
    pub(super) fn kill(&self) {
        if let Some(group) = self.0 {
            // Gone is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Asks its first process to end.
    pub(super) fn terminate(&self) {
        if let Some(first) = self.0 {
            let _ = kill_process(first, Signal::TERM); // as below
        }
    }

    /// Its first process has ended and was waited for: what that one started ends too, and the number is given up,
    /// before it can be another's.
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
