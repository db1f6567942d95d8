//! A real PostgreSQL for tests of this crate and of those above it (feature `testing`): a server of
//! its own in a temporary folder, on a port of its own. Not for production.
//!
//! The server is stopped when [`Postgres`] is dropped, and also when the test's process ends in any
//! other way: a small shell supervises it, reads a pipe from the test, and stops the server and
//! removes the folder when that pipe closes. Debian's package `postgresql` is enough; as root the
//! server runs as `nobody`, as it requires.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::{
    env, fs,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long the server may take to start on a busy machine.
const READY: Duration = Duration::from_secs(60);
/// How often its readiness is checked.
const LOOK: Duration = Duration::from_millis(20);
/// Ports to try: another process may take a free one first.
const ATTEMPTS: u32 = 5;
/// Not durable, little memory, quick to stop.
const SETTINGS: [&str; 9] = [
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "shared_buffers=16MB",
    "max_connections=200",
    "listen_addresses=127.0.0.1",
    "log_min_messages=warning",
    "timezone=UTC",
];
/// `$1` is the folder, the rest the server's command. A line on the pipe stops the server; closing
/// it also removes the folder. A server that has just started ignores the first signal, a suspended
/// one all of them.
const KEEPER: &str = r#"
    folder=$1; shift
    "$@" >"$folder/log" 2>&1 </dev/null & server=$!
    read -r word || word=
    while kill -INT "$server"; do
        kill -CONT "$server" $(ps -o pid= --ppid "$server")
        sleep 0.05
    done 2>/dev/null
    [ -n "$word" ] || rm -rf "$folder"
"#;

/// A server with its data. Every method panics on failure, so that a test that cannot run fails.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
    programs: PathBuf,
    port: u16,
    keeper: Mutex<Option<Child>>,
    databases: AtomicU32,
}

