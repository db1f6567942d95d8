//! Credentials for a registry. Files are read each time, so that replacing one needs no restart.

use crate::login::Login;
use crate::sources::OwnCredentials;
use crate::{Host, docker_config};
use epsilon_api::{chain::Chain, redacted::Secret};
use epsilon_cloud_aws::ecr::{self, Ecr, EcrError, EcrHost, Retention};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The credentials of this machine. Cheap to clone. A host is looked up in this order: the
/// operator's own credentials for one registry, a Docker `config.json`, ECR by its name; all other
/// registries are used anonymously.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<Sources>);

#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) own: Option<(Host, OwnCredentials)>,
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) ecr: Ecr,
    /// A host that is treated as ECR, in tests.
    pub(crate) fake_ecr: Option<EcrHost>,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file of the settings cannot be read.
    #[error("`{path}` cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The Docker configuration cannot be used.
    #[error("`{path}` cannot be used: {what}")]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// AWS provided no token.
    #[error("ECR provides no credentials")]
    Ecr(#[from] EcrError),
}

impl AccessError {
    /// Whether a permission is missing.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Ecr(EcrError::Denied { .. }))
    }

    /// The hint for the operator.
    pub fn hint(&self) -> String {
        match self {
            Self::File { path, .. } | Self::DockerConfig { path, .. } => {
                format!("`{}` is named in the settings", path.display())
            }
            Self::Ecr(err) => err.hint(),
        }
    }
}

/// Why [`Access::run`] failed.
#[derive(Debug)]
pub enum Failed<E> {
    /// The credentials could not be obtained.
    Login(AccessError),
    /// The work's own error, of its last attempt.
    Work(E),
}

impl Access {
    pub(crate) fn new(sources: Sources) -> Self {
        Self(Arc::new(sources))
    }

    /// Access to a fake ECR, in tests: registry and AWS are at the given addresses.
    pub fn to_fake(ecr: Ecr, host: EcrHost) -> Self {
        Self::new(Sources { ecr, fake_ecr: Some(host), ..Sources::default() })
    }

    /// The credentials for this registry; `None` when it is used anonymously.
    ///
    /// # Errors
    /// When there should be credentials, and they cannot be obtained.
    pub async fn login(&self, host: &Host) -> Result<Option<Login>, AccessError> {
        self.login_unless(host, None).await
    }

    /// Runs `work` with the credentials for `host`; when the registry refused them (`is_refused`),
    /// once more with other ones, if there are any: a token that expired, or a password that was
    /// just replaced.
    ///
    /// # Errors
    /// No credentials, or the work's own error.
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
        match self.login_unless(host, Some(&refused)).await {
            Ok(Some(fresh)) if fresh != refused => {
                tracing::info!(registry = %host, "Registry refused the credentials; trying once more with fresh ones.");
                work(Some(fresh)).await.map_err(Failed::Work)
            }
            Ok(_) => Err(Failed::Work(err)),
            Err(why) => {
                // The registry's refusal says more than the failed search for other credentials.
                tracing::warn!(registry = %host, error = %Chain(&why), "Fresh credentials for the registry could not be obtained.");
                Err(Failed::Work(err))
            }
        }
    }

    /// Creates the repository at this path if it is missing, where the registry does not create one
    /// by itself.
    ///
    /// # Errors
    /// When it could not be created.
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

    async fn login_unless(
        &self,
        host: &Host,
        refused: Option<&Login>,
    ) -> Result<Option<Login>, AccessError> {
        if let Some((_, own)) = self.0.own.as_ref().filter(|(own, _)| own == host) {
            let password = match own {
                OwnCredentials::Password { password, .. } => password.clone(),
                OwnCredentials::File { path, .. } => {
                    Secret::new(read(path).await?.trim().to_owned())
                }
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
            // The SDK's futures are deep and large; boxed, those of waiting callers need not be.
            None => Box::pin(self.0.ecr.token(&ecr)).await?,
            Some(refused) => Box::pin(self.0.ecr.token_after(&ecr, &refused.password)).await?,
        };
        Ok(Some(Login { user: ecr::USER.to_owned(), password }))
    }

    fn ecr(&self, host: &Host) -> Option<EcrHost> {
        let fake_ecr = self.0.fake_ecr.as_ref().filter(|ecr| ecr.to_string() == host.as_str());
        fake_ecr.cloned().or_else(|| EcrHost::parse(host.as_str()))
    }
}

async fn read(path: &Path) -> Result<String, AccessError> {
    let failed = |source| AccessError::File { path: path.to_owned(), source };
    tokio::fs::read_to_string(path).await.map_err(failed)
}

#[cfg(test)]
mod tests;
