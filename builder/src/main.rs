//! The `epsilon-builder` program: joins a fleet and builds what its gateways bring, until it is told to end.
//!
//! Nothing is decided here. SIGTERM and SIGINT: it leaves the fleet, lets builds end within `builder.drain_grace` and
//! removes what they left; the same signal again ends the waiting. Exit codes: 0 ended as asked, 1 it cannot work
//! or builds were cut, 2 wrong usage.

use clap::Parser;
use epsilon_api::build::{BuildEvent, BuildLog};
use epsilon_builder::{
    app::App,
    config::{Config, MemberConfig, Settings},
    member::Member,
};
use epsilon_launch::{
    arguments,
    failure::Failure,
    files, metrics,
    program::{self, Common},
    settings::Flag,
    signals::Asked,
};
use prometheus::Registry;
use std::{error::Error, net::SocketAddr, process::ExitCode, time::Duration};
use tracing::{info, warn};

/// How long containers and folders of builds that were cut may take to go. What is left goes at the next start.
const CLEANED_WITHIN: Duration = Duration::from_secs(10);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Builds functions for a fleet: source in, images out.
#[derive(Debug, Parser)]
#[command(name = "epsilon-builder", version)]
struct Arguments {
    /// Control addresses of gateways, with commas between them
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// The file with the token: a copy of the gateway's DATA/builder.token
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Where images go, as `registry.example/prefix` [default: this machine's engine]
    #[arg(long, value_name = "REF")]
    registry: Option<String>,
    /// Where gateways reach this builder [default: 0.0.0.0:8083]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    common: Common,
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
    // Ends the program by itself on --help (0) and wrong usage (2).
    program::run(run(arguments::parse()))
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (_logging, data, layers) = arguments.common.begin(&arguments.flags())?;
    let settings: Settings = layers.section("builder")?;
    let config =
        Config::new(settings, &data.join("builder")).map_err(|err| program::unusable(&err))?;
    let member = config.member().cloned().ok_or_else(|| {
        Failure::usage("no fleet is named that this builder could join")
            .hint("start it with `--gateway URL --token-file FILE`")
    })?;
    files::raise_file_limit();
    let mut asked = Asked::new()?;
    let app = App::build(config).await.map_err(|err| unable(&err))?;
    let registry = Registry::new();
    metrics::begin(&registry, &data).map_err(|err| unable(&err))?;
    let ended = serve(&app, &member, &registry, &mut asked).await;
    app.shutdown(CLEANED_WITHIN).await;
    program::all_ended(ended?, "builds", "builder.drain_grace")
}

/// From the making of the runtime base to the last build. Says how many builds were cut.
async fn serve(
    app: &App,
    config: &MemberConfig,
    registry: &Registry,
    asked: &mut Asked,
) -> Result<usize, Failure> {
    // The address is taken first: making the base for minutes and failing then would be no kindness.
    let member = Member::build(config, app, registry).map_err(|err| unable(&err))?;
    let (id, address) = (member.id().clone(), member.address());
    tokio::select! {
        biased; // a wish to end goes first; what was begun is removed
        signal = asked.next() => {
            info!(signal, "Ending before the start was over.");
            return Ok(0);
        }
        made = app.ensure_runtime(&Logged) => {
            let reference = made.map_err(|err| Failure::from(err.body()))?;
            info!(reference, "The Node runtime is there.");
        }
    }
    let mut running = member.spawn();
    tokio::select! {
        biased;
        signal = asked.next() => info!(signal, "Ending before a gateway let it in."),
        reached = running.joined() => {
            program::ready(&format!("ready  builder {id}  builds http://{address}  reached at {reached}"))?;
            let signal = asked.next().await;
            info!(signal, "Draining.");
        }
    }
    Ok(tokio::select! {
        biased; // a drain that is over needs no hurry
        cut = running.drain(config.drain_grace) => cut,
        signal = asked.next() => {
            warn!(signal, "Second signal; cutting running builds.");
            1
        }
    })
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    program::cannot_start("epsilon-builder", err)
}

/// What is done before builds come, in the log: the first start on a machine takes minutes.
#[derive(Debug)]
struct Logged;

impl BuildLog for Logged {
    fn tell(&self, event: BuildEvent) {
        match event {
            BuildEvent::StepStarted { step, detail } => info!(%step, detail, "Step began."),
            BuildEvent::StepDone { step, detail, took } => {
                info!(%step, detail, took_ms = took.as_secs_f64() * 1e3, "Step done.");
            }
            BuildEvent::Line(line) => info!(line, "Tool output."),
        }
    }
}
