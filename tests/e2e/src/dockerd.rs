//! A second container engine on this machine: for a VM of a fleet whose engine is stopped and
//! started while the others are unaffected. Needs root. Removed with the value, and also when the
//! test's process ends in any other way.
//!
//! It leaves the machine's firewall alone and has a bridge of its own: two engines would clear each
//! other's rules, and one without a bridge *removes* the `docker0` that it finds. It cannot have a
//! network namespace of its own, because it pulls from a registry on this machine's loopback.

use crate::{
    cli::{Outcome, run},
    guard::Guard,
    network::Network,
    wait::{LONG, until},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// `$1`: the folder. Programs that use the socket are ended first: they would recreate things.
const GUARD: &str = r#"
cat >/dev/null
for tenths in $(seq 0 300); do
  grep -qsF "$1/docker.sock" /proc/[0-9]*/environ || break
  sleep 0.1
done
export DOCKER_HOST="unix://$1/docker.sock"
docker ps -aq | xargs -r docker rm -f
docker network ls -q --filter label=epsilon.vm | xargs -r docker network rm
pid=$(cat "$1/pid")
for tenths in $(seq 0 300); do
  grep -qsF "$1/docker.sock" "/proc/$pid/cmdline" || break
  case "$tenths" in 0) kill -TERM "$pid" ;; 300) kill -KILL "$pid" ;; esac
  sleep 0.1
done
grep -oE " $1[^ ]*" /proc/mounts | sort -r | xargs -r umount
rm -rf "$1"
"#;

/// A running engine.
#[derive(Debug)]
pub struct Dockerd {
    process: Child,
    guard: Guard,
    // Dropped after the guard, which has emptied the folder by then.
    folder: TempDir,
    network: Network,
}

impl Dockerd {
    /// Starts one without any image.
    pub async fn start() -> Self {
        let folder = TempDir::with_prefix("epsilon-e2e-").expect("a temporary folder");
        let guard = Guard::new(GUARD, [folder.path()]);
        let network = Network::start(0);
        let process = spawn(folder.path(), network.bridge());
        let engine = Self { process, guard, folder, network };
        engine.answers().await;
        engine
    }

    /// Stops it like a service manager, and with it all of its containers; waits until it is gone.
    pub async fn stop(&mut self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("the engine runs");
        let process = &mut self.process;
        until("the engine ends", LONG, async || {
            process.try_wait().expect("it is our child").ok_or("it runs")
        })
        .await;
    }

    /// Starts it again on its data, and waits until it answers.
    pub async fn start_again(&mut self) {
        self.process = spawn(self.folder.path(), self.network.bridge());
        self.answers().await;
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// The variable that makes a program use it.
    pub fn variable(&self) -> (String, String) {
        ("DOCKER_HOST".into(), host(self.folder.path()))
    }

    /// All that it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs `docker ARGUMENTS` on it.
    pub async fn docker(&self, arguments: &[&str]) -> Outcome {
        let mut command = tokio::process::Command::new("docker");
        command.args(arguments).env("DOCKER_HOST", host(self.folder.path()));
        run(command).await
    }

    async fn answers(&self) {
        until("the engine answers", LONG, async || match self.docker(&["version"]).await {
            Outcome { code: 0, .. } => Ok(()),
            other => Err((other.stderr, std::fs::read_to_string(self.folder.path().join("log")))),
        })
        .await;
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.guard.release();
        let _ = self.process.wait();
    }
}

fn host(folder: &Path) -> String {
    format!("unix://{}/docker.sock", folder.display())
}

fn spawn(folder: &Path, bridge: &str) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut command = Command::new("dockerd");
    for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        command.arg(flag).arg(folder.join(name));
    }
    command.args(["--host", &host(folder), "--bridge", bridge, "--iptables=false"]);
    command.args(["--ip6tables=false", "--ip-masq=false", "--ip-forward=false"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("`dockerd` can be run")
}
