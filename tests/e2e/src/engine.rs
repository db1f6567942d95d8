//! The state according to Docker itself: the tests trust the engine, not the platform.

use crate::{
    cli::{Outcome, run},
    up::Epsilon,
    wait::{LONG, SOON, until},
};
use serde_json::Value;
use std::path::Path;
use tokio::process::Command;

/// Runs `docker ARGUMENTS`.
pub async fn docker(arguments: &[&str]) -> Outcome {
    let mut command = Command::new("docker");
    command.args(arguments);
    run(command).await
}

/// The trimmed output of a `docker` command that must succeed.
///
/// # Panics
/// When it fails.
pub async fn ask(arguments: &[&str]) -> String {
    docker(arguments).await.expect(0).stdout.trim().to_owned()
}

/// One container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id in the engine.
    pub id: String,
    /// The output of `docker inspect`.
    pub inspect: Value,
}

impl Container {
    /// One of its labels; empty when it does not exist.
    pub fn label(&self, name: &str) -> &str {
        self.inspect["Config"]["Labels"][name].as_str().unwrap_or("")
    }

    /// Whether it is a cell without a function.
    pub fn is_waiting_cell(&self) -> bool {
        self.label("epsilon.cell") == "1" && self.label("epsilon.function").is_empty()
    }

    fn read_record(&mut self, data: &Path) {
        if self.label("epsilon.cell") != "1" {
            return;
        }
        let record =
            data.join("vm/cells").join(self.label("epsilon.instance")).join("version.json");
        let Ok(text) = std::fs::read(record) else { return };
        let version: Value = serde_json::from_slice(&text).unwrap_or_default();
        let labels = &mut self.inspect["Config"]["Labels"];
        labels["epsilon.function"] = version["function"].clone();
        labels["epsilon.version"] = version["number"].to_string().into();
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.inspect["State"]["Running"] == true
    }

    /// The process id of its first process on this machine.
    pub fn pid(&self) -> i64 {
        self.inspect["State"]["Pid"].as_i64().unwrap_or(0)
    }

    /// The folder on this machine with its sockets.
    ///
    /// # Panics
    /// When it has none.
    pub fn sockets(&self) -> std::path::PathBuf {
        let environment = self.inspect["Config"]["Env"].as_array().expect("an environment");
        let inside = environment
            .iter()
            .find_map(|entry| entry.as_str()?.strip_prefix("EPSILON_SOCKETS="))
            .expect("EPSILON_SOCKETS");
        let mounts = self.inspect["Mounts"].as_array().expect("mounts");
        let mount = mounts
            .iter()
            .find(|mount| mount["Destination"] == inside)
            .unwrap_or_else(|| panic!("no mount at {inside}: {mounts:?}"));
        mount["Source"].as_str().expect("a source").into()
    }
}

/// All containers of a VM with this data folder, in any state. Labels of a container cannot change:
/// for a cell that serves a function, its record on this machine says which one, and is read like a
/// label.
pub async fn containers_of(vm: &str, data: &Path) -> Vec<Container> {
    let vm = format!("label=epsilon.vm={vm}");
    let ids = ask(&["ps", "-aq", "--no-trunc", "--filter", &vm]).await;
    let mut containers = Vec::new();
    for id in ids.split_whitespace() {
        // One may be removed between the two requests.
        let inspected = docker(&["inspect", id]).await;
        if inspected.code == 0 {
            let mut container = Container { id: id.into(), inspect: inspected.json()[0].clone() };
            container.read_record(data);
            containers.push(container);
        }
    }
    containers
}

impl Epsilon {
    /// All containers that serve or served a function of this platform's VM, in any state;
    /// optionally of one function. Unassigned cells are not included.
    pub async fn containers(&self, function: Option<&str>) -> Vec<Container> {
        let mut containers = self.containers_and_cells().await;
        containers.retain(|container| match function {
            Some(function) => container.label("epsilon.function") == function,
            None => !container.is_waiting_cell(),
        });
        containers
    }

    /// All containers of this platform's VM, in any state.
    pub async fn containers_and_cells(&self) -> Vec<Container> {
        containers_of(self.vm(), self.data()).await
    }

    /// The only running container of a function.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub async fn container(&self, function: &str) -> Container {
        let mut running = self.containers(Some(function)).await;
        running.retain(Container::is_running);
        assert_eq!(running.len(), 1, "containers of {function}: {running:?}");
        running.remove(0)
    }

    /// The image of a function's newest version.
    ///
    /// # Panics
    /// When there is no such function.
    pub async fn image(&self, function: &str) -> String {
        let versions = self.admin(&format!("/v1/functions/{function}/versions")).await;
        versions[0]["image"].as_str().expect("an image").to_owned()
    }

    /// Waits until so many cells are ready to be assigned.
    pub async fn cells_are_ready(&self, count: u64) {
        until("cells are ready", LONG, async || {
            let vms = self.admin("/v1/vms").await;
            let cells = &vms[0]["cells"];
            if cells["ready"].as_u64() >= Some(count) { Ok(()) } else { Err(cells.clone()) }
        })
        .await;
    }

    /// Waits until a function has no container.
    pub async fn is_cold(&self, function: &str) {
        until(&format!("no container of `{function}` is left"), SOON, async || {
            match self.containers(Some(function)).await.len() {
                0 => Ok(()),
                left => Err(left),
            }
        })
        .await;
    }

    /// Networks of this platform's VM.
    pub async fn networks(&self) -> Vec<String> {
        let vm = format!("label=epsilon.vm={}", self.vm());
        let list = ask(&["network", "ls", "-q", "--filter", &vm]).await;
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Networks after the platform has ended, except for an empty one that the engine refuses to
    /// remove as in use: Docker 20.10 can miscount when many containers come and go at once.
    /// Removes what it can.
    pub async fn networks_left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for network in self.networks().await {
            let names = "{{range .Containers}}{{.Name}} {{end}}";
            let inside = ask(&["network", "inspect", "-f", names, &network]).await;
            let removal = docker(&["network", "rm", &network]).await;
            let is_miscounted = removal.stderr.contains("has active endpoints");
            if !inside.is_empty() || !is_miscounted {
                left.push(network);
            }
        }
        left
    }
}
