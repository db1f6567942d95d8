//! Who builds: the builder of this process where there is one, else one of those that joined. The one with the
//! fewest builds of ours gets the next; among equals the same project goes to the same one, whose caches know it.

use super::remote::{NotTaken, Remote};
use crate::fleet::link::{Identity, Link};
use epsilon_api::{
    admin::BuilderInfo,
    build::{BuildError, BuildEvent, BuildJob, BuildOrder, Builder, Built},
    chain::Chain,
    fleet::{Join, MemberKind},
    function::ImageRef,
    ids::VmId,
};
use epsilon_launch::metrics::VERSION;
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

/// See the module.
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
    /// Builds of this gateway that it has now.
    at_work: AtomicUsize,
    /// It could not be asked the last time: the others come first. A builder that was killed stays listed for a while.
    is_silent: AtomicBool,
}

/// One build at a builder, for as long as it lives.
struct AtWork<'a>(&'a Joined);

impl<'a> AtWork<'a> {
    fn new(joined: &'a Joined) -> Self {
        joined.at_work.fetch_add(1, Relaxed);
        Self(joined)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Relaxed);
    }
}

impl Builders {
    /// The builder of this process, or none but those that join. `silence` is the longest that one of these may
    /// say nothing.
    pub(crate) fn new(
        local: Option<Arc<dyn Builder>>,
        identity: Identity,
        silence: Duration,
    ) -> Self {
        Self { local, joined: Mutex::default(), identity, silence }
    }

    /// Whether the builder is in this process.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Whether nobody builds.
    pub(crate) fn is_empty(&self) -> bool {
        self.local.is_none() && self.joined.lock().is_empty()
    }

    /// These are the members of the fleet now; VMs among them are left out. Builds at work go on, also at a
    /// builder that is not among them any more.
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
                    tracing::info!(builder = %join.id, address = %join.address, "A builder joined.");
                    let (id, link) = (join.id.clone(), Arc::new(link));
                    let remote = Remote { id, link, silence: self.silence };
                    joined.push(Arc::new(Joined {
                        join: join.clone(),
                        remote,
                        at_work: AtomicUsize::new(0),
                        is_silent: AtomicBool::new(false),
                    }));
                }
                Err(trouble) => {
                    tracing::warn!(builder = %join.id, error = %Chain(&trouble), "A builder cannot be used.");
                }
            }
        }
    }

    /// Where this builder is taken to be, if it is one that joined.
    pub(crate) fn address(&self, id: &VmId) -> Option<String> {
        let joined = self.joined.lock();
        joined.iter().find(|one| one.join.id == *id).map(|one| one.join.address.clone())
    }

    /// How each is: those that joined are asked, all at once.
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
        let asked = joined.iter().map(async |one| {
            let (cause, status) = match one.remote.status().await {
                Ok(status) => (None, status),
                Err(trouble) => (Some(trouble.in_words()), None),
            };
            BuilderInfo {
                id: Some(one.join.id.clone()),
                address: Some(one.join.address.clone()),
                reachable: cause.is_none(),
                cause,
                builds: status.as_ref().map(|status| status.builds),
                version: status.map(|status| status.version),
                builds_from_here: u32::try_from(one.at_work.load(Relaxed)).unwrap_or(u32::MAX),
            }
        });
        local.into_iter().chain(join_all(asked).await).collect()
    }

    /// The builders in the order in which they are asked for this project.
    fn in_order(&self, folder: Option<&str>) -> Vec<Arc<Joined>> {
        let mut joined = self.joined.lock().clone();
        joined.sort_by_cached_key(|one| {
            let mut hasher = DefaultHasher::new();
            (folder, one.join.id.as_str()).hash(&mut hasher);
            (one.is_silent.load(Relaxed), one.at_work.load(Relaxed), hasher.finish())
        });
        joined
    }

    /// Every builder takes the image away from where it put it. Says whether all of them did; not where nobody
    /// was there to ask.
    pub(crate) async fn remove(&self, image: &ImageRef) -> bool {
        if let Some(local) = &self.local {
            let removed = local.remove(image.clone()).await;
            let told = removed.inspect_err(|err| {
                tracing::warn!(image = %image, error = %Chain(err), "An image was not removed.");
            });
            return told.is_ok();
        }
        let joined = self.joined.lock().clone();
        if joined.is_empty() {
            return false;
        }
        let removals = joined.iter().map(async |one| {
            let removed = one.remote.remove(image).await;
            let told = removed.inspect_err(|err| {
                tracing::warn!(image = %image, builder = %one.join.id, error = %Chain(err), "An image was not removed.");
            });
            told.is_ok()
        });
        join_all(removals).await.into_iter().all(|is_removed| is_removed)
    }

    async fn build_away(&self, job: BuildJob) -> Result<Built, BuildError> {
        let BuildJob { deployment, archive, folder, only, log } = job;
        let builders = self.in_order(folder.as_deref());
        let order = BuildOrder { deployment, folder, only };
        let (mut archive, mut last) = (Some(archive), None);
        for joined in builders {
            let _at_work = AtWork::new(&joined);
            let ended = joined.remote.build(&order, &mut archive, &*log).await;
            joined.is_silent.store(matches!(ended, Err(NotTaken::Trouble(_))), Relaxed);
            let not_taken = match ended {
                Ok(ended) => return ended,
                Err(not_taken) => not_taken,
            };
            let builder = &joined.join.id;
            tracing::warn!(%builder, error = %Chain(&not_taken), "A builder did not take a build.");
            if let NotTaken::Refused(err) = &not_taken
                && err.status.is_client_error()
            {
                return Err(err.clone()); // the next one would say the same
            }
            log.tell(BuildEvent::Line(format!("note: builder `{builder}` did not take the build")));
            last = Some(not_taken);
        }
        Err(match last {
            None => no_builder(),
            Some(NotTaken::Refused(err)) => err,
            Some(NotTaken::Trouble(_)) => BuildError {
                code: "BUILDER_UNREACHABLE".into(),
                status: StatusCode::SERVICE_UNAVAILABLE,
                message: "no builder of this fleet can be reached".into(),
                hint: Some("the gateway's log says why; deploy again when one is back".into()),
            },
        })
    }
}

/// Nobody builds here.
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
            None => Box::pin(self.build_away(job)),
        }
    }
}

#[cfg(test)]
mod tests;
