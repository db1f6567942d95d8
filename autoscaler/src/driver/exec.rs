//! The driver `exec`: a command of the operator, run with the wanted count as its last argument.
//! For clouds without a driver of their own.
//!
//! ```text
//! COMMAND… 5      EPSILON_WANTED=5                             provide 5 VMs
//! COMMAND… 4      EPSILON_WANTED=4 EPSILON_TERMINATE=vm-3      vm-3 is empty: terminate it; 4 remain
//! ```
//! Exit code 0 means that the change was ordered, not that it is done. The VMs that report are the
//! group; the last ordered count is used for [`ORDER_TTL`], then the number of reporting VMs, and
//! the command is run again. Which VMs leave is known to this process only: after a change of
//! leaders they stay drained, and are terminated first when fewer are wanted.

use super::{Group, GroupError, GroupInstance, Phase, ScaleGroup};
use async_trait::async_trait;
use epsilon_api::ids::VmId;
use parking_lot::Mutex;
use std::{collections::HashSet, process::Stdio, time::Duration};
use tokio::{io::AsyncReadExt, process::Command, time::Instant};

/// How long the last ordered count is used. Longer than a VM takes to boot.
const ORDER_TTL: Duration = Duration::from_secs(300);
/// Longest stored part of each of the command's outputs, in bytes.
const MAX_OUTPUT: u64 = 16 << 10;

/// The driver for a command.
#[derive(Debug)]
pub(crate) struct Exec {
    command: Vec<String>,
    timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ordered: Option<(u32, Instant)>,
    seen: u32,
    leaving: HashSet<VmId>,
}

impl Known {
    fn desired(&self) -> u32 {
        match self.ordered {
            Some((vms, at)) if at.elapsed() < ORDER_TTL => vms,
            _ => self.seen,
        }
    }
}

impl Exec {
    /// `command` is the program and its first arguments.
    pub(crate) fn new(command: Vec<String>, timeout: Duration) -> Self {
        Self { command, timeout, known: Mutex::default() }
    }

    async fn run(&self, wanted: u32, terminate: Option<&VmId>) -> Result<(), GroupError> {
        let no_answer = |err: std::io::Error| GroupError::NoAnswer(err.into());
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| GroupError::Refused("no command".into()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(wanted.to_string())
            .env("EPSILON_WANTED", wanted.to_string())
            .env_remove("EPSILON_TERMINATE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(vm) = terminate {
            command.env("EPSILON_TERMINATE", vm.as_str());
        }
        let mut child = command.spawn().map_err(no_answer)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(self.timeout, async {
            // Both are read to their end, so that the command never blocks on a full pipe.
            let (out, err, status) = tokio::join!(text(out), text(err), child.wait());
            status.map(|status| (status, out, err))
        });
        let Ok(ended) = ended.await else {
            let _ = child.start_kill(); // it may have ended already; dropping it reaps it
            let message = format!("`{program}` took longer than {:?} and was killed", self.timeout);
            return Err(GroupError::NoAnswer(message.into()));
        };
        let (status, out, err) = ended.map_err(no_answer)?;
        tracing::info!(
            wanted,
            code = status.code(),
            stdout = out,
            stderr = err,
            "Scaling command ended."
        );
        if status.success() {
            return Ok(());
        }
        let last = err.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Err(GroupError::Refused(format!("`{program}` ended with {status}: {last}").into()))
    }
}

/// The beginning of an output; the rest is read and discarded.
async fn text(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut bytes = Vec::new();
    // Unreadable output is only missing in the log.
    let _ = (&mut pipe).take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[async_trait]
impl ScaleGroup for Exec {
    async fn describe(&self, seen: &[VmId]) -> Result<Group, GroupError> {
        let mut known = self.known.lock();
        known.seen = u32::try_from(seen.len()).unwrap_or(u32::MAX);
        known.leaving.retain(|vm| seen.contains(vm));
        let instances = seen
            .iter()
            .map(|vm| GroupInstance {
                id: vm.clone(),
                phase: Phase::Serving,
                protected: !known.leaving.contains(vm),
            })
            .collect();
        Ok(Group { desired: known.desired(), min: 0, max: u32::MAX, instances })
    }

    async fn set_desired(&self, vms: u32) -> Result<(), GroupError> {
        self.run(vms, None).await?;
        self.known.lock().ordered = Some((vms, Instant::now()));
        Ok(())
    }

    async fn protect(&self, vms: &[VmId], protected: bool) -> Result<(), GroupError> {
        let mut known = self.known.lock();
        for vm in vms {
            if protected {
                known.leaving.remove(vm);
            } else {
                known.leaving.insert(vm.clone());
            }
        }
        Ok(())
    }

    async fn terminate(&self, vm: &VmId) -> Result<(), GroupError> {
        let left = self.known.lock().desired().saturating_sub(1);
        self.run(left, Some(vm)).await?;
        self.known.lock().ordered = Some((left, Instant::now()));
        Ok(())
    }

    async fn complete(&self, _: &VmId) -> Result<(), GroupError> {
        Ok(()) // this driver has no lifecycle hooks
    }

    async fn heartbeat(&self, _: &VmId) -> Result<(), GroupError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
