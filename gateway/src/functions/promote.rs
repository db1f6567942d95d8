//! One version gets all calls: the end of a split that went well. Unlike a rollback, the version is
//! started first.

use super::{Functions, actor::Actor, error::ChangeError, ready::Started};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
};
use std::sync::Arc;

impl Functions {
    /// Makes a version get all calls; the one beside the stable one if none is named. Running calls
    /// finish on the version where they began. Returns the version that serves.
    pub(crate) async fn promote(
        self: &Arc<Self>,
        by: Actor,
        name: FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, ChangeError> {
        let seen = self.store.active(&name).await?.number;
        let this = Arc::clone(self);
        self.run_to_completion(async move {
            let mut started = Started::new(&this.routes, &this.fleet);
            let done = this.promote_from(&name, seen, to, &mut started).await;
            started.settle().await;
            let version = done?;
            tracing::info!(function = %name, version = %version.number, by = %by, "Version promoted; it gets all calls of its function.");
            Ok(version)
        })
        .await
    }

    async fn promote_from(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        to: Option<VersionNumber>,
        started: &mut Started<'_>,
    ) -> Result<Version, ChangeError> {
        if let Some(number) = to {
            let version = self.store.version(name, number).await?;
            self.ready(started, version).await?;
        }
        let change = self.routes.change().await;
        let version = self.store.promote(name, seen, to).await?;
        change.share(version.clone(), None, &self.fleet);
        Ok(version)
    }
}
