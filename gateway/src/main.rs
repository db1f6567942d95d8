//! The `epsilon-gateway` program: serves calls with the VMs that join it, from start to shutdown.
//!
//! Composition only. SIGTERM and SIGINT: running calls finish within `gateway.drain_grace`; a
//! second signal cuts them. Exit codes: 0 shut down as requested, 1 a failure or calls were cut, 2
//! wrong usage.

use clap::Parser;
use epsilon_bootstrap::{
    arguments,
    failure::Failure,
    files,
    lock::Lock,
    metrics,
    program::{self, CommonArgs},
    settings::Flag,
    signals::ShutdownSignals,
    sockets::Sockets,
};
use epsilon_gateway::{
    app::App,
    config::{Config, Settings},
};
use epsilon_store::StoreError;
use prometheus::Registry;
use std::{error::Error, net::SocketAddr, path::Path, process::ExitCode};
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The front of a fleet: accepts calls and sends each to a VM; the control API; joining.
#[derive(Debug, Parser)]
#[command(name = "epsilon-gateway", version)]
struct Arguments {
    /// Where callers reach functions [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where the control API listens, and members join [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    control: Option<SocketAddr>,
    /// Where state is stored: `sqlite` (a file in the data folder) or `postgres://…`, shared by
    /// gateways. A password on the command line is visible to all users: use EPSILON_GATEWAY_STORE
    /// instead [default: sqlite]
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
}

impl Arguments {
    fn flags(&self) -> Vec<Flag> {
        program::flags(
            "gateway",
            [
                ("--listen", "listen", self.listen.map(|address| address.to_string())),
                ("--control", "control", self.control.map(|address| address.to_string())),
                ("--store", "store", self.store.clone()),
            ],
        )
    }
}

fn main() -> ExitCode {
    // Exits by itself on --help (0) and wrong usage (2).
    let arguments = arguments::parse();
    let sockets = Sockets::take(); // before other threads exist
    program::run(run(arguments, sockets))
}

async fn run(arguments: Arguments, sockets: Result<Sockets, Failure>) -> Result<(), Failure> {
    let (_logging, data, mut layers) = arguments.common.begin(&arguments.flags())?;
    let sockets = sockets?;
    let grace = layers.take_drain_grace()?;
    let store = layers.take_text("gateway", "store")?;
    let settings: Settings = layers.section()?;
    let config = Config::new(settings, &data).map_err(|err| program::invalid_setting(&err))?;
    let lock = Lock::take(&data)?;
    files::raise_file_limit();
    let mut shutdown = ShutdownSignals::new()?;

    let store = store_url(store.as_deref().unwrap_or("sqlite"), &data)?;
    let store = epsilon_store::open(&store).await.map_err(|err| match err {
        StoreError::UnknownScheme(_) => program::invalid_setting(&err),
        err => unable(&err),
    })?;
    let registry = Registry::new();
    metrics::register_all(&registry, &data).map_err(|err| unable(&err))?;
    let app = Box::pin(App::build_on(sockets, config, store, None, None, &registry)).await;
    let app = app.map_err(|err| unable(&err))?;
    let (public, control) = (app.public_url(), app.control_address().clone());
    let running = app.spawn();
    lock.write_address(&control.local, control.authority.as_deref())?;
    program::ready(&format!("ready  calls {public}  control {}", control.url))?;

    let signal = shutdown.next().await;
    info!(signal, "Draining.");
    let calls = running.calls();
    let cut = tokio::select! {
        biased; // a completed drain takes precedence over a second signal
        stopped = running.drain(grace) => stopped.cut,
        signal = shutdown.next() => {
            tracing::warn!(signal, calls, "Second signal; cutting running calls.");
            calls
        }
    };
    drop(lock);
    program::check_none_cut(cut, "calls", "gateway.drain_grace")
}

/// `sqlite` is a file in the data folder; anything else is a URL for the store.
fn store_url(store: &str, data: &Path) -> Result<String, Failure> {
    if store != "sqlite" {
        return Ok(store.to_owned());
    }
    let path = data.join("epsilon.db");
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("the data folder `{}` is not UTF-8", data.display())))
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    program::start_failure("epsilon-gateway", err)
}
