//! Runs the machine's `git` in isolation: it gets nothing of the gateway's environment and of the
//! machine's settings, runs no hooks, asks for no passwords, and has limits on time and output.
//! Dropping a run kills git and its child processes.
//!
//! Knows nothing of pushes or hooks; used by `archive`, `repository`, `receive` and the webhook.

use epsilon_api::units::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::OnceCell,
};

/// All features used here exist since this release (end of 2020).
const OLDEST: Version = Version(2, 30);
/// Limits for `git version`, which reads no repository.
const VERSION_LIMITS: Limits = Limits { time: Duration::from_secs(10), output: Bytes(4 << 10) };
/// Longest stored part of a failed git's error output, in bytes.
const MAX_STDERR: u64 = 4 << 10;
/// The only variables taken from the gateway's environment: where git's programs are, and where
/// temporary files go.
const INHERITED: [&str; 2] = ["PATH", "TMPDIR"];
/// git asks for nothing, reads no settings of the machine or its users, and prints English.
const SET: [(&str, &str); 7] = [
    ("LC_ALL", "C"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ASKPASS", "/bin/false"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("HOME", "/nonexistent"),
];
/// Repositories are trusted regardless of the folder's owner; no hooks; garbage is collected only
/// on request.
const SETTINGS: [&str; 4] =
    ["safe.directory=*", "core.hooksPath=/dev/null", "gc.auto=0", "core.fsmonitor=false"];

/// git's version, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Limits of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest run time.
    pub(crate) time: Duration,
    /// Most bytes on its standard output.
    pub(crate) output: Bytes,
}

/// Why git failed. Contains no secrets: none are among its arguments.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("there is no `git` on the gateway's machine; install git {OLDEST} or newer")]
    Missing,
    #[error("git {found} on the gateway's machine is too old; install git {OLDEST} or newer")]
    TooOld { found: Version },
    #[error("`git {what}` cannot be run")]
    Run {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("`git {what}` failed: {stderr}")]
    Failed { what: String, stderr: String },
    #[error("`git {what}` took longer than {}", humantime::format_duration(*limit))]
    TookTooLong { what: String, limit: Duration },
    #[error("`git {what}` printed more than {limit}")]
    TooMuch { what: String, limit: Bytes },
}

/// The machine's git. Looked up at first use, and again until it is found: after installing it, the
/// gateway need not be restarted.
#[derive(Debug)]
pub(crate) struct Git {
    program: PathBuf,
    found: OnceCell<Version>,
}

impl Default for Git {
    fn default() -> Self {
        Self::new("git".into())
    }
}

impl Git {
    /// This program, looked up on the `PATH` if it is only a name.
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, found: OnceCell::new() }
    }

    /// Checks that there is a git of a sufficient version.
    pub(crate) async fn ready(&self) -> Result<Version, GitError> {
        let look = async {
            let output = self.run(["version"]).output(VERSION_LIMITS).await?;
            let found = version(&output).ok_or(GitError::Missing)?;
            if found < OLDEST { Err(GitError::TooOld { found }) } else { Ok(found) }
        };
        self.found.get_or_try_init(|| look).await.copied()
    }

    /// One run of git. Call [`Git::ready`] before.
    pub(crate) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Run {
        Run {
            program: self.program.clone(),
            repository: None,
            settings: SETTINGS.into_iter().map(OsString::from).collect(),
            args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            env: Vec::new(),
            input: Vec::new(),
        }
    }
}

/// Parses `git version 2.39.5 (Apple Git-154)` and the like.
fn version(output: &[u8]) -> Option<Version> {
    let mut numbers = std::str::from_utf8(output).ok()?.split_whitespace().nth(2)?.split('.');
    let mut next = || numbers.next()?.parse().ok();
    Some(Version(next()?, next()?))
}

/// Builder of one run of git.
#[derive(Debug)]
pub(crate) struct Run {
    program: PathBuf,
    repository: Option<PathBuf>,
    settings: Vec<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Vec<u8>,
}

impl Run {
    /// Runs in this bare repository.
    pub(crate) fn within(mut self, repository: &Path) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds a setting of git, `key=value`; later ones win.
    pub(crate) fn setting(mut self, setting: impl Into<OsString>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Adds an environment variable.
    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets its standard input, which is empty by default.
    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Runs git and returns its output if it succeeded.
    pub(crate) async fn output(mut self, limits: Limits) -> Result<Vec<u8>, GitError> {
        let what = self.what();
        let input = std::mem::take(&mut self.input);
        let (mut process, Pipes { mut stdin, stdout, stderr }) = self.start()?;
        let run = async {
            let feed = async move {
                // If git exits before it has read its input, its error output says why.
                let _ = stdin.write_all(&input).await;
            };
            let ((), out, stderr) =
                tokio::join!(feed, read(stdout, limits.output.get()), read(stderr, MAX_STDERR));
            io::Result::Ok((out?, stderr?, process.wait().await?))
        };
        let run = tokio::time::timeout(limits.time, run).await;
        let Ok(ended) = run else {
            return Err(GitError::TookTooLong { what, limit: limits.time });
        };
        let ((out, is_all), (stderr, _), status) =
            ended.map_err(|source| GitError::Run { what: what.clone(), source })?;
        if !is_all {
            return Err(GitError::TooMuch { what, limit: limits.output });
        }
        if status.success() { Ok(out) } else { Err(failed(what, &stderr, status)) }
    }

    /// Starts git with all three pipes, for callers that read and write while it runs.
    pub(crate) fn start(self) -> Result<(Process, Pipes), GitError> {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(SET);
        for name in INHERITED {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        for setting in &self.settings {
            command.arg("-c").arg(setting);
        }
        if let Some(repository) = &self.repository {
            command.arg("--git-dir").arg(repository);
        }
        let child = command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let begun = child.and_then(|mut child| {
            let pipes = Pipes::of(&mut child)
                .ok_or_else(|| io::Error::other("the process has no pipes"))?;
            Ok((Process { child }, pipes))
        });
        begun.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => GitError::Missing,
            _ => GitError::Run { what: self.what(), source },
        })
    }

