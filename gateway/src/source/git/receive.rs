//! One push, from its first byte to its last. It runs in a task of its own: a pusher who hangs up
//! cancels a deployment that does not serve yet, but never interrupts git while it moves branches.

use super::command::{GitError, Pipes};
use super::hook::Hook;
use super::pre_receive::{PreReceive, Verdict};
use super::service::{Fed, feed};
use super::{EXIT_TIMEOUT, GitHost, Refused, command, hook};
use crate::deploy::queue::Turn;
use crate::functions::actor::Actor;
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, CallBody},
    chain::Chain,
    ids::ProjectName,
    units,
};
use futures_util::Stream;
use http_body::Frame;
use http_body_util::StreamBody;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt,
    process::ChildStdout,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

/// Pieces of git's answer that wait for a slow client.
const QUEUE_LEN: usize = 16;
/// How long a client may leave git's answer unread before the rest is dropped.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes read from git at a time.
const CHUNK: usize = 16 << 10;
/// Longest stored part of a failed git's error output, in bytes.
const MAX_STDERR: u64 = 4 << 10;
/// Most bytes of a push besides its pack: the list of branches that it moves.
const COMMANDS: u64 = 1 << 20;

/// A push as its client sent it.
pub(crate) struct Received<B> {
    pub(crate) by: Actor,
    pub(crate) project: ProjectName,
    pub(crate) body: B,
    pub(crate) is_gzip: bool,
    pub(crate) protocol: Option<String>,
}

impl GitHost {
    /// Runs a push. Returns when git begins its answer, or when it fails before that.
    pub(crate) async fn receive<B>(self: &Arc<Self>, push: Received<B>) -> Result<CallBody, Refused>
    where
        B: Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    {
        let slot = self.take_slot().await?;
        let (pieces, mut answer) = mpsc::channel::<Bytes>(QUEUE_LEN);
        let (ended, end) = oneshot::channel();
        let host = Arc::clone(self);
        let project = push.project.clone();
        self.background.spawn(async move {
            let outcome = host.serve(push, pieces, slot).await;
            if let Err(err) = &outcome {
                tracing::info!(%project, error = %Chain(err), "git push failed.");
            }
            // The receiver is gone once git has begun to answer.
            let _ = ended.send(outcome);
        });
        let Some(first) = answer.recv().await else {
            // The probe of a client with much to send gets an empty answer.
            return end.await.unwrap_or(Ok(())).map(|()| body::empty());
        };
        let pieces = tokio_stream::once(first).chain(ReceiverStream::new(answer));
        let frames = pieces.map(|piece| Ok::<_, BodyError>(Frame::data(piece)));
        Ok(body::boxed(StreamBody::new(frames)))
    }

