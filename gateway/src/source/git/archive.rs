//! A commit of a bare repository as the archive of a deployment: the output of `git archive`,
//! compressed while it is sent. `.gitattributes` apply: files with `export-ignore` are left out.

use super::{
    command::{self, Git, GitError, Pipes, Process},
    gzip,
};
use bytes::Bytes;
use epsilon_api::{
    body::{self, BodyError, BodyTooLarge, CallBody},
    units,
};
use futures_util::{Stream, TryStreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use std::{ffi::OsString, path::Path, time::Duration};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout_at},
};

const WHAT: &str = "archive";
/// Bytes read from git at a time.
const CHUNK: usize = 64 << 10;
/// Longest stored part of a failed git's error output, in bytes.
const MAX_STDERR: u64 = 4 << 10;

/// Limits of an archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Compressed size, as in `gateway.max_source`.
    pub(crate) size: units::Bytes,
    /// Time from its start to its last byte. The builder may be slow to begin.
    pub(crate) time: Duration,
}

/// The tree of `commit` as a tar.gz. Lazy: git is read as the body is read, and killed if the body
/// is dropped. `env` is for objects stored elsewhere, such as those of a push that is not accepted
/// yet.
///
/// # Errors
/// When git cannot be started. Later failures are errors of the body: [`BodyTooLarge`], or git's
/// error output.
pub(crate) fn of_commit(
    git: &Git,
    repository: &Path,
    commit: &str,
    env: &[(OsString, OsString)],
    limits: Limits,
) -> Result<CallBody, GitError> {
    // The tree, not the commit: the archive would contain the commit's id and date.
    let run = git.run([WHAT, "--format=tar", &format!("{commit}^{{tree}}")]);
    let run = env.iter().fold(run.within(repository), |run, (name, value)| run.env(name, value));
    let tar = tar(run.start()?, limits.time);
    let packed = limited(gzip::pack(tar), limits.size);
    Ok(body::boxed(StreamBody::new(packed.map_ok(Frame::data))))
}

/// git's output, followed by an error if git failed: half an archive is useless.
fn tar(
    (process, pipes): (Process, Pipes),
    time: Duration,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static {
    let until = Instant::now() + time;
    stream::try_unfold((process, pipes), move |state| async move {
        timeout_at(until, next(state)).await.unwrap_or_else(|_| {
            Err(GitError::TookTooLong { what: WHAT.into(), limit: time }.into())
        })
    })
}

type State = (Process, Pipes);

async fn next((mut process, mut pipes): State) -> Result<Option<(Bytes, State)>, BodyError> {
    let mut piece = Vec::with_capacity(CHUNK);
    if pipes.stdout.read_buf(&mut piece).await? > 0 {
        return Ok(Some((piece.into(), (process, pipes))));
    }
    let stderr = command::read(pipes.stderr, MAX_STDERR).await?.0;
    match process.wait().await? {
        status if status.success() => Ok(None),
        status => Err(command::failed(WHAT.into(), &stderr, status).into()),
    }
}

fn limited(
    pieces: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    limit: units::Bytes,
) -> impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static {
    let mut seen = 0;
    pieces.and_then(move |piece| {
        seen += piece.len() as u64;
        let fits = if seen > limit.get() { Err(BodyTooLarge { limit }.into()) } else { Ok(piece) };
        std::future::ready(fits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::git::command::Limits as Run;
    use http_body_util::BodyExt;
    use std::{error::Error, io::Read};
    use tempfile::TempDir;

    const ENOUGH: Limits = Limits { size: units::Bytes::mib(64), time: Duration::from_secs(60) };

    /// A bare repository with one commit of one file, and the id of the commit.
    async fn repository(git: &Git, file: &[u8]) -> (TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let run = Run { time: ENOUGH.time, output: units::Bytes::mib(1) };
        let output = async |args: &[&str], input: &[u8]| {
            let run_git = git.run(args).within(dir.path()).input(input);
            let said = run_git
                .setting("user.name=e")
                .setting("user.email=e@localhost")
                .output(run)
                .await
                .unwrap();
            String::from_utf8(said).unwrap().trim().to_owned()
        };
        output(&["init", "--quiet", "--bare"], b"").await;
        let blob = output(&["hash-object", "-w", "--stdin"], file).await;
        let tree = output(&["mktree"], format!("100755 blob {blob}\tindex.js\n").as_bytes()).await;
        let commit = output(&["commit-tree", "-m", "first", &tree], b"").await;
        (dir, commit)
    }

    fn unpacked(packed: &[u8]) -> Vec<u8> {
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut tar).unwrap();
        tar
    }

    #[tokio::test]
    async fn a_commit_is_an_archive_of_its_files() {
        let git = Git::default();
        let file = "exports.hi = 1;\n".repeat(50_000);
        let (dir, commit) = repository(&git, file.as_bytes()).await;
        let archive = of_commit(&git, dir.path(), &commit, &[], ENOUGH).unwrap();
        let packed = archive.collect().await.unwrap().to_bytes();
        let tar = unpacked(&packed);
        assert!(packed.len() < file.len() / 10, "it is compressed");
        assert!(tar.starts_with(b"index.js\0"), "no header with the commit's id");
        assert_eq!(&tar[512..512 + file.len()], file.as_bytes());
    }

    #[tokio::test]
    async fn half_an_archive_is_an_error_with_gits_words() {
        let git = Git::default();
        let (dir, _) = repository(&git, b"").await;
        let absent = "0123456789012345678901234567890123456789";
        let archive = of_commit(&git, dir.path(), absent, &[], ENOUGH).unwrap();
        let err = archive.collect().await.unwrap_err();
        assert!(err.to_string().contains("not a valid object name"), "{err}");
    }

    #[tokio::test]
    async fn an_archive_over_the_limit_fails_as_too_large() {
        let git = Git::default();
        let noise: Vec<u8> = (0..200_000_u32)
            .flat_map(|n| rapidhash::v3::rapidhash_v3(&n.to_le_bytes()).to_le_bytes())
            .collect();
        let (dir, commit) = repository(&git, &noise).await;
        let small = Limits { size: units::Bytes(100_000), ..ENOUGH };
        let archive = of_commit(&git, dir.path(), &commit, &[], small).unwrap();
        let err = archive.collect().await.unwrap_err();
        let mut cause: Option<&(dyn Error + 'static)> = Some(&*err);
        let has_cause = std::iter::from_fn(|| {
            let one = cause.take()?;
            cause = one.source();
            Some(one.is::<BodyTooLarge>())
        });
        assert!(has_cause.into_iter().any(|is| is), "{err}");
    }
}
