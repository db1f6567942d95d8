//! What Docker itself says is there: the tests believe the engine, not the platform.

use crate::{
    cli::{Outcome, run},
    up::Epsilon,
};
use serde_json::Value;
use tokio::process::Command;

/// Runs `docker ARGUMENTS`.
pub async fn docker(arguments: &[&str]) -> Outcome {
    let mut command = Command::new("docker");
    command.args(arguments);
    run(command).await
}

/// The trimmed output of a `docker` command that must go well.
///
/// # Panics
/// When it does not.
pub async fn ask(arguments: &[&str]) -> String {
    docker(arguments).await.expect(0).stdout.trim().to_owned()
}

/// One container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id in the engine.
    pub id: String,
    /// All that `docker inspect` says.
    pub inspect: Value,
}

impl Container {
    /// One of its labels; empty when it has none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.inspect["Config"]["Labels"][name].as_str().unwrap_or("")
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

impl Epsilon {
    /// All containers of this platform's VM, in any state; of one function, if one is given.
    pub async fn containers(&self, function: Option<&str>) -> Vec<Container> {
        let vm = format!("label=epsilon.vm={}", self.vm());
        let function = function.map(|name| format!("label=epsilon.function={name}"));
        let mut list = vec!["ps", "-aq", "--no-trunc", "--filter", &vm];
        if let Some(function) = &function {
            list.extend(["--filter", function]);
        }
        let ids = ask(&list).await;
        let mut containers = Vec::new();
        for id in ids.split_whitespace() {
            // One may be gone between the two questions.
            let inspected = docker(&["inspect", id]).await;
            if inspected.code == 0 {
                containers.push(Container { id: id.into(), inspect: inspected.json()[0].clone() });
            }
        }
        containers
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

    /// Networks of this platform's VM.
    pub async fn networks(&self) -> Vec<String> {
        let vm = format!("label=epsilon.vm={}", self.vm());
        let list = ask(&["network", "ls", "-q", "--filter", &vm]).await;
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Its networks once it has ended, but for an empty one that the engine refuses to remove because something is in it:
    /// Docker 20.10 can miscount when many containers come and go at once. Removes what it can.
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
