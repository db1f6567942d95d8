//! `epsilon vms`: the machines, what each holds, and how the gateway sees it.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;
use epsilon_api::{admin::VmInfo, units::Bytes, vm::CellCount};
use std::time::Duration;

/// Characters of a memory bar.
const BAR: u64 = 8;

#[derive(Debug, Args)]
pub(crate) struct Vms {}

impl Vms {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let vms = Client::new(globals)?.vms().await?;
        if globals.json {
            return output::json(&vms);
        }
        let headings = [
            "VM",
            "STATE",
            "SINCE",
            "INSTANCES",
            "CELLS",
            "CALLS",
            "WAITING",
            "MEMORY GIVEN OUT",
            "ADDRESS",
            "LAST REPORT",
        ];
        output::table(headings, &[3, 4, 5, 6], vms.iter().map(row))
    }
}

fn row(vm: &VmInfo) -> [String; 10] {
    let status = &vm.status;
    [
        status.id.to_string(),
        state(vm),
        output::time(vm.since),
        status.instances.len().to_string(),
        cells(status.cells),
        status.calls_active.to_string(),
        status.calls_waiting.to_string(),
        memory(status.memory_used_bytes, status.memory_bytes),
        // The one in the gateway's own process has none.
        vm.address.clone().unwrap_or_else(|| "here".to_owned()),
        match vm.report_age_ms {
            Some(age) => format!("{} ago", output::took(Duration::from_millis(age))),
            None => "none yet".to_owned(),
        },
    ]
}

fn state(vm: &VmInfo) -> String {
    match &vm.reason {
        Some(reason) => format!("{} ({reason})", vm.standing.as_str()),
        None => vm.standing.as_str().to_owned(),
    }
}

/// Those that can be given to a function at once, and those that boot: `2 (+1)`.
fn cells(CellCount { ready, booting }: CellCount) -> String {
    if booting == 0 { ready.to_string() } else { format!("{ready} (+{booting})") }
}

/// `##------  1GiB of 4GiB`
fn memory(used: Bytes, all: Bytes) -> String {
    let full = (used.get().saturating_mul(BAR)).div_ceil(all.get().max(1)).min(BAR) as usize;
    format!("{}{}  {used} of {all}", "#".repeat(full), "-".repeat(BAR as usize - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_boot_are_told_apart() {
        assert_eq!(cells(CellCount { ready: 2, booting: 0 }), "2");
        assert_eq!(cells(CellCount { ready: 0, booting: 3 }), "0 (+3)");
    }

    #[test]
    fn a_bar_shows_the_least_and_never_more_than_all() {
        for (used, all, want) in [
            (0, 4096, "--------  0B of 4GiB"),
            (1, 4096, "#-------  1MiB of 4GiB"),
            (1024, 4096, "##------  1GiB of 4GiB"),
            (9000, 4096, "########  8.8GiB of 4GiB"),
            (0, 0, "--------  0B of 0B"),
        ] {
            assert_eq!(memory(Bytes::mib(used), Bytes::mib(all)), want);
        }
    }
}
