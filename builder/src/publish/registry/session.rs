//! Sessions with one registry: protocol and certificates, current login, a time limit for each
//! step, and error texts. Knows nothing of images; `registry.rs` pushes them.

use crate::{
    config::Registry,
    error::{self, Hint},
};
use epsilon_api::{build::BuildError, chain::Chain};
use epsilon_registry::{AccessError, Failed, Host, Login, RegistryFailure};
use oci_client::{
    Client,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use parking_lot::Mutex;
use std::{collections::HashSet, time::Duration};

/// A registry client: creates sessions.
pub(crate) struct RegistryClient {
    host: Host,
    settings: Registry,
    /// The last session and its login; a new login needs a new session, because a client caches its
    /// tokens.
    last: Mutex<Option<(Option<Login>, Session)>>,
    /// Repositories that are known to exist.
    known_repositories: Mutex<HashSet<String>>,
}

/// A session. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) auth: RegistryAuth,
    /// For requests that the client does not support.
    pub(crate) http: reqwest::Client,
    is_plain: bool,
    host: Host,
    limit: Duration,
}

/// Why work with a registry failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of the registry. `doing` completes "while …".
    Registry { doing: &'static str, host: Host, source: Box<OciDistributionError> },
    /// Any other error, ready for the developer.
    Reported(BuildError),
}

impl From<BuildError> for Failure {
    fn from(err: BuildError) -> Self {
        Self::Reported(err)
    }
}

impl RegistryClient {
    pub(crate) fn new(settings: Registry) -> Self {
        let host = Host::of_registry(&settings.name);
        Self { host, settings, last: Mutex::default(), known_repositories: Mutex::default() }
    }

    /// The registry's host.
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Runs work in a session; once more with a fresh login when the registry refuses the first.
    pub(crate) async fn run<T, F>(&self, work: impl Fn(Session) -> F) -> Result<T, BuildError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let done = self.settings.access.run(&self.host, Failure::is_refusal, |login| {
            let session = self.session(login);
            let work = &work;
            async move { work(session?).await }
        });
        done.await.map_err(|failed| match failed {
            Failed::Login(err) => self.no_login(&err),
            Failed::Work(failure) => failure.into_error(),
        })
    }

    /// Ensures that a repository exists, for registries that do not create it with the first push.
    /// Without the permission to check, the push reports it.
    pub(crate) async fn ensure_repository(&self, repository: &str) -> Result<(), BuildError> {
        if self.known_repositories.lock().contains(repository) {
            return Ok(());
        }
        let path = repository.split_once('/').map_or("", |(_, path)| path);
        match self.settings.access.ensure_repository(&self.host, path, &self.settings.keep).await {
            Ok(()) => {}
            Err(err) if err.is_denied() => {
                tracing::warn!(repository, error = %Chain(&err), hint = err.hint(), "Repository could not be checked; assuming that it exists.");
            }
            Err(err) => return Err(self.no_login(&err)),
        }
        self.known_repositories.lock().insert(repository.to_owned());
        Ok(())
    }

    fn session(&self, login: Option<Login>) -> Result<Session, Failure> {
        let mut last = self.last.lock();
        if let Some((known, session)) = &*last
            && *known == login
        {
            return Ok(session.clone());
        }
        let settings = &self.settings;
        let is_plain =
            settings.plain_http || (self.host.is_loopback() && settings.authorities.is_empty());
        let authority = |pem: &String| Certificate {
            encoding: CertificateEncoding::Pem,
            data: pem.clone().into_bytes(),
        };
        let client = Client::try_from(ClientConfig {
            protocol: if is_plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: settings.authorities.iter().map(authority).collect(),
            // In one piece each. ECR answers chunks with 201, loses all but the first, and requires
            // 5 MiB of each.
            use_monolithic_push: true,
            connect_timeout: Some(settings.timeout),
            read_timeout: Some(settings.timeout),
            ..ClientConfig::default()
        });
        let client = client.map_err(|err| error::broken("creating a registry client", &err))?;
        let auth = match &login {
            Some(login) => RegistryAuth::Basic(login.user.clone(), login.password.reveal().clone()),
            None => RegistryAuth::Anonymous,
        };
        let http = plain_client(settings)
            .map_err(|err| error::broken("creating a registry client", &err))?;
        let host = self.host.clone();
        let limit = settings.timeout;
        let session = Session { client, auth, http, is_plain, host, limit };
        *last = Some((login, session.clone()));
        Ok(session)
    }

    fn no_login(&self, err: &AccessError) -> BuildError {
        tracing::error!(registry = %self.host, error = %Chain(err), hint = err.hint(), "No login for the registry; the build is refused.");
        error::registry_failed(format!("the builder has no login for the registry `{}`", self.host))
            .hint("the builder's log says why")
    }
}

