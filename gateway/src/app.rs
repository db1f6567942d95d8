//! Composition: builds every part once, starts them, and shuts them down. Makes no decisions.

use crate::autoscale::{Autoscaler, FleetVms};
use crate::call::accept::{Server, Shutdown};
use crate::call::lookup::negative_lookup::NegativeLookup;
use crate::call::lookup::version_cache::VersionCache;
use crate::call::relay::limited::LINGER;
use crate::call::version_addresses::VersionAddresses;
use crate::call::{Calls, accept};
use crate::config::Config;
use crate::control::{Control, ControlHandler};
use crate::deploy::Deploys;
use crate::deploy::builders::{BUILDER_SILENCE, Builders};
use crate::deploy::queue::Queue;
use crate::deploy::start::FETCH_TIMEOUT;
use crate::fleet::link::{Identity, Link, LinkLimits};
use crate::fleet::membership::{FleetMembership, MemberLimits};
use crate::fleet::{Fleet, watch};
use crate::health::Health;
use crate::keys;
use crate::keys::lost::LostKeys;
use crate::keys::{ApiKeys, KeyError};
use crate::observe::audit::Audit;
use crate::observe::fleet::FleetMetrics;
use crate::observe::metrics::Metrics;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use crate::reconcile::retention::Retention;
use crate::reconcile::split_abort::Aborts;
use crate::reconcile::store_sync::{FinalHeartbeat, Others, Sync};
use crate::reconcile::{min_instances, orphan_instances, store_sync};
use crate::routes::Routes;
use crate::source::git::GitHost;
use crate::source::git::command::Git;
use crate::source::github;
use crate::source::github::Hooks;
use crate::store_health::StoreHealth;
use crate::urls::Urls;
use epsilon_api::{build::Builder, fleet::MemberKind, vm::Vm};
use epsilon_bootstrap::sockets::Sockets;
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token::Signer;
use epsilon_fleet_link::{certificate, gateway_token, tls};
use epsilon_store::{Gateway, KeyRole, Store, StoreError};
use jiff::Timestamp;
use prometheus::{IntGauge, Registry};
use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use crate::control::{address::ControlAddress, startup::Startup};

