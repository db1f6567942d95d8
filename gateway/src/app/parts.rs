//! The parts of a gateway below its two listeners, and how each is made: the store's contents, the
//! fleet, deployments, calls, changes of functions, background loops.

use super::{Background, ControlAddress, StartError};
use crate::call::Calls;
use crate::call::lookup::negative_lookup::NegativeLookup;
use crate::call::version_addresses::VersionAddresses;
use crate::config::Config;
use crate::deploy::Deploys;
use crate::deploy::builders::Builders;
use crate::deploy::queue::Queue;
use crate::fleet::Fleet;
use crate::fleet::autoscaled::FleetVms;
use crate::fleet::link::{Identity, Link, LinkLimits};
use crate::fleet::membership::{FleetMembership, MemberLimits};
use crate::functions::Functions;
use crate::health::Health;
use crate::keys::{self, ApiKeys, lost::LostKeys};
use crate::observe::metrics::Metrics;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use crate::reconcile::retention::Retention;
use crate::reconcile::store_sync::{self, Others, Sync};
use crate::routes::{Routes, version_cache::VersionCache};
use crate::store_health::StoreHealth;
use crate::urls::Urls;
use epsilon_api::{fleet::MemberKind, vm::Vm};
use epsilon_autoscaler::Autoscaler;
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token::Signer;
use epsilon_fleet_link::{certificate, tls};
use epsilon_http_server::Shutdown;
use epsilon_store::{Gateway, Key, KeyRole, Store};
use jiff::Timestamp;
use prometheus::{IntGauge, Registry};
use std::{collections::HashMap, path::Path, sync::Arc};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What the parts share.
pub(super) struct Parts {
    pub(super) store: Arc<dyn Store>,
    pub(super) store_health: Arc<StoreHealth>,
    pub(super) signer: Arc<Signer>,
    pub(super) api_keys: Arc<ApiKeys>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) registry: Registry,
    pub(super) routes: Arc<Routes>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) identity: Identity,
    pub(super) urls: Urls,
    pub(super) shutdown: Shutdown,
    /// Cancels deployments whose versions do not serve yet.
    pub(super) cancel: CancellationToken,
    pub(super) background: TaskTracker,
}

impl Parts {
    /// Creates the keys, and reads what the store knows: what serves, and which VMs drain.
    pub(super) async fn read(
        config: &Config,
        store: Arc<dyn Store>,
        local: Option<Arc<dyn Vm>>,
        urls: Urls,
        registry: &Registry,
    ) -> Result<(Self, Vec<Key>), StartError> {
        let signer = Arc::new(Signer::load_or_create(&config.data_dir.join("gateway.key"))?);
        let store_health = Arc::new(StoreHealth::new(store_up(registry)?));
        let api_keys = Arc::new(ApiKeys::new(store.clone(), Arc::clone(&store_health)));
        let own_keys = own_keys(&*store, &signer, &api_keys, &config.data_dir).await?;
        let unfinished = store_sync::fail_unfinished(&*store, signer.id()).await?;
        if unfinished > 0 {
            tracing::warn!(
                unfinished,
                "Deployments were left unfinished by the last run; they are marked as failed."
            );
        }
        let metrics = Metrics::new(registry)?;
        let (versions, traffic) = (store.snapshot().await?, store.traffic().await?);
        let routes = Arc::new(Routes::new(versions, traffic, Arc::clone(&metrics)));
        let fleet = Arc::new(Fleet::new(local, &config.health_policy));
        for id in store.draining().await? {
            if let Some(member) = fleet.member(&id) {
                member.drain(true);
            }
        }
        let member_limits = MemberLimits::new(config.fetch_timeout);
        let identity = Identity {
            tls: config.tls.as_ref().map(tls::Files::client).transpose()?,
            signer: Arc::clone(&signer),
            clock: Arc::new(Clock::start(Timestamp::now())),
            limits: LinkLimits { connect: member_limits.connect, idle: member_limits.idle },
        };
        let parts = Self {
            store,
            store_health,
            signer,
            api_keys,
            metrics,
            registry: registry.clone(),
            routes,
            fleet,
            identity,
            urls,
            shutdown: Shutdown::default(),
            cancel: CancellationToken::new(),
            background: TaskTracker::new(),
        };
        Ok((parts, own_keys))
    }

    pub(super) fn drain_prewarm(&self, members: &Background) -> DrainPrewarm {
        DrainPrewarm {
            fleet: Arc::clone(&self.fleet),
            routes: Arc::clone(&self.routes),
            close: members.close.clone(),
            tasks: members.tasks.clone(),
        }
    }

    pub(super) fn deploys(&self, config: &Config, builders: Arc<Builders>) -> Arc<Deploys> {
        Arc::new(Deploys {
            store: Arc::clone(&self.store),
            gateway: self.signer.id().clone(),
            builders,
            fleet: Arc::clone(&self.fleet),
            routes: Arc::clone(&self.routes),
            metrics: Arc::clone(&self.metrics),
            urls: self.urls.clone(),
            queue: Queue::default(),
            limit: config.limits.deploy_timeout,
            fetch_limit: config.fetch_timeout,
            ceilings: config.ceilings,
        })
    }

