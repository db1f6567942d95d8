//! `moto_server`, a fake of AWS for tests: started on a port of its own, killed on drop.
//! `infra/ensure-tools.sh test` installs it.

use std::{env, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// Longest start: it is Python, on machines with other work.
const START: Duration = Duration::from_secs(60);

/// A running `moto_server` without any state in it.
#[derive(Debug)]
pub struct Moto {
    endpoint: String,
    /// Killed on drop.
    _process: Child,
}

impl Moto {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed or does not start: a test that needs it has failed.
    pub async fn start() -> Self {
        let program = program();
        let mut process = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|err| {
                panic!(
                    "{} does not start ({err}); run infra/ensure-tools.sh test",
                    program.display()
                )
            });
        let mut words = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let address = async {
            while let Ok(Some(line)) = words.next_line().await {
                if let Some((_, address)) = line.split_once("Running on ") {
                    return Some(address.trim().to_owned());
                }
            }
            None
        };
        let endpoint = timeout(START, address).await.ok().flatten();
        let endpoint = endpoint.expect("moto_server says where it listens");
        // It writes a line for each request; a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = words.next_line().await {} });
        Self { endpoint, _process: process }
    }

    /// Its address, `http://127.0.0.1:PORT`; for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// Where `infra/ensure-tools.sh` installs it.
fn program() -> PathBuf {
    let folder = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let tools = folder("EPSILON_TOOLS_DIR").unwrap_or_else(|| {
        let cache = folder("XDG_CACHE_HOME")
            .unwrap_or_else(|| folder("HOME").unwrap_or_else(|| "/root".into()).join(".cache"));
        cache.join("epsilon-tools")
    });
    tools.join("moto/bin/moto_server")
}
