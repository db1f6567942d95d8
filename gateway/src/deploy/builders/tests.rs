//! Builders on other machines: real sockets and gateway tokens, scripted answers.

use super::*;
use crate::fleet::link::LinkLimits;
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyTooLarge, CallBody},
    build::{BuildLog, BuildMessage},
    error::ErrorBody,
    fleet::PROTOCOL,
    ids::{DeploymentId, ProjectName},
    units::{self, MilliCores},
};
use epsilon_fleet_link::authenticated_listener;
use epsilon_fleet_link::authenticated_listener::AuthenticatedListener;
use epsilon_fleet_link::clock::Clock;
use epsilon_fleet_link::gateway_token::{Signer, Verifier};
use epsilon_http_server::Shutdown;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use jiff::Timestamp;
use std::{future::Future, time::Instant};
use tokio::sync::mpsc;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Behaviour of a scripted builder.
#[derive(Clone, Debug)]
enum Script {
    /// Reads the archive, returns its text as a line, then sends this.
    Says(&'static str),
    /// Answers 200, reads the archive, and sends nothing more.
    Hangs,
    /// Does not answer at all.
    Deaf,
    /// Refuses with this status and code.
    Refuses(u16, &'static str),
}

/// A listening builder, closed on drop.
struct Site {
    join: Join,
    /// Archives received, and answers given up.
    seen: mpsc::UnboundedReceiver<String>,
    shutdown: Shutdown,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.shutdown.close.cancel();
        self.shutdown.cut.cancel();
    }
}

fn signer() -> Arc<Signer> {
    let folder = tempfile::tempdir().unwrap();
    Arc::new(Signer::load_or_create(&folder.path().join("gateway.key")).unwrap())
}

impl Site {
    fn open(id: &str, signer: &Signer, script: Script) -> Self {
        let id = VmId::parse(id).unwrap();
        let verifier = Arc::new(Verifier::new(id.clone()));
        verifier.trust(&[signer.key()]);
        let (sender, seen) = mpsc::unbounded_channel();
        let limits = authenticated_listener::Limits {
            connections: 9,
            head: TEST_TIMEOUT,
            idle: TEST_TIMEOUT,
        };
        let shutdown = Shutdown::default();
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = AuthenticatedListener::bind(any, None, limits, shutdown.clone()).unwrap();
        let address = listener.address().to_string();
        shutdown.tasks.spawn(listener.serve(verifier, move |request, _| {
            let script = script.clone();
            let sender = sender.clone();
            async move { answer(script, request, sender).await }
        }));
        Self { join: join(id, address), seen, shutdown }
    }

    async fn sees(&mut self, want: &str) {
        assert_eq!(patient(self.seen.recv()).await.unwrap(), want);
    }
}

fn join(id: VmId, address: String) -> Join {
    Join {
        protocol: PROTOCOL,
        kind: MemberKind::Builder,
        id,
        address,
        tls: false,
        memory_bytes: units::Bytes(0),
        cpu: MilliCores::ONE,
    }
}

/// Sends a message when it is dropped.
struct GivenUp(mpsc::UnboundedSender<String>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        let _ = self.0.send("given up".into());
    }
}

async fn answer(
    script: Script,
    request: Request<Incoming>,
    sender: mpsc::UnboundedSender<String>,
) -> Response<CallBody> {
    match script {
        Script::Deaf => std::future::pending().await,
        Script::Refuses(status, code) => {
            let status = StatusCode::from_u16(status).unwrap();
            let text = ErrorBody::new(status, code, "no", None).to_json();
            let mut response = Response::new(body::full(text));
            *response.status_mut() = status;
            response
        }
        Script::Hangs => {
            let given_up = GivenUp(sender);
            let archive = request.into_body();
            let lines = stream::once(async move {
                let _given_up = given_up;
                archive.collect().await?;
                std::future::pending::<Result<Frame<Bytes>, hyper::Error>>().await
            });
            Response::new(body::boxed(StreamBody::new(lines)))
        }
        Script::Says(then) => {
            let archive = request.into_body();
            let lines = stream::once(async move {
                // The answer's head is sent by now; an archive that breaks off closes the
                // connection.
                let archive = archive.collect().await?.to_bytes();
                let archive = String::from_utf8_lossy(&archive).into_owned();
                sender.send(archive.clone()).unwrap();
                let line = BuildMessage::Event(BuildEvent::Line(archive)).to_line();
                Ok::<_, hyper::Error>(Frame::data(Bytes::from(line + then)))
            });
            Response::new(body::boxed(StreamBody::new(lines)))
        }
    }
}

