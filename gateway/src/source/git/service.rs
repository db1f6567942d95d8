//! Requests that change nothing: the list of branches and tags (the first request of every push,
//! clone and fetch), and the objects of a clone or fetch. git's output is streamed to the client.

use super::{
    GitHost, Refused,
    command::{Limits, Pipes, Process},
    gzip::Unpacker,
};
use bytes::{Bytes, BytesMut};
use epsilon_api::{
    body::{self, BodyError, CallBody},
    ids::ProjectName,
    units,
};
use futures_util::{Stream, TryStreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use std::pin::pin;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

/// Longest list of all branches and tags.
const MAX_REFS: units::Bytes = units::Bytes::mib(16);
/// Longest request of a client, which lists what it has; some kilobytes in practice.
const MAX_WANTS: units::Bytes = units::Bytes::mib(16);
/// Most output of git before it has read its whole input: a line of 57 bytes for each of the 50
/// that a client sends.
const MAX_FIRST_OUTPUT: usize = 20 << 20;
/// Bytes read from git at a time.
const CHUNK: usize = 64 << 10;

/// The two halves of git's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// A push.
    Receive,
    /// A clone or fetch.
    Upload,
}

impl Service {
    /// Parses `?service=`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Receive, Self::Upload].into_iter().find(|service| service.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Receive => "git-receive-pack",
            Self::Upload => "git-upload-pack",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Receive => "receive-pack",
            Self::Upload => "upload-pack",
        }
    }
}

/// The protocol version that a client requests, in git's form. Other values are ignored.
pub(crate) fn protocol(header: Option<&str>) -> Option<String> {
    header.filter(|text| matches!(*text, "version=1" | "version=2")).map(str::to_owned)
}

impl GitHost {
    /// Lists the branches and tags. A push creates the repository if it is missing.
    pub(crate) async fn advertise(
        &self,
        project: &ProjectName,
        service: Service,
        protocol: Option<String>,
    ) -> Result<CallBody, Refused> {
        let repository = match service {
            Service::Receive => {
                // Before a slot is taken: this may wait for a push, which holds one.
                self.wait_for_push(project).await;
                let _slot = self.take_slot().await?;
                self.repositories.ensure(project).await?
            }
            Service::Upload => self.known(project)?,
        };
        let _slot = self.take_slot().await?;
        // Version 2 begins with the version itself, older ones with a line for proxies.
        let is_new = service == Service::Upload && protocol.as_deref() == Some("version=2");
        let head = format!("# service={}\n", service.name());
        let head = if is_new { String::new() } else { format!("{:04x}{head}0000", head.len() + 4) };
        let run = self.git.run([service.verb(), "--stateless-rpc", "--advertise-refs"]);
        let run = protocol.into_iter().fold(run, |run, version| run.env("GIT_PROTOCOL", version));
        let run = run.setting("receive.advertisePushOptions=false").arg(repository.path());
        let limits = Limits { time: self.config.limits.lookup_timeout, output: MAX_REFS };
        let mut output = head.into_bytes();
        output.extend(run.output(limits).await?);
        Ok(body::full(output))
    }

    /// Sends the objects of a clone or fetch.
    pub(crate) async fn fetch(
        &self,
        project: &ProjectName,
        protocol: Option<String>,
        wants: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
        is_gzip: bool,
    ) -> Result<CallBody, Refused> {
        let slot = self.take_slot().await?;
        let repository = self.known(project)?;
        let run = self.git.run([Service::Upload.verb(), "--stateless-rpc"]).arg(repository.path());
        let run = protocol.into_iter().fold(run, |run, version| run.env("GIT_PROTOCOL", version));
        let (process, Pipes { stdin, mut stdout, stderr: _ }) = run.start()?;
        let until = Instant::now() + self.config.limits.timeout;
        let feeding = timeout_at(until, feed(wants, stdin, is_gzip, MAX_WANTS));
        let (fed, first_output) = feed_and_collect(feeding, &mut stdout).await;
        fed.unwrap_or(Fed::Broken).or_refused(MAX_WANTS)?;
        let state = Sending { process, first_output, stdout, until, _slot: slot };
        let pieces = stream::try_unfold(state, Sending::next).map_ok(Frame::data);
        Ok(body::boxed(StreamBody::new(pieces)))
    }
}

