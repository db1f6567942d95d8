//! Layers from registries: Debian's `docker-registry`, and a scripted one for what that one does
//! not do.

use super::{
    scripted::{Answer, Scripted},
    *,
};
use epsilon_registry::debian::{ANN, DebianRegistry, User};
use oci_client::{
    Reference, RegistryOperation,
    client::{Client, ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};

/// A registry that has these layers.
async fn registry(users: &[User], tars: &[&Tar]) -> (DebianRegistry, String) {
    let registry = DebianRegistry::with_users(users).await;
    let repository = format!("{}/shop/pay", registry.address());
    push(&repository, users.first(), ClientProtocol::Http, tars).await;
    (registry, repository)
}

async fn push(repository: &str, user: Option<&User>, protocol: ClientProtocol, tars: &[&Tar]) {
    let config = ClientConfig {
        protocol,
        use_monolithic_push: true,
        accept_invalid_certificates: true,
        ..ClientConfig::default()
    };
    let client = Client::new(config);
    let target: Reference = format!("{repository}:1").parse().unwrap();
    let auth = user.map_or(RegistryAuth::Anonymous, |user| {
        RegistryAuth::Basic(user.name.into(), user.password.into())
    });
    client.auth(&target, &auth, RegistryOperation::Push).await.unwrap();
    for tar in tars {
        let gzip = tar.gzip();
        let digest = digest(&gzip);
        client.push_blob(&target, gzip, &digest).await.unwrap();
    }
}

/// The blob's file in the registry's storage.
fn data(registry: &DebianRegistry, tar: &Tar) -> PathBuf {
    let digest = digest(&tar.gzip());
    let hex = digest.strip_prefix("sha256:").unwrap();
    registry.blobs().join(&hex[..2]).join(hex).join("data")
}

#[tokio::test]
async fn only_missing_layers_are_fetched_shared_ones_once() {
    let packages = layer("express.js", &"express ".repeat(100_000));
    let (one, two) = (layer("index.js", "one"), layer("index.js", "two"));
    let (mut registry, repository) = registry(&[], &[&packages, &one, &two]).await;
    let world = World::new("{}");
    let first = version("one", Some(&repository), &[&packages, &one]);
    let second = version("two", Some(&repository), &[&packages, &two]);
    let (a, b) = tokio::join!(world.ensure(&first), world.ensure(&second));
    assert_eq!(contents(&a.unwrap())[1], file("index.js", "one"));
    assert_eq!(contents(&b.unwrap())[1], file("index.js", "two"));
    assert_eq!(world.fetches("registry", "ok"), 3);
    registry.stop().await;
    assert!(world.ensure(&first).await.is_ok(), "present layers need no source");
    assert_eq!(world.engine.used(Verb::EnsureImage), 0, "no image was pulled");
}

#[tokio::test]
async fn corrupt_layer_is_fetched_once_more_then_reported() {
    let tar = layer("index.js", &"x".repeat(5000));
    let (registry, repository) = registry(&[], &[&tar]).await;
    let path = data(&registry, &tar);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&path, bad).unwrap();
    let world = World::new("{}");
    let version = version("hello", Some(&repository), &[&tar]);
    let err = world.ensure(&version).await.unwrap_err();
    let text = text_of(&err);
    for part in [&*registry.address().to_string(), "twice", "check its disk", "deploy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!err.allows_image(), "it is of the same registry");
    assert_eq!((world.fetches("registry", "corrupt"), world.names()), (2, vec![]));
    assert_eq!(world.engine.used(Verb::EnsureImage), 0, "it is reported, and not skipped");
    fs::write(&path, good).unwrap();
    assert!(world.ensure(&version).await.is_ok());
}

#[tokio::test]
async fn every_kind_of_corruption_is_detected() {
    let tar = layer("index.js", "x");
    let good = tar.gzip();
    let world = World::new("{}");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut longer = good.clone();
    longer.extend(layer("more.js", "y").gzip());
    let rows = [
        ("another layer", layer("other.js", "y").gzip()),
        ("an unfit layer", Tar::default().file("app/.wh.x", "").gzip()),
        ("a plain tar", tar.bytes()),
        ("a changed sum", flipped),
        ("more than was reported", longer),
        ("nothing", Vec::new()),
        ("the first half", good[..good.len() / 2].to_vec()),
    ];
    for (row, bytes) in rows {
        let registry = Scripted::start(vec![Answer::Good(bytes)]).await;
        let version = version("hello", Some(&registry.repository()), &[&tar]);
        let err = world.ensure(&version).await.unwrap_err();
        assert!(text_of(&err).contains("twice") && !err.is_unfit(), "{row}: {}", text_of(&err));
        assert_eq!((registry.requests().len(), world.names()), (2, vec![]), "{row}");
    }
    // The same bytes under another digest: the version's own digest decides.
    let registry = Scripted::start(vec![Answer::Good(good.clone())]).await;
    let mut other = version("hello", Some(&registry.repository()), &[&tar]);
    if let Some(blob) = &mut other.parts.as_mut().unwrap().layers[0].blob {
        blob.digest = digest(b"another");
    }
    assert!(text_of(&world.ensure(&other).await.unwrap_err()).contains("twice"));
    assert_eq!(world.names(), Vec::<String>::new());
}

#[tokio::test]
async fn second_fetch_repairs_a_corrupt_one() {
    let tar = layer("index.js", "x");
    let other = layer("index.js", "y").gzip();
    let script = vec![Answer::Good(other), Answer::Good(tar.gzip())];
    let registry = Scripted::start(script).await;
    let world = World::new("{}");
    let version = version("hello", Some(&registry.repository()), &[&tar]);
    assert_eq!(contents(&world.ensure(&version).await.unwrap()), [file("index.js", "x")]);
    assert_eq!((world.fetches("registry", "corrupt"), world.fetches("registry", "ok")), (1, 1));
    let blob = format!("GET /v2/shop/pay/blobs/{} HTTP/1.1", digest(&tar.gzip()));
    assert_eq!(registry.requests(), [blob.clone(), blob], "and no other request");
}

/// Whatever a registry answers: where the engine has the image, it serves; where not, its error
/// says why.
#[tokio::test]
async fn registry_without_layer_falls_back_to_engine() {
    let tar = layer("index.js", "x");
    let rows = [
        ("absent", Answer::Status(404, "BLOB_UNKNOWN")),
        ("refused", Answer::Status(403, "DENIED")),
        ("broken", Answer::Status(500, "UNKNOWN")),
        ("cut", Answer::Cut(tar.gzip())),
        ("silent", Answer::Hang),
    ];
    for (row, answer) in rows {
        let world = World::new("{pull_timeout: 2s}");
        let registry = Scripted::start(vec![answer]).await;
        let version = version("hello", Some(&registry.repository()), &[&tar]);
        world.engine.add_image(&version.image.reference, Arc::new(|_| Box::pin(async { 0 })));
        world.engine.add_code(&version.image.reference, tar.bytes());
        let code = world.ensure(&version).await;
        assert_eq!(contents(&code.unwrap()), [file("index.js", "x")], "{row}");
        assert_eq!(
            (world.fetches("registry", "absent"), world.fetches("engine", "ok")),
            (1, 1),
            "{row}"
        );
    }
}

#[tokio::test]
async fn endless_answer_is_reported_within_timeout() {
    let tar = layer("index.js", "x");
    let registry = Scripted::start(vec![Answer::Hang]).await;
    let world = World::new("{pull_timeout: 1s}");
    let version = version("hello", Some(&registry.repository()), &[&tar]);
    world.engine.script(Verb::EnsureImage, Fault::Slow(Duration::from_secs(600)));
    let text = text_of(&world.ensure(&version).await.unwrap_err());
    for part in ["within 1s", "vm_agent.pull_timeout", "127.0.0.1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn layer_fetches_use_credentials_of_pulls() {
    let tar = layer("index.js", "x");
    let (registry, repository) = registry(&[ANN], &[&tar]).await;
    let home = TempDir::new().unwrap();
    let password = home.path().join("password");
    fs::write(&password, "wrong").unwrap();
    let settings = format!(
        "{{registry: '{}', registry_user: ann, registry_password_file: {password:?}}}",
        registry.address()
    );
    let world = World::new(&settings);
    let version = version("hello", Some(&repository), &[&tar]);
    let err = world.ensure(&version).await.unwrap_err();
    assert_eq!(world.fetches("registry", "absent"), 1, "{}", text_of(&err));
    // Replaced on disk, the new file is used without a restart.
    fs::write(&password, ANN.password).unwrap();
    assert_eq!(contents(&world.ensure(&version).await.unwrap()), [file("index.js", "x")]);
}

#[tokio::test]
async fn a_certificate_that_the_engine_trusts_is_trusted() {
    let tar = layer("index.js", "x");
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let registry = DebianRegistry::with_tls(&certificate, &key).await;
    let repository = format!("{}/shop/pay", registry.address());
    push(&repository, None, ClientProtocol::Https, &[&tar]).await;
    let version = version("hello", Some(&repository), &[&tar]);
    let certificates = TempDir::new().unwrap();
    let mut world = World::new("{}");
    let way = || {
        let limit = Duration::from_secs(10);
        Registries::new(epsilon_registry::Access::default(), false, certificates.path(), limit)
    };
    world.layers.registries = way();
    assert!(world.ensure(&version).await.is_err(), "plain HTTP is refused");
    let folder = certificates.path().join(registry.address().to_string());
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("ca.crt"), certificate).unwrap();
    world.layers.registries = way();
    assert_eq!(contents(&world.ensure(&version).await.unwrap()), [file("index.js", "x")]);
}
