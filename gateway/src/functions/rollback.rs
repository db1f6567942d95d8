//! An older version gets all calls again, at once: no VM is asked first, because the caller usually
//! wants to be rid of the one that serves.

use super::{Functions, actor::Actor, error::ChangeError, ready};
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
};
use std::sync::Arc;

impl Functions {
    /// Makes a version serve, the previous one if none is named, and ends a split. Running calls
    /// finish on the version where they began. Returns the version that serves.
    pub(crate) async fn rollback(
        self: &Arc<Self>,
        by: Actor,
        name: FunctionName,
        to: Option<VersionNumber>,
    ) -> Result<Version, ChangeError> {
        let this = Arc::clone(self);
        self.run_to_completion(async move {
            let version = {
                let change = this.routes.change().await;
                let version = Arc::new(this.store.rollback(&name, to).await?);
                change.share(Version::clone(&version), None, &this.fleet);
                version
            };
            tracing::info!(function = %name, version = %version.number, by = %by, "Function rolled back; another version gets its calls.");
            // VMs that were to retire the version must learn that it is needed again.
            let close = this.close.clone();
            let background = this.background.clone();
            let wanted = Arc::clone(&version);
            let warm_up =
                async move { ready::ensure_min_instances(&this.routes, &this.fleet, &wanted).await };
            background.spawn(close.run_until_cancelled_owned(warm_up));
            Ok(Arc::unwrap_or_clone(version))
        })
        .await
    }
}
