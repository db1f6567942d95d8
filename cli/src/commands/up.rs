//! `epsilon up`: the whole platform in one process, until it is shut down.
//!
//! | file | what it does |
//! |---|---|
//! | `settings.rs` | file, environment and flags → the parts' settings |
//! | `progress.rs` | shows the progress of making the runtime base |
//! | `compose.rs` | creates, starts and shuts down the parts |
//!
//! One `up` per data folder (`epsilon_bootstrap::lock`); what is logged, and how, is
//! `epsilon_bootstrap::log`.
//!
//! On SIGTERM or SIGINT, running calls finish within `gateway.drain_grace`, then everything that
//! this process created on the engine is removed. A second signal ends the waiting.

mod compose;
mod progress;
mod settings;

use crate::{data_dir, failure::Failure, globals::Globals, output};
use clap::Args;
use compose::Platform;
use epsilon_bootstrap::{
    files::raise_file_limit,
    lock::Lock,
    log::{self, Format},
    settings::Flag,
    signals::ShutdownSignals,
    sockets::Sockets,
};
use settings::Settings;
use std::{net::SocketAddr, path::PathBuf};
use tracing::info;

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Address where functions are called [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address of the control API [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    control: Option<SocketAddr>,
    /// Settings file, YAML: sections `gateway`, `vm_agent`, `builder`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Format of log lines on standard error [default: compact on a terminal, else json]
    #[arg(long, value_enum)]
    log_format: Option<Format>,
}

impl Up {
    pub(crate) async fn run(self, globals: &Globals, sockets: Sockets) -> Result<(), Failure> {
        let _logging = log::init(self.log_format, log::filter().as_deref())?;
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        let settings = Settings::load(self.config.as_deref(), std::env::vars_os(), &self.flags())?;
        let lock = Lock::take(&data)?;
        raise_file_limit();
        let mut signals = ShutdownSignals::new()?;

        // A signal during the start aborts it; what was created is removed.
        let mut platform = Box::pin(Platform::build(settings, sockets, &data)).await?;
        let control = platform.control().clone();
        lock.write_address(&control.local, control.authority.as_deref())?;
        let prepared = tokio::select! {
            biased; // the signal first
            why = signals.next() => Err(why),
            prepared = platform.ensure_runtime() => Ok(prepared),
        };
        match prepared {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                platform.remove().await;
                return Err(failure);
            }
            Err(signal) => {
                info!(signal, "Shutting down before the start was complete.");
                platform.remove().await;
                return Ok(());
            }
        }
        let is_empty = platform.is_empty();
        let running = platform.serve();
        output::line(&format!("ready  calls {}  control {}", running.public_url(), control.url))?;

        if is_empty && console::Term::stderr().is_term() {
            eprintln!("next: `epsilon init hello && epsilon deploy hello` in another terminal");
        }

        let signal = signals.next().await;
        info!(signal, "Draining.");
        let cut = running.drain(signals.next()).await;
        drop(lock);
        if cut > 0 {
            return Err(Failure::new("CALLS_CUT", format!("{cut} running calls were cut"))
                .hint("give them longer with the setting `gateway.drain_grace`"));
        }
        Ok(())
    }

    fn flags(&self) -> Vec<Flag> {
        let flag = |name, key, value: Option<SocketAddr>| {
            value.map(|value| Flag { name, section: "gateway", key, value: value.to_string() })
        };
        [flag("--listen", "listen", self.listen), flag("--control", "control", self.control)]
            .into_iter()
            .flatten()
            .collect()
    }
}
