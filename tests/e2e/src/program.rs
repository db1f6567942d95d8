//! One process of the platform with a folder of its own: started, watched, signalled, restarted;
//! and removed with all its resources, whatever happens to the test.

use crate::{
    guard::Guard,
    wait::{LONG, SOON, until},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};
use tempfile::TempDir;

/// How long a program may take to be ready; without any image on the machine it first makes the
/// Node base.
const READY: Duration = Duration::from_secs(600);

/// `$1`: the folder with `pid`, `data/`, and `images`: the function images that existed before, and
/// stay. Everything else is found by what only this program has: the folder that it runs in, its
/// VM's id in the labels, the images recorded by its builder. `$2`: file for mounts that an orderly
/// ended program has left, one per line; `infra/test.sh` reads it.
const GUARD: &str = r#"
cat >/dev/null
ended=
pid=$(cat "$1/pid")
ours() { [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; }
left() {
  docker ps -aq --filter "label=epsilon.vm=$1"
  docker network ls -q --filter "label=epsilon.vm=$1"
}
# A process that a test stopped (SIGSTOP) handles no other signal before this.
ours "$1" && kill -CONT "$pid" && ended=itself
# The second TERM ends the wait for calls that a test left running.
for tenths in $(seq 0 200); do
  ours "$1" || break
  case "$tenths" in 0 | 30) kill -TERM "$pid" ;; 200) kill -KILL "$pid"; ended=killed ;; esac
  sleep 0.1
done
[ "$ended" != itself ] || grep -oE " $1/data/vm/[^ ]*" /proc/mounts >>"$2"
if vm=$(cat "$1/data/vm/id" 2>/dev/null); then
  # More than once: what was requested of the engine just before a kill appears only after a while.
  for _ in $(seq 0 9); do
    docker ps -aq --filter "label=epsilon.vm=$vm" | xargs -r docker rm -f
    for network in $(docker network ls -q --filter "label=epsilon.vm=$vm"); do
      # An endpoint may outlive a container that was killed while it started.
      docker network inspect -f '{{range .Containers}}{{.Name}} {{end}}' "$network" |
        xargs -rn1 docker network disconnect -f "$network"
      docker network rm "$network"
    done
    [ "$ended" = killed ] || [ -n "$(left "$vm")" ] || break
    sleep 1
    [ -n "$(left "$vm")" ] || break
  done