const BUILT: &str = "{\"built\":{\"project\":\"shop\",\"functions\":[]}}\n";

#[derive(Debug, Default)]
struct RecordingLog(Mutex<Vec<String>>);

impl BuildLog for RecordingLog {
    fn report(&self, event: BuildEvent) {
        self.0.lock().push(match event {
            BuildEvent::Line(line) => line,
            other => format!("{other:?}"),
        });
    }
}

fn builders(signer: &Arc<Signer>, silence: Duration, sites: &[&Site]) -> Builders {
    let limits = LinkLimits { connect: TEST_TIMEOUT, idle: TEST_TIMEOUT };
    let clock = Arc::new(Clock::start(Timestamp::now()));
    let identity = Identity { signer: Arc::clone(signer), clock, tls: None, limits };
    let builders = Builders::new(None, identity, silence);
    builders.set(sites.iter().map(|site| &site.join));
    builders
}

fn job(archive: CallBody) -> (BuildJob, Arc<RecordingLog>) {
    let logged = Arc::<RecordingLog>::default();
    let job = BuildJob {
        deployment: DeploymentId::random(),
        archive,
        folder: Some("shop".into()),
        only: Vec::new(),
        log: Arc::clone(&logged) as _,
    };
    (job, logged)
}

async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("in time")
}

/// The result of one build, and its log.
async fn build(builders: &Builders, archive: CallBody) -> (Result<Built, String>, Vec<String>) {
    let (job, logged) = job(archive);
    let ended = patient(builders.build(job)).await;
    let logged = logged.0.lock().clone();
    (ended.map_err(|err| format!("{} {}", err.status.as_u16(), err.code)), logged)
}

fn shop() -> Result<Built, String> {
    Ok(Built { project: ProjectName::parse("shop").unwrap(), functions: Vec::new() })
}

#[tokio::test]
async fn a_remote_build_streams_its_events() {
    let signer = signer();
    let mut site = Site::open("builder-1", &signer, Script::Says(BUILT));
    let builders = builders(&signer, TEST_TIMEOUT, &[&site]);
    let (ended, logged) = build(&builders, body::full("archive")).await;
    assert_eq!((ended, logged), (shop(), vec!["archive".to_owned()]));
    site.sees("archive").await;
}

#[tokio::test]
async fn without_a_builder_there_is_none() {
    let builders = builders(&signer(), TEST_TIMEOUT, &[]);
    assert!(builders.is_empty());
    assert_eq!(build(&builders, body::empty()).await.0, Err("503 NO_BUILDER".into()));
}

/// An image whose removal was not requested still exists; a builder that joins later gets the
/// request.
#[tokio::test]
async fn without_a_builder_no_image_is_removed() {
    let builders = builders(&signer(), TEST_TIMEOUT, &[]);
    let reference = format!("registry.example/shop/pay@sha256:{}", "0".repeat(64));
    let image = ImageRef { digest: format!("sha256:{}", "0".repeat(64)), reference };
    assert!(!builders.remove(&image).await);
}

