//! Images that only a registry has, through this machine's Docker: pulled by digest, with the
//! registry's credentials. The registry is Debian's `docker-registry`; AWS is scripted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use bollard::{
    auth::DockerCredentials,
    body_full,
    query_parameters::{CreateImageOptions, PushImageOptions, RemoveImageOptions},
};
use epsilon_api::{chain::Chain, function::ImageRef};
use epsilon_bootstrap::settings::Section as _;
use epsilon_cloud_aws::scripted::Aws;
use epsilon_registry::{
    Access, Ecr, EcrHost,
    debian::{ANN, DebianRegistry, SECOND_TOKEN, User},
};
use epsilon_vm_agent::{
    config::{Config, Settings},
    engine::{Engine, EngineError, docker::DockerEngine},
};
use futures_util::{TryStreamExt, future::join_all};
use prometheus::{HistogramOpts, HistogramVec};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;

/// An image of one file that the registry has and the engine does not have.
struct Remote {
    docker: bollard::Docker,
    registry: DebianRegistry,
    image: ImageRef,
}

impl Remote {
    /// `name` keeps the tests' images apart.
    async fn with(name: &str, users: &[User]) -> Self {
        let registry = DebianRegistry::with_users(users).await;
        let socket = epsilon_engine_socket::default_path();
        let docker = epsilon_engine_socket::connect(&socket, Duration::from_secs(60)).unwrap();
        let repository = format!("{}/agent-test/{name}", registry.address());

        let mut tar = Vec::new();
        let content = format!("{name} {}", registry.address());
        let mut header = [0_u8; 512];
        header[..4].copy_from_slice(b"file");
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(content.bytes());
        tar.resize(512 * 4, 0);

        let import = CreateImageOptions {
            from_src: Some("-".into()),
            repo: Some(repository.clone()),
            tag: Some("1".into()),
            ..Default::default()
        };
        let made = docker.create_image(Some(import), Some(body_full(tar.into())), None);
        made.try_collect::<Vec<_>>().await.unwrap();
        let login = users.first().map(|user| DockerCredentials {
            username: Some(user.name.into()),
            password: Some(user.password.into()),
            ..Default::default()
        });
        let push = PushImageOptions { tag: Some("1".into()), ..Default::default() };
        let pushed = docker.push_image(&repository, Some(push), login);
        pushed.try_collect::<Vec<_>>().await.unwrap();
        let found = docker.inspect_image(&format!("{repository}:1")).await.unwrap();
        let reference = found.repo_digests.unwrap().remove(0);
        assert!(
            reference.starts_with(&repository) && reference.contains("@sha256:"),
            "{reference}"
        );
        let image = ImageRef { reference, digest: found.id.unwrap() };
        let remote = Self { docker, registry, image };
        remote.forget().await;
        remote
    }

    /// Removes the image from the engine.
    async fn forget(&self) {
        let options = RemoveImageOptions { force: true, ..Default::default() };
        let _ = self.docker.remove_image(&self.image.digest, Some(options), None).await;
        assert!(!self.is_here().await);
    }

    async fn is_here(&self) -> bool {
        self.docker.inspect_image(&self.image.digest).await.is_ok()
    }

    /// An agent's engine with these settings.
    fn engine(&self, yaml: &str) -> DockerEngine {
        engine(Settings::read(yaml).unwrap(), |_| {})
    }

    fn password(&self, folder: &Path, password: &str) -> String {
        let file = folder.join("password");
        fs::write(&file, format!("{password}\n")).unwrap();
        format!(
            "{{ registry: '{}/agent-test', registry_user: ann, registry_password_file: {file:?} }}",
            self.registry.address()
        )
    }
}

fn engine(settings: Settings, change: impl FnOnce(&mut Config)) -> DockerEngine {
    let mut config = settings.check(Path::new("/nowhere")).unwrap();
    change(&mut config);
    let seconds = HistogramVec::new(HistogramOpts::new("test_seconds", "test"), &["call"]).unwrap();
    DockerEngine::new(&config, seconds).unwrap()
}

fn text_of(err: &EngineError) -> String {
    Chain(err).to_string()
}

#[tokio::test]
async fn image_is_pulled_by_digest_from_anonymous_registry() {
    let remote = Remote::with("plain", &[]).await;
    let engine = engine(Settings::read("{}").unwrap(), |config| config.pulls_at_once = 1);
    let all = join_all((0..4).map(|_| engine.ensure_image(&remote.image))).await;
    for local in all {
        local.unwrap();
    }
    assert!(remote.is_here().await);
    remote.forget().await;

    // Another digest in the same repository: missing, and reported as such.
    let absent = ImageRef {
        reference: format!(
            "{}{}",
            &remote.image.reference[..remote.image.reference.len() - 8],
            "00000000"
        ),
        digest: format!("sha256:{}", "0".repeat(64)),
    };
    let err = text_of(&engine.ensure_image(&absent).await.unwrap_err());
    assert!(err.contains("does not have the image"), "{err}");
}

