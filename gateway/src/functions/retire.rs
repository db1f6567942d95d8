//! Versions that do not serve are removed: one that somebody names, or all beyond the newest of
//! their function. Their images are removed by `reconcile/retention.rs`, once nothing needs them.

use super::{Functions, actor::Actor, error::ChangeError};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
};
use jiff::Timestamp;
use std::{num::NonZeroU32, sync::Arc};

impl Functions {
    /// Removes a version that does not serve; returns it.
    pub(crate) async fn retire(
        self: &Arc<Self>,
        by: Actor,
        name: FunctionName,
        number: VersionNumber,
    ) -> Result<Version, ChangeError> {
        let this = Arc::clone(self);
        self.run_to_completion(async move {
            let version = this.store.remove_version(&name, number, Timestamp::now()).await?;
            this.version_cache.forget(&name);
            for member in this.fleet.members() {
                member.vm.retire(&version.id());
            }
            tracing::info!(function = %name, version = %number, by = %by, "Version retired.");
            Ok(version)
        })
        .await
    }

    /// Removes all versions beyond the newest `keep` of their function, except those that serve.
    pub(crate) async fn prune(&self, by: &Actor, keep: NonZeroU32) -> Result<(), ChangeError> {
        for version in self.store.prune(keep.get(), Timestamp::now()).await? {
            tracing::info!(%version, keep, by = %by, "Version removed, because the function has enough newer ones.");
        }
        Ok(())
    }
}
