//! `epsilon drain VM`: the VM finishes running calls and gets no new ones.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::ids::VmId;

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The VM, as `epsilon vms` lists it
    vm: VmId,
}

impl Drain {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        Client::new(globals)?.drain(&self.vm, true).await?;
        if globals.json {
            return output::json(serde_json::json!({ "vm": self.vm, "state": "draining" }));
        }
        output::line(&format!(
            "`{}` drains: running calls finish; `epsilon vms` shows when it is empty",
            self.vm
        ))
    }
}
