//! Fetches layers from a registry: the blob beside the function's image, by digest. Credentials are
//! those of pulls, and so are certificates: what this machine's engine trusts
//! (`/etc/docker/certs.d/HOST`) is trusted here.
//!
//! Pulls of whole images are the engine's job (`crate::registry`).

use crate::engine::{Denied, EngineError};
use bytes::Bytes;
use epsilon_api::function::{Blob, ImageRef};
use epsilon_registry::{Access, Failed, Host, Login, Trouble};
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
const KEPT: usize = 16;

/// Clients for registries.
#[derive(Debug)]
pub(super) struct Registries {
    access: Access,
    /// Use plain HTTP with all of them.
    plain: bool,
    certificates: PathBuf,
    /// Timeout of a connect, and of a silent connection.
    patience: Duration,
    /// The last client of each registry, with its credentials: new credentials need a new client,
    /// because a client caches the token that it got.
    ways: Mutex<HashMap<Host, (Option<Login>, Way)>>,
}

#[derive(Clone)]
struct Way {
    client: Client,
    login: Option<Login>,
}

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Way").finish_non_exhaustive()
    }
}

/// The bytes of a blob. Ends with an error if they do not match its digest.
pub(super) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Why a registry provided nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The credentials could not be obtained.
    #[error("there are no credentials for the registry")]
    Login(#[source] epsilon_registry::AccessError),
    /// The registry's answer, or an error of the network.
    #[error(transparent)]
    Said(#[from] OciDistributionError),
    /// The image's reference is invalid.
    #[error("`{0}` names no registry")]
    Name(String),
    /// Reading the certificates failed.
    #[error("the certificates for it cannot be read")]
    Certificates(#[source] io::Error),
}

impl Registries {
    pub(super) fn new(
        access: Access,
        plain: bool,
        certificates: &Path,
        patience: Duration,
    ) -> Self {
        let certificates = certificates.to_owned();
        Self { access, plain, certificates, patience, ways: Mutex::default() }
    }

    /// Opens a blob of the repository that the image is in.
    ///
    /// Boxed: the futures of waiting starts need not be as large as a cloud login.
    pub(super) fn open<'a>(
        &'a self,
        image: &'a ImageRef,
        blob: &'a Blob,
    ) -> BoxFuture<'a, Result<Pieces, Refusal>> {
        Box::pin(self.find(image, blob))
    }

    async fn find(&self, image: &ImageRef, blob: &Blob) -> Result<Pieces, Refusal> {
        let reference: Reference =
            image.reference.parse().map_err(|_| Refusal::Name(image.reference.clone()))?;
        let host = Host::named_in(&image.reference)
            .ok_or_else(|| Refusal::Name(image.reference.clone()))?;
        let work = |login| {
            let way = self.way(&host, login);
            let reference = &reference;
            async move { way?.open(reference, &blob.digest).await }
        };
        self.access.run(&host, Refusal::is_login, work).await.map_err(|failed| match failed {
            Failed::Login(err) => Refusal::Login(err),
            Failed::Work(err) => err,
        })
    }

    fn way(&self, host: &Host, login: Option<Login>) -> Result<Way, Refusal> {
        if let Some((known, way)) = self.ways.lock().get(host)
            && *known == login
        {
            return Ok(way.clone());
        }
        let authorities = authorities(&self.certificates.join(host.as_str()))?;
        let is_plain = self.plain || (host.is_loopback() && authorities.is_empty());
        let client = Client::try_from(ClientConfig {
            protocol: if is_plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: authorities,
            connect_timeout: Some(self.patience),
            read_timeout: Some(self.patience),
            ..ClientConfig::default()
        })?;
        let way = Way { client, login: login.clone() };
        let mut ways = self.ways.lock();
        if ways.len() >= KEPT {
            ways.clear(); // a new client costs a connection
        }
        ways.insert(host.clone(), (login, way.clone()));
        Ok(way)
    }
}

impl Way {
    async fn open(&self, reference: &Reference, digest: &str) -> Result<Pieces, Refusal> {
        let auth = match &self.login {
            Some(login) => RegistryAuth::Basic(login.user.clone(), login.password.reveal().clone()),
            None => RegistryAuth::Anonymous,
        };
        let registry = reference.resolve_registry();
        if self.login.is_some() {
            self.client.store_auth_if_needed(registry, &auth).await;
        }
        let asked = self.client.pull_blob_stream(reference, digest).await.map_err(Refusal::from);
        let asked = match asked {
            // Some registries want a token even for anonymous requests. Most do not, so it is only
            // fetched then.
            Err(err) if self.login.is_none() && err.is_login() => {
                self.client.store_auth_if_needed(registry, &auth).await;
                self.client.pull_blob_stream(reference, digest).await?
            }
            asked => asked?,
        };
        Ok(asked.stream)
    }
}

impl Refusal {
    fn is_login(&self) -> bool {
        matches!(self, Self::Said(err) if trouble(err) == Trouble::Refused)
    }
}

fn trouble(err: &OciDistributionError) -> Trouble {
    use OciDistributionError::{
        AuthenticationFailure, RegistryError, ServerError, UnauthorizedError,
    };
    match err {
        UnauthorizedError { .. } | AuthenticationFailure(_) => Trouble::Refused,
        ServerError { code: 403, .. } => Trouble::Refused,
        RegistryError { envelope, .. } => {
            let has = |codes: &[OciErrorCode]| {
                envelope.errors.iter().any(|error| codes.contains(&error.code))
            };
            if has(&[OciErrorCode::Denied, OciErrorCode::Unauthorized]) {
                Trouble::Refused
            } else {
                Trouble::Absent
            }
        }
        other => Trouble::of(&epsilon_api::chain::Chain(other).to_string()),
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
    EngineError::Registry(Box::new(Denied {
        host: Host::of(&image.reference),
        what: format!("gave a layer twice that does not match its digest {}", blob.digest),
        hint: "it, or a proxy before it, corrupts its content: check its disk, then deploy the \
               function again"
            .into(),
        source: Some(source),
    }))
}

/// The certificates that the engine trusts for this registry, in PEM.
fn authorities(folder: &Path) -> Result<Vec<Certificate>, Refusal> {
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
        _ => Err(Refusal::Certificates(err)),
    })
}
