//! TLS between the parts of a fleet, from three PEM files of the operator: an own certificate, its
//! key, and the authority that signed all certificates of the fleet. Both sides present theirs; a
//! peer without a certificate of that authority is refused. Only the gateway's control listener
//! also accepts clients without one (people, collectors, git), and knows of each connection whether
//! a certificate was presented. Its public listener, where it uses TLS, requests none.
//!
//! TLS decides who may connect at all, and encrypts. Which gateway sends a request is proven by its
//! token, which member by its credential. Without the files the fleet uses plain HTTP.
//!
//! Handshakes have no time limit here: callers put their own around them.

pub use epsilon_http_server::tls::Server;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientCertVerifierBuilder, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
};
use rustls_pki_types::{
    CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};
use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client};

/// Paths of the three files; settings `tls_certificate`, `tls_key`, `tls_authority` of each part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Our certificate, followed by intermediate ones, if any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the trusted authorities.
    pub authority: PathBuf,
}

/// Why TLS is not possible with these files. For the operator.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Some of the three settings are set, some are not.
    #[error("`tls_certificate`, `tls_key` and `tls_authority` are set together or not at all")]
    Incomplete,
    /// None of them is set, and an address needs TLS.
    #[error(
        "`https://` needs the settings `tls_certificate`, `tls_key` and `tls_authority`; set them, or write `http://`"
    )]
    Needed,
    /// A file that is not there, or not PEM, or holds something else.
    #[error("`{}` cannot be read, or does not hold {what} in PEM", path.display())]
    File {
        /// The file of the setting.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The parser's error.
        #[source]
        source: pem::Error,
    },
    /// A certificate that cannot be used, or a key that does not belong to it.
    #[error("`{}` cannot be used", path.display())]
    Unusable {
        /// The file of the setting.
        path: PathBuf,
        /// The error of rustls.
        #[source]
        source: rustls::Error,
    },
    /// The authority's file holds no usable certificate.
    #[error("`{}` holds no authority that could be trusted", path.display())]
    Authority {
        /// The file of `tls_authority`.
        path: PathBuf,
        /// The error of rustls.
        #[source]
        source: VerifierBuilderError,
    },
}

impl Files {
    /// From the three settings: all of them, or none.
    ///
    /// # Errors
    /// [`TlsError::Incomplete`].
    pub fn from_settings(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
    ) -> Result<Option<Self>, TlsError> {
        match (certificate, key, authority) {
            (Some(certificate), Some(key), Some(authority)) => {
                Ok(Some(Self { certificate, key, authority }))
            }
            (None, None, None) => Ok(None),
            _ => Err(TlsError::Incomplete),
        }
    }

    /// TLS for a listener that only accepts clients with a certificate of the authority.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server(&self) -> Result<Server, TlsError> {
        self.listener(|callers| callers)
    }

    /// TLS for a listener that also accepts clients without a certificate. One that is presented
    /// must be of the authority; [`epsilon_http_server::tls::shows_certificate`] returns whether there was one.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_with_optional_client_certificate(&self) -> Result<Server, TlsError> {
        self.listener(ClientCertVerifierBuilder::allow_unauthenticated)
    }

    /// TLS for a listener that requests no certificate of its clients.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_for_callers(&self) -> Result<Server, TlsError> {
        self.listening(WebPkiClientVerifier::no_client_auth())
    }

    fn listener(
        &self,
        policy: impl FnOnce(ClientCertVerifierBuilder) -> ClientCertVerifierBuilder,
    ) -> Result<Server, TlsError> {
        let authority = Arc::new(self.roots()?);
        let callers = WebPkiClientVerifier::builder_with_provider(authority, provider());
        let callers = policy(callers).build();
        self.listening(
            callers
                .map_err(|source| TlsError::Authority { path: self.authority.clone(), source })?,
        )
    }

    fn listening(&self, callers: Arc<dyn ClientCertVerifier>) -> Result<Server, TlsError> {
        let (chain, key) = (self.chain()?, self.private_key()?);
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config.with_client_cert_verifier(callers).with_single_cert(chain, key)
            })
            .map_err(|source| TlsError::Unusable { path: self.certificate.clone(), source })?;
        Ok(Server::new(config))
    }

    /// TLS for connections that we open. Presents our certificate; the server's must be of the
    /// authority and name the requested host.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn client(&self) -> Result<Client, TlsError> {
        let authority = self.roots()?;
        let chain = self.chain()?;
        let key = self.private_key()?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config.with_root_certificates(authority).with_client_auth_cert(chain, key)
            })
            .map_err(|source| TlsError::Unusable { path: self.certificate.clone(), source })?;
        Ok(Client(TlsConnector::from(Arc::new(config))))
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates(&self.certificate)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::File {
            path: self.key.clone(),
            what: "a private key",
            source,
        })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            roots
                .add(certificate)
                .map_err(|source| TlsError::Unusable { path: self.authority.clone(), source })?;
        }
        Ok(roots)
    }
}

