//! `epsilon undrain VM`: sends calls to a drained VM again.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::ids::VmId;

#[derive(Debug, Args)]
pub(crate) struct Undrain {
    /// The VM, as `epsilon vms` lists it
    vm: VmId,
}

impl Undrain {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        Client::new(globals)?.drain(&self.vm, false).await?;
        if globals.json {
            return output::json(serde_json::json!({ "vm": self.vm, "state": "ready" }));
        }
        output::line(&format!("`{}` gets calls again", self.vm))
    }
}