fi
grep -ho '"reference":"[^"]*"' "$1"/data/builder/images/*.json | cut -d'"' -f4 | sort -u |
  grep -v '/runtime-node[:@]' | # what functions are based on, here and in tests beside this one
  grep -vxFf "$1/images" | xargs -r docker rmi
grep -oE " $1[^ ]*" /proc/mounts | sort -r | xargs -rn1 umount -l
rm -rf "$1"
"#;

/// One of the platform's binaries: beside the `epsilon` that `EPSILON_BIN` names, else where cargo
/// put it beside this test.
///
/// # Panics
/// When it does not exist.
pub fn binary(name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os("EPSILON_BIN") {
        let epsilon = PathBuf::from(path).canonicalize().expect("EPSILON_BIN names a file");
        return epsilon.with_file_name(name);
    }
    // …/target/debug/deps/test-0123 or …/target/debug/bench
    let here = std::env::current_exe().expect("this process has a file");
    let found = here.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no `{name}` near {}: build it first, or set EPSILON_BIN", here.display())
    })
}

/// What to start, and how.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Name of the binary.
    pub binary: &'static str,
    /// Its arguments, without `--data-dir` and `--config`.
    pub arguments: Vec<String>,
    /// The settings file's text (YAML).
    pub config: Option<String>,
    /// Size of the data folder's own file system, as `mount` takes it (`32m`); `None`: the
    /// machine's disk.
    pub disk: Option<String>,
    /// A data folder that exists before the first start; it is moved.
    pub data: Option<PathBuf>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// The network namespace to run in; `None`: the test's own.
    pub netns: Option<String>,
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    launch: Launch,
    process: Child,
    ready: String,
    log: PathBuf,
    guard: Guard,
    // Dropped after the guard, which has emptied the folder by then.
    folder: TempDir,
}

impl Program {
    /// Starts a program and waits for its `ready` line.
    ///
    /// # Panics
    /// When it does not become ready, with the end of its log.
    pub async fn start(launch: Launch) -> Self {
        let folder = TempDir::with_prefix("epsilon-e2e-").expect("a temporary folder");
        std::fs::write(folder.path().join("images"), function_images()).unwrap();
        let log = log_file(launch.binary);
        // Created before the process: the start may be aborted.
        let left = log.with_file_name("left-behind");
        let guard = Guard::new(GUARD, [folder.path(), &left]);
        if let Some(data) = &launch.data {
            std::fs::rename(data, folder.path().join("data")).expect("a folder on the same disk");
        }
        if let Some(size) = &launch.disk {
            let data = folder.path().join("data");
            std::fs::create_dir(&data).unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&data);
            let done = mount.status().expect("mount");
            assert!(done.success(), "a small disk cannot be mounted: {done} (run this as root)");
        }
        let (process, ready) = spawn(&launch, folder.path(), &log).await;
        Self { launch, process, ready, log, guard, folder }
    }

    /// Starts it again on the same data, after [`Self::kill`] or [`Self::terminate`].
    pub async fn start_again(&mut self) {
        (self.process, self.ready) = spawn(&self.launch, self.folder.path(), &self.log).await;
    }

    /// Settings of the next [`Self::start_again`].
    pub fn launch(&mut self) -> &mut Launch {
        &mut self.launch
    }

    /// The line that it printed when it was ready.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// The addresses in its `ready` line.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let words = self.ready.split(|c: char| c.is_whitespace() || c == '=');
        let trimmed = words.map(|word| {
            word.trim_start_matches("http://")
                .trim_start_matches("https://")
                .trim_end_matches(['/', ','])
        });
        trimmed.filter_map(|word| word.parse().ok()).collect()
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The trimmed text of a file in its data folder.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn data_file(&self, name: &str) -> String {
        let path = self.data().join(name);
        let text = std::fs::read_to_string(&path);
        text.unwrap_or_else(|err| panic!("{}: {err}", path.display())).trim().to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it like a service manager, and waits.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(LONG).await
    }

    /// Kills it, and waits until the process is gone.
    pub async fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.ended(SOON).await
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is already gone.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("the program runs");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_some()
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let (process, name) = (&mut self.process, self.launch.binary);
        until(&format!("`{name}` ends"), limit, async || {
            process.try_wait().expect("it is our child").ok_or("runs")
        })
        .await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {}\n{}", self.log.display(), tail(&self.log));
        }
        self.guard.release();
        let _ = self.process.wait();
    }
}

/// Starts the process and waits for its `ready` line.
async fn spawn(launch: &Launch, folder: &Path, log: &Path) -> (Child, String) {
    let stderr = File::options().create(true).append(true).open(log).expect("a log file");
    let name = launch.binary;
    let mut command = match &launch.netns {
        Some(netns) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", netns]).arg(binary(name));
            command
        }
        None => Command::new(binary(name)),
    };
    command
        .args(&launch.arguments)
        .arg("--data-dir")
        .arg(folder.join("data"))
        .current_dir(folder)
        .envs(launch.env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .process_group(0);
    if let Some(config) = &launch.config {
        let file = folder.join("config.yaml");
        std::fs::write(&file, config).unwrap();
        command.arg("--config").arg(file);
    }
    let mut process = command.spawn().unwrap_or_else(|err| panic!("`{name}` cannot be run: {err}"));
    std::fs::write(folder.join("pid"), process.id().to_string()).unwrap();

    let stdout = process.stdout.take().expect("it is piped");
    let (lines, seen) = mpsc::channel();
    // Reads to the end, so that the process never blocks on its output.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let ready = until(&format!("`{name}` is ready"), READY, async || {
        if let Some(status) = process.try_wait().expect("it is our child") {
            panic!("`{name}` ended with {status}:\n{}", tail(log));
        }
        match seen.try_iter().find(|line| line.starts_with("ready")) {
            Some(line) => Ok(line),
            None => Err(tail(log)),
        }
    })
    .await;
    (process, ready)
}

/// The names of all function images in the engine, one per line.
fn function_images() -> Vec<u8> {
    let mut list = Command::new("docker");
    list.args(["images", "--filter", "label=epsilon.image=function"]);
    list.args(["--format", "{{.Repository}}:{{.Tag}}"]);
    list.output().expect("`docker` can be run").stdout
}

/// A file for a program's log that outlives the test, in cargo's temporary folder.
fn log_file(program: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let here = std::env::current_exe().expect("this process has a file");
    let target = here.ancestors().find(|path| path.ends_with("target"));
    let folder = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    std::fs::create_dir_all(&folder).unwrap();
    let name = here.file_stem().map_or("test".into(), |stem| stem.to_string_lossy());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{name}-{count}-{program}.log"));
    let _ = std::fs::remove_file(&path);
    path
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