/// The one provider, named explicitly: with a second one in the dependency graph the default would
/// panic.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File { path: path.to_owned(), what: "a certificate", source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(file)?;
    if found.is_empty() { Err(file(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Opens TLS connections. Cheap to clone.
#[derive(Clone)]
pub struct Client(TlsConnector);

impl Client {
    /// TLS handshake with this host: a name or an address, without a port.
    ///
    /// # Errors
    /// When the server's certificate does not name that host or is not of the authority, or it
    /// hangs up.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|err: InvalidDnsNameError| io::Error::new(io::ErrorKind::InvalidInput, err))?;
        self.0.connect(name, stream).await
    }
}

/// Explains a connection error that is about a certificate, in terms of settings and files instead
/// of TLS alerts. Searches `err` and its sources.
pub fn explain(err: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(err);
    while let Some(one) = cause {
        let inner = one.downcast_ref::<io::Error>().and_then(|err| err.get_ref());
        let tls = one
            .downcast_ref()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if let Some(words) = tls.and_then(certificate_error) {
            return Some(words);
        }
        cause = one.source();
    }
    None
}

fn certificate_error(err: &rustls::Error) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as E};
    Some(match err {
        E::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired"
        }
        E::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet by this machine's clock"
        }
        // The second one: an authority that was recreated under the same name.
        E::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is not of the authority in `tls_authority`"
        }
        E::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate does not name the address that it is reached at"
        }
        // The peer sends the same alert for a certificate that is not valid yet.
        E::AlertReceived(Alert::CertificateExpired) => {
            "it reports that our certificate has expired, or is not valid yet by its clock"
        }
        E::AlertReceived(Alert::UnknownCA) => {
            "it reports that our certificate is not of its authority"
        }
        _ => return None,
    })
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tls::Client")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use epsilon_http_server::tls::shows_certificate;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use std::fs;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// An authority and the certificates that it signs, in a folder.
    pub(crate) struct Authority {
        folder: TempDir,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let own = params.self_signed(&key).unwrap();
            fs::write(folder.path().join("authority.pem"), own.pem()).unwrap();
            Self { folder, issuer: Issuer::new(params, key) }
        }

        pub(crate) fn files(&self, name: &str) -> Files {
            self.signed(name, CertificateParams::new([name.to_owned()]).unwrap())
        }

        /// The same, with an expiry time.
        pub(crate) fn files_until(&self, name: &str, end: jiff::Timestamp) -> Files {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.not_after = std::time::SystemTime::from(end).into();
            self.signed(name, params)
        }

        fn signed(&self, name: &str, params: CertificateParams) -> Files {
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let path = |kind: &str| self.folder.path().join(format!("{name}.{kind}.pem"));
            fs::write(path("certificate"), certificate.pem()).unwrap();
            fs::write(path("key"), key.serialize_pem()).unwrap();
            Files {
                certificate: path("certificate"),
                key: path("key"),
                authority: self.folder.path().join("authority.pem"),
            }
        }
    }

    /// Sends a byte from one side to the other and back.
    async fn serve_connection(server: &Server, client: &Client, host: &str) -> io::Result<()> {
        let (near, far) = duplex(16 << 10);
        let serve = async {
            let mut stream = server.accept(far).await?;
            let byte = stream.read_u8().await?;
            stream.write_u8(byte + 1).await?;
            stream.shutdown().await
        };
        let ask = async {
            let mut stream = client.connect(host, near).await?;
            stream.write_u8(6).await?;
            assert_eq!(stream.read_u8().await?, 7);
            Ok(())
        };
        let (served, answered) = tokio::join!(serve, ask);
        served.and(answered)
    }

    #[tokio::test]
    async fn two_of_one_authority_speak() {
        let fleet = Authority::new();
        let (agent, gateway) = (fleet.files("127.0.0.1"), fleet.files("gateway.internal"));
        serve_connection(&agent.server().unwrap(), &gateway.client().unwrap(), "127.0.0.1")
            .await
            .unwrap();
        serve_connection(&gateway.server().unwrap(), &agent.client().unwrap(), "gateway.internal")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn an_address_in_brackets_is_the_address() {
        let fleet = Authority::new();
        let files = fleet.files("::1");
        serve_connection(&files.server().unwrap(), &files.client().unwrap(), "[::1]")
            .await
            .unwrap();
    }

    /// A client that knows the authority and presents no certificate.
    fn anonymous(files: &Files) -> Client {
        let anonymous = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(files.roots().unwrap())
            .with_no_client_auth();
        Client(TlsConnector::from(Arc::new(anonymous)))
    }

    #[tokio::test]
    async fn presented_certificate_is_known_also_when_resumed() {
        let (fleet, others) = (Authority::new(), Authority::new());
        let files = fleet.files("127.0.0.1");
        let server = files.server_with_optional_client_certificate().unwrap();
        for (client, is_member) in [(files.client().unwrap(), true), (anonymous(&files), false)] {
            for turn in ["first", "resumed"] {
                let (near, far) = duplex(16 << 10);
                let serve = async {
                    let mut stream = server.accept(far).await.unwrap();
                    stream.write_u8(7).await.unwrap();
                    stream.shutdown().await.unwrap();
                    shows_certificate(&stream)
                };
                let ask = async {
                    let mut stream = client.connect("127.0.0.1", near).await.unwrap();
                    assert_eq!(stream.read_u8().await.unwrap(), 7); // the session ticket arrives before it
                    stream.get_ref().1.handshake_kind()
                };
                let (shown, kind) = tokio::join!(serve, ask);
                assert_eq!(shown, is_member, "{turn}");
                let resumed = kind == Some(rustls::HandshakeKind::Resumed);
                assert_eq!(resumed, turn == "resumed");
            }
        }
        let foreign = Files { authority: files.authority.clone(), ..others.files("127.0.0.1") };
        assert!(serve_connection(&server, &foreign.client().unwrap(), "127.0.0.1").await.is_err());
    }

    #[tokio::test]
    async fn a_caller_without_a_certificate_is_refused() {
        let fleet = Authority::new();
        let files = fleet.files("127.0.0.1");
        let anonymous = anonymous(&files);
        let err =
            serve_connection(&files.server().unwrap(), &anonymous, "127.0.0.1").await.unwrap_err();
        assert!(err.to_string().contains("no certificates"), "{err}");
    }

    #[tokio::test]
    async fn certificate_errors_are_explained_in_words() {
        let (fleet, others) = (Authority::new(), Authority::new());
        let good = fleet.files("127.0.0.1");
        let ended = fleet.files_until("ended", "1980-01-01T00:00:00Z".parse().unwrap());
        let foreign = Files { authority: good.authority.clone(), ..others.files("other") }.server();
        for (server, host, words) in [
            (fleet.files("x").server(), "127.0.0.1", "does not name the address"),
            (ended.server(), "ended", "its certificate has expired"),
            (foreign, "other", "not of the authority"),
        ] {
            let (near, far) = duplex(16 << 10);
            let (server, client) = (server.unwrap(), good.client().unwrap());
            let (connected, _) = tokio::join!(client.connect(host, near), server.accept(far));
            let error = explain(&connected.err().unwrap());
            assert!(error.is_some_and(|error| error.contains(words)), "{host}: {error:?}");
        }
        // A server checks our certificate after our handshake has ended.
        let (near, far) = duplex(16 << 10);
        let (server, client) = (good.server().unwrap(), ended.client().unwrap());
        let ask = async {
            let mut stream = client.connect("127.0.0.1", near).await?;
            stream.read_u8().await
        };
        let (answered, served) = tokio::join!(ask, server.accept(far));
        assert!(served.is_err());
        let error = explain(&answered.unwrap_err());
        assert!(
            error.is_some_and(|error| error.contains("our certificate has expired")),
            "{error:?}"
        );
        assert_eq!(explain(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }

    #[tokio::test]
    async fn a_caller_of_another_authority_is_refused() {
        let (fleet, others) = (Authority::new(), Authority::new());
        let ours = fleet.files("127.0.0.1");
        let foreign = Files { authority: ours.authority.clone(), ..others.files("127.0.0.1") };
        let err =
            serve_connection(&ours.server().unwrap(), &foreign.client().unwrap(), "127.0.0.1")
                .await;
        assert!(err.is_err());
        // The reverse: a listener that only poses as a member.
        let err =
            serve_connection(&foreign.server().unwrap(), &ours.client().unwrap(), "127.0.0.1")
                .await;
        assert!(err.is_err());
    }

    #[tokio::test]
    async fn a_host_of_another_name_is_not_spoken_to() {
        let fleet = Authority::new();
        let files = fleet.files("127.0.0.1");
        let (server, client) = (files.server().unwrap(), files.client().unwrap());
        assert!(serve_connection(&server, &client, "127.0.0.2").await.is_err());
        assert!(client.connect("not a host", duplex(64).0).await.is_err());
    }

    #[test]
    fn bad_files_are_named() {
        let fleet = Authority::new();
        let good = fleet.files("127.0.0.1");
        let other = fleet.files("other");
        let empty = fleet.folder.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let missing = PathBuf::from("/nowhere.pem");
        for (files, part) in [
            (Files { certificate: missing.clone(), ..good.clone() }, "/nowhere.pem"),
            (Files { certificate: empty.clone(), ..good.clone() }, "empty.pem"),
            (Files { certificate: good.key.clone(), ..good.clone() }, "127.0.0.1.key.pem"),
            (Files { key: other.key, ..good.clone() }, "127.0.0.1.certificate.pem"),
            (Files { key: empty.clone(), ..good.clone() }, "empty.pem"),
            (Files { authority: empty, ..good.clone() }, "empty.pem"),
            (Files { authority: missing, ..good }, "/nowhere.pem"),
        ] {
            let (server, client) = (files.server().unwrap_err(), files.client().unwrap_err());
            assert!(server.to_string().contains(part), "{part}: {server}");
            assert!(client.to_string().contains(part), "{part}: {client}");
        }
    }

    #[test]
    fn the_three_settings_come_together() {
        let path = || Some(PathBuf::from("x"));
        assert!(matches!(Files::from_settings(None, None, None), Ok(None)));
        assert!(matches!(Files::from_settings(path(), path(), path()), Ok(Some(_))));
        let err = Files::from_settings(path(), None, path());
        assert!(matches!(err, Err(TlsError::Incomplete)));
    }
}
