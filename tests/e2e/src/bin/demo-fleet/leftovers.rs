//! What a fleet leaves on this machine, and whether all of it is removed.

use epsilon_e2e::{fleet::Fleet, program::Program};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Names of a fleet's resources on this machine.
pub(crate) struct Traces {
    vms: Vec<String>,
    folders: Vec<PathBuf>,
    processes: Vec<u32>,
}

impl Traces {
    /// The resources of a running fleet.
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let programs = || {
            let agents = fleet.agents.iter().map(|agent| &agent.program);
            let gateways = fleet.gateways.iter().map(|gateway| &gateway.program);
            agents.chain(gateways).chain([&fleet.builder])
        };
        Self {
            vms: fleet.agents.iter().map(|agent| agent.id().to_owned()).collect(),
            folders: programs().map(Program::data).collect(),
            processes: programs().map(Program::pid).collect(),
        }
    }

    /// Whether nothing is left; prints what is.
    pub(crate) fn are_gone(&self) -> bool {
        let mut left = Vec::new();
        for vm in &self.vms {
            for list in [&["ps", "-aq"][..], &["network", "ls", "-q"]] {
                let mut docker = Command::new("docker");
                docker.args(list).args(["--filter", &format!("label=epsilon.vm={vm}")]);
                let found = docker.output().expect("`docker` can be run");
                if !found.status.success() || !found.stdout.is_empty() {
                    let found = String::from_utf8_lossy(&found.stdout);
                    left.push(format!("docker {}: {found}", list.join(" ")));
                }
            }
        }
        let folders = self.folders.iter().filter(|folder| folder.exists());
        left.extend(folders.map(|folder| format!("the folder {}", folder.display())));
        let processes = self.processes.iter().map(|pid| format!("/proc/{pid}"));
        left.extend(processes.filter(|process| Path::new(process).exists()));
        for trace in &left {
            println!("left behind: {trace}");
        }
        left.is_empty()
    }
}
