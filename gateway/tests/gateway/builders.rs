//! A builder that joins a running gateway: deployments are sent to it, also after its address
//! changed, and fail after it left. The builder's own tests are in `builder/tests`; the choice of a
//! builder is tested in `src/deploy/builders/tests.rs`.

use crate::world::{Reply, TEST_TIMEOUT, World, built, events, patient, read};
use bytes::Bytes;
use epsilon_api::{
    admin::{Data, DeployEvent},
    body::{self, CallBody},
    build::{BuildMessage, BuilderStatus, STATUS_PATH},
    fleet::{Join, Joined, MemberKind, PROTOCOL},
    ids::VmId,
    units::{self, MilliCores},
};
use epsilon_fleet_link::authenticated_listener::{AuthenticatedListener, Limits};
use epsilon_fleet_link::gateway_token::Verifier;
use epsilon_gateway::config::Settings;
use epsilon_http_server::Shutdown;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use std::{sync::Arc, time::Instant};

/// A builder that answers every archive with the same digest.
struct Site {
    join: Join,
    verifier: Arc<Verifier>,
    shutdown: Shutdown,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.close.cancel();
        self.shutdown.cut.cancel();
    }
}

impl Site {
    /// Digest of the built function `hello`.
    fn open(digest: &'static str) -> Self {
        let id = VmId::parse("builder-1").unwrap();
        let verifier = Arc::new(Verifier::new(id.clone()));
        let limits = Limits { connections: 9, head: TEST_TIMEOUT, idle: TEST_TIMEOUT };
        let shutdown = Shutdown::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = AuthenticatedListener::bind(any, None, limits, shutdown.clone()).unwrap();
        let join = Join {
            protocol: PROTOCOL,
            kind: MemberKind::Builder,
            id,
            address: listener.address().to_string(),
            tls: false,
            memory_bytes: units::Bytes(0),
            cpu: MilliCores::ONE,
        };
        let serving =
            listener.serve(Arc::clone(&verifier), move |request, _| build(request, digest));
        shutdown.tasks.spawn(serving);
        Self { join, verifier, shutdown }
    }
}

async fn build(request: Request<Incoming>, digest: &'static str) -> Response<CallBody> {
    if request.uri().path() == STATUS_PATH {
        let status = BuilderStatus { version: "9.9.9".into(), builds: 3 };
        return Response::new(body::full(serde_json::to_vec(&status).unwrap()));
    }
    let lines = stream::once(async move {
        request.into_body().collect().await?;
        let line = BuildMessage::Built(built("shop", &[("hello", digest)])).to_line();
        Ok::<_, hyper::Error>(Frame::data(Bytes::from(line)))
    });
    Response::new(body::boxed(StreamBody::new(lines)))
}

async fn say(world: &World, verb: &str, key: &str, join: &Join) -> Reply {
    let path = format!("/v1/fleet/{verb}");
    let text = serde_json::to_string(join).unwrap();
    world.ask_with(&format!("Bearer {key}"), Method::POST, &path, &text).await
}

/// Joins with the builders' token; returns the credential.
async fn join(world: &World, site: &Site) -> String {
    let token = std::fs::read_to_string(world.dir.path().join("builder.token")).unwrap();
    let reply = say(world, "join", token.trim(), &site.join).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let Data { data: joined, .. } = serde_json::from_str::<Data<Joined>>(&reply.body).unwrap();
    site.verifier.trust(&joined.welcome.gateways);
    joined.credential.reveal().clone()
}

/// Returns the digest of the deployed function, or the error code.
async fn deploy(world: &World) -> String {
    let response = world.push().await;
    if response.status() != 200 {
        return read(response).await.code();
    }
    match events(response).await.last().unwrap() {
        DeployEvent::Done { .. } => {
            let all = world.store.snapshot().await.unwrap();
            all[0].image.digest.clone()
        }
        DeployEvent::Failed { error } => error.code.clone(),
        other => panic!("{other:?}"),
    }
}