/// Feeds git and collects its output in the meantime: in older protocol versions it acknowledges
/// while it reads, and it stops reading while its output is blocked.
async fn feed_and_collect<T>(
    feeding: impl Future<Output = T>,
    mut from: impl AsyncRead + Unpin,
) -> (T, Bytes) {
    let mut first_output = BytesMut::new();
    let mut has_ended = false;
    let mut feeding = pin!(feeding);
    loop {
        tokio::select! {
            // Cancel-safe: `feeding` lives outside the loop, and a dropped read has read nothing.
            fed = &mut feeding => return (fed, first_output.freeze()),
            read = from.read_buf(&mut first_output), if !has_ended && first_output.len() < MAX_FIRST_OUTPUT => {
                has_ended = !matches!(read, Ok(1..));
            }
        }
    }
}

/// A git that sends its output. Killed when the reader is dropped.
struct Sending {
    process: Process,
    /// Output that was collected while it was fed.
    first_output: Bytes,
    stdout: tokio::process::ChildStdout,
    until: Instant,
    _slot: OwnedSemaphorePermit,
}

impl Sending {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, BodyError> {
        if !self.first_output.is_empty() {
            return Ok(Some((std::mem::take(&mut self.first_output), self)));
        }
        let mut piece = Vec::with_capacity(CHUNK);
        match timeout_at(self.until, self.stdout.read_buf(&mut piece)).await?? {
            0 => {}
            _ => return Ok(Some((piece.into(), self))),
        }
        // Its errors are part of its output: both ends speak git's protocol.
        timeout_at(self.until, self.process.wait()).await??;
        Ok(None)
    }
}

/// How a request's body was passed to git.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// All of it, or as much as git read.
    Whole,
    /// The client hung up or was too slow.
    Broken,
    TooLarge,
    NotGzip,
}

impl Fed {
    /// The refusal, if the request is at fault.
    pub(crate) fn or_refused(self, limit: units::Bytes) -> Result<(), Refused> {
        match self {
            Self::Whole | Self::Broken => Ok(()),
            Self::TooLarge => Err(Refused::TooLarge(limit)),
            Self::NotGzip => Err(Refused::NotGzip),
        }
    }
}

/// Passes a request's body to git, decompressed. git's input is closed in any case.
pub(crate) async fn feed(
    body: impl Stream<Item = Result<Bytes, BodyError>>,
    mut stdin: ChildStdin,
    is_gzip: bool,
    limit: units::Bytes,
) -> Fed {
    let mut body = pin!(body);
    let mut remaining = limit.get();
    let mut unpacker = is_gzip.then(Unpacker::new);
    let mut is_stdin_open = true;
    loop {
        let piece = match body.try_next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(err) if is_too_large(&*err) => return Fed::TooLarge,
            Err(_) => return Fed::Broken,
        };
        for step in Unpacker::steps(&piece, unpacker.is_some()) {
            let plain = match &mut unpacker {
                None => step,
                Some(unpacker) => match unpacker.step(&step) {
                    Ok(plain) => plain,
                    Err(_) => return Fed::NotGzip,
                },
            };
            let Some(rest) = remaining.checked_sub(plain.len() as u64) else {
                return Fed::TooLarge;
            };
            remaining = rest;
            // If git reads no more, its output says why; the client must send everything before it
            // reads that.
            is_stdin_open = is_stdin_open && stdin.write_all(&plain).await.is_ok();
        }
    }
    let Some(unpacker) = unpacker else { return Fed::Whole };
    let Ok(last) = unpacker.end() else { return Fed::NotGzip };
    if is_stdin_open {
        let _ = stdin.write_all(&last).await;
    }
    Fed::Whole
}

fn is_too_large(err: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(err);
    while let Some(one) = cause {
        if one.is::<body::BodyTooLarge>() {
            return true;
        }
        cause = one.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process::Stdio, time::Duration};

    /// `cat` echoes each byte at once, and blocks while its output is not read.
    #[tokio::test]
    async fn output_of_git_is_read_while_it_is_fed() {
        const BYTES: usize = 1 << 20;
        let mut cat = tokio::process::Command::new("cat");
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
        let wants = stream::iter((0..BYTES / 1024).map(|_| Ok(Bytes::from(vec![b'x'; 1024]))));
        let until = Instant::now() + Duration::from_secs(20);
        let feeding = timeout_at(until, feed(wants, stdin, false, MAX_WANTS));
        let (fed, first_output) = feed_and_collect(feeding, &mut stdout).await;
        assert_eq!(fed.unwrap(), Fed::Whole);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).await.unwrap();
        assert_eq!(first_output.len() + rest.len(), BYTES);
        cat.wait().await.unwrap();
    }
}
