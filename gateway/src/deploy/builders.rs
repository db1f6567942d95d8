//! Chooses the builder: the one in this process if there is one, else one that joined. The builder
//! with the fewest builds of this gateway gets the next one; among equals, a project always goes to
//! the same builder, whose caches know it.

use super::remote::{NotAccepted, Remote};
use crate::fleet::link::{Identity, Link};
use epsilon_api::{
    admin::BuilderInfo,
    build::{BuildError, BuildEvent, BuildJob, BuildOrder, Builder, Built},
    chain::Chain,
    fleet::{Join, MemberKind},
    function::ImageRef,
    ids::VmId,
};
use epsilon_bootstrap::metrics::VERSION;
use futures_util::future::{BoxFuture, join_all};
use http::StatusCode;
use parking_lot::Mutex;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Longest that a joined builder may send nothing, during a build or before it: six heartbeats.
pub(crate) const BUILDER_SILENCE: Duration = Duration::from_secs(30);

/// The builders of a fleet.
#[derive(Debug)]
pub(crate) struct Builders {
    local: Option<Arc<dyn Builder>>,
    joined: Mutex<Vec<Arc<Joined>>>,
    identity: Identity,
    silence: Duration,
}

#[derive(Debug)]
struct Joined {
    join: Join,
    remote: Remote,
    /// Builds of this gateway that it runs now.
    running_builds: AtomicUsize,
    /// It could not be reached the last time, so the others come first. A builder that was killed
    /// stays listed for a while.
    is_unreachable: AtomicBool,
}

/// Counts a build at a builder until it is dropped.
struct RunningBuild<'a>(&'a Joined);

impl<'a> RunningBuild<'a> {
    fn new(joined: &'a Joined) -> Self {
        joined.running_builds.fetch_add(1, Relaxed);
        Self(joined)
    }
}

impl Drop for RunningBuild<'_> {
    fn drop(&mut self) {
        self.0.running_builds.fetch_sub(1, Relaxed);
    }
}

impl Builders {
    /// `local`: the builder of this process, if any. `silence`: how long a joined builder may send
    /// nothing during a build.
    pub(crate) fn new(
        local: Option<Arc<dyn Builder>>,
        identity: Identity,
        silence: Duration,
    ) -> Self {
        Self { local, joined: Mutex::default(), identity, silence }
    }

    /// Whether the builder runs in this process.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Whether there is no builder.
    pub(crate) fn is_empty(&self) -> bool {
        self.local.is_none() && self.joined.lock().is_empty()
    }