/// After the handover of the archive a failure ends the build: it may have been half done.
#[tokio::test]
async fn a_builder_lost_mid_build_is_reported() {
    let signer = signer();
    for (script, silence) in [
        (Script::Says(""), TEST_TIMEOUT),
        (Script::Says("\"alive\"\n"), TEST_TIMEOUT),
        (Script::Says("{\"built\":{\"project\":\"shop\",\"func"), TEST_TIMEOUT),
        (Script::Says("{\"event\":{\"li\n"), TEST_TIMEOUT),
        (Script::Says("\"dead\"\n"), TEST_TIMEOUT),
        (Script::Hangs, Duration::from_secs(1)),
    ] {
        let site = Site::open("builder-1", &signer, script.clone());
        let builders = builders(&signer, silence, &[&site]);
        let (ended, _) = build(&builders, body::full("archive")).await;
        assert_eq!(ended, Err("502 BUILDER_LOST".into()), "{script:?}");
    }
}

/// A builder that does not accept the build leaves the archive complete.
#[tokio::test]
async fn a_refused_build_goes_to_the_next_builder() {
    let signer = signer();
    for (script, silence) in [
        (Script::Refuses(503, "BUILDER_BUSY"), TEST_TIMEOUT),
        (Script::Refuses(401, "UNKNOWN_CODE"), TEST_TIMEOUT),
        (Script::Deaf, Duration::from_secs(1)),
    ] {
        let first = Site::open("builder-1", &signer, script.clone());
        let mut second = Site::open("builder-2", &signer, Script::Says(BUILT));
        let builders = builders(&signer, silence, &[&first, &second]);
        // So that the first one is tried first.
        builders.joined.lock()[1].running_builds.store(1, Relaxed);
        let (ended, logged) = build(&builders, body::full("archive")).await;
        assert_eq!(ended, shop(), "{script:?}");
        assert_eq!(logged[0], "note: builder `builder-1` did not accept the build", "{script:?}");
        second.sees("archive").await;
    }
}

#[tokio::test]
async fn an_unreachable_builder_is_tried_last() {
    let signer = signer();
    let gone = Site::open("builder-1", &signer, Script::Deaf);
    let site = Site::open("builder-2", &signer, Script::Says(BUILT));
    let builders = builders(&signer, TEST_TIMEOUT, &[&gone, &site]);
    let address = gone.join.address.clone();
    drop(gone);
    let began = Instant::now();
    while tokio::net::TcpStream::connect(&address).await.is_ok() {
        assert!(began.elapsed() < TEST_TIMEOUT);
        tokio::task::yield_now().await;
    }
    builders.joined.lock()[1].running_builds.store(1, Relaxed);
    assert_eq!(build(&builders, body::full("1")).await.1.len(), 2);
    assert_eq!(build(&builders, body::full("2")).await, (shop(), vec!["2".to_owned()]));
    drop(site);
}

#[tokio::test]
async fn without_an_accepting_builder_the_last_reason_counts() {
    let signer = signer();
    let busy = Site::open("builder-1", &signer, Script::Refuses(503, "BUILDER_BUSY"));
    let ended = build(&builders(&signer, TEST_TIMEOUT, &[&busy]), body::full("1")).await.0;
    assert_eq!(ended, Err("503 BUILDER_BUSY".into()));
    let unreachable = builders(&signer, TEST_TIMEOUT, &[]);
    unreachable.set([&join(VmId::parse("builder-1").unwrap(), "127.0.0.1:1".into())]);
    let ended = build(&unreachable, body::full("1")).await.0;
    assert_eq!(ended, Err("503 BUILDER_UNREACHABLE".into()));
    let strict = Site::open("builder-1", &signer, Script::Refuses(413, "SOURCE_TOO_LARGE"));
    let other = Site::open("builder-2", &signer, Script::Says(BUILT));
    let both = builders(&signer, TEST_TIMEOUT, &[&strict, &other]);
    both.joined.lock()[1].running_builds.store(1, Relaxed);
    let (ended, logged) = build(&both, body::full("1")).await;
    assert_eq!(
        (ended, logged.len()),
        (Err("413 SOURCE_TOO_LARGE".into()), 0),
        "the source is at fault"
    );
}

