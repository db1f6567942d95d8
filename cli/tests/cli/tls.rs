//! A control API with TLS: which certificates are accepted, and the errors of the others.

use crate::{
    listings::function,
    support::{Fake, Ran, Reply, epsilon},
};
use epsilon_fleet_link::tls::Files;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{io::Write as _, net::SocketAddr, path::Path, thread};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// A scripted control API with TLS, with the certificate of an authority of its own.
struct Secure {
    plain: Fake,
    addr: SocketAddr,
    folder: TempDir,
}

impl Secure {
    /// Its certificate is for this name or address.
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = certificates(folder.path(), name);
        let list = format!(r#"{{"data":[{}]}}"#, function("hello", 1));
        let plain = Fake::new(vec![("GET /v1/functions", Reply::json(200, &list))]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (addr, upstream) = (listener.local_addr().unwrap(), plain.addr);
        // Ends with the test's process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let server = files.server_with_optional_client_certificate().unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let server = server.clone();
                    tokio::spawn(async move {
                        let Ok(mut near) = server.accept(stream).await else { return };
                        let mut far = TcpStream::connect(upstream).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    });
                }
            });
        });
        Self { plain, addr, folder }
    }

    fn authority(&self) -> String {
        self.folder.path().join("authority.pem").to_str().unwrap().to_owned()
    }
}

fn certificates(folder: &Path, name: &str) -> Files {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let own = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let path = |name: &str| folder.join(name);
    std::fs::write(path("authority.pem"), own.pem()).unwrap();
    std::fs::write(path("own.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    Files { certificate: path("own.pem"), key: path("key.pem"), authority: path("authority.pem") }
}

fn functions(address: &str, more: &[&str], env: &[(&str, &str)]) -> Ran {
    let args = [&["functions", "--key", "k", "--gateway", address][..], more].concat();
    epsilon(&args, env, b"", Path::new("/"))
}

#[test]
fn a_named_authority_or_the_systems_is_taken() {
    let gateway = Secure::new("127.0.0.1");
    let (address, file) = (format!("https://{}", gateway.addr), gateway.authority());
    for (more, env) in [
        (&["--ca", &file][..], &[][..]),
        (&[], &[("EPSILON_CA", file.as_str())]),
        // Where the system's authorities are.
        (&[], &[("SSL_CERT_FILE", file.as_str())]),
    ] {
        let ran = functions(&address, more, env);
        assert!(ran.code == 0 && ran.stdout.contains("hello"), "{more:?} {env:?}: {ran:?}");
    }
}

#[test]
fn key_is_never_sent_to_another_server() {
    let (gateway, other) = (Secure::new("127.0.0.1"), Secure::new("gateway.internal"));
    // Like a gateway without certificates answers what is not HTTP.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let at = |gateway: &Secure| format!("https://{}", gateway.addr);
    for (address, file, said) in [
        (at(&gateway), None, "`--ca FILE` or EPSILON_CA"),
        (at(&gateway), Some(other.authority()), "authority.pem` is not its authority's"),
        (at(&other), Some(other.authority()), "use one of them as its address: gateway.internal\n"),
        (format!("https://{plain}"), None, "does not use TLS"),
    ] {
        let more: Vec<_> = file.iter().flat_map(|file| ["--ca", file]).collect();
        let ran = functions(&address, &more, &[]);
        assert!(ran.code == 1 && ran.stderr.contains(said), "{said}: {ran:?}");
        assert!(ran.stderr.contains("hint: "), "{ran:?}");
    }
    assert!(gateway.plain.seen().is_empty() && other.plain.seen().is_empty());
}

#[test]
fn plain_http_to_a_tls_listener_gets_a_hint() {
    let error = r#"{"error":{"type":"x","code":"TLS_REQUIRED",
        "message":"this listener requires TLS from other machines","hint":null,"request_id":null}}"#;
    let fake = Fake::new(vec![("GET /healthz", Reply::json(400, error))]);
    let ran = fake.run(&["functions"]);
    assert!(ran.stderr.contains("hint: use `--gateway https://ADDR`"), "{ran:?}");
}

#[test]
fn invalid_authorities_file_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for file in ["/nonexistent.pem", empty.to_str().unwrap()] {
        let ran = functions("https://127.0.0.1:1", &["--ca", file], &[]);
        assert!(ran.code == 2 && ran.stderr.contains(file), "{ran:?}");
    }
}