impl Session {
    /// Runs one step within the limit.
    pub(crate) async fn with_limit<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => {
                Err(Failure::Registry { doing, host: self.host.clone(), source: Box::new(source) })
            }
            Err(_) => Err(Failure::Reported(
                error::registry_failed(format!(
                    "the registry `{}` did not answer within {:?} while {doing}",
                    self.host, self.limit
                ))
                .hint("the limit is `builder.registry_timeout`"),
            )),
        }
    }

    /// The URL of a path below `/v2/`.
    pub(crate) fn url(&self, path: &str) -> String {
        let scheme = if self.is_plain { "http" } else { "https" };
        format!("{scheme}://{}/v2/{path}", self.host)
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }
}

impl Failure {
    fn is_refusal(&self) -> bool {
        self.kind() == Some(RegistryFailure::Refused)
    }

    fn kind(&self) -> Option<RegistryFailure> {
        let Self::Registry { source, .. } = self else { return None };
        Some(match &**source {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => RegistryFailure::Refused,
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| {
                    matches!(error.code, OciErrorCode::Denied | OciErrorCode::Unauthorized)
                }) =>
            {
                RegistryFailure::Refused
            }
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| error.code == OciErrorCode::NameUnknown) =>
            {
                RegistryFailure::Absent
            }
            other => RegistryFailure::of(&Chain(other).to_string()),
        })
    }

    fn into_error(self) -> BuildError {
        let kind = self.kind();
        let (doing, host, source) = match self {
            Self::Reported(err) => return err,
            Self::Registry { doing, host, source } => (doing, host, source),
        };
        tracing::error!(doing, registry = %host, error = %Chain(&*source), "Registry failed; the build is refused.");
        let (what, hint) = match kind.unwrap_or(RegistryFailure::Other) {
            RegistryFailure::Refused => (
                "refused the builder's login, or requires one",
                "check `builder.registry_user` and its password, `builder.registry_docker_config`, or the \
                 machine's role for ECR",
            ),
            RegistryFailure::Absent => (
                "does not have the repository",
                "create it, or give the machine's role `ecr:CreateRepository`",
            ),
            RegistryFailure::Unreachable => {
                ("cannot be reached", "check that it runs, and that the builder reaches it")
            }
            RegistryFailure::UnknownAuthority => (
                "has a certificate that the builder does not trust",
                "name its authority in `builder.registry_ca`",
            ),
            RegistryFailure::PlainHttp => (
                "speaks plain HTTP",
                "give it a certificate, or set `builder.dangerous_registry_plain_http`",
            ),
            RegistryFailure::DiskFull => ("has no room", "free space there"),
            RegistryFailure::Other => ("failed", "the builder's log says why"),
        };
        error::registry_failed(format!("the registry `{host}` {what} (while {doing})")).hint(hint)
    }
}

fn plain_client(settings: &Registry) -> Result<reqwest::Client, reqwest::Error> {
    let builder =
        settings.authorities.iter().try_fold(reqwest::Client::builder(), |builder, pem| {
            Ok::<_, reqwest::Error>(
                builder.add_root_certificate(reqwest::Certificate::from_pem(pem.as_bytes())?),
            )
        })?;
    builder.connect_timeout(settings.timeout).timeout(settings.timeout).build()
}
