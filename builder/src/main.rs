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
    data_dir,
    failure::Failure,
    files,
    log::{self, Format},
    settings::{Flag, Layers},
    signals::Asked,
};
use std::{
    error::Error, io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration,
};
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
    /// The file with the fleet's token: a copy of the gateway's DATA/fleet.token
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Where images go, as `registry.example/prefix` [default: this machine's engine]
    #[arg(long, value_name = "REF")]
    registry: Option<String>,
    /// Where gateways reach this builder [default: 0.0.0.0:8083]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where data are kept [default: /var/lib/epsilon for root, else the XDG data folder]
    #[arg(long, value_name = "DIR", env = "EPSILON_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Settings, YAML: section `builder`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to log to standard error [default: compact on a terminal, else json]
    #[arg(long, value_enum)]
    log_format: Option<Format>,
}

impl Arguments {
    fn flags(&self) -> Vec<Flag> {
        let flag = |name, key, value: Option<String>| {
            value.map(|value| Flag { name, section: "builder", key, value })
        };
        [
            flag("--gateway", "gateways", self.gateway.clone()),
            flag("--token-file", "token_file", self.token_file.clone()),
            flag("--registry", "registry", self.registry.clone()),
            flag("--listen", "listen", self.listen.map(|address| address.to_string())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse(); // ends the program by itself on --help (0) and wrong usage (2)
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(Box::pin(run(arguments))),
        Err(err) => Err(Failure::new("RUNTIME", "the system refused worker threads").because(&err)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(false),
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    log::init(arguments.log_format, std::env::var("EPSILON_LOG").ok().as_deref())?;
    let data = data_dir::locate(arguments.data_dir.as_deref())?;
    let flags = arguments.flags();
    let layers = Layers::load(arguments.config.as_deref(), std::env::vars_os(), &flags)?;
    let settings: Settings = layers.section("builder")?;
    let config = Config::new(settings, &data.join("builder"))
        .map_err(|err| Failure::usage("a setting cannot be used").because(&err))?;
    let member = config.member().cloned().ok_or_else(|| {
        Failure::usage("no fleet is named that this builder could join")
            .hint("start it with `--gateway URL --token-file FILE`")
    })?;
    files::raise_file_limit();
    let mut asked = Asked::new()?;
    let app = App::build(config).await.map_err(|err| unable(&err))?;
    let ended = serve(&app, &member, &mut asked).await;
    app.shutdown(CLEANED_WITHIN).await;
    match ended? {
        0 => Ok(()),
        cut => Err(Failure::new("BUILDS_CUT", format!("{cut} running builds were cut"))
            .hint("give them longer with the setting `builder.drain_grace`")),
    }
}

/// From the making of the runtime base to the last build. Says how many builds were cut.
async fn serve(app: &App, config: &MemberConfig, asked: &mut Asked) -> Result<usize, Failure> {
    // The address is taken first: making the base for minutes and failing then would be no kindness.
    let member = Member::build(config, app).map_err(|err| unable(&err))?;
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
            ready(&format!("ready  builder {id}  builds http://{address}  reached at {reached}"))?;
            let signal = asked.next().await;
            info!(signal, "Draining.");
        }
    }
    Ok(tokio::select! {
        biased; // a drain that is over needs no hurry
        cut = running.drain(config.drain_grace) => cut,
        signal = asked.next() => {
            warn!(signal, "Asked again: running builds are cut.");
            1
        }
    })
}

/// The one line of standard output: whoever started this waits for it.
fn ready(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|err| Failure::new("STDOUT", "standard output cannot be written").because(&err))
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    Failure::new("START", "`epsilon-builder` cannot start").because(err)
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