#[tokio::test]
async fn registry_gets_credentials_of_the_settings() {
    let remote = Remote::with("login", &[ANN]).await;
    let folder = TempDir::new().unwrap();
    let engine = remote.engine(&remote.password(folder.path(), ANN.password));
    engine.ensure_image(&remote.image).await.unwrap();
    assert!(remote.is_here().await);
    remote.forget().await;

    // A password that was replaced on disk is used without a restart.
    remote.password(folder.path(), "old");
    let err = text_of(&engine.ensure_image(&remote.image).await.unwrap_err());
    for part in ["refused", "vm_agent.registry_user", &remote.registry.address().to_string()] {
        assert!(err.contains(part), "{part}: {err}");
    }
    assert!(!err.contains("old"), "{err}");
    remote.password(folder.path(), ANN.password);
    engine.ensure_image(&remote.image).await.unwrap();
    remote.forget().await;

    let err = text_of(&remote.engine("{}").ensure_image(&remote.image).await.unwrap_err());
    assert!(err.contains("requires some"), "no credentials at all: {err}");
}

#[tokio::test]
async fn docker_configuration_provides_credentials() {
    let remote = Remote::with("config", &[ANN]).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.json");
    let (host, user, password) = (remote.registry.address(), ANN.name, ANN.password);
    let text =
        format!(r#"{{"auths":{{"{host}":{{"username":"{user}","password":"{password}"}}}}}}"#);
    fs::write(&file, text).unwrap();
    let engine = remote.engine(&format!("{{ registry_docker_config: {file:?} }}"));
    engine.ensure_image(&remote.image).await.unwrap();
    remote.forget().await;
    fs::remove_file(&file).unwrap();
    let err = text_of(&engine.ensure_image(&remote.image).await.unwrap_err());
    assert!(err.contains("config.json"), "{err}");
}

#[tokio::test]
async fn expired_token_is_replaced_once() {
    let remote = Remote::with("token", &[SECOND_TOKEN]).await;
    let aws = Aws::scripted().await;
    aws.gives_tokens();
    let host = EcrHost::new(&remote.registry.address().to_string(), "123456789012", "eu-central-1");
    let access = Access::to_fake(Ecr::at(aws.endpoint()), host);
    let engine = engine(Settings::default(), |config| config.registries = access);
    // The first token is refused, the second is accepted and cached.
    for _ in 0..2 {
        engine.ensure_image(&remote.image).await.unwrap();
        remote.forget().await;
    }
    assert_eq!(aws.requests("GetAuthorizationToken"), 2);
}

#[tokio::test]
async fn registry_outage_is_reported_and_recovers() {
    let mut remote = Remote::with("down", &[]).await;
    let engine = remote.engine("{}");
    remote.registry.stop().await;
    let err = engine.ensure_image(&remote.image).await.unwrap_err();
    assert!(matches!(err, EngineError::Registry(_)), "the engine works: {err:?}");
    assert!(text_of(&err).contains("cannot be reached"), "{err}");
    remote.registry.start_again().await;
    engine.ensure_image(&remote.image).await.unwrap();
    remote.forget().await;
}

#[tokio::test]
async fn image_of_moved_tag_is_refused() {
    let remote = Remote::with("moved", &[]).await;
    let repository = remote.image.reference.split('@').next().unwrap();
    let engine = remote.engine("{}");
    let moved = ImageRef {
        reference: format!("{repository}:1"),
        digest: format!("sha256:{}", "0".repeat(64)),
    };
    let err = engine.ensure_image(&moved).await.unwrap_err();
    assert!(text_of(&err).contains("is not the image"), "{err}");
    remote.forget().await;
}

#[tokio::test]
async fn image_changed_in_registry_is_refused() {
    let remote = Remote::with("changed", &[]).await;
    let mut changed = 0;
    for group in fs::read_dir(remote.registry.blobs()).unwrap() {
        for blob in fs::read_dir(group.unwrap().path()).unwrap() {
            let data = blob.unwrap().path().join("data");
            let mut bytes = fs::read(&data).unwrap();
            // The one layer; the manifest that lists it stays as it was.
            if bytes.starts_with(&[0x1f, 0x8b]) {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(&data, bytes).unwrap();
                changed += 1;
            }
        }
    }
    assert_eq!(changed, 1);
    let err = remote.engine("{}").ensure_image(&remote.image).await.unwrap_err();
    assert!(matches!(err, EngineError::Registry(_)), "{err:?}");
    assert!(!remote.is_here().await);
}