    async fn serve<B>(
        self: Arc<Self>,
        push: Received<B>,
        pieces: mpsc::Sender<Bytes>,
        _slot: OwnedSemaphorePermit,
    ) -> Result<(), Refused>
    where
        B: Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    {
        let Received { by, project, body, is_gzip, protocol } = push;
        let repository = self.repositories.ensure(&project).await?;
        let (hooks, folder) = self.repositories.push_folders()?;
        let mut hook = Hook::open(&folder).map_err(super::RepositoryError::from)?;
        let mut run = self.git.run(["receive-pack", "--stateless-rpc"]).arg(repository.path());
        for setting in self.settings(&hooks.to_string_lossy()) {
            run = run.setting(setting);
        }
        run = run.env(hook::FOLDER, folder.path());
        run = protocol.into_iter().fold(run, |run, version| run.env("GIT_PROTOCOL", version));
        let (mut process, Pipes { stdin, stdout, stderr }) = run.start()?;

        let cancel = self.cancel.child_token();
        let _gone = cancel.clone().drop_guard();
        let client = pieces.clone();
        let hang_up = async {
            client.closed().await;
            cancel.cancel();
            std::future::pending::<()>().await;
        };
        let limit = units::Bytes(self.config.max_push.get().saturating_add(COMMANDS));
        let mut verdict: Option<(Verdict, Option<Turn>)> = None;
        let conversation = async {
            let late = || GitError::TookTooLong {
                what: "receive-pack".into(),
                limit: self.config.limits.timeout,
            };
            let request = timeout(self.config.limits.timeout, hook.read_updates())
                .await
                .map_err(|_| late())?;
            let pre_receive = PreReceive {
                host: &self,
                by: &by,
                project: &project,
                repository: &repository,
                cancel: &cancel,
            };
            let decided = pre_receive.decide_push(request?, &mut hook).await?;
            let is_accepted = decided.0.is_accepted();
            verdict = Some(decided);
            hook.decide(is_accepted).await?;
            tokio::time::sleep(self.config.limits.timeout).await;
            Err::<std::convert::Infallible, HookError>(late().into())
        };
        let git = async {
            let (fed, (), stderr) = tokio::join!(
                feed(body, stdin, is_gzip, limit),
                pump(stdout, pieces),
                command::read(stderr, MAX_STDERR)
            );
            let status = timeout(EXIT_TIMEOUT, process.wait()).await;
            (fed, stderr, status)
        };
        let (fed, stderr, status) = tokio::select! {
            biased;
            // git has ended, so the conversation is over.
            ended = git => ended,
            Err(hook_error) = conversation => return Err(hook_error.0),
            () = hang_up => return Ok(()),
        };
        if let Some((verdict, _turn)) = verdict {
            if let Verdict::Deployed(update) = &verdict {
                self.record_push(&project, update.new.short());
            }
            verdict.settle(&repository).await;
            let tidied = repository.tidy(self.config.limits.timeout).await;
            if let Err(err) = tidied {
                tracing::warn!(%project, error = %Chain(&err), "git gc of a repository failed; the next push tries again.");
            }
        }
        fed.or_refused(self.config.max_push)?;
        match (fed, status, stderr) {
            (Fed::Broken, ..) => Ok(()),
            (_, Ok(Ok(status)), Ok((stderr, _))) if !status.success() => {
                Err(command::failed("receive-pack".into(), &stderr, status).into())
            }
            _ => Ok(()),
        }
    }

    /// Settings for git receive-pack: what it refuses by itself.
    fn settings(&self, hooks: &str) -> [String; 11] {
        [
            format!("core.hooksPath={hooks}"),
            format!("receive.maxInputSize={}", self.config.max_push.get()),
            "receive.fsckObjects=true".into(),
            // Old and harmless defects that long histories contain.
            "receive.fsck.zeroPaddedFilemode=ignore".into(),
            "receive.fsck.badTimezone=ignore".into(),
            "receive.fsck.missingSpaceBeforeDate=ignore".into(),
            // Force pushes are allowed, as elsewhere.
            "receive.denyNonFastForwards=false".into(),
            "receive.denyDeletes=false".into(),
            // CI systems check out without history.
            "receive.shallowUpdate=true".into(),
            "receive.autoGC=false".into(),
            "receive.advertisePushOptions=false".into(),
        ]
    }
}

/// Why the hook got no answer.
struct HookError(Refused);

impl From<GitError> for HookError {
    fn from(err: GitError) -> Self {
        Self(err.into())
    }
}

impl From<io::Error> for HookError {
    fn from(err: io::Error) -> Self {
        Self(Refused::Repository(err.into()))
    }
}

/// Passes git's answer to the client. Reads it to the end in any case: git would block if its
/// output were not read, and a suspended client would hold its project's turn.
async fn pump(mut stdout: ChildStdout, pieces: mpsc::Sender<Bytes>) {
    let mut pieces = Some(pieces);
    loop {
        let mut piece = Vec::with_capacity(CHUNK);
        match stdout.read_buf(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Some(client) = &pieces
            && !matches!(timeout(CLIENT_TIMEOUT, client.send(piece.into())).await, Ok(Ok(())))
        {
            pieces = None;
        }
    }
}
