//! `epsilon vms`: the machines, and what each holds.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;
use epsilon_api::vm::VmState;

#[derive(Debug, Args)]
pub(crate) struct Vms {}

impl Vms {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let vms = Client::new(globals)?.vms().await?;
        if globals.json {
            return output::json(&vms);
        }
        let rows = vms.into_iter().map(|vm| {
            [
                vm.id.to_string(),
                state(vm.state).to_owned(),
                vm.instances.len().to_string(),
                vm.calls_active.to_string(),
                vm.calls_waiting.to_string(),
                format!("{} of {}", vm.memory_used_bytes, vm.memory_bytes),
            ]
        });
        let headings = ["VM", "STATE", "INSTANCES", "CALLS", "WAITING", "MEMORY GIVEN OUT"];
        output::table(headings, &[2, 3, 4], rows)
    }
}

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Ready => "ready",
        VmState::Draining => "draining",
        VmState::EngineDown => "engine down",
    }
}
