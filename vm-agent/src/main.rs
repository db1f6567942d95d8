//! The `epsilon-vm-agent` program: one VM of a fleet, from its registration to its shutdown.
//!
//! It only composes the parts. On SIGTERM or SIGINT the VM drains within `vm_agent.drain_grace`,
//! leaves the fleet and removes its containers; the same signal again ends the waiting. When the
//! cloud takes the VM away it does the same, and then waits for the VM's end, so that no supervisor
//! starts it again on a machine that disappears. Exit codes: 0 ended as requested, 1 it cannot work
//! or calls were cut, 2 wrong usage.

use clap::Parser;
use epsilon_api::ids::VmId;
use epsilon_bootstrap::{
    arguments,
    failure::Failure,
    files, metrics,
    program::{self, CommonArgs},
    settings::Flag,
    signals::ShutdownSignals,
};
use epsilon_cloud_aws::imds::Imds;
use epsilon_vm_agent::{app::Agent, config::Settings, member::Member};
use prometheus::Registry;
use std::{cell::Cell, error::Error, net::SocketAddr, process::ExitCode, time::Duration};
use tracing::info;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One VM of a fleet: runs functions in containers of this machine's Docker, for the gateways that
/// it joins.
#[derive(Debug, Parser)]
#[command(name = "epsilon-vm-agent", version)]
struct Arguments {
    /// Control addresses of gateways, separated by commas
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// The file with the fleet's token: a copy of a gateway's DATA/fleet.token
    #[arg(long, value_name = "FILE")]
    token_file: Option<String>,
    /// Address of the listener for gateways' calls [default: 0.0.0.0:8082]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    common: CommonArgs,
}

impl Arguments {
    fn flags(&self) -> Vec<Flag> {
        program::flags(
            "vm_agent",
            [
                ("--gateway", "gateways", self.gateway.clone()),
                ("--token-file", "token_file", self.token_file.clone()),
                ("--listen", "listen", self.listen.map(|address| address.to_string())),
            ],
        )
    }
}

fn main() -> ExitCode {
    // Exits by itself on --help (0) and wrong usage (2).
    program::run(run(arguments::parse()))
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (_logging, data, layers) = arguments.common.begin(&arguments.flags())?;
    let settings: Settings = layers.section()?;
    let mut config = settings.check(&data).map_err(|err| program::invalid_setting(&err))?;
    let member = config.member.clone().ok_or_else(|| {
        Failure::usage("no gateway is set that this VM could join")
            .hint("start it with `--gateway URL --token-file FILE`")
    })?;
    files::raise_file_limit();
    let mut signals = ShutdownSignals::new()?;

    let cloud = Imds::find().await;
    if config.id.is_none() {
        config.id = cloud.as_ref().and_then(|cloud| VmId::parse(cloud.instance_id()).ok());
    }
    let folder = config.folder.clone();
    let registry = Registry::new();
    metrics::register_all(&registry, &data).map_err(|err| unable(&err))?;
    let agent = Box::pin(Agent::build(config, &registry)).await.map_err(|err| unable(&err))?;
    match Member::build(agent, member, &folder, cloud) {
        Ok(member) => serve(member, &mut signals).await,
        Err(failed) => {
            let (err, agent) = *failed;
            agent.shutdown(Duration::ZERO).await;
            Err(unable(&err))
        }
    }
}

/// Runs from the first attempt to join to the last call.
async fn serve(member: Member, signals: &mut ShutdownSignals) -> Result<(), Failure> {
    let id = member.id();
    let running = member.spawn();
    let mut was_ready = false;
    let end = loop {
        tokio::select! {
            biased; // a signal goes first
            signal = signals.next() => {
                info!(signal, "Draining.");
                break End::Signal;
            }
            () = running.reclaimed() => break End::Reclaimed,
            address = running.joined(), if !was_ready => {
                program::ready(&format!("ready  vm {id}  calls {address}"))?;
                was_ready = true;
            }
        }
    };
    // A VM that the cloud takes away drains already when its supervisor sends the signal.
    let was_signalled = Cell::new(end == End::Signal);
    let hurry = async {
        if !was_signalled.get() {
            signals.next().await;
            was_signalled.set(true);
        }
        signals.next().await
    };
    let cut = running.drain(hurry).await;
    if !was_signalled.get() {
        info!("VM has left its fleet; waiting for the cloud to end it.");
        signals.next().await;
    }
    program::check_none_cut(cut as usize, "calls", "vm_agent.drain_grace")
}

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Signal,
    Reclaimed,
}

fn unable(err: &(dyn Error + 'static)) -> Failure {
    program::start_failure("epsilon-vm-agent", err)
}
