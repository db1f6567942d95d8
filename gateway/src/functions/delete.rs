//! A function is removed: its name is free, its history stays in the store's deployments.

use super::{Functions, actor::Actor, error::ChangeError};
use epsilon_api::{function::Version, ids::FunctionName};
use jiff::Timestamp;
use std::sync::Arc;

impl Functions {
    /// Removes a function with all its versions. Running calls finish. Returns the version that
    /// served.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        by: Actor,
        name: FunctionName,
    ) -> Result<Version, ChangeError> {
        let this = Arc::clone(self);
        self.run_to_completion(async move {
            let version = {
                let change = this.routes.change().await;
                let version = this.store.delete_function(&name, Timestamp::now()).await?;
                change.remove(&name, &this.fleet);
                for member in this.fleet.members() {
                    member.vm.forget(&name); // before the name can be deployed again
                }
                version
            };
            tracing::info!(function = %name, by = %by, "Function deleted.");
            Ok(version)
        })
        .await
    }
}