    /// What this gateway shares with others through the store, and its own record there.
    pub(super) fn sync(
        &self,
        config: &Config,
        deploys: &Deploys,
        drain_prewarm: DrainPrewarm,
        address: &ControlAddress,
    ) -> Sync {
        let membership = FleetMembership::new(
            drain_prewarm,
            self.identity.clone(),
            MemberLimits::new(config.fetch_timeout),
            config.health_policy,
        );
        Sync {
            store: Arc::clone(&self.store),
            watch: Arc::clone(&self.store_health),
            routes: Arc::clone(&self.routes),
            fleet: Arc::clone(&self.fleet),
            builders: Arc::clone(&deploys.builders),
            membership,
            me: Gateway {
                id: self.signer.id().clone(),
                public_key: self.signer.public_key_hex().to_owned(),
                control_url: config.control_url.clone().unwrap_or_else(|| address.url.clone()),
                seen_at: Timestamp::now(),
            },
            others: Others::default(),
            clock: Arc::clone(&self.identity.clock),
        }
    }

    /// Number of VMs that had joined before. A VM that this gateway cannot use will never report,
    /// so the start does not wait for it.
    pub(super) async fn known_vms(&self) -> Result<usize, StartError> {
        let members = self.store.members().await?;
        let will_report = |member: &&epsilon_store::Member| {
            member.join.kind == MemberKind::Vm && Link::new(&member.join, &self.identity).is_ok()
        };
        Ok(members.iter().filter(will_report).count())
    }

    pub(super) fn health(&self, config: &Config) -> Result<Arc<Health>, StartError> {
        let certificates = config.tls.as_ref().map(certificate::loaded).transpose()?;
        let certificates: Vec<_> = certificates.into_iter().flatten().collect();
        certificate::register(&certificates, &self.registry)?;
        Ok(Arc::new(Health {
            fleet: Arc::clone(&self.fleet),
            store: Arc::clone(&self.store_health),
            certificates,
            began: Instant::now(),
        }))
    }

    pub(super) fn calls(
        &self,
        config: &Config,
        version_cache: Arc<VersionCache>,
        health: Arc<Health>,
    ) -> Calls {
        Calls::new(
            config,
            Arc::clone(&self.routes),
            version_cache,
            VersionAddresses::new(config.version_addresses, Arc::clone(&self.api_keys)),
            self.store.is_shared().then(Arc::<NegativeLookup>::default),
            health,
            Arc::clone(&self.metrics),
        )
    }

    pub(super) fn functions(
        &self,
        config: &Config,
        version_cache: Arc<VersionCache>,
    ) -> Arc<Functions> {
        Arc::new(Functions {
            store: Arc::clone(&self.store),
            routes: Arc::clone(&self.routes),
            fleet: Arc::clone(&self.fleet),
            version_cache,
            metrics: Arc::clone(&self.metrics),
            traffic: config.traffic,
            start_limit: config.fetch_timeout,
            close: self.shutdown.close.clone(),
            background: self.background.clone(),
        })
    }

    pub(super) fn retention(
        &self,
        config: &Config,
        functions: &Arc<Functions>,
        deploys: &Deploys,
    ) -> Retention {
        Retention {
            store: Arc::clone(&self.store),
            functions: Arc::clone(functions),
            fleet: Arc::clone(&self.fleet),
            builders: Arc::clone(&deploys.builders),
            me: self.signer.id().clone(),
            keep: config.keep,
        }
    }

    pub(super) fn lost_keys(&self, mine: Vec<Key>) -> LostKeys {
        LostKeys {
            store: Arc::clone(&self.store),
            me: self.signer.id().clone(),
            mine,
            suspects: HashMap::new(),
        }
    }

    pub(super) fn autoscaler(
        &self,
        config: &Config,
        drain_prewarm: DrainPrewarm,
    ) -> Result<Autoscaler, StartError> {
        let vms = FleetVms {
            fleet: Arc::clone(&self.fleet),
            routes: Arc::clone(&self.routes),
            drain_prewarm,
            store: Arc::clone(&self.store),
            me: self.signer.id().clone(),
        };
        Ok(Autoscaler::new(config.autoscale.clone(), Arc::new(vms), &self.registry)?)
    }
}

/// The keys in this gateway's files, created if they are missing.
async fn own_keys(
    store: &dyn Store,
    signer: &Signer,
    api_keys: &ApiKeys,
    data: &Path,
) -> Result<Vec<Key>, StartError> {
    let mut own = Vec::new();
    for (role, file) in [
        (KeyRole::Admin, "admin.key"),
        (KeyRole::Fleet, MemberKind::Vm.token_file()),
        (KeyRole::Builder, MemberKind::Builder.token_file()),
    ] {
        let key = keys::ensure(store, signer.id(), &role, &data.join(file)).await?;
        api_keys.cache(&key);
        own.push(key);
    }
    Ok(own)
}

fn store_up(registry: &Registry) -> Result<IntGauge, prometheus::Error> {
    let up = IntGauge::new("epsilon_store_up", "Whether the store answers and accepts writes.")?;
    registry.register(Box::new(up.clone()))?;
    Ok(up)
}
