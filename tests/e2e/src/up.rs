//! A running `epsilon up` of its own: own data, own ports, own containers; removed with all its
//! resources when the value is dropped, when the test panics, and when the whole test process is
//! killed.
//!
//! The last is the work of the guard (see `guard.rs`): a small shell script that waits for the end
//! of its input, a pipe from this process, and then cleans up by the VM's id. `Drop` only closes
//! that pipe, so there is one cleanup, which always runs. A value in a `static` is never dropped;
//! its guard cleans up when the test process ends.

use crate::{
    http::{Answer, Call},
    program::{self, Launch, Program},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

/// The `epsilon` binary under test.
///
/// # Panics
/// When it does not exist.
pub fn binary() -> PathBuf {
    program::binary("epsilon")
}

/// Settings of a platform.
#[derive(Debug, Default)]
pub struct Settings {
    /// The settings file's text (YAML).
    pub config: Option<String>,
    /// Size of the data folder's own file system, as `mount` takes it (`32m`); `None`: the
    /// machine's disk.
    pub disk: Option<String>,
    /// A data folder that exists before the first start; it is moved.
    pub data: Option<PathBuf>,
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
    program: Program,
    public: SocketAddr,
    control: SocketAddr,
    data: PathBuf,
    key: String,
    vm: String,
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
        let Settings { config, disk, data, env } = settings;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let arguments = arguments(nowhere, nowhere);
        let launch =
            Launch { binary: "epsilon", arguments, config, disk, data, env, ..Launch::default() };
        let program = Program::start(launch).await;
        let (public, control) = addresses(&program);
        let (key, vm) = (program.data_file("admin.key"), program.data_file("vm/id"));
        Self { public, control, data: program.data(), key, vm, program }
    }

    /// Starts it again on the same data and ports, after [`Self::kill`] or [`Self::terminate`].
    pub async fn start_again(&mut self) {
        self.program.launch().arguments = arguments(self.public, self.control);
        self.program.start_again().await;
        (self.public, self.control) = addresses(&self.program);
    }

    /// Address for calls of functions.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Address of the control API.
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
        self.program.pid()
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        self.program.log()
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

    /// Ends it like a service manager, and waits.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.program.terminate().await
    }

    /// Kills it, and waits until the process is gone.
    pub async fn kill(&mut self) -> ExitStatus {
        self.program.kill().await
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is already gone.
    pub fn signal(&self, signal: Signal) {
        self.program.signal(signal);
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        self.program.ended(limit).await
    }
}

fn arguments(public: SocketAddr, control: SocketAddr) -> Vec<String> {
    let (public, control) = (public.to_string(), control.to_string());
    ["up", "--listen", &public, "--control", &control].map(str::to_owned).to_vec()
}

fn addresses(program: &Program) -> (SocketAddr, SocketAddr) {
    match program.addresses()[..] {
        [public, control, ..] => (public, control),
        _ => panic!("no two addresses in `{}`", program.ready()),
    }
}
