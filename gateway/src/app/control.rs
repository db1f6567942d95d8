//! The two servers, and the control API with what arrives by it: `git push` and webhooks.

use super::parts::Parts;
use super::{StartError, Startup};
use crate::call::relay::headers::clean_trailers;
use crate::config::Config;
use crate::control::Control;
use crate::deploy::Deploys;
use crate::functions::Functions;
use crate::health::Health;
use crate::observe::audit::Audit;
use crate::reconcile::drain_prewarm::DrainPrewarm;
use crate::source::git::GitHost;
use crate::source::git::command::Git;
use crate::source::github::{self, Hooks};
use epsilon_autoscaler::Journal;
use epsilon_fleet_link::tls;
use epsilon_http_server::{
    Security, Server,
    limited::{BodyLimits, LINGER},
    listen::Listener,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// One of this many of the files that the process may open is available to connections of the
/// public listener, and of the control API's. Each call needs another file for its instance, and
/// store, engine and logs need some.
const PUBLIC_FILES: usize = 2;
const CONTROL_FILES: usize = 8;
/// Factor on `body_timeout` for clients of the control API: they compress while they send.
const CONTROL_PACE_FACTOR: u32 = 6;

impl Parts {
    /// The servers of calls and of the control API.
    pub(super) fn servers(
        &self,
        config: &Config,
        public: Listener,
        control: Listener,
    ) -> Result<(Server, Server), StartError> {
        let server = |listener, tls: Option<_>, open, share| Server {
            listener,
            security: tls.map_or(Security::Plain, Security::TlsOrLocal),
            limits: config.connection.within_files(share),
            shutdown: self.shutdown.clone(),
            open,
        };
        let public_tls = config.public_tls.as_ref().map(tls::Files::server_for_callers);
        let open = Some(self.metrics.connections.clone());
        let public = server(public, public_tls.transpose()?, open, PUBLIC_FILES);
        let tls = config.tls.as_ref().map(tls::Files::server_with_optional_client_certificate);
        let control = server(control, tls.transpose()?, None, CONTROL_FILES);
        Ok((public, control))
    }

    /// The state of the control API.
    pub(super) fn control(
        &self,
        config: Config,
        drain_prewarm: DrainPrewarm,
        health: Arc<Health>,
        functions: Arc<Functions>,
        deploys: Arc<Deploys>,
        autoscaler: Arc<Journal>,
    ) -> Result<Control, StartError> {
        let hooks = self.hooks(&config, &deploys)?;
        let work = (self.cancel.clone(), self.background.clone());
        let (data, max_source) = (&config.data_dir, config.max_source);
        let git = GitHost::new(config.git, data, max_source, Arc::clone(&deploys), work);
        Ok(Control {
            store: Arc::clone(&self.store),
            routes: Arc::clone(&self.routes),
            fleet: Arc::clone(&self.fleet),
            drain_prewarm,
            autoscaler,
            watch: Arc::clone(&self.store_health),
            health,
            api_keys: Arc::clone(&self.api_keys),
            audit: Audit::new(&self.registry)?,
            joining: Semaphore::new(config.limits.max_joining),
            functions,
            deploys,
            hooks: Arc::new(hooks),
            identity: self.identity.clone(),
            urls: self.urls.clone(),
            registry: self.registry.clone(),
            body_limits: BodyLimits {
                size: max_source,
                linger: LINGER,
                pace: config.pace.times(CONTROL_PACE_FACTOR),
                clean_trailers,
            },
            close: self.shutdown.close.clone(),
            cancel: self.cancel.clone(),
            background: self.background.clone(),
            git: Arc::new(git),
            startup: Startup::begin(),
        })
    }

    fn hooks(&self, config: &Config, deploys: &Arc<Deploys>) -> Result<Hooks, StartError> {
        let uses = github::Parts {
            store: Arc::clone(&self.store),
            deploys: Arc::clone(deploys),
            max_source: config.max_source,
            git: Git::new(config.git.limits.program.clone()),
            close: self.shutdown.close.clone(),
            cancel: self.cancel.clone(),
            background: self.background.clone(),
        };
        Ok(Hooks::new(config.hooks.clone(), &config.data_dir, uses, &self.registry)?)
    }
}
