//! The `epsilon-builder` program: joins a fleet and runs builds for its gateways until it is shut
//! down.
//!
//! Composition only. On SIGTERM or SIGINT it leaves the fleet, lets builds finish within
//! `builder.drain_grace` and removes what they left; a second signal ends the waiting. Exit codes:
//! 0 shut down as requested, 1 failed or cut builds, 2 wrong usage.

use clap::Parser;
use epsilon_api::build::{BuildEvent, BuildLog};
use epsilon_bootstrap::{
    arguments,
    failure::Failure,
    files, metrics,
    program::{self, CommonArgs},
    settings::Flag,
    signals::ShutdownSignals,
};
use epsilon_builder::{
    app::App,
    config::{Config, MemberConfig, Settings},
    member::Member,
};
use prometheus::Registry;
use std::{error::Error, net::SocketAddr, process::ExitCode, time::Duration};
use tracing::{info, warn};

/// How long removing containers and folders of cut builds may take. The rest is removed at the next
/// start.
const CLEANED_WITHIN: Duration = Duration::from_secs(10);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Builds functions for a fleet: source in, images out.
#[derive(Debug, Parser)]
#[command(name = "epsilon-builder", version)]
struct Arguments {
    /// Control addresses of gateways, separated by commas
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// The file with the token: a copy of the gateway's DATA/builder.token
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Registry that images are pushed to, as `registry.example/prefix` [default: this machine's
    /// engine]
    #[arg(long, value_name = "REF")]
    registry: Option<String>,
    /// Address of this builder's listener [default: 0.0.0.0:8083]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    common: CommonArgs,
}

impl Arguments {
    fn flags(&self) -> Vec<Flag> {
        program::flags(
            "builder",
            [
                ("--gateway", "gateways", self.gateway.clone()),
                ("--token-file", "token_file", self.token_file.clone()),
                ("--registry", "registry", self.registry.clone()),
                ("--listen", "listen", self.listen.map(|address| address.to_string())),
            ],
        )
    }
}

fn main() -> ExitCode {
    // clap exits on --help (0) and wrong usage (2).
    program::run(run(arguments::parse()))
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (_logging, data, layers) = arguments.common.begin(&arguments.flags())?;
    let settings: Settings = layers.section()?;
    let config = Config::new(settings, &data.join("builder"))
        .map_err(|err| program::invalid_setting(&err))?;
    let member = config.member().cloned().ok_or_else(|| {
        Failure::usage("no fleet is configured for this builder to join")
            .hint("start it with `--gateway URL --token-file FILE`")
    })?;
    files::raise_file_limit();
    let mut signals = ShutdownSignals::new()?;
    let app = App::build(config).await.map_err(|err| unable(&err))?;
    let registry = Registry::new();
    metrics::register_all(&registry, &data).map_err(|err| unable(&err))?;
    let ended = serve(&app, &member, &registry, &mut signals).await;
    app.shutdown(CLEANED_WITHIN).await;
    program::check_none_cut(ended?, "builds", "builder.drain_grace")
}

/// From making the runtime base to the last build. Returns how many builds were cut.
async fn serve(
    app: &App,
    config: &MemberConfig,
    registry: &Registry,
    signals: &mut ShutdownSignals,
) -> Result<usize, Failure> {
    // Binds first: failing after minutes of making the base would be worse.
    let member = Member::build(config, app, registry).map_err(|err| unable(&err))?;
    let id = member.id().clone();
    let address = member.address();
    tokio::select! {
        biased; // shutdown first; what was started is removed
        signal = signals.next() => {
            info!(signal, "Shutting down before the start was complete.");
            return Ok(0);
        }
        made = app.ensure_runtime(&Logged) => {
            let reference = made.map_err(|err| Failure::from(err.body()))?;
            info!(reference, "Node runtime base is ready.");
        }
    }
    let mut running = member.spawn();
    tokio::select! {
        biased;
        signal = signals.next() => info!(signal, "Shutting down before a gateway accepted this builder."),
        reached = running.joined() => {
            let scheme = config.scheme();
            program::ready(&format!(
                "ready  builder {id}  builds {scheme}://{address}  reached at {reached}"
            ))?;
            let signal = signals.next().await;
            info!(signal, "Draining.");
        }
    }
    Ok(tokio::select! {
        biased; // an ended drain first
        cut = running.drain(config.drain_grace) => cut,
        signal = signals.next() => {
            warn!(signal, "Second signal; cutting running builds.");
            1
        }
    })
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    program::start_failure("epsilon-builder", err)
}

/// Logs the work before the first build: the first start on a machine takes minutes.
#[derive(Debug)]
struct Logged;

impl BuildLog for Logged {
    fn report(&self, event: BuildEvent) {
        match event {
            BuildEvent::StepStarted { step, detail } => info!(%step, detail, "Build step started."),
            BuildEvent::StepDone { step, detail, took } => {
                info!(%step, detail, took_ms = took.as_secs_f64() * 1e3, "Build step done.");
            }
            BuildEvent::Line(line) => info!(line, "Tool output."),
        }
    }
}
