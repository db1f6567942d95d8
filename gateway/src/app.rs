//! Builds every part once, starts them, ends them. Nothing is decided here.

use crate::{
    call::{
        Calls,
        accept::{self, Door, Ending},
        place::InOrder,
    },
    config::Config,
    control::{Control, ControlHandler},
    deploy::{Deploys, builders::Builders, queue::Queue},
    fleet::{
        Fleet,
        link::{Identity, LinkLimits},
    },
    keys::{self, KeyError},
    observe::{events::WarmUpFailed, metrics::Metrics},
    routes::Routes,
    urls::Urls,
};
use epsilon_api::{build::Builder, error::ErrorBody, function::Version, ids::GatewayId, vm::Vm};
use epsilon_store::{KeyRole, Store, StoreError};
use epsilon_wire::pass::{self, Signer};
use futures_util::future::join_all;
use http::StatusCode;
use jiff::Timestamp;
use prometheus::{IntGauge, Registry};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;

/// The id of a gateway that is the only one of its store.
const LONE: &str = "g-000000000000";
/// How long connections that were cut may take to let go.
const LETTING_GO: Duration = Duration::from_secs(1);

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("`gateway.{key}`: cannot listen on {address}")]
    Listen {
        /// Which setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store does not answer.
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    /// A key cannot be made.
    #[error("the gateway's keys cannot be made")]
    Keys(#[from] KeyError),
    /// What it shows to members cannot be made.
    #[error("the gateway's own key cannot be had")]
    OwnKey(#[from] pass::KeyError),
    /// Two gateways share a registry.
    #[error("the metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
}

/// A gateway that is built and bound and serves nothing yet.
#[derive(Debug)]
pub struct App {
    public: Door,
    control: Door,
    calls: Arc<Calls>,
    api: Arc<Control>,
    background: TaskTracker,
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    ending: Ending,
    calls: Arc<Calls>,
    background: TaskTracker,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Calls that ran when the grace was over and were cut.
    pub cut: usize,
}

impl App {
    /// Binds both listeners (port 0 takes any), makes the keys, reads what serves. Deployments that a
    /// crash left at work become failed. `local` and `builder` are the ones of this process; others join.
    ///
    /// # Errors
    /// When any of that is not possible; nothing keeps running then.
    pub async fn build(
        config: Config,
        store: Arc<dyn Store>,
        local: Option<Arc<dyn Vm>>,
        builder: Option<Arc<dyn Builder>>,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let listen = |key, address| {
            accept::bind(address).map_err(|source| StartError::Listen { key, address, source })
        };
        let (public, control) =
            (listen("listen", config.listen)?, listen("control", config.control)?);
        let address = public.local_addr().unwrap_or(config.listen);

        let gateway = GatewayId::parse(LONE).expect("a constant that is one");
        keys::ensure(&*store, &gateway, &KeyRole::Admin, &config.data_dir.join("admin.key"))
            .await?;
        keys::ensure(&*store, &gateway, &KeyRole::Fleet, &config.data_dir.join("fleet.token"))
            .await?;
        let now = Timestamp::now();
        let unfinished = store.fail_unfinished(&gateway, now, &left_behind(), now).await?;
        if unfinished > 0 {
            tracing::warn!(
                unfinished,
                "Deployments of the last run were not finished; they failed."
            );
        }

        let metrics = Metrics::new(registry)?;
        let routes = Arc::new(Routes::new(store.snapshot().await?, Arc::clone(&metrics)));
        let fleet = Arc::new(Fleet::new(local));
        for id in store.draining().await? {
            if let Some(member) = fleet.member(&id) {
                member.drain(true);
            }
        }
        let urls = Urls::new(&config, address);
        let identity = Identity {
            signer: Arc::new(Signer::load_or_make(&config.data_dir.join("gateway.key"))?),
            tls: None,
            limits: LinkLimits {
                connect: config.members.connect,
                idle: config.members.idle,
            },
        };
        let builders = Arc::new(Builders::new(builder, identity, config.builder_silence));
        let deploys = Arc::new(Deploys {
            store: Arc::clone(&store),
            gateway,
            builders,
            fleet: Arc::clone(&fleet),
            routes: Arc::clone(&routes),
            metrics: Arc::clone(&metrics),
            urls: urls.clone(),
            queue: Queue::default(),
            limit: config.deploy_timeout,
            fetch_limit: config.fetch_timeout,
        });
        let (ending, background) = (Ending::default(), TaskTracker::new());
        let placement = Box::new(InOrder);
        let calls = Calls::new(
            &config,
            Arc::clone(&routes),
            Arc::clone(&fleet),
            placement,
            Arc::clone(&metrics),
        );
        let api = Control {
            store,
            routes,
            fleet,
            deploys,
            urls,
            registry: registry.clone(),
            max_source: config.max_source,
            linger: config.linger,
            close: ending.close.clone(),
            background: background.clone(),
        };
        let door = |listener, open| Door {
            listener,
            limits: config.connection,
            ending: ending.clone(),
            metrics: Arc::clone(&metrics),
            open,
        };
        Ok(Self {
            public: door(public, metrics.connections.clone()),
            control: door(control, uncounted()?),
            calls: Arc::new(calls),
            api: Arc::new(api),
            background,
        })
    }

    /// Where callers reach functions.
    pub fn public_addr(&self) -> SocketAddr {
        bound(&self.public)
    }

    /// Where the control API listens.
    pub fn control_addr(&self) -> SocketAddr {
        bound(&self.control)
    }

    /// Begins to serve. Needs a tokio runtime.
    pub fn spawn(self) -> Running {
        let Self { public, control, calls, api, background } = self;
        let ending = public.ending.clone();
        background.spawn(ending.close.clone().run_until_cancelled_owned(warm_up(Arc::clone(&api))));
        ending.tasks.spawn(control.serve(ControlHandler::new(api)));
        ending.tasks.spawn(public.serve(Arc::clone(&calls)));
        Running { ending, calls, background }
    }
}

impl Running {
    /// Calls that run now, upgraded ones included.
    pub fn calls(&self) -> usize {
        self.calls.running().len()
    }

    /// Accepts nothing more, tells idle connections to close, cancels deployments that do not serve yet,
    /// and lets calls end within the grace; then cuts what is left.
    pub async fn drain(self, grace: Duration) -> Stopped {
        let Self { ending, calls, background } = self;
        ending.close.cancel();
        for tracker in [&ending.tasks, calls.running(), &background] {
            tracker.close();
        }
        let over = async {
            tokio::join!(ending.tasks.wait(), calls.running().wait(), background.wait());
        };
        let mut over = std::pin::pin!(over);
        if tokio::time::timeout(grace, over.as_mut()).await.is_ok() {
            return Stopped { cut: 0 };
        }
        let cut = calls.running().len();
        calls.stop();
        ending.cut.cancel();
        // What is not gone by then ends with the process.
        let _ = tokio::time::timeout(LETTING_GO, over).await;
        tracing::warn!(cut, "The grace is over; calls were cut.");
        Stopped { cut }
    }
}

/// Instances that functions want ready when nobody calls.
async fn warm_up(api: Arc<Control>) {
    let versions: Vec<Arc<Version>> = {
        let table = api.routes.table();
        table.routes().map(|route| Arc::clone(&route.version)).collect()
    };
    let wanted = versions.into_iter().filter(|version| version.spec.min_instances > 0);
    join_all(wanted.map(|version| ensure_ready(&api, version))).await;
}

/// Has every VM that takes calls keep the wanted instances; a failure is noted and left to the first call.
/// A version that serves no more by the time they are there is let go again.
pub(crate) async fn ensure_ready(api: &Control, version: Arc<Version>) {
    for member in api.fleet.members().iter().filter(|member| member.takes_calls()) {
        if let Err(error) = member.vm.ensure_ready(Arc::clone(&version)).await {
            WarmUpFailed { function: &version.function, error: &error }.emit();
        }
    }
    api.routes.change().await.let_go(&version, &api.fleet);
}

fn bound(door: &Door) -> SocketAddr {
    door.listener.local_addr().expect("a listener that is bound has an address")
}

/// Connections of the control API are few and not counted.
fn uncounted() -> Result<IntGauge, prometheus::Error> {
    IntGauge::new("epsilon_control_connections", "Not registered.")
}

fn left_behind() -> ErrorBody {
    ErrorBody::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "DEPLOYMENT_INTERRUPTED",
        "the gateway stopped while the deployment was at work",
        Some("nothing was changed; deploy again".into()),
    )
}
