//! git's pre-receive hook: it runs when all objects of a push were received and checked, and no
//! branch has moved. The hook is a short shell script that asks this process and prints its output,
//! which git sends to the pusher at once.
//!
//! ```text
//! receive-pack ─ starts ─▶ hook ─ `request` ─▶ gateway
//!       ▲                   │  ◀─ `answer` ──   │ say LINE …, then accept | refuse
//!       └─ stderr ◀─────────┘
//! ```
//! Two named pipes in a folder per push. If the gateway dies, they close, and the hook refuses.

use super::refs::Update;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, accessat, mknodat};
use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe,
};

/// Environment variable with the folder of the pipes.
pub(crate) const FOLDER: &str = "EPSILON_PUSH";
/// Names of the pipes.
const REQUEST_PIPE: &str = "request";
const ANSWER_PIPE: &str = "answer";
/// Sends the updates, prints the lines it gets, and exits as decided.
const SCRIPT: &str = r#"#!/bin/sh
# Written by the gateway at each push. No push changes anything before the gateway has said `accept`.
exec 3>"$EPSILON_PUSH/request" 4<"$EPSILON_PUSH/answer" || exit 1
{ printf '%s\n' "$GIT_QUARANTINE_PATH"; cat; printf '.\n'; } >&3
exec 3>&-
while IFS= read -r line <&4; do
    case $line in
        accept) exit 0 ;;
        refuse) exit 1 ;;
        *) printf '%s\n' "${line#say}" >&2 ;;
    esac
done
exit 1
"#;
/// Longest list of changes: some thousands of branches and tags.
const MAX_UPDATES_LEN: u64 = 1 << 20;

/// Writes the hook if it is missing or different, through a temporary file named `half`. Returns
/// whether it can be executed.
pub(crate) fn install(folder: &Path, half: &str) -> io::Result<bool> {
    let hook = folder.join("pre-receive");
    let can_run = || accessat(CWD, &hook, Access::EXEC_OK, AtFlags::empty()).is_ok();
    if !fs::read(&hook).is_ok_and(|text| text == SCRIPT.as_bytes()) || !can_run() {
        fs::create_dir_all(folder)?;
        let half = folder.join(half);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o755).open(&half);
        io::Write::write_all(&mut file?, SCRIPT.as_bytes())?;
        fs::rename(&half, &hook)?;
    }
    Ok(can_run())
}

/// The folder of one push; removed on drop.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next start removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the folders of pushes whose gateway was killed. A hook that still waits for its pipes
/// fails, and git ends with it.
pub(crate) fn remove_left(pushes: &Path) {
    let left = fs::read_dir(pushes).into_iter().flatten().flatten();
    let pipes =
        left.flat_map(|push| [REQUEST_PIPE, ANSWER_PIPE].map(|name| push.path().join(name)));
    // Opened for reading and writing, which does not block. Held until the names are gone, so that
    // a hook cannot block on the second pipe.
    let held: Vec<_> = pipes
        .filter_map(|pipe| fs::File::options().read(true).write(true).open(pipe).ok())
        .collect();
    let _ = fs::remove_dir_all(pushes);
    drop(held);
}

/// The gateway's end of the pipes.
#[derive(Debug)]
pub(crate) struct Hook {
    requests: pipe::Receiver,
    answers: pipe::Sender,
}

/// What the hook sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PushRequest {
    /// Folder of the push's objects; empty if it brings none.
    pub(crate) quarantine: String,
    pub(crate) updates: Vec<Update>,
}

