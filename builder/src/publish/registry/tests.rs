//! Pushes into Debian's registry behind a proxy that behaves like ECR: accepts tokens only, and
//! loses chunked uploads. AWS is scripted, or moto.

use super::*;
use crate::{
    cache::Held,
    config::{Config, Settings},
    image::Layer,
};
use bytes::Bytes;
use epsilon_cloud_aws::{moto::Moto, scripted::Aws};
use epsilon_registry::{
    Access, Ecr, EcrHost, Retention,
    debian::{DebianRegistry, MOTO_TOKEN, SECOND_TOKEN, User},
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::task::TaskTracker;

/// A registry that behaves like ECR.
struct LikeEcr {
    registry: DebianRegistry,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl LikeEcr {
    async fn start(user: User) -> Self {
        let registry = DebianRegistry::with_users(&[user]).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, upstream) = (listener.local_addr().unwrap(), registry.address());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request| async move {
                    Ok::<_, Infallible>(answer(upstream, request).await)
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { registry, address, task }
    }

    fn blobs(&self) -> usize {
        let groups = std::fs::read_dir(self.registry.blobs());
        groups.map_or(0, |groups| groups.count())
    }

    /// A builder's client of it.
    fn remote(&self, aws: &str) -> (Remote, TempDir) {
        let host = EcrHost::new(&self.address.to_string(), "123456789012", "eu-central-1");
        remote(Registry {
            name: format!("{}/fleet", self.address),
            access: Access::to_fake(Ecr::at(aws), host),
            authorities: Vec::new(),
            plain_http: false,
            keep: Retention { images: 5, untagged: Duration::from_secs(3 * 24 * 3600) },
            timeout: Duration::from_secs(30),
        })
    }
}

impl Drop for LikeEcr {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(upstream: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    if head.method == Method::PATCH {
        let mut lost = Response::new(Full::default());
        *lost.status_mut() = StatusCode::CREATED;
        lost.headers_mut().insert("location", head.uri.to_string().parse().unwrap());
        lost.headers_mut().insert("range", "0-0".parse().unwrap());
        return lost;
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    head.uri = format!("http://{upstream}{path}").parse().unwrap();
    let body = Full::from(body.collect().await.unwrap().to_bytes());
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(Request::from_parts(head, body)).await.unwrap().into_parts();
    Response::from_parts(head, Full::from(body.collect().await.unwrap().to_bytes()))
}

/// No test here reaches the engine: pushed images bring all their blobs.
fn remote(settings: Registry) -> (Remote, TempDir) {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path(), 1 << 20, TaskTracker::new()).unwrap().cache;
    let config = Config::new(Settings::default(), folder.path()).unwrap();
    let engine = crate::engine::Engine::new(&config, "test".into(), TaskTracker::new()).unwrap();
    let exports = Arc::new(Exports::new(engine, cache.clone()));
    (Remote::new(settings, cache, exports), folder)
}

async fn push(remote: &Remote) -> Result<ImageRef, BuildError> {
    let folder = TempDir::new().unwrap();
    let tar = folder.path().join("layer.tar");
    std::fs::write(&tar, "not a real layer").unwrap();
    let layer = Layer { diff_id: "sha256:0a".into(), tar, bytes: 16, held: Held::default() };
    let layers = blob::all(vec![layer], &remote.cache).await?;
    let config = br#"{"architecture":"amd64","os":"linux"}"#.to_vec();
    remote.push_image(&Name::runtime("node", "0123456789ab"), config, &layers, &[]).await
}

#[tokio::test]
async fn a_repository_is_made_and_a_push_comes_whole() {
    let (ecr, moto) = (LikeEcr::start(MOTO_TOKEN).await, Moto::start().await);
    let aws = Aws::before(&moto).await;
    let (remote, _folder) = ecr.remote(aws.endpoint());
    let image = push(&remote).await.unwrap();
    assert!(remote.has(&image).await.unwrap());
    assert_eq!(ecr.blobs(), 3, "layer, configuration, manifest");
    for (operation, times) in [("CreateRepository", 1), ("PutLifecyclePolicy", 1)] {
        assert_eq!(aws.requests(operation), times, "{operation}");
    }
    push(&remote).await.unwrap();
    assert_eq!(aws.requests("DescribeRepositories"), 1, "looked for once");
    assert_eq!(aws.requests("GetAuthorizationToken"), 1);
}

#[tokio::test]
async fn a_token_that_is_over_is_replaced_once() {
    let (ecr, aws) = (LikeEcr::start(SECOND_TOKEN).await, Aws::scripted().await);
    aws.gives_tokens();
    aws.answers("DescribeRepositories", 200, "{}");
    aws.answers("GetLifecyclePolicy", 200, "{}");
    let (remote, _folder) = ecr.remote(aws.endpoint());
    for _ in 0..2 {
        push(&remote).await.unwrap();
    }
    assert_eq!(aws.requests("GetAuthorizationToken"), 2);
}

#[tokio::test]
async fn repositories_are_assumed_without_permission_to_check() {
    let (ecr, aws) = (LikeEcr::start(SECOND_TOKEN).await, Aws::scripted().await);
    aws.gives_tokens();
    aws.answers("DescribeRepositories", 400, r#"{"__type":"AccessDeniedException"}"#);
    let (remote, _folder) = ecr.remote(aws.endpoint());
    push(&remote).await.unwrap();
}

#[tokio::test]
async fn aws_and_registry_errors_are_distinguished() {
    let (ecr, aws) = (LikeEcr::start(MOTO_TOKEN).await, Aws::scripted().await);
    aws.answers("GetAuthorizationToken", 400, r#"{"__type":"AccessDeniedException"}"#);
    let (remote, _folder) = ecr.remote(aws.endpoint());
    let err = remote.check_push_access(&Name::runtime("node", "1")).await.unwrap_err();
    assert_eq!(err.code, "REGISTRY_FAILED");
    assert!(err.message.contains("no login"), "{err}");

    aws.gives_tokens();
    aws.answers("GetAuthorizationToken", 200, "{}");
    let err = remote.check_push_access(&Name::runtime("node", "1")).await.unwrap_err();
    assert!(err.message.contains("no login"), "{err}");
}

#[tokio::test]
async fn a_tag_says_which_manifest_it_is_of() {
    let registry = DebianRegistry::start().await;
    let name = format!("{}/fleet", registry.address());
    let settings = Settings { registry: Some(name.clone()), ..Settings::default() };
    let config = Config::new(settings, std::path::Path::new("/nowhere")).unwrap();
    let (remote, _folder) = remote(config.registry.unwrap());
    let image = push(&remote).await.unwrap();
    let digest = image.reference.rsplit(':').next().unwrap();
    let tag = ImageRef {
        reference: format!("{name}/runtime-node:0123456789ab-{}", &digest[..8]),
        digest: image.digest,
    };
    assert!(remote.has(&tag).await.unwrap(), "{tag:?}");
}
