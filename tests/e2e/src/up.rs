//! A running `epsilon up` of its own: own data, own ports, own containers; removed with all its traces
//! when the value is dropped, when the test panics, and when the whole test process is killed.
//!
//! The last is the work of the guard: a small shell script that waits for the end of its input, a pipe
//! from this process, and then cleans up by the VM's id. [`Epsilon`]'s `Drop` only closes that pipe, so
//! there is one way to clean up and it is always taken. A value in a `static` is never dropped; its guard
//! does the work when the test process ends.

use crate::{
    http::{Answer, Call},
    wait::{LONG, SOON, until},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
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

/// How long `up` may take to be ready; without any image on the machine it first makes the Node base.
const READY: Duration = Duration::from_secs(600);

/// `$1`: the folder with `pid`, `data/`, and `images`: the function images that were there before, and stay.
/// Everything else is found by what only this platform has: the folder that it runs in, its VM's id in the
/// labels, the images that its builder remembers.
const GUARD: &str = r#"
cat >/dev/null
pid=$(cat "$1/pid")
ours() { [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; }
# The second TERM ends the wait for calls that a test left running.
for tenths in $(seq 0 200); do
  ours "$1" || break
  case "$tenths" in 0 | 30) kill -TERM "$pid" ;; 200) kill -KILL "$pid" ;; esac
  sleep 0.1
done
if vm=$(cat "$1/data/vm/id" 2>/dev/null); then
  docker ps -aq --filter "label=epsilon.vm=$vm" | xargs -r docker rm -f
  docker network ls -q --filter "label=epsilon.vm=$vm" | xargs -r docker network rm
