//! The login for a registry. Files are read each time, so that who replaces one need not restart anything.

use crate::{Host, docker_config, settings::Own};
use epsilon_api::{chain::Chain, redacted::Secret};
use epsilon_cloud_aws::ecr::{self, Ecr, EcrError, EcrHost, Retention};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Who this machine is for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password or token.
    pub password: Secret<String>,
}

/// The logins of this machine. Cheap to clone. A host is looked for in this order: the operator's own login
/// for one registry, a Docker `config.json`, ECR by its name; everyone else is met without a login.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<Sources>);

#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) own: Option<(Host, Own)>,
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) ecr: Ecr,
    /// A host that is to be taken for ECR.
    pub(crate) stand_in: Option<EcrHost>,
}

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file of the settings.
    #[error("`{path}` cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The Docker configuration holds nothing that can be used.
    #[error("`{path}` is no use: {what}")]
    DockerConfig {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// AWS.
    #[error("ECR gives no login")]
    Ecr(#[from] EcrError),
}

impl AccessError {
    /// Whether it is a right that is missing.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Ecr(EcrError::Denied { .. }))
    }

    /// What the operator does next.
    pub fn hint(&self) -> String {
        match self {
            Self::File { path, .. } | Self::DockerConfig { path, .. } => {
                format!("`{}` is named in the settings", path.display())
            }
            Self::Ecr(err) => err.hint(),
        }
    }
}

/// Why [`Access::run`] did not end well.
#[derive(Debug)]
pub enum Failed<E> {
    /// There was no login to try with.
    Login(AccessError),
    /// The work's own error, of its last try.
    Work(E),
}

impl Access {
    pub(crate) fn new(sources: Sources) -> Self {
        Self(Arc::new(sources))
    }

    /// Access to a stand-in for ECR, in tests: registry and AWS are where the caller says.
    pub fn to_stand_in(ecr: Ecr, host: EcrHost) -> Self {
        Self::new(Sources { ecr, stand_in: Some(host), ..Sources::default() })
    }

    /// The login for this registry; `None` when it is met without one.
    ///
    /// # Errors
    /// When there should be one.
    pub async fn login(&self, host: &Host) -> Result<Option<Login>, AccessError> {
        self.other_login(host, None).await
    }

    /// Runs `work` with the login for `host`; once more with another one, if there is another one, when the
    /// registry refused the first (`is_refused`): a token's end, or a password that was just replaced.
    ///
    /// # Errors
    /// No login, or the work's own.
    pub async fn run<T, E, F>(
        &self,
        host: &Host,
        is_refused: impl Fn(&E) -> bool,
        work: impl Fn(Option<Login>) -> F,
    ) -> Result<T, Failed<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let login = self.login(host).await.map_err(Failed::Login)?;
        let err = match work(login.clone()).await {
            Ok(done) => return Ok(done),
            Err(err) => err,
        };
        let Some(refused) = login.filter(|_| is_refused(&err)) else {
            return Err(Failed::Work(err));
        };
        match self.other_login(host, Some(&refused)).await {
            Ok(Some(fresh)) if fresh != refused => {
                tracing::info!(registry = %host, "The registry refused a login; once more with a fresh one.");
                work(Some(fresh)).await.map_err(Failed::Work)
            }
            Ok(_) => Err(Failed::Work(err)),
            Err(why) => {
                // The registry's refusal says more than that nothing better was found.
                tracing::warn!(registry = %host, cause = %Chain(&why), "No fresh login.");
                Err(Failed::Work(err))
            }
        }
    }

    /// Makes sure that there is a repository at this path, where the registry does not make one by itself.
    ///
    /// # Errors
    /// When it could not be made.
    pub async fn ensure_repository(
        &self,
        host: &Host,
        path: &str,
        keep: &Retention,
    ) -> Result<(), AccessError> {
        if let Some(ecr) = self.ecr(host) {
            Box::pin(self.0.ecr.ensure_repository(&ecr, path, keep)).await?;
        }
        Ok(())
    }

    async fn other_login(
        &self,
        host: &Host,
        refused: Option<&Login>,
    ) -> Result<Option<Login>, AccessError> {
        if let Some((_, own)) = self.0.own.as_ref().filter(|(own, _)| own == host) {
            let password = match own {
                Own::Password { password, .. } => password.clone(),
                Own::File { path, .. } => Secret::new(read(path).await?.trim().to_owned()),
            };
            return Ok(Some(Login { user: own.user().to_owned(), password }));
        }
        if let Some(path) = &self.0.docker_config {
            let found = docker_config::login(&read(path).await?, host);
            let found =
                found.map_err(|what| AccessError::DockerConfig { path: path.clone(), what })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let Some(ecr) = self.ecr(host) else { return Ok(None) };
        let password = match refused {
            // The SDK's futures are deep and large; boxed, those who wait for a login need not be.
            None => Box::pin(self.0.ecr.token(&ecr)).await?,
            Some(refused) => Box::pin(self.0.ecr.token_after(&ecr, &refused.password)).await?,
        };
        Ok(Some(Login { user: ecr::USER.to_owned(), password }))
    }

    fn ecr(&self, host: &Host) -> Option<EcrHost> {
        let stand_in = self.0.stand_in.as_ref().filter(|ecr| ecr.to_string() == host.as_str());
        stand_in.cloned().or_else(|| EcrHost::parse(host.as_str()))
    }
}

async fn read(path: &Path) -> Result<String, AccessError> {
    let failed = |source| AccessError::File { path: path.to_owned(), source };
    tokio::fs::read_to_string(path).await.map_err(failed)
}

#[cfg(test)]
mod tests;