/// Polls, because the list of members is read in the background.
async fn eventually_deploys(world: &World, want: &str) {
    let began = Instant::now();
    loop {
        let seen = deploy(world).await;
        if seen == want {
            return;
        }
        assert!(began.elapsed() < TEST_TIMEOUT, "still {seen}, wanted {want}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn deployments_follow_the_builder_that_joined() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = dir.path().join("epsilon.db");
    let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
    let world = World::on(dir, store, Settings::default(), false).await;
    assert_eq!(deploy(&world).await, "NO_BUILDER");

    let first = Site::open("1");
    let credential = join(&world, &first).await;
    eventually_deploys(&world, "sha256:1").await;
    assert_eq!(say(&world, "beat", &credential, &first.join).await.status, 200);

    // The builder restarts at another address with its stored credential.
    drop(first);
    let second = Site::open("2");
    let moved = say(&world, "beat", &credential, &second.join).await;
    assert_eq!(moved.status, 401, "a new address requires joining again: {moved:?}");
    // While the first builder counts as reachable, this could be another machine with a copied id.
    let token = std::fs::read_to_string(world.dir.path().join("builder.token")).unwrap();
    let twin = say(&world, "join", token.trim(), &second.join).await;
    assert_eq!((twin.status.as_u16(), twin.code()), (409, "ID_TAKEN".to_owned()));
    let left = say(&world, "leave", &credential, &second.join).await;
    assert_eq!(left.status, 204, "{left:?}");
    let credential = join(&world, &second).await;
    eventually_deploys(&world, "sha256:2").await;

    let reply = patient(say(&world, "leave", &credential, &second.join)).await;
    assert_eq!(reply.status, 204);
    eventually_deploys(&world, "NO_BUILDER").await;
}

#[tokio::test]
async fn a_token_joins_only_its_own_kind() {
    let world = World::with(&["hello"]).await;
    let site = Site::open("1");
    let vm = Join { kind: MemberKind::Vm, id: VmId::parse("vm-9").unwrap(), ..site.join.clone() };
    for (file, join, taken) in [
        ("fleet.token", &vm, true),
        ("builder.token", &vm, false),
        ("fleet.token", &site.join, false),
        ("builder.token", &site.join, true),
    ] {
        let token = std::fs::read_to_string(world.dir.path().join(file)).unwrap();
        let reply = say(&world, "join", token.trim(), join).await;
        if taken {
            assert_eq!(reply.status, 200, "{file}: {reply:?}");
            continue;
        }
        assert_eq!((reply.status.as_u16(), reply.code()), (401, "UNAUTHORIZED".to_owned()));
        let wanted = join.kind.token_file();
        assert!(reply.body.contains(&format!("`{wanted}`")), "{reply:?}");
    }
}

#[tokio::test]
async fn builders_are_listed_with_their_status() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let path = dir.path().join("epsilon.db");
    let store = epsilon_store::open(path.to_str().unwrap()).await.unwrap();
    let world = World::on(dir, store, Settings::default(), false).await;
    let listed = async || world.ask(Method::GET, "/v1/builders", "").await.json()["data"].clone();
    assert_eq!(listed().await, serde_json::json!([]));
    let site = Site::open("1");
    join(&world, &site).await;
    eventually_deploys(&world, "sha256:1").await;
    let infos = listed().await;
    assert_eq!(infos[0]["id"], "builder-1");
    assert_eq!((&infos[0]["reachable"], &infos[0]["version"]), (&true.into(), &"9.9.9".into()));
    assert_eq!((&infos[0]["builds"], &infos[0]["builds_from_here"]), (&3.into(), &0.into()));
    // The builder was killed: it stays listed for a while.
    drop(site);
    let began = Instant::now();
    loop {
        let infos = listed().await;
        if infos[0]["reachable"] == false {
            assert_eq!(
                (&infos[0]["version"], infos[0]["cause"].is_string()),
                (&().into(), true),
                "{infos}"
            );
            break;
        }
        assert!(began.elapsed() < TEST_TIMEOUT, "{infos}");
    }
}
