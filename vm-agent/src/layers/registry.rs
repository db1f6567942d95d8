//! Fetches layers from a registry: the blob beside the function's image, by digest. Credentials are
//! those of pulls, and so are certificates: what this machine's engine trusts
//! (`/etc/docker/certs.d/HOST`) is trusted here.
//!
//! Pulls of whole images are the engine's job (`crate::registry`).

use crate::engine::{EngineError, ImageUnavailable};
use bytes::Bytes;
use epsilon_api::function::{Blob, ImageRef};
use epsilon_registry::{Access, Failed, Host, Login, RegistryFailure};
use futures_util::{future::BoxFuture, stream::BoxStream};
use oci_client::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where engines look for certificates.
pub(super) const CERTIFICATES: &str = "/etc/docker/certs.d";
/// Limit of cached clients, one for each registry; a fleet has one registry.
const MAX_CLIENTS: usize = 16;

/// Clients for registries.
#[derive(Debug)]
pub(super) struct Registries {
    access: Access,
    /// Use plain HTTP with all of them.
    plain: bool,
    certificates: PathBuf,
    /// Timeout of a connect, and of a silent connection.
    timeout: Duration,
    /// The last client of each registry, with its credentials: new credentials need a new client,
    /// because a client caches the token that it got.
    clients: Mutex<HashMap<Host, (Option<Login>, RegistryClient)>>,
}

#[derive(Clone)]
struct RegistryClient {
    client: Client,
    login: Option<Login>,
}

impl std::fmt::Debug for RegistryClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryClient").finish_non_exhaustive()
    }
}

/// The bytes of a blob. Ends with an error if they do not match its digest.
pub(super) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Why a registry provided nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The credentials could not be obtained.
    #[error("there are no credentials for the registry")]
    Login(#[source] epsilon_registry::AccessError),
    /// The registry's answer, or an error of the network.
    #[error(transparent)]
    Oci(#[from] OciDistributionError),
    /// The image's reference is invalid.
    #[error("`{0}` names no registry")]
    Name(String),
    /// Reading the certificates failed.
    #[error("the certificates for it cannot be read")]
    Certificates(#[source] io::Error),
}

impl Registries {
    pub(super) fn new(access: Access, plain: bool, certificates: &Path, timeout: Duration) -> Self {
        let certificates = certificates.to_owned();
        Self { access, plain, certificates, timeout, clients: Mutex::default() }
    }

    /// Opens a blob of the repository that the image is in.
    ///
    /// Boxed: the futures of waiting starts need not be as large as a cloud login.
    pub(super) fn open<'a>(
        &'a self,
        image: &'a ImageRef,
        blob: &'a Blob,
    ) -> BoxFuture<'a, Result<Pieces, FetchError>> {
        Box::pin(self.find(image, blob))
    }

    async fn find(&self, image: &ImageRef, blob: &Blob) -> Result<Pieces, FetchError> {
        let reference: Reference =
            image.reference.parse().map_err(|_| FetchError::Name(image.reference.clone()))?;
        let host = Host::named_in(&image.reference)
            .ok_or_else(|| FetchError::Name(image.reference.clone()))?;
        let work = |login| {
            let registry_client = self.registry_client(&host, login);
            let reference = &reference;
            async move { registry_client?.open(reference, &blob.digest).await }
        };
        self.access.run(&host, FetchError::is_login, work).await.map_err(|failed| match failed {
            Failed::Login(err) => FetchError::Login(err),
            Failed::Work(err) => err,
        })
    }

    fn registry_client(
        &self,
        host: &Host,
        login: Option<Login>,
    ) -> Result<RegistryClient, FetchError> {
        if let Some((known, registry_client)) = self.clients.lock().get(host)
            && *known == login
        {
            return Ok(registry_client.clone());
        }
        let authorities = authorities(&self.certificates.join(host.as_str()))?;
        let is_plain = self.plain || (host.is_loopback() && authorities.is_empty());
        let client = Client::try_from(ClientConfig {
            protocol: if is_plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: authorities,
            connect_timeout: Some(self.timeout),
            read_timeout: Some(self.timeout),
            ..ClientConfig::default()
        })?;
        let registry_client = RegistryClient { client, login: login.clone() };
        let mut clients = self.clients.lock();
        if clients.len() >= MAX_CLIENTS {
            clients.clear(); // a new client costs a connection
        }
        clients.insert(host.clone(), (login, registry_client.clone()));
        Ok(registry_client)
    }
}

impl RegistryClient {
    async fn open(&self, reference: &Reference, digest: &str) -> Result<Pieces, FetchError> {
        let auth = match &self.login {
            Some(login) => RegistryAuth::Basic(login.user.clone(), login.password.reveal().clone()),
            None => RegistryAuth::Anonymous,
        };
        let registry = reference.resolve_registry();
        if self.login.is_some() {
            self.client.store_auth_if_needed(registry, &auth).await;
        }
        let pulled =
            self.client.pull_blob_stream(reference, digest).await.map_err(FetchError::from);
        let pulled = match pulled {
            // Some registries want a token even for anonymous requests. Most do not, so it is only
            // fetched then.
            Err(err) if self.login.is_none() && err.is_login() => {
                self.client.store_auth_if_needed(registry, &auth).await;
                self.client.pull_blob_stream(reference, digest).await?
            }
            pulled => pulled?,
        };
        Ok(pulled.stream)
    }
}

impl FetchError {
    fn is_login(&self) -> bool {
        matches!(self, Self::Oci(err) if classify(err) == RegistryFailure::Refused)
    }
}

fn classify(err: &OciDistributionError) -> RegistryFailure {
    use OciDistributionError::{
        AuthenticationFailure, RegistryError, ServerError, UnauthorizedError,
    };
    match err {
        UnauthorizedError { .. } | AuthenticationFailure(_) => RegistryFailure::Refused,
        ServerError { code: 403, .. } => RegistryFailure::Refused,
        RegistryError { envelope, .. } => {
            let has = |codes: &[OciErrorCode]| {
                envelope.errors.iter().any(|error| codes.contains(&error.code))
            };
            if has(&[OciErrorCode::Denied, OciErrorCode::Unauthorized]) {
                RegistryFailure::Refused
            } else {
                RegistryFailure::Absent
            }
        }
        other => RegistryFailure::of(&epsilon_api::chain::Chain(other).to_string()),
    }
}

/// Whether the stream ended because its content does not match the digest.
pub(super) fn is_other_content(err: &(dyn Error + 'static)) -> bool {
    let inner = err.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| inner.is::<DigestError>())
}

/// The error for a layer that arrived corrupt twice.
pub(super) fn corrupt(
    image: &ImageRef,
    blob: &Blob,
    source: Box<dyn Error + Send + Sync>,
) -> EngineError {
    EngineError::Registry(Box::new(ImageUnavailable {
        host: Host::of(&image.reference),
        what: format!("gave a layer twice that does not match its digest {}", blob.digest),
        hint: "it, or a proxy before it, corrupts its content: check its disk, then deploy the \
               function again"
            .into(),
        source: Some(source),
    }))
}

/// The certificates that the engine trusts for this registry, in PEM.
fn authorities(folder: &Path) -> Result<Vec<Certificate>, FetchError> {
    let read = || -> io::Result<Vec<Certificate>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // `.cert` is a client certificate of the engine.
            if path.extension().is_some_and(|kind| kind == "crt") {
                let data = fs::read(&path)?;
                found.push(Certificate { encoding: CertificateEncoding::Pem, data });
            }
        }
        Ok(found)
    };
    read().or_else(|err| match err.kind() {
        io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => Err(FetchError::Certificates(err)),
    })
}