#[tokio::test]
async fn the_one_with_the_fewest_builds_gets_the_next() {
    let signer = signer();
    let sites: Vec<Site> = ["builder-1", "builder-2", "builder-3"]
        .iter()
        .map(|id| Site::open(id, &signer, Script::Hangs))
        .collect();
    let builders = Arc::new(builders(&signer, TEST_TIMEOUT, &sites.iter().collect::<Vec<_>>()));
    let counts = || -> Vec<usize> {
        builders.joined.lock().iter().map(|one| one.running_builds.load(Relaxed)).collect()
    };
    let mut at_work = Vec::new();
    for round in 1..=2 {
        for _ in &sites {
            let chosen = Arc::clone(&builders);
            let build = async move { chosen.build(job(body::full("x")).0).await };
            at_work.push(tokio::spawn(build));
            let began = Instant::now();
            while counts().iter().sum::<usize>() < at_work.len() {
                assert!(began.elapsed() < TEST_TIMEOUT);
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(counts(), [round; 3]);
    }
    for build in &at_work {
        build.abort();
    }
    // An unchanged member keeps its count and its connections; one with another address is a new
    // one.
    let before = builders.by_load(None);
    builders.set(sites[1..].iter().map(|site| &site.join));
    assert_eq!(builders.joined.lock().len(), 2);
    assert!(before.iter().any(|one| Arc::ptr_eq(one, &builders.joined.lock()[0])));
    let moved = Join { address: "127.0.0.1:1".into(), ..sites[1].join.clone() };
    builders.set([&moved]);
    assert!(!before.iter().any(|one| Arc::ptr_eq(one, &builders.joined.lock()[0])));
}

#[tokio::test]
async fn a_project_stays_with_one_idle_builder() {
    let signer = signer();
    let sites: Vec<Site> =
        (0..8).map(|n| Site::open(&format!("builder-{n}"), &signer, Script::Hangs)).collect();
    let builders = builders(&signer, TEST_TIMEOUT, &sites.iter().collect::<Vec<_>>());
    let first = |folder| builders.by_load(Some(folder))[0].join.id.clone();
    assert_eq!(first("shop"), first("shop"));
    let homes: std::collections::HashSet<_> =
        (0..50).map(|n| builders.by_load(Some(&format!("p{n}")))[0].join.id.clone()).collect();
    assert!(homes.len() > 4, "{homes:?}");
}

#[tokio::test]
async fn cancelling_a_build_closes_its_connection() {
    let signer = signer();
    let mut site = Site::open("builder-1", &signer, Script::Hangs);
    let builders = Arc::new(builders(&signer, TEST_TIMEOUT, &[&site]));
    let (job, _) = job(body::full("archive"));
    let (handed_over, archive) = tokio::sync::oneshot::channel();
    let job = BuildJob {
        archive: body::boxed(StreamBody::new(stream::once(async move {
            let _ = handed_over.send(());
            Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))
        }))),
        ..job
    };
    let at_work = {
        let builders = Arc::clone(&builders);
        tokio::spawn(async move { builders.build(job).await })
    };
    patient(archive).await.unwrap();
    at_work.abort();
    site.sees("given up").await;
    assert_eq!(builders.joined.lock()[0].running_builds.load(Relaxed), 0);
}

/// The developer's upload is at fault, not the builder whose connection broke with it.
#[tokio::test]
async fn a_failing_archive_is_reported_as_such() {
    let signer = signer();
    let limit = units::Bytes(10);
    let site = Site::open("builder-1", &signer, Script::Says(BUILT));
    let builders = builders(&signer, TEST_TIMEOUT, &[&site]);
    let pieces = |last: body::BodyError| {
        let first = Ok(Frame::data(Bytes::from_static(b"x")));
        body::boxed(StreamBody::new(stream::iter([first, Err(last)])))
    };
    let (ended, _) = build(&builders, pieces(Box::new(BodyTooLarge { limit }))).await;
    assert_eq!(ended, Err("413 SOURCE_TOO_LARGE".into()));
    let (ended, _) = build(&builders, pieces("the caller hung up".into())).await;
    assert_eq!(ended, Err("400 SOURCE_INCOMPLETE".into()));
}