    /// git's command, for messages.
    fn what(&self) -> String {
        self.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The error of a failed git, from its own error output.
pub(crate) fn failed(what: String, stderr: &[u8], status: ExitStatus) -> GitError {
    let stderr = String::from_utf8_lossy(stderr).trim().to_owned();
    GitError::Failed { what, stderr: if stderr.is_empty() { status.to_string() } else { stderr } }
}

/// A running git. If dropped before its end, git and its child processes are killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// The pipes of a running git.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

impl Pipes {
    fn of(child: &mut Child) -> Option<Self> {
        let (stdin, stdout) = (child.stdin.take()?, child.stdout.take()?);
        Some(Self { stdin, stdout, stderr: child.stderr.take()? })
    }
}

impl Process {
    /// Waits for its end. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process id is valid until it was waited for; then there is none.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = id {
            // Processes that have already ended need no signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads at most `limit` bytes; returns them and whether that was all. If not, the writer gets a
/// broken pipe.
pub(crate) async fn read(from: impl AsyncRead + Unpin, limit: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let mut from = from.take(limit);
    from.read_to_end(&mut bytes).await?;
    let mut from = from.into_inner();
    let is_all = (bytes.len() as u64) < limit || from.read(&mut [0]).await? == 0;
    Ok((bytes, is_all))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_secs(60), output: Bytes(1 << 20) };

    #[test]
    fn versions_are_read_as_they_are_printed_anywhere() {
        for (output, want) in [
            ("git version 2.47.3\n", Some(Version(2, 47))),
            ("git version 2.39.5 (Apple Git-154)\n", Some(Version(2, 39))),
            ("git version 2.9.windows.1", Some(Version(2, 9))),
            ("git version 3.0-rc1", None),
            ("zsh: command not found", None),
            ("", None),
        ] {
            assert_eq!(version(output.as_bytes()), want, "{output}");
        }
        assert!(Version(2, 9) < OLDEST && Version(3, 0) > OLDEST);
    }

    #[tokio::test]
    async fn git_runs_without_our_environment() {
        let git = Git::default();
        git.ready().await.unwrap();
        // An alias that starts with `!` is a shell command: it shows git's environment from inside.
        let look = git.run(["look"]).setting("alias.look=!env");
        let seen = String::from_utf8(look.env("OURS", "1").output(LIMITS).await.unwrap()).unwrap();
        assert!(seen.contains("OURS=1") && seen.contains("HOME=/nonexistent"), "{seen}");
        for ours in ["CARGO", "RUST", "SSH_", "USER="] {
            assert!(!seen.lines().any(|line| line.starts_with(ours)), "{ours}: {seen}");
        }
    }

    #[tokio::test]
    async fn input_goes_in_and_output_comes_out() {
        let git = Git::default();
        let run = git.run(["stripspace"]).input("one  \n\n\n\ntwo");
        assert_eq!(run.output(LIMITS).await.unwrap(), b"one\n\ntwo\n");
    }

    #[tokio::test]
    async fn each_limit_ends_it_with_its_reason() {
        let git = Git::default();
        let run = |script: &str| git.run(["it"]).setting(format!("alias.it=!{script}"));
        let short = Limits { time: Duration::from_millis(200), output: Bytes(1000) };
        let err = run("sleep 600").output(short).await.unwrap_err();
        assert!(matches!(err, GitError::TookTooLong { .. }), "{err}");
        let short = Limits { output: Bytes(1000), ..LIMITS };
        let err = run("yes").output(short).await.unwrap_err();
        assert_eq!(err.to_string(), "`git it` printed more than 1000B");
        let err = run("echo no room >&2; false").output(LIMITS).await.unwrap_err();
        assert_eq!(err.to_string(), "`git it` failed: no room");
        let err = git.run(["such-a-verb"]).output(LIMITS).await.unwrap_err();
        assert!(err.to_string().contains("is not a git command"), "{err}");
    }

    #[tokio::test]
    async fn dropped_it_goes_with_all_that_it_started() {
        let git = Git::default();
        let script = "alias.it=!sleep 600 & echo $!; wait";
        let (process, Pipes { mut stdout, .. }) = git.run(["it"]).setting(script).start().unwrap();
        let mut id = String::new();
        while !id.ends_with('\n') {
            id.push(char::from(stdout.read_u8().await.unwrap()));
        }
        let grandchild = format!("/proc/{}/stat", id.trim());
        let lives = || {
            // A process that was not waited for yet is a zombie.
            std::fs::read_to_string(&grandchild).is_ok_and(|stat| !stat.contains(") Z "))
        };
        assert!(lives());
        drop(process);
        // The pipe ends when the last process that holds it is gone.
        let mut rest = Vec::new();
        let end = stdout.read_to_end(&mut rest);
        tokio::time::timeout(LIMITS.time, end).await.unwrap().unwrap();
        assert!(!lives());
    }
}
