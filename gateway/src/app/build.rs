//! Builds a gateway: binds its listeners, reads from the store what serves, and makes every part
//! once, in the order in which they need each other. Starts nothing and decides nothing; how each
//! part is made is in `parts.rs` and `control.rs`.

use super::parts::Parts;
use super::{App, Background, ControlAddress, StartError};
use crate::config::Config;
use crate::deploy::builders::{BUILDER_SILENCE, Builders};
use crate::observe::fleet::FleetMetrics;
use crate::routes::version_cache::VersionCache;
use crate::urls::Urls;
use epsilon_api::{build::Builder, vm::Vm};
use epsilon_bootstrap::sockets::Sockets;
use epsilon_http_server::listen::{Listener, Probes};
use epsilon_store::Store;
use prometheus::Registry;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// Detects callers that vanished without closing the connection while they wait for a slow answer
/// or a log: after some two minutes.
const PROBES: Probes =
    Probes { after: Duration::from_secs(60), every: Duration::from_secs(10), count: 9 };

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
        let (public, control) = listeners(&config, sockets)?;
        let control_addr = control.address();
        let address = ControlAddress::new(control_addr, config.tls.as_ref());
        let urls = Urls::new(&config, public.address());
        let (parts, own_keys) = Parts::read(&config, store, local, urls, registry).await?;

        let members = Background::default();
        let drain_prewarm = parts.drain_prewarm(&members);
        let builders = Builders::new(builder, parts.identity.clone(), BUILDER_SILENCE);
        let deploys = parts.deploys(&config, Arc::new(builders));
        let sync = parts.sync(&config, &deploys, drain_prewarm.clone(), &address);
        parts.store.gateway_heartbeat(&sync.me).await?;
        let known = parts.known_vms().await?;
        registry.register(Box::new(FleetMetrics::new(Arc::clone(&parts.fleet))?))?;

        let health = parts.health(&config)?;
        let version_cache = Arc::new(VersionCache::new(Arc::clone(&parts.store)));
        let calls = parts.calls(&config, Arc::clone(&version_cache), Arc::clone(&health));
        let functions = parts.functions(&config, version_cache);
        let retention = parts.retention(&config, &functions, &deploys);
        let lost_keys = parts.lost_keys(own_keys);
        let autoscaler = parts.autoscaler(&config, drain_prewarm.clone())?;
        let (public, control) = parts.servers(&config, public, control)?;
        let journal = autoscaler.journal();
        let api = parts.control(config, drain_prewarm, health, functions, deploys, journal)?;
        Ok(Self {
            public,
            control_addr,
            control: Some(control),
            calls: Arc::new(calls),
            api: Arc::new(api),
            background: parts.background,
            sync,
            autoscaler,
            retention,
            lost_keys,
            members,
            known,
            address,
            stop_on_drop: parts.shutdown.close.drop_guard(),
        })
    }
}

/// The listeners of calls and of the control API.
fn listeners(config: &Config, sockets: Sockets) -> Result<(Listener, Listener), StartError> {
    let listen = |key, address, inherited| {
        let listener = bind(address, inherited);
        listener.map_err(|source| StartError::Listen { key, address, source })
    };
    let public = listen("listen", config.listen, sockets.calls)?;
    let control = listen("control", config.control, sockets.control)?;
    Ok((public, control))
}

/// Uses the inherited listener if there is one, else binds `address`; port 0 takes any free port.
fn bind(address: SocketAddr, inherited: Option<std::net::TcpListener>) -> io::Result<Listener> {
    match inherited {
        Some(listener) => Listener::inherited(listener, PROBES),
        None => Listener::bind(address, PROBES),
    }
}