    /// Sets the members of the fleet; VMs among them are ignored. Running builds continue, also
    /// those of a builder that left.
    pub(crate) fn set<'a>(&self, members: impl IntoIterator<Item = &'a Join>) {
        let mut joined = self.joined.lock();
        let known = std::mem::take(&mut *joined);
        for join in members.into_iter().filter(|join| join.kind == MemberKind::Builder) {
            if let Some(same) = known.iter().find(|one| one.join == *join) {
                joined.push(Arc::clone(same));
                continue;
            }
            match Link::new(join, &self.identity) {
                Ok(link) => {
                    tracing::info!(builder = %join.id, address = %join.address, "Builder joined.");
                    let id = join.id.clone();
                    let link = Arc::new(link);
                    let remote = Remote { id, link, silence: self.silence };
                    joined.push(Arc::new(Joined {
                        join: join.clone(),
                        remote,
                        running_builds: AtomicUsize::new(0),
                        is_unreachable: AtomicBool::new(false),
                    }));
                }
                Err(link_error) => {
                    tracing::warn!(builder = %join.id, error = %Chain(&link_error), "Builder joined but cannot be used; it gets no builds.");
                }
            }
        }
    }

    /// The address of a joined builder.
    pub(crate) fn address(&self, id: &VmId) -> Option<String> {
        let joined = self.joined.lock();
        joined.iter().find(|one| one.join.id == *id).map(|one| one.join.address.clone())
    }

    /// The state of each builder; joined ones are queried concurrently.
    pub(crate) async fn infos(&self) -> Vec<BuilderInfo> {
        let mut joined = self.joined.lock().clone();
        joined.sort_by(|a, b| a.join.id.cmp(&b.join.id));
        let local = self.local.as_ref().map(|_| BuilderInfo {
            id: None,
            address: None,
            reachable: true,
            cause: None,
            version: Some(VERSION.to_owned()),
            builds: None,
            builds_from_here: 0,
        });
        let queries = joined.iter().map(async |one| {
            let (cause, status) = match one.remote.status().await {
                Ok(status) => (None, status),
                Err(link_error) => (Some(link_error.describe()), None),
            };
            BuilderInfo {
                id: Some(one.join.id.clone()),
                address: Some(one.join.address.clone()),
                reachable: cause.is_none(),
                cause,
                builds: status.as_ref().map(|status| status.builds),
                version: status.map(|status| status.version),
                builds_from_here: u32::try_from(one.running_builds.load(Relaxed))
                    .unwrap_or(u32::MAX),
            }
        });
        local.into_iter().chain(join_all(queries).await).collect()
    }

    /// The builders in the order in which they are tried for this project.
    fn by_load(&self, folder: Option<&str>) -> Vec<Arc<Joined>> {
        let mut joined = self.joined.lock().clone();
        joined.sort_by_cached_key(|one| {
            let mut hasher = DefaultHasher::new();
            (folder, one.join.id.as_str()).hash(&mut hasher);
            (one.is_unreachable.load(Relaxed), one.running_builds.load(Relaxed), hasher.finish())
        });
        joined
    }

    /// Has every builder remove the image from its storage. Returns whether all of them did;
    /// `false` if there is no builder.
    pub(crate) async fn remove(&self, image: &ImageRef) -> bool {
        if let Some(local) = &self.local {
            let removed = local.remove(image.clone()).await;
            let result = removed.inspect_err(|err| {
                tracing::warn!(image = %image, error = %Chain(err), "Builder could not remove an image.");
            });
            return result.is_ok();
        }
        let joined = self.joined.lock().clone();
        if joined.is_empty() {
            return false;
        }
        let removals = joined.iter().map(async |one| {
            let removed = one.remote.remove(image).await;
            let result = removed.inspect_err(|err| {
                tracing::warn!(image = %image, builder = %one.join.id, error = %Chain(err), "Builder could not remove an image.");
            });
            result.is_ok()
        });
        join_all(removals).await.into_iter().all(|is_removed| is_removed)
    }

    async fn build_remotely(&self, job: BuildJob) -> Result<Built, BuildError> {
        let BuildJob { deployment, archive, folder, only, log } = job;
        let builders = self.by_load(folder.as_deref());
        let order = BuildOrder { deployment, folder, only };
        let mut archive = Some(archive);
        let mut last = None;
        for joined in builders {
            let _running_build = RunningBuild::new(&joined);
            let ended = joined.remote.build(&order, &mut archive, &*log).await;
            joined.is_unreachable.store(matches!(ended, Err(NotAccepted::LinkError(_))), Relaxed);
            let not_accepted = match ended {
                Ok(ended) => return ended,
                Err(not_accepted) => not_accepted,
            };
            let builder = &joined.join.id;
            tracing::warn!(%builder, error = %Chain(&not_accepted), "Builder did not take a build; trying the next one.");
            if let NotAccepted::Refused(err) = &not_accepted
                && err.status.is_client_error()
            {
                return Err(err.clone()); // another builder would refuse it, too
            }
            log.report(BuildEvent::Line(format!(
                "note: builder `{builder}` did not accept the build"
            )));
            last = Some(not_accepted);
        }
        Err(match last {
            None => no_builder(),
            Some(NotAccepted::Refused(err)) => err,
            Some(NotAccepted::LinkError(_)) => BuildError {
                code: "BUILDER_UNREACHABLE".into(),
                status: StatusCode::SERVICE_UNAVAILABLE,
                message: "no builder of this fleet can be reached".into(),
                hint: Some(
                    "the gateway's log has the cause; deploy again when a builder is available"
                        .into(),
                ),
            },
        })
    }
}

/// The error if no builder has joined.
pub(crate) fn no_builder() -> BuildError {
    BuildError {
        code: "NO_BUILDER".into(),
        status: StatusCode::SERVICE_UNAVAILABLE,
        message: "no builder has joined this gateway".into(),
        hint: Some(
            "start `epsilon-builder` with this gateway's address, or use `epsilon up`".into(),
        ),
    }
}

impl Builder for Builders {
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>> {
        match &self.local {
            Some(local) => local.build(job),
            None => Box::pin(self.build_remotely(job)),
        }
    }
}

#[cfg(test)]
mod tests;
