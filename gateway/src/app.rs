//! Composition: a gateway from its start to its stop. The files of `app/` build every part
//! once; here they are started and shut down. Makes no decisions.

mod build;
mod control;
mod parts;

use crate::call::{CallHandler, Calls};
use crate::control::{Control, ControlHandler};
use crate::fleet::watch;
use crate::keys::KeyError;
use crate::keys::lost::LostKeys;
use crate::reconcile::retention::Retention;
use crate::reconcile::split_abort::Aborts;
use crate::reconcile::store_sync::{FinalHeartbeat, Sync};
use crate::reconcile::{min_instances, orphan_instances};
use epsilon_autoscaler::Autoscaler;
use epsilon_fleet_link::{certificate, gateway_token, tls};
use epsilon_http_server::{Server, Shutdown};
use epsilon_store::StoreError;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use crate::control::{address::ControlAddress, startup::Startup};

/// Longest time for cut connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is in use or not available.
    #[error("`gateway.{key}`: cannot listen on {address}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The store could not be read.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// A key could not be created.
    #[error("the gateway's keys cannot be created")]
    Keys(#[from] KeyError),
    /// The gateway's own signing key could not be loaded or created.
    #[error("the gateway's own signing key cannot be loaded or created")]
    OwnKey(#[from] gateway_token::KeyError),
    /// The TLS files cannot be used.
    #[error("the gateway's TLS cannot be set up")]
    Tls(#[from] tls::TlsError),
    /// Two gateways share a metrics registry.
    #[error("the metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// A gateway that is built and bound, but does not serve yet.
#[derive(Debug)]
pub struct App {
    public: Server,
    /// `None` once it is served.
    control: Option<Server>,
    control_addr: SocketAddr,
    calls: Arc<Calls>,
    api: Arc<Control>,
    background: TaskTracker,
    sync: Sync,
    autoscaler: Autoscaler,
    retention: Retention,
    lost_keys: LostKeys,
    members: Background,
    /// Number of VMs that had joined before this gateway started.
    known: usize,
    address: ControlAddress,
    /// If the gateway is dropped before it serves, its listeners close.
    stop_on_drop: DropGuard,
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    shutdown: Shutdown,
    /// Cancels deployments whose versions do not serve yet.
    cancel: CancellationToken,
    calls: Arc<Calls>,
    background: TaskTracker,
    members: Background,
    final_heartbeat: FinalHeartbeat,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Calls that were cut because the grace was over.
    pub cut: usize,
}

impl App {
    /// Address at which callers reach functions.
    pub fn public_addr(&self) -> SocketAddr {
        self.public.address()
    }

    /// The same as a URL: what the line `ready` says.
    pub fn public_url(&self) -> String {
        let scheme = if self.public.is_secure() { "https" } else { "http" };
        format!("{scheme}://{}", self.public_addr())
    }

    /// Where the control API listens.
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// How the control API is reached.
    pub fn control_address(&self) -> &ControlAddress {
        &self.address
    }

    /// Number of deployed functions.
    pub fn functions(&self) -> usize {
        self.api.routes.table().routes().count()
    }

    /// Opens the control API before the gateway serves; it answers with the current step of the
    /// start. Needs a tokio runtime.
    pub fn open_control(&mut self) -> Startup {
        if let Some(server) = self.control.take() {
            let handler = ControlHandler::new(Arc::clone(&self.api));
            self.public.shutdown.tasks.spawn(server.serve(handler));
        }
        self.api.startup.clone()
    }

    /// Starts to serve. Needs a tokio runtime.
    pub fn spawn(mut self) -> Running {
        self.api.startup.over();
        self.open_control();
        let Self {
            public,
            control: _,
            control_addr: _,
            calls,
            api,
            background,
            sync,
            autoscaler,
            retention,
            lost_keys,
            members,
            known,
            address: _,
            stop_on_drop,
        } = self;
        stop_on_drop.disarm();
        let shutdown = public.shutdown.clone();
        let final_heartbeat = sync.final_heartbeat();
        let fleet = Arc::clone(&api.fleet);
        let close = shutdown.close.clone();
        let hooks = Arc::clone(&api.hooks);
        members.spawn(async move { hooks.check_secrets().await });
        for member in api.fleet.members() {
            members.spawn(watch::follow_local(member));
        }
        members.spawn(watch::tick(Arc::clone(&api.fleet)));
        members.spawn(certificate::remind(api.health.certificates.clone()));
        members.spawn(sync.run());
        members.spawn(retention.run());
        members.spawn(lost_keys.run());
        members.spawn(autoscaler.run(members.close.clone()));
        let warm = min_instances::maintain(Arc::clone(&api.routes), Arc::clone(&api.fleet));
        background.spawn(shutdown.close.clone().run_until_cancelled_owned(warm));
        let routes = Arc::clone(&api.routes);
        let vms = Arc::clone(&api.fleet);
        members.spawn(orphan_instances::sweep(
            routes,
            vms,
            Arc::clone(calls.version_cache()),
            api.deploys.limit,
        ));
        let aborts =
            Aborts { routes: Arc::clone(&api.routes), functions: Arc::clone(&api.functions) };
        members.spawn(aborts.run());
        if let Some(negative_lookup) = calls.negative_lookup() {
            let routes = Arc::clone(&api.routes);
            let fleet = Arc::clone(&api.fleet);
            members.spawn(Arc::clone(negative_lookup).run(routes, fleet, Arc::clone(&api.store)));
        }
        let answering = Arc::clone(&calls);
        // Before it accepts, waits until VMs have reported: the first callers after a restart stay
        // in the kernel's queue instead of failing.
        shutdown.tasks.spawn(async move {
            close.run_until_cancelled(watch::wait_for_reports(&fleet, known)).await;
            public.serve(CallHandler(answering)).await;
        });
        let cancel = api.cancel.clone();
        Running { shutdown, cancel, calls, background, members, final_heartbeat }
    }
}

impl Running {
    /// Running calls, upgraded ones included.
    pub fn calls(&self) -> usize {
        self.calls.running().len()
    }

    /// Stops accepting, lets idle connections close, and lets calls and deployments end within the
    /// grace. Then cuts calls and cancels deployments that do not serve yet. Reports of VMs are
    /// received until the end.
    pub async fn drain(self, grace: Duration) -> Stopped {
        let stopped = self.end(grace).await;
        let Self { members, final_heartbeat, .. } = self;
        members.end().await;
        final_heartbeat.send().await;
        stopped
    }

    async fn end(&self, grace: Duration) -> Stopped {
        let Self { shutdown, cancel, calls, background, .. } = self;
        shutdown.close.cancel();
        for tracker in [&shutdown.tasks, calls.running(), background] {
            tracker.close();
        }
        let over = async {
            tokio::join!(shutdown.tasks.wait(), calls.running().wait(), background.wait());
        };
        let mut over = std::pin::pin!(over);
        if tokio::time::timeout(grace, over.as_mut()).await.is_ok() {
            return Stopped { cut: 0 };
        }
        let cut = calls.running().len();
        tracing::warn!(
            cut,
            "`gateway.drain_grace` is over; cutting calls and cancelling deployments."
        );
        calls.stop();
        cancel.cancel();
        // Clients that wait for a deployment get its result before the connection closes.
        if tokio::time::timeout(CLOSE_TIMEOUT, over.as_mut()).await.is_err() {
            shutdown.cut.cancel();
            // What is left after that ends with the process.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, over).await;
        }
        Stopped { cut }
    }
}

/// Background tasks that are cancelled together.
#[derive(Debug, Default)]
struct Background {
    close: CancellationToken,
    tasks: TaskTracker,
}

impl Background {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.close.clone().run_until_cancelled_owned(task));
    }

    async fn end(self) {
        self.close.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.close.cancel();
    }
}
