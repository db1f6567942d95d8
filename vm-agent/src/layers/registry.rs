//! Layers from a registry: the blob beside the function's image, by digest. The logins are those of pulls, and so are the
//! certificates: what this machine's engine trusts (`/etc/docker/certs.d/HOST`) is trusted here.
//!
//! Pulls themselves are the engine's (`crate::registry`): it takes whole images.

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

/// Where engines find certificates.
pub(super) const CERTIFICATES: &str = "/etc/docker/certs.d";
/// Registries whose connections are kept; a fleet has one.
const KEPT: usize = 16;

/// The ways to registries.
#[derive(Debug)]
pub(super) struct Registries {
    access: Access,
    /// Plain HTTP with all of them.
    plain: bool,
    certificates: PathBuf,
    /// The longest silence.
    patience: Duration,
    /// The last way to each, with its login: a new login is a new way, because a client keeps what it was let in with.
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

/// The bytes of a blob. An error at the end says that they were others than the digest's.
pub(super) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Why a registry gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It is not ours to be met.
    #[error("there is no login for the registry")]
    Login(#[source] epsilon_registry::AccessError),
    /// The registry's doing, or that of what lies between.
    #[error(transparent)]
    Said(#[from] OciDistributionError),
    /// Its name is none.
    #[error("`{0}` names no registry")]
    Name(String),
    /// The files of certificates.
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

    /// A blob of the repository that the image is in.
    ///
    /// Boxed: those who wait for a start need not be as large, nor as deep, as a cloud's login.
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
            let (way, reference) = (self.way(&host, login), &reference);
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
            ways.clear(); // they cost a connection to make anew
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
            // Some want even strangers to ask for a token first. Most do not: they are asked once.
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

/// Whether the sender's last word is that it sent something else.
pub(super) fn is_other_content(err: &(dyn Error + 'static)) -> bool {
    let inner = err.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| inner.is::<DigestError>())
}

/// A layer that arrived twice as what it is not.
pub(super) fn corrupt(
    image: &ImageRef,
    blob: &Blob,
    source: Box<dyn Error + Send + Sync>,
) -> EngineError {
    EngineError::Registry(Box::new(Denied {
        host: Host::of(&image.reference),
        what: format!("gave a layer twice that is not what its digest {} says", blob.digest),
        hint: "it, or what lies between, changes what it keeps: look at its disk, then deploy the \
               function again"
            .into(),
        source: Some(source),
    }))
}

/// The certificates that an engine trusts for this registry, in PEM.
fn authorities(folder: &Path) -> Result<Vec<Certificate>, Refusal> {
    let read = || -> io::Result<Vec<Certificate>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            // `.cert` is the engine's own, for registries that ask who it is.
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