impl Hook {
    /// Makes the pipes. Both ends of both are held here, so that neither side blocks while opening
    /// them.
    pub(crate) fn open(folder: &Folder) -> io::Result<Self> {
        let make = |name: &str| {
            let path = folder.path().join(name);
            let own = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &path, FileType::Fifo, own, 0)?;
            io::Result::Ok(path)
        };
        let mut options = pipe::OpenOptions::new();
        options.read_write(true);
        let requests = options.open_receiver(make(REQUEST_PIPE)?)?;
        Ok(Self { requests, answers: options.open_sender(make(ANSWER_PIPE)?)? })
    }

    /// Waits until the hook runs. Never resolves if git sees no reason to run it.
    pub(crate) async fn read_updates(&mut self) -> io::Result<PushRequest> {
        let broken = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut lines = BufReader::new((&mut self.requests).take(MAX_UPDATES_LEN)).lines();
        let mut next = async || {
            let line = lines.next_line().await?;
            line.ok_or_else(|| broken("the push changes too many branches and tags at once"))
        };
        let quarantine = next().await?;
        let mut updates = Vec::new();
        loop {
            let line = next().await?;
            if line == "." {
                return Ok(PushRequest { quarantine, updates });
            }
            let update = Update::parse(&line);
            updates.push(update.ok_or_else(|| broken("git's hook was given an invalid update"))?);
        }
    }

    /// Sends one line to the pusher. Waits for a slow client.
    pub(crate) async fn print(&mut self, line: &str) -> io::Result<()> {
        self.answers.write_all(format!("say{line}\n").as_bytes()).await
    }

    /// Sends the final decision.
    pub(crate) async fn decide(&mut self, accepted: bool) -> io::Result<()> {
        let word: &[u8] = if accepted { b"accept\n" } else { b"refuse\n" };
        self.answers.write_all(word).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;
    use tokio::process::Command;

    const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
    const OLD: &str = "0000000000000000000000000000000000000000";
    const NEW: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    struct Lab {
        _dir: tempfile::TempDir,
        folder: Folder,
        script: PathBuf,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            assert!(install(dir.path(), ".new-1").unwrap());
            assert!(install(dir.path(), ".new-1").unwrap(), "a second time changes nothing");
            let folder = Folder::make(dir.path().join("push")).unwrap();
            Self { script: dir.path().join("pre-receive"), folder, _dir: dir }
        }

        fn start(&self) -> tokio::process::Child {
            Command::new(&self.script)
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap())
                .env(FOLDER, self.folder.path())
                .env("GIT_QUARANTINE_PATH", "/q")
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        }
    }

    #[tokio::test]
    async fn the_hook_sends_prints_and_exits_as_decided() {
        for accepted in [true, false] {
            let lab = Lab::new();
            let mut hook = Hook::open(&lab.folder).unwrap();
            let mut child = lab.start();
            let update = format!("{OLD} {NEW} refs/heads/main\n");
            child.stdin.take().unwrap().write_all(update.as_bytes()).await.unwrap();
            let request = hook.read_updates().await.unwrap();
            assert_eq!((request.quarantine.as_str(), request.updates.len()), ("/q", 1));
            for line in ["  building", "", r"a \n 100% $HOME `id`", "accept"] {
                hook.print(line).await.unwrap();
            }
            hook.decide(accepted).await.unwrap();
            let ended = child.wait_with_output().await.unwrap();
            assert_eq!(ended.status.success(), accepted);
            let printed = String::from_utf8(ended.stderr).unwrap();
            assert_eq!(printed, "  building\n\na \\n 100% $HOME `id`\naccept\n");
        }
    }

    #[test]
    fn a_foreign_or_unexecutable_hook_is_rewritten() {
        let lab = Lab::new();
        let folder = lab.script.parent().unwrap();
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&lab.script, mode(0o644)).unwrap();
        assert!(install(folder, ".new-2").unwrap());
        fs::write(&lab.script, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(install(folder, ".new-3").unwrap());
        assert_eq!(fs::read_to_string(&lab.script).unwrap(), SCRIPT);
    }

    #[tokio::test]
    async fn a_gateway_that_dies_refuses() {
        let lab = Lab::new();
        let mut hook = Hook::open(&lab.folder).unwrap();
        let mut child = lab.start();
        drop(child.stdin.take());
        hook.read_updates().await.unwrap();
        drop(hook);
        assert!(!child.wait().await.unwrap().success());
    }

    #[tokio::test]
    async fn a_hook_of_a_dead_gateway_ends() {
        let lab = Lab::new();
        drop(Hook::open(&lab.folder).unwrap());
        let mut child = lab.start();
        drop(child.stdin.take());
        let pid = child.id().unwrap();
        // Once asleep, it is blocked on opening its first pipe.
        let began = std::time::Instant::now();
        while !fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") S ") {
            assert!(began.elapsed() < LIMIT, "the hook does not reach its pipes");
            tokio::task::yield_now().await;
        }
        remove_left(lab.folder.path().parent().unwrap());
        let ended = tokio::time::timeout(LIMIT, child.wait()).await;
        assert!(!ended.unwrap().unwrap().success());
    }
}
