//! `epsilon promote NAME [VERSION]`: routes all calls to one version, which ends a split. Nothing
//! is built.

use crate::{client::Client, commands::rollback, failure::Failure, globals::Globals};
use clap::Args;
use epsilon_api::ids::VersionNumber;

#[derive(Debug, Args)]
pub(crate) struct Promote {
    /// The function
    name: String,
    /// The version that gets all calls [default: the one that is tried beside the stable one]
    version: Option<VersionNumber>,
}

impl Promote {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let function = Client::new(globals)?.promote(&self.name, self.version).await?;
        rollback::print_active(globals, &function)
    }
}
