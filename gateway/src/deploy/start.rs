//! New versions before they serve: the VMs that will get a function's first calls hold its image, and the first of
//! them an instance that loaded the code. So no caller waits for a pull, also when home is lost or over its share.

use super::story::Story;
use crate::fleet::{Fleet, Member};
use epsilon_api::{
    chain::Chain,
    error::{CallError, Fault},
    function::{ImageRef, Version},
    ids::FunctionName,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// VMs of a function's order that hold its image before calls come: home, and the one that comes after it.
const HOLDERS: usize = 2;

/// Why a version is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    /// The code's fault, or no VM is left.
    #[error("a new version did not start")]
    Start(#[source] CallError),
    /// It lies where no VM can get it.
    #[error("no VM can get the image of `{function}`")]
    OutOfReach {
        function: FunctionName,
        #[source]
        cause: CallError,
    },
}

/// Where and how long.
#[derive(Clone, Copy)]
pub(super) struct Starter<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) story: &'a Story,
    /// Longest that one VM may take to get an image, before it is left out.
    pub(super) patience: Duration,
}

impl Starter<'_> {
    /// Some VM has an instance of it, and the next one at least the image, if it can be had.
    pub(super) async fn ensure_ready(self, version: Arc<Version>) -> Result<(), NotReady> {
        let order = self.order(&version.function);
        let holders = match &order[..] {
            [only] => vec![Arc::clone(only)], // its start fetches too
            _ => self.spread(&order, &version).await?,
        };
        let mut last = every_vm_drains(&version);
        for holder in holders {
            match holder.vm.ensure_ready(Arc::clone(&version)).await {
                Ok(()) => return Ok(()),
                Err(err) if err.verdict().fault == Fault::Platform => {
                    self.tell(&holder, &version, "could not start", &err);
                    last = err;
                }
                Err(err) => return Err(NotReady::Start(err)), // the same everywhere
            }
        }
        Err(NotReady::Start(last))
    }

    /// The VMs in the order in which calls come to them.
    fn order(self, _function: &FunctionName) -> Vec<Arc<Member>> {
        let mut members = self.fleet.members();
        members.retain(|member| member.takes_calls());
        members
    }

    /// Has the first VMs fetch the image; if none of them can, the next ones. Answers who holds it.
    async fn spread(
        self,
        order: &[Arc<Member>],
        version: &Arc<Version>,
    ) -> Result<Vec<Arc<Member>>, NotReady> {
        let mut last = every_vm_drains(version);
        for some in order.chunks(HOLDERS) {
            let mut holders = Vec::new();
            let fetched = join_all(some.iter().map(|member| self.fetch(member, version))).await;
            for (member, fetched) in some.iter().zip(fetched) {
                match fetched {
                    Ok(()) => holders.push(Arc::clone(member)),
                    Err(err) => {
                        self.tell(member, version, "could not get the image", &err);
                        last = err;
                    }
                }
            }
            if !holders.is_empty() {
                return Ok(holders);
            }
        }
        let function = version.function.clone();
        Err(match is_in_a_registry(&version.image) || order.is_empty() {
            true => NotReady::Start(last),
            false => NotReady::OutOfReach { function, cause: last },
        })
    }

    async fn fetch(self, member: &Member, version: &Arc<Version>) -> Result<(), CallError> {
        let fetched = timeout(self.patience, member.vm.fetch(Arc::clone(version))).await;
        fetched.unwrap_or_else(|_| {
            let patience = humantime::format_duration(self.patience);
            let cause = format!("it took longer than {patience}").into();
            Err(CallError::NoCapacity { function: version.function.clone(), cause })
        })
    }

    fn tell(self, member: &Member, version: &Version, what: &str, err: &CallError) {
        let (vm, function) = (&member.id, &version.function);
        let (version, error) = (version.id(), Chain(err));
        tracing::warn!(%vm, %version, what, %error, "A VM was left out of a deployment.");
        self.story.line(format!("note: VM `{vm}` {what} of `{function}`"));
    }
}

fn every_vm_drains(version: &Version) -> CallError {
    let cause = "no VM takes calls now".into();
    CallError::NoCapacity { function: version.function.clone(), cause }
}

/// Whether every machine can get it. What is not in a registry lies in the engine of its builder.
pub(super) fn is_in_a_registry(image: &ImageRef) -> bool {
    image.reference.contains("@sha256:")
}