impl Postgres {
    /// Creates a server and waits until it answers.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub fn start() -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new()
            .prefix("epsilon-postgres-")
            .tempdir()
            .expect("the temporary folder can be written")
            .keep();
        let data = folder.join("data");
        if is_root() {
            run(Command::new("chown").args(["nobody:", &text(&folder)]));
        }
        run(unprivileged(&programs.join("initdb")).arg("--pgdata").arg(&data).args([
            "--username=epsilon",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]));
        let mut server = Self {
            folder,
            programs,
            port: 0,
            keeper: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        for _ in 0..ATTEMPTS {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("PostgreSQL did not start: {}", server.log());
    }

    /// The one server of this test program, for tests that do not stop it. Ends with the process.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The URL of a new, empty database.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut admin =
            PgConnection::connect(&self.url("postgres")).await.expect("the server answers");
        let release: String = sqlx::query_scalar("SHOW server_version_num")
            .fetch_one(&mut admin)
            .await
            .expect("every server knows");
        // Use a locale's collation as operators' databases do: `a` before `B`.
        let order = match release.parse::<u32>() {
            Ok(release) if release >= 150_000 => "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'",
            _ => "",
        };
        let make = format!("CREATE DATABASE {name} TEMPLATE template0 {order}");
        sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut admin).await.expect("it is new");
        self.url(&name)
    }

    /// The port on 127.0.0.1. It stays the same across restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops the server as an operator does: connections are closed, new ones refused. Data stays.
    ///
    /// # Panics
    /// When the server does not stop.
    pub fn stop(&self) {
        let keeper = self.keeper.lock().expect("no test panicked here").take();
        let mut keeper = keeper.expect("the server runs");
        keeper.stdin.take().expect("it is piped").write_all(b"stop\n").expect("it reads");
        assert!(keeper.wait().is_ok_and(|status| status.success()), "{}", self.log());
    }

    /// Starts it again after [`Postgres::stop`], with the same data on the same port.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        assert!(self.launch(), "PostgreSQL did not start again: {}", self.log());
    }

    /// Suspends the server, as a cut link does: connections stay open and new ones are accepted by
    /// the kernel, but nothing answers. Undone by [`Postgres::heal`].
    ///
    /// # Panics
    /// When there is no server.
    pub fn cut(&self) {
        let server = self.pid();
        // The first process first, so that it forks no more.
        run(Command::new("kill").args(["-STOP", &server]));
        self.hang();
    }

    /// Suspends the open connections; new ones work. It looks like another machine that took over
    /// the server's address. Undone by [`Postgres::heal`].
    ///
    /// # Panics
    /// When there is no server.
    pub fn hang(&self) {
        self.signal_children("-STOP");
    }

    /// Resumes after [`Postgres::cut`] and [`Postgres::hang`].
    ///
    /// # Panics
    /// When there is no server.
    pub fn heal(&self) {
        self.signal_children("-CONT");
        run(Command::new("kill").args(["-CONT", &self.pid()]));
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://epsilon@127.0.0.1:{}/{database}", self.port)
    }

    fn pid(&self) -> String {
        let file = fs::read_to_string(self.folder.join("data/postmaster.pid"));
        let file = file.expect("the server runs");
        file.lines().next().expect("it says which process it is").to_owned()
    }

    /// The server has a process for each connection, and some of its own.
    fn signal_children(&self, signal: &str) {
        let listed = Command::new("ps").args(["--ppid", &self.pid(), "-o", "pid="]).output();
        let listed = String::from_utf8(listed.expect("ps is there").stdout).expect("numbers");
        // One of them may just have ended.
        let mut kill = Command::new("kill");
        let _ = kill.arg(signal).args(listed.split_whitespace()).stderr(Stdio::null()).status();
    }

    /// Whether the server started. It does not when the port was taken in the meantime.
    fn launch(&self) -> bool {
        let mut server = unprivileged(&self.programs.join("postgres"));
        server.arg("-D").arg(self.folder.join("data"));
        server.arg("-p").arg(self.port.to_string()).arg("-k").arg(&self.folder);
        for setting in SETTINGS {
            server.args(["-c", setting]);
        }
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh"])
            .arg(&self.folder)
            .arg(server.get_program())
            .args(server.get_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("util-linux is there");
        if self.answers() {
            *self.keeper.lock().expect("no test panicked here") = Some(keeper);
            return true;
        }
        let _ = keeper.stdin.take().map(|mut pipe| pipe.write_all(b"stop\n"));
        let _ = keeper.wait();
        false
    }

    fn answers(&self) -> bool {
        let until = Instant::now() + READY;
        while Instant::now() < until {
            let mut ask = Command::new(self.programs.join("pg_isready"));
            ask.arg("-h").arg(&self.folder).arg("-p").arg(self.port.to_string());
            if ask.stdout(Stdio::null()).status().expect("it is there").success() {
                return true;
            }
            if self.log().contains("FATAL:  could not") {
                return false;
            }
            thread::sleep(LOOK);
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let keeper = self.keeper.get_mut().ok().and_then(Option::take);
        match keeper {
            Some(mut keeper) => {
                drop(keeper.stdin.take());
                let _ = keeper.wait();
            }
            None => drop(fs::remove_dir_all(&self.folder)),
        }
    }
}

/// Debian installs each release's programs in a folder outside of the PATH; the newest is used.
fn programs() -> PathBuf {
    let release = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let releases = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut releases: Vec<PathBuf> = releases.map(|entry| entry.path()).collect();
    releases.sort_by_key(|folder| std::cmp::Reverse(release(folder)));
    let path = env::var_os("PATH").unwrap_or_default();
    releases
        .into_iter()
        .map(|folder| folder.join("bin"))
        .chain(env::split_paths(&path))
        .find(|folder| ["initdb", "postgres", "pg_isready"].iter().all(|p| folder.join(p).exists()))
        .expect("PostgreSQL is installed: run infra/ensure-tools.sh")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0)
}

/// A program of the server; it refuses to run as root.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command
}

fn run(command: &mut Command) {
    let done: io::Result<_> = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|err| panic!("{command:?}: {err}"));
    let output = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {}: {output}", done.status);
}

fn free_port() -> u16 {
    let any = TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
    any.local_addr().expect("it is bound").port()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_server_that_was_cut() {
        let server = Postgres::start();
        let (folder, process) = (server.folder.clone(), Path::new("/proc").join(server.pid()));
        assert!(folder.exists() && process.exists());
        server.cut();
        drop(server);
        assert!(!folder.exists() && !process.exists());
    }
}
