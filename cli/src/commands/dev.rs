//! `epsilon dev [DIR]`: runs a project's functions on this machine's Node, without Docker, and
//! reloads code on each save. Calls, errors, headers and limits are the platform's own, because its
//! own parts serve them.
//!
//! | file | what it does |
//! |---|---|
//! | `node.rs` | finds Node |
//! | `wrapper.rs` | the wrapper and its one package, on disk |
//! | `processes.rs`, `process.js` | Node processes, some of them spare; none outlives this program |
//! | `engine.rs` | an engine whose instances are such processes |
//! | `builder.rs` | archive → functions, without images |
//! | `vm.rs` | prewarms only functions in use |
//! | `platform.rs` | gateway and agent around these |
//! | `folder.rs` | the data folder of this run |
//! | `watch.rs` | detects saved files |
//! | `reload.rs` | saved files → a deployment |
//! | `terminal.rs`, `events.rs` | output for the developer |
//!
//! Reasons: `docs/decisions/0019-epsilon-dev.md`.

mod builder;
mod engine;
mod events;
mod folder;
mod node;
mod platform;
mod processes;
mod reload;
mod terminal;
mod vm;
mod watch;
mod wrapper;

use crate::{client::Client, data_dir, failure::Failure, globals::Globals};
use clap::Args;
use epsilon_api::ids::FunctionName;
use epsilon_bootstrap::{files::raise_file_limit, signals::ShutdownSignals};
use folder::RunFolder;
use node::Node;
use platform::Platform;
use processes::Processes;
use reload::Reloader;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};
use terminal::Terminal;

/// Debuggers' default port for Node.
const INSPECT_PORT: &str = "9229";

#[derive(Debug, Args)]
#[command(after_help = "\
Runs without Docker: install Node 24 (22.18 or newer does, too). Ctrl-C ends it and all its processes.
`epsilon --data-dir FOLDER invoke|logs|functions` works on it; the start prints FOLDER.")]
pub(crate) struct Dev {
    /// The project's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Port on this machine where functions are called
    #[arg(long, value_name = "PORT", default_value_t = 3000)]
    port: u16,
    /// Address where functions are called, for other machines to reach them [default:
    /// 127.0.0.1:PORT]
    #[arg(long, value_name = "ADDR", conflicts_with = "port")]
    listen: Option<SocketAddr>,
    /// Let a debugger attach: the first function on this port, the next one on the next
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = INSPECT_PORT)]
    inspect: Option<u16>,
    /// Run only this function (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<FunctionName>,
    /// Node to run functions on [default: the one on PATH]
    #[arg(long, value_name = "FILE", env = "EPSILON_NODE", hide_env_values = true)]
    node: Option<PathBuf>,
}

impl Dev {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let project = fs::canonicalize(&self.dir).map_err(|err| {
            Failure::usage(format!("the folder `{}` cannot be read", self.dir.display()))
                .with_cause(&err)
                .hint("name the project's folder: `epsilon dev DIR`")
        })?;
        let mut signals = ShutdownSignals::new()?;
        let node = Node::find(self.node.as_deref()).await?;
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        let cache = data.join("dev");
        let wrapper = tokio::select! {
            biased; // the signal first
            _ = signals.next() => return Ok(()),
            wrapper = wrapper::ensure(&cache, &node) => wrapper?,
        };
        raise_file_limit();
        let terminal = Terminal::new(globals.json);
        let stale = Arc::new(AtomicBool::new(false));
        events::listen(terminal.clone(), Arc::clone(&stale))?;
        let changes = watch::start(project.clone())?;

        let folder = RunFolder::make()?;
        let listen = self.listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, self.port).into());
        let processes = Processes::new(node.clone(), wrapper, project.clone());
        let platform = Platform::start(folder.path(), listen, self.inspect, processes).await?;
        let control = format!("http://{}", platform.control);
        folder.write_address(&control)?;
        terminal.ready(platform.calls, platform.control);
        terminal.note(&format!(
            "{} on Node {}; --data-dir {}",
            project.display(),
            node.version,
            folder.path().display()
        ));
        if !node.is_the_platforms() {
            terminal.warning(&format!("deployed functions run on Node {}", node::PLATFORM));
        }
        let client = Client::new(&Globals {
            gateway: Some(control),
            ca: None,
            key: None,
            json: globals.json,
            data_dir: Some(folder.path().to_owned()),
            timeout: None,
        })?;
        let reloads =
            Reloader::new(client, project, self.only, platform.vm(), terminal.clone(), stale);
        let ended = tokio::select! {
            biased; // the signal first
            _ = signals.next() => Ok(()),
            () = terminal.gone() => Err(Failure::silent()),
            () = reloads.run(changes) => Ok(()),
        };
        platform.end(signals.next()).await;
        ended
    }
}