fi
grep -ho '"reference":"[^"]*"' "$1"/data/builder/images/*.json | cut -d'"' -f4 | sort -u |
  grep -vxFf "$1/images" | xargs -r docker rmi
grep -oE " $1[^ ]*" /proc/mounts | sort -r | xargs -r umount
rm -rf "$1"
"#;

/// The `epsilon` binary under test: `EPSILON_BIN`, else the one that cargo put beside this test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("EPSILON_BIN") {
        return PathBuf::from(path).canonicalize().expect("EPSILON_BIN names a file");
    }
    // …/target/debug/deps/test-0123 or …/target/debug/bench
    let here = std::env::current_exe().expect("this process has a file");
    let found = here.ancestors().skip(1).take(2).map(|folder| folder.join("epsilon"));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no `epsilon` near {}: build it first, or set EPSILON_BIN", here.display())
    })
}

/// How a platform is to be started, where that matters to the test.
#[derive(Debug, Default)]
pub struct Settings {
    /// The settings file's text (YAML).
    pub config: Option<String>,
    /// The size of the disk that the data folder is on, as `mount` takes it (`32m`); the machine's own
    /// disk without.
    pub disk: Option<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
}

impl Settings {
    /// Settings from a YAML text.
    pub fn config(yaml: &str) -> Self {
        Self { config: Some(yaml.to_owned()), ..Self::default() }
    }
}

/// A running platform.
#[derive(Debug)]
pub struct Epsilon {
    settings: Settings,
    process: Child,
    public: SocketAddr,
    control: SocketAddr,
    data: PathBuf,
    log: PathBuf,
    key: String,
    vm: String,
    guard: Child,
    // After the guard in the order of drops: it has emptied the folder by then.
    folder: TempDir,
}

impl Epsilon {
    /// Starts a platform with the default settings and waits until it is ready.
    pub async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    /// Starts a platform and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready, with the end of its log.
    pub async fn start_with(settings: Settings) -> Self {
        let folder = TempDir::with_prefix("epsilon-e2e-").expect("a temporary folder");
        let data = folder.path().join("data");
        std::fs::write(folder.path().join("images"), function_images()).unwrap();
        let log = log_file();
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(folder.path());
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not in our process group: Ctrl-C in a terminal ends the test, not its guard.
        let guard = guard.process_group(0).spawn().expect("a shell");
        if let Some(size) = &settings.disk {
            std::fs::create_dir(&data).unwrap();
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&data);
            let done = mount.status().expect("mount");
            assert!(done.success(), "a small disk cannot be mounted: {done} (run this as root)");
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (process, public, control) =
            spawn(&settings, folder.path(), &data, &log, (nowhere, nowhere)).await;
        let key = std::fs::read_to_string(data.join("admin.key")).expect("DATA/admin.key");
        let vm = std::fs::read_to_string(data.join("vm/id")).expect("DATA/vm/id");
        Self {
            settings,
            process,
            public,
            control,
            data,
            log,
            key: key.trim().to_owned(),
            vm: vm.trim().to_owned(),
            guard,
            folder,
        }
    }

    /// Starts it again on the same data and the same ports, after [`Self::kill`] or [`Self::terminate`].
    pub async fn start_again(&mut self) {
        let addresses = (self.public, self.control);
        let spawned = spawn(&self.settings, self.folder.path(), &self.data, &self.log, addresses);
        (self.process, self.public, self.control) = spawned.await;
    }

    /// Where functions are called.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Where the control API listens.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// The admin key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The id of its VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The process id of `epsilon up`.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// All that it wrote to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Calls a function by `GET`: `/name/path?query`.
    pub async fn get(&self, target: &str) -> Answer {
        Call::get(target).send(self.public).await
    }

    /// Calls the control API with the admin key.
    pub async fn send_admin(&self, call: Call) -> Answer {
        call.header("authorization", &format!("Bearer {}", self.key)).send(self.control).await
    }

    /// `GET` on the control API: the answer's `data`.
    ///
    /// # Panics
    /// When the answer is not 200.
    pub async fn admin(&self, target: &str) -> Value {
        self.send_admin(Call::get(target)).await.expect(200).json()["data"].clone()
    }

    /// Ends it as a service manager does, and waits.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended(LONG).await
    }

    /// Ends it without any warning, and waits until the process is gone.
    pub async fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.ended(SOON).await
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone already.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("`epsilon up` runs");
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let process = &mut self.process;
        until("`epsilon up` ends", limit, async || {
            process.try_wait().expect("it is our child").ok_or("runs")
        })
        .await
    }
}

impl Drop for Epsilon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {}\n{}", self.log.display(), tail(&self.log));
        }
        drop(self.guard.stdin.take());
        // The guard looks at the process; as our child it must be reaped to be gone.
        let _ = self.process.wait();
        let _ = self.guard.wait();
    }
}

/// Starts the process and reads its two addresses from the `ready` line.
async fn spawn(
    settings: &Settings,
    folder: &Path,
    data: &Path,
    log: &Path,
    (public, control): (SocketAddr, SocketAddr),
) -> (Child, SocketAddr, SocketAddr) {
    let stderr = File::options().create(true).append(true).open(log).expect("a log file");
    let mut command = Command::new(binary());
    command
        .arg("up")
        .args(["--listen", &public.to_string(), "--control", &control.to_string()])
        .arg("--data-dir")
        .arg(data)
        .current_dir(folder)
        .envs(settings.env.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .process_group(0);
    if let Some(config) = &settings.config {
        let file = folder.join("config.yaml");
        std::fs::write(&file, config).unwrap();
        command.arg("--config").arg(file);
    }
    let mut process = command.spawn().expect("`epsilon` can be run");
    std::fs::write(folder.join("pid"), process.id().to_string()).unwrap();

    let stdout = process.stdout.take().expect("it is piped");
    let (lines, seen) = mpsc::channel();
    // Reads to the end, so that the process never waits for a reader of its output.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let ready = until("`epsilon up` is ready", READY, async || {
        if let Some(status) = process.try_wait().expect("it is our child") {
            panic!("`epsilon up` ended with {status}:\n{}", tail(log));
        }
        match seen.try_iter().find(|line| line.starts_with("ready")) {
            Some(line) => Ok(line),
            None => Err(tail(log)),
        }
    })
    .await;
    let mut addresses = ready.split(|c: char| c.is_whitespace() || c == '=').filter_map(|word| {
        word.trim_start_matches("http://").trim_end_matches(['/', ',']).parse().ok()
    });
    match (addresses.next(), addresses.next()) {
        (Some(public), Some(control)) => (process, public, control),
        _ => panic!("no two addresses in `{ready}`"),
    }
}

/// The names of all function images in the engine, one per line.
fn function_images() -> Vec<u8> {
    let mut list = Command::new("docker");
    list.args(["images", "--filter", "label=epsilon.image=function"]);
    list.args(["--format", "{{.Repository}}:{{.Tag}}"]);
    list.output().expect("`docker` can be run").stdout
}

/// A file for the platform's log that outlives the test, in cargo's folder for such things.
fn log_file() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let here = std::env::current_exe().expect("this process has a file");
    let target = here.ancestors().find(|path| path.ends_with("target"));
    let folder = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    std::fs::create_dir_all(&folder).unwrap();
    let name = here.file_stem().map_or("test".into(), |stem| stem.to_string_lossy());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{name}-{count}.log"));
    let _ = std::fs::remove_file(&path);
    path
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