/// Longest time for cut connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// One of this many of the files that the process may open is available to connections of the
/// public listener, and of the control API's. Each call needs another file for its instance, and
/// store, engine and logs need some.
const PUBLIC_FILES: usize = 2;
const CONTROL_FILES: usize = 8;
/// Factor on `body_timeout` for clients of the control API: they compress while they send.
const CONTROL_PACE_FACTOR: u32 = 6;

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
    /// Binds both listeners (port 0 takes any), creates the keys, and reads the active versions.
    /// Deployments left unfinished by a crash are marked as failed. `local` and `builder` are those
    /// of this process; others join.
    ///
    /// # Errors
    /// When any of that fails; nothing keeps running then.
    pub async fn build(
        config: Config,
        store: Arc<dyn Store>,
        local: Option<Arc<dyn Vm>>,
        builder: Option<Arc<dyn Builder>>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        Self::build_on(Sockets::default(), config, store, local, builder, registry).await
    }

    /// The same with inherited listeners, if there are any; they replace `listen` and `control` of
    /// the settings.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub async fn build_on(
        sockets: Sockets,
        config: Config,
        store: Arc<dyn Store>,
        local: Option<Arc<dyn Vm>>,
        builder: Option<Arc<dyn Builder>>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let listen = |key, address, there| {
            let listener = accept::bind(address, there);
            listener.map_err(|source| StartError::Listen { key, address, source })
        };
        let public = listen("listen", config.listen, sockets.calls)?;
        let control = listen("control", config.control, sockets.control)?;
        let address = public.address();

        let signer = Arc::new(Signer::load_or_create(&config.data_dir.join("gateway.key"))?);
        let gateway = signer.id().clone();
        let store_health = Arc::new(StoreHealth::new(store_up(registry)?));
        let api_keys = Arc::new(ApiKeys::new(Arc::clone(&store), Arc::clone(&store_health)));
        let mut mine = Vec::new();
        for (role, file) in [
            (KeyRole::Admin, "admin.key"),
            (KeyRole::Fleet, MemberKind::Vm.token_file()),
            (KeyRole::Builder, MemberKind::Builder.token_file()),
        ] {
            let key = keys::ensure(&*store, &gateway, &role, &config.data_dir.join(file)).await?;
            api_keys.cache(&key);
            mine.push(key);
        }
        let unfinished = store_sync::fail_unfinished(&*store, &gateway).await?;
        if unfinished > 0 {
            tracing::warn!(
                unfinished,
                "Deployments were left unfinished by the last run; they are marked as failed."
            );
        }

        let metrics = Metrics::new(registry)?;
        let routes = Arc::new(Routes::new(
            store.snapshot().await?,
            store.traffic().await?,
            Arc::clone(&metrics),
        ));
        let fleet = Arc::new(Fleet::new(local, &config.health_policy));
        for id in store.draining().await? {
            if let Some(member) = fleet.member(&id) {
                member.drain(true);
            }
        }
        let urls = Urls::new(&config, address);
        let tls = config.tls.as_ref();
        let member_limits = MemberLimits::default();
        let identity = Identity {
            tls: tls.map(tls::Files::client).transpose()?,
            signer: Arc::clone(&signer),
            clock: Arc::new(Clock::start(Timestamp::now())),
            limits: LinkLimits { connect: member_limits.connect, idle: member_limits.idle },
        };
        let builders = Builders::new(builder, identity.clone(), BUILDER_SILENCE);
        let builders = Arc::new(builders);
        let deploys = Arc::new(Deploys {
            store: Arc::clone(&store),
            gateway,
            builders: Arc::clone(&builders),
            fleet: Arc::clone(&fleet),
            routes: Arc::clone(&routes),
            metrics: Arc::clone(&metrics),
            urls: urls.clone(),
            queue: Queue::default(),
            limit: config.limits.deploy_timeout,
            fetch_limit: FETCH_TIMEOUT,
            ceilings: config.ceilings,
        });
        let shutdown = Shutdown::default();
        let background = TaskTracker::new();
        let members = Background::default();
        let drain_prewarm = DrainPrewarm {
            fleet: Arc::clone(&fleet),
            routes: Arc::clone(&routes),
            close: members.close.clone(),
            tasks: members.tasks.clone(),
        };
        let membership = FleetMembership::new(
            drain_prewarm.clone(),
            identity.clone(),
            member_limits,
            config.health_policy,
        );
        let control_address = ControlAddress::new(control.address(), tls);
        let control_url = config.control_url.clone();
        let control_url = control_url.unwrap_or_else(|| control_address.url.clone());
        let sync = Sync {
            store: Arc::clone(&store),
            watch: Arc::clone(&store_health),
            routes: Arc::clone(&routes),
            fleet: Arc::clone(&fleet),
            builders,
            membership,
            me: Gateway {
                id: signer.id().clone(),
                public_key: signer.public_key_hex().to_owned(),
                control_url,
                seen_at: Timestamp::now(),
            },
            others: Others::default(),
            clock: Arc::clone(&identity.clock),
        };
        store.gateway_heartbeat(&sync.me).await?;
        let known = store.members().await?;
        // A VM that this gateway cannot use will never report, so the start does not wait for it.
        let will_report = |member: &&epsilon_store::Member| {
            member.join.kind == MemberKind::Vm && Link::new(&member.join, &identity).is_ok()
        };
        let known = known.iter().filter(will_report).count();
        registry.register(Box::new(FleetMetrics::new(Arc::clone(&fleet))?))?;
        let version_cache = Arc::new(VersionCache::new(Arc::clone(&store)));
        let table = Arc::clone(&routes);
        let vms = Arc::clone(&fleet);
        let negative_lookup = store.is_shared().then(Arc::<NegativeLookup>::default);
        let version_addresses =
            VersionAddresses::new(config.version_addresses, Arc::clone(&api_keys));
        let certificates: Vec<_> =
            tls.map(certificate::loaded).transpose()?.into_iter().flatten().collect();
        certificate::register(&certificates, registry)?;
        let health = Arc::new(Health {
            fleet: vms,
            store: Arc::clone(&store_health),
            certificates,
            began: Instant::now(),
        });
        let calls = Calls::new(
            &config,
            table,
            Arc::clone(&version_cache),
            version_addresses,
            negative_lookup,
            Arc::clone(&health),
            Arc::clone(&metrics),
        );
        let vms = FleetVms {
            fleet: Arc::clone(&fleet),
            routes: Arc::clone(&routes),
            drain_prewarm: drain_prewarm.clone(),
            store: Arc::clone(&store),
            me: signer.id().clone(),
        };
        let autoscaler = Autoscaler::new(config.autoscale, Arc::new(vms), registry)?;
        let parts = github::Parts {
            store: Arc::clone(&store),
            deploys: Arc::clone(&deploys),
            max_source: config.max_source,
            git: Git::new(config.git.limits.program.clone()),
            close: shutdown.close.clone(),
            cancel: shutdown.cancel.clone(),
            background: background.clone(),
        };
        let hooks = Arc::new(Hooks::new(config.hooks, &config.data_dir, parts, registry)?);
        let retention = Retention {
            store: Arc::clone(&store),
            fleet: Arc::clone(&fleet),
            builders: Arc::clone(&deploys.builders),
            me: signer.id().clone(),
            keep: config.keep,
        };
        let lost_keys = LostKeys {
            store: Arc::clone(&store),
            me: signer.id().clone(),
            mine,
            suspects: HashMap::new(),
        };
        let work = (shutdown.cancel.clone(), background.clone());
        let data = &config.data_dir;
        let max = config.max_source;
        let git = Arc::new(GitHost::new(config.git, data, max, Arc::clone(&deploys), work));
        let api = Control {
            store,
            routes,
            fleet,
            drain_prewarm,
            autoscaler: autoscaler.journal(),
            watch: store_health,
            health,
            api_keys,
            version_cache,
            audit: Audit::new(registry)?,
            joining: Semaphore::new(config.limits.max_joining),
            deploys,
            hooks,
            identity,
            urls,
            traffic: config.traffic,
            registry: registry.clone(),
            max_source: config.max_source,
            linger: LINGER,
            pace: config.pace.times(CONTROL_PACE_FACTOR),
            close: shutdown.close.clone(),
            cancel: shutdown.cancel.clone(),
            background: background.clone(),
            git,
            startup: Startup::begin(),
        };
        let server = |listener, tls, open, share| Server {
            listener,
            tls,
            limits: config.connection.within_files(share),
            shutdown: shutdown.clone(),
            metrics: Arc::clone(&metrics),
            open,
        };
        Ok(Self {
            public: server(
                public,
                config.public_tls.as_ref().map(tls::Files::server_for_callers).transpose()?,
                metrics.connections.clone(),
                PUBLIC_FILES,
            ),
            control_addr: control.address(),
            control: Some(server(
                control,
                tls.map(tls::Files::server_with_optional_client_certificate).transpose()?,
                uncounted()?,
                CONTROL_FILES,
            )),
            calls: Arc::new(calls),
            api: Arc::new(api),
            background,
            sync,
            autoscaler,
            retention,
            lost_keys,
            members,
            known,
            address: control_address,
            stop_on_drop: shutdown.close.drop_guard(),
        })
    }

    /// Address at which callers reach functions.
    pub fn public_addr(&self) -> SocketAddr {
        self.public.listener.address()
    }

    /// The same as a URL: what the line `ready` says.
    pub fn public_url(&self) -> String {
        let scheme = if self.public.tls.is_some() { "https" } else { "http" };
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
        let aborts = Aborts {
            routes: Arc::clone(&api.routes),
            fleet: Arc::clone(&api.fleet),
            store: Arc::clone(&api.store),
            metrics: Arc::clone(&api.deploys.metrics),
        };
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
            public.serve(answering).await;
        });
        Running { shutdown, calls, background, members, final_heartbeat }
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
        let Self { shutdown, calls, background, members, final_heartbeat } = self;
        let stopped = Self::end(&shutdown, &calls, &background, grace).await;
        members.end().await;
        final_heartbeat.send().await;
        stopped
    }

    async fn end(
        shutdown: &Shutdown,
        calls: &Calls,
        background: &TaskTracker,
        grace: Duration,
    ) -> Stopped {
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
        tracing::warn!(cut, "Drain grace is over; cutting calls and cancelling deployments.");
        calls.stop();
        shutdown.cancel.cancel();
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

/// Connections of the control API are few and have no metric.
fn uncounted() -> Result<IntGauge, prometheus::Error> {
    IntGauge::new("epsilon_control_connections", "Not registered.")
}

fn store_up(registry: &Registry) -> Result<IntGauge, prometheus::Error> {
    let up = IntGauge::new("epsilon_store_up", "Whether the store answers and accepts writes.")?;
    registry.register(Box::new(up.clone()))?;
    Ok(up)
}
