//! Images in a real registry: Debian's `docker-registry`, started by the test.

use super::lab::{Lab, Served, docker};
use epsilon_api::admin::Step;
use epsilon_registry::debian::{ANN, DebianRegistry};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{fs, io::Read};
use tempfile::TempDir;

/// Number of blobs in it.
fn blobs(registry: &DebianRegistry) -> usize {
    let Ok(groups) = fs::read_dir(registry.blobs()) else { return 0 };
    groups.map(|group| fs::read_dir(group.unwrap().path()).unwrap().count()).sum()
}

const CODE: (&str, &str) =
    ("index.js", "exports.hello = (req, res) => res.send('from a registry');\n");

#[tokio::test(flavor = "multi_thread")]
async fn pushed_image_is_runnable_and_not_pushed_twice() {
    let registry = DebianRegistry::start().await;
    let lab = Lab::with(&format!("{{registry: '{}/fleet'}}", registry.address())).await;
    let files = [("epsilon.yaml", "project: lab-registry\n"), CODE];
    let built = lab.build(&files).await.unwrap();
    let image = &built.functions[0].image;
    let prefix = format!("{}/fleet/lab-registry/hello@sha256:", registry.address());
    assert!(image.reference.starts_with(&prefix), "{}", image.reference);
    docker(&["pull", "-q", &image.reference]);
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);
    assert_eq!(Served::run(&image.reference).get("/"), "from a registry");

    let before = blobs(&registry);
    let again = lab.build(&files).await.unwrap();
    assert_eq!(lab.done(Step::Image), "0 composed, 1 unchanged");
    assert_eq!((built, blobs(&registry)), (again, before));

    // Another function: its code, configuration and manifest are new; the base is mounted.
    let other =
        [("epsilon.yaml", "project: lab-other\n"), ("index.js", "exports.hi = (q, s) => s.end();")];
    lab.build(&other).await.unwrap();
    assert_eq!(blobs(&registry), before + 3);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_can_be_had_from_the_registry() {
    let registry = DebianRegistry::start().await;
    let yaml = format!("{{registry: '{}/fleet'}}", registry.address());
    let lab = Lab::with(&yaml).await;
    let files = [("epsilon.yaml", "project: lab-blobs\n"), CODE];
    let built = lab.build(&files).await.unwrap();
    let parts = built.functions[0].parts.clone().unwrap();
    let prefix = format!("{}/fleet/runtime-node@sha256:", registry.address());
    assert!(parts.base.reference.starts_with(&prefix), "{}", parts.base);
    docker(&["pull", "-q", &parts.base.reference]);
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", &parts.base.reference]);
    assert_eq!(id, parts.base.digest);
    docker(&["rmi", &parts.base.reference]);

    let [code] = &parts.layers[..] else { panic!("{parts:?}") };
    let blob = code.blob.as_ref().unwrap();
    let hex = blob.digest.strip_prefix("sha256:").unwrap();
    let stored = fs::read(registry.blobs().join(&hex[..2]).join(hex).join("data")).unwrap();
    assert_eq!(stored.len() as u64, blob.bytes.get());
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut tar).unwrap();
    let mut names = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    assert_eq!(names, ["app/", "app/index.js"]);
    assert!(lab.layer_cache().is_empty(), "layers in a registry are fetched from there");

    // Another function of the same process, and an unchanged one: the base is reported as before.
    let other = [("epsilon.yaml", "project: lab-blobs-2\n"), CODE];
    let second = lab.build(&other).await.unwrap().functions[0].parts.clone().unwrap();
    assert_eq!(second.base, parts.base);
    assert_eq!(lab.build(&files).await.unwrap(), built);
    assert_eq!(lab.done(Step::Image), "0 composed, 1 unchanged");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn same_source_has_same_digest_everywhere() {
    let registry = DebianRegistry::start().await;
    let remote = Lab::with(&format!("{{registry: '{}'}}", registry.address())).await;
    let local = Lab::new().await;
    let files = [("epsilon.yaml", "project: lab-places\n"), CODE];
    let (there, here) = (remote.build(&files).await.unwrap(), local.build(&files).await.unwrap());
    assert_eq!(there.functions[0].image.digest, here.functions[0].image.digest);
    remote.end().await;
    local.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_dockerfile_is_pushed_too() {
    let registry = DebianRegistry::start().await;
    let lab = Lab::with(&format!("{{registry: '{}'}}", registry.address())).await;
    let runtime = lab.app().ensure_runtime(lab.log()).await.unwrap();
    let yaml = format!(
        "project: lab-foreign\nruntime: container\nfunctions:\n  web: {{ image: '{runtime}' }}\n"
    );
    let built = lab.build(&[("epsilon.yaml", &yaml)]).await.unwrap();
    let image = &built.functions[0].image;
    docker(&["pull", "-q", &image.reference]);
    assert_eq!(docker(&["image", "inspect", "-f", "{{.Id}}", &image.reference]), image.digest);

    // And pulled by a builder that only knows its name.
    docker(&["rmi", &image.reference]);
    let local = Lab::new().await;
    let (reference, digest) = (&image.reference, &image.digest);
    let yaml = format!(
        "project: lab-pull\nruntime: container\nfunctions:\n  web: {{ image: '{reference}' }}\n"
    );
    let pulled = local.build(&[("epsilon.yaml", &yaml)]).await.unwrap();
    assert_eq!(&pulled.functions[0].image.digest, digest);
    docker(&["rmi", reference]);
    local.end().await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_registry_is_reported() {
    let lab = Lab::with("{registry: '127.0.0.1:1', registry_timeout: 5s}").await;
    let err = lab.build(&[("epsilon.yaml", "project: lab-nowhere\n"), CODE]).await.unwrap_err();
    assert_eq!(err.code, "REGISTRY_FAILED");
    assert!(err.message.contains("`127.0.0.1:1` cannot be reached"), "{err}");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_accepts_the_configured_login() {
    let registry = DebianRegistry::with_users(&[ANN]).await;
    let folder = TempDir::new().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, "not it").unwrap();
    let lab = Lab::with(&format!(
        "{{registry: '{}/fleet', registry_user: ann, registry_password_file: {password:?}}}",
        registry.address()
    ))
    .await;
    let files = [("epsilon.yaml", "project: lab-login\n"), CODE];
    let err = lab.build(&files).await.unwrap_err();
    assert_eq!(err.code, "REGISTRY_FAILED");
    assert!(err.message.contains("refused the builder's login"), "{err}");
    assert!(err.hint.unwrap().contains("builder.registry_user"));

    // Replaced on disk; nothing is restarted.
    fs::write(&password, ANN.password).unwrap();
    let image = lab.build(&files).await.unwrap().functions.remove(0).image;
    assert!(image.reference.starts_with(&format!("{}/fleet/", registry.address())));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_authority_is_trusted_when_configured() {
    let authority = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    };
    let ((issuer, trusted), (_, other)) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let registry = DebianRegistry::with_tls(&certificate.pem(), &key.serialize_pem()).await;

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("ca.pem");
    let files = [("epsilon.yaml", "project: lab-tls\n"), CODE];
    let settings = format!("{{registry: '{}', registry_ca: {file:?}}}", registry.address());
    fs::write(&file, &other).unwrap();
    let lab = Lab::with(&settings).await;
    let err = lab.build(&files).await.unwrap_err();
    assert!(err.message.contains("certificate"), "{err}");
    assert!(err.hint.unwrap().contains("builder.registry_ca"));
    lab.end().await;

    fs::write(&file, format!("{other}\n{trusted}")).unwrap();
    let lab = Lab::with(&settings).await;
    lab.build(&files).await.unwrap();
    lab.end().await;
}
