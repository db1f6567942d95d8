//! `epsilon vms`: the VMs, what each holds, and their state as seen by the gateway.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{
    admin::{VmInfo, VmStanding},
    units::Bytes,
    vm::CellCount,
};
use jiff::{SignedDuration, Timestamp};
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
            "MEMORY RESERVED",
            "VERSION",
            "ADDRESS",
            "LAST REPORT",
        ];
        output::table(headings, &[3, 4, 5, 6], vms.iter().map(row))
    }
}

fn row(vm: &VmInfo) -> [String; 11] {
    let status = &vm.status;
    [
        status.id.to_string(),
        state(vm) + &certificate(status.certificate_ends_at, Timestamp::now()),
        output::time(vm.since),
        status.instances.len().to_string(),
        cells(status.cells),
        status.calls_active.to_string(),
        status.calls_waiting.to_string(),
        memory(status.memory_used_bytes, status.memory_bytes),
        // Before the first report, and for agents that do not report it.
        status.version.clone().unwrap_or_else(|| "?".to_owned()),
        // The agent in the gateway's own process has none.
        vm.address.clone().unwrap_or_else(|| "here".to_owned()),
        match vm.report_age_ms {
            Some(age) => format!("{} ago", output::took(Duration::from_millis(age))),
            None => "none yet".to_owned(),
        },
    ]
}

/// `out (silent: its certificate has ended)`, `starting (no process listens at its address)`
fn state(vm: &VmInfo) -> String {
    let standing = vm.standing.as_str();
    // The cause of an earlier failure does not matter for a VM that reports again, or drains.
    let is_absent = matches!(vm.standing, VmStanding::Out | VmStanding::Starting);
    match (&vm.reason, vm.cause.as_ref().filter(|_| is_absent)) {
        (Some(reason), Some(cause)) => format!("{standing} ({reason}: {cause})"),
        (Some(why), None) | (None, Some(why)) => format!("{standing} ({why})"),
        (None, None) => standing.to_owned(),
    }
}

/// How long before its end a certificate is mentioned; the same as in the log.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// `, certificate ends in 3 days`, `, certificate has ended`: open connections continue, new ones
/// are refused.
fn certificate(ends: Option<Timestamp>, now: Timestamp) -> String {
    let Some(left) = ends.map(|ends| now.duration_until(ends)).filter(|left| *left <= SOON) else {
        return String::new();
    };
    match left.as_hours() {
        _ if left <= SignedDuration::ZERO => ", certificate has ended".to_owned(),
        hours if hours < 48 => format!(", certificate ends in {hours} hours"),
        hours => format!(", certificate ends in {} days", hours / 24),
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
    fn state_includes_why_a_vm_does_not_report() {
        let text = |standing: &str, reason: &str, cause: &str| {
            let mut vm = serde_json::json!({
                "id": "vm-1", "state": "ready", "memory_bytes": 1, "memory_used_bytes": 0, "calls_active": 0,
                "calls_waiting": 0, "instances": [], "standing": standing, "since": "2026-01-01T00:00:00Z",
            });
            for (key, value) in [("reason", reason), ("cause", cause)] {
                if !value.is_empty() {
                    vm[key] = value.into();
                }
            }
            state(&serde_json::from_value(vm).unwrap())
        };
        assert_eq!(text("starting", "", ""), "starting");
        assert_eq!(
            text("starting", "", "its certificate has expired"),
            "starting (its certificate has expired)"
        );
        assert_eq!(text("out", "silent", "connection refused"), "out (silent: connection refused)");
        assert_eq!(text("out", "failing", ""), "out (failing)");
        assert_eq!(text("draining", "", "the connection to the member broke"), "draining");
    }

    #[test]
    fn a_certificate_is_spoken_of_when_it_ends_soon() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (ends, want) in [
            (None, ""),
            (Some("2026-02-01T00:00:00Z"), ""),
            (Some("2026-01-15T00:00:00Z"), ", certificate ends in 14 days"),
            (Some("2026-01-02T01:00:00Z"), ", certificate ends in 25 hours"),
            (Some("2026-01-01T00:00:00Z"), ", certificate has ended"),
            (Some("2025-12-01T00:00:00Z"), ", certificate has ended"),
        ] {
            assert_eq!(certificate(ends.map(|text| text.parse().unwrap()), now), want, "{ends:?}");
        }
    }

    #[test]
    fn booting_cells_are_distinguished() {
        assert_eq!(cells(CellCount { ready: 2, booting: 0 }), "2");
        assert_eq!(cells(CellCount { ready: 0, booting: 3 }), "0 (+3)");
    }

    #[test]
    fn bar_shows_the_least_and_at_most_all() {
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
