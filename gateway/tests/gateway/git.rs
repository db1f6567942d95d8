//! `git push` with the real git on both sides: what is deployed, what is stored, and the state
//! after a failed push.

use crate::{
    fake::ok,
    world::{TEST_TIMEOUT, World, built, eventually, open, patient},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::{build::BuildError, units::Bytes};
use epsilon_gateway::config::Settings;
use http::{Method, StatusCode};
use std::{
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

/// A developer's machine: a checkout, without the settings of this user.
struct Dev {
    dir: TempDir,
}

/// Exit status and output of a git command.
#[derive(Debug)]
struct Said {
    ok: bool,
    text: String,
}

impl Said {
    #[track_caller]
    fn fine(self) -> String {
        assert!(self.ok, "{}", self.text);
        self.text
    }

    #[track_caller]
    fn failed(self) -> String {
        assert!(!self.ok, "{}", self.text);
        self.text
    }

    /// The gateway's lines, without `remote:`.
    fn remote(&self) -> Vec<&str> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("remote: "));
        lines.map(str::trim_end).filter(|line| !line.is_empty()).collect()
    }
}

impl Dev {
    /// An empty repository on `main`.
    async fn new() -> Self {
        let dev = Self { dir: tempfile::tempdir().unwrap() };
        dev.git(&["init", "--quiet", "--initial-branch=main"]).await.fine();
        dev
    }

    /// With one commit.
    async fn with(text: &str) -> Self {
        let dev = Self::new().await;
        dev.commit(text).await;
        dev
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .args(["-c", "user.name=Dev", "-c", "user.email=dev@example.org"])
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    async fn git(&self, args: &[&str]) -> Said {
        let ended = patient(self.command(args).output()).await.unwrap();
        let text = [ended.stdout, ended.stderr].concat();
        Said { ok: ended.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    async fn commit(&self, text: &str) {
        self.write("index.js", text);
        self.git(&["add", "--all"]).await.fine();
        self.git(&["commit", "--quiet", "--allow-empty", "-m", text]).await.fine();
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    async fn push(&self, world: &World, what: &[&str]) -> Said {
        self.git(&[&["push", &url(world, "shop")], what].concat()).await
    }

    async fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).await.fine().trim().to_owned()
    }
}

/// A push that runs while the test continues.
struct Pushing {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Pushing {
    fn start(dev: &Dev, world: &World, what: &[&str]) -> Self {
        let url = url(world, "shop");
        let mut child = dev.command(&[&["push", &url], what].concat()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads lines until one contains this text.
    async fn wait_for_line(&mut self, what: &str) {
        let mut seen = Vec::new();
        loop {
            let line = patient(self.lines.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("no `{what}` in {seen:?}"));
            if line.contains(what) {
                return;
            }
            seen.push(line);
        }
    }

    async fn end(mut self) -> Said {
        let mut text = String::new();
        while let Some(line) = patient(self.lines.next_line()).await.unwrap() {
            text += &line;
            text.push('\n');
        }
        Said { ok: patient(self.child.wait()).await.unwrap().success(), text }
    }
}

fn url(world: &World, project: &str) -> String {
    format!("http://any:{}@{}/git/{project}", world.key, world.control)
}

/// Each version answers with its number.
async fn world() -> World {
    world_with(|_| {}).await
}

async fn world_with(set: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings::default();
    set(&mut settings);
    let world = World::start(&[], settings).await;
    world.vm.script("hello", |call| async move { ok(call.version.number.to_string()) });
    world
}

/// Sets the builder's answer to the next archive.
fn next(world: &World, digest: &str) {
    world.builder.next(Ok(built("shop", &[("hello", digest)])));
}

/// The commit of a branch at the gateway.
async fn at(world: &World, name: &str) -> Option<String> {
    let repository = repository(world);
    let output = Command::new("git")
        .arg("--git-dir")
        .arg(repository)
        .args(["-c", "safe.directory=*", "rev-parse", "--quiet", "--verify", name])
        .output();
    let output = patient(output).await.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn repository(world: &World) -> PathBuf {
    world.dir.path().join("git/shop.git")
}

#[tokio::test]
async fn a_push_deploys_and_says_where() {
    let world = world().await;
    *world.builder.lines.lock().unwrap() = vec!["\u{1b}[32madded\u{1b}[0m 57 packages".into()];
    let dev = Dev::with("1").await;
    next(&world, "1");
    let said = dev.push(&world, &["main"]).await;
    let address = format!("hello  v1    http://{}/hello", world.public);
    let commit = dev.head().await;
    let begin = format!("  shop: deploying {} of main", &commit[..7]);
    let remote = said.remote();
    assert_eq!(remote[..2], [&*begin, "  added 57 packages"], "{}", said.text);
    assert_eq!(remote.last(), Some(&&*address), "{}", said.text);
    said.fine();
    assert_eq!(world.get("/hello").await.body, "1");
    assert_eq!(at(&world, "refs/heads/main").await, Some(commit));

    // Pushed again: git itself reports that there is nothing to do.
    assert!(dev.push(&world, &["main"]).await.fine().contains("Everything up-to-date"));
    dev.commit("2").await;
    next(&world, "2");
    dev.push(&world, &["main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "2");
    let left = std::fs::read_dir(world.dir.path().join("git/.pushes")).unwrap().count();
    assert_eq!(left, 0, "folders of finished pushes");
}

#[tokio::test]
async fn what_was_pushed_can_be_cloned_and_fetched() {
    let world = world().await;
    let dev = Dev::with("first").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    for (protocol, folder) in [("0", "zero"), ("2", "two")] {
        let version = format!("protocol.version={protocol}");
        let url = url(&world, "shop.git");
        dev.git(&["-c", &version, "clone", "--quiet", &url, folder]).await.fine();
        let text = std::fs::read_to_string(dev.dir.path().join(folder).join("index.js")).unwrap();
        assert_eq!(text, "first");
    }
    // Enough commits that git compresses its request, which lists them.
    for n in 0..60 {
        dev.git(&["-C", "two", "commit", "--quiet", "--allow-empty", "-m", &n.to_string()])
            .await
            .fine();
    }
    dev.git(&["rm", "-q", "--cached", "-r", "--ignore-unmatch", "zero", "two"]).await.fine();
    dev.write(".gitignore", "zero\ntwo\n");
    dev.commit("second").await;
    next(&world, "2");
    dev.push(&world, &["main"]).await.fine();
    dev.git(&["-C", "two", "fetch", "--quiet", "origin"]).await.fine();
    let fetched = dev.git(&["-C", "two", "rev-parse", "origin/main"]).await.fine();
    assert_eq!(fetched.trim(), dev.head().await);
    let unknown = dev.git(&["clone", &url(&world, "bank"), "bank"]).await.failed();
    assert!(unknown.contains("nothing was pushed to the project `bank`"), "{unknown}");
    assert!(!world.dir.path().join("git/bank.git").exists());
}

#[tokio::test]
async fn a_failed_deployment_fails_the_push_and_changes_nothing() {
    let world = world().await;
    let dev = Dev::with("good").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    let good = dev.head().await;

    dev.commit("bad").await;
    world.builder.next(Err(BuildError {
        code: "DEPENDENCIES_FAILED".into(),
        status: StatusCode::UNPROCESSABLE_ENTITY,
        message: "no package is named `lefd-pad`".into(),
        hint: Some("see `dependencies` in package.json".into()),
    }));
    let said = dev.push(&world, &["main"]).await;
    let remote = said.remote();
    assert!(remote.contains(&"DEPENDENCIES_FAILED: no package is named `lefd-pad`"), "{remote:?}");
    assert!(remote.contains(&"hint: see `dependencies` in package.json"), "{remote:?}");
    assert!(said.failed().contains("! [remote rejected] main -> main (pre-receive hook declined)"));
    assert_eq!(at(&world, "refs/heads/main").await, Some(good));
    assert_eq!(world.get("/hello").await.body, "1");

    // Code that throws at load fails only when an instance starts.
    world.vm.broken.lock().unwrap().insert("hello".into(), "Error: no key\n    at a.js:1:7".into());
    next(&world, "2");
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("remote:     at a.js:1:7"), "{text}");
    world.vm.broken.lock().unwrap().clear();
    next(&world, "3");
    dev.push(&world, &["main"]).await.fine();
    assert_eq!(at(&world, "refs/heads/main").await, Some(dev.head().await));
}

#[tokio::test]
async fn only_forced_pushes_may_rewrite_history() {
    let world = world().await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    dev.git(&["commit", "--quiet", "--amend", "-m", "other"]).await.fine();
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("rejected"), "{text}");
    assert_eq!(world.builder.begun(), 1);
    next(&world, "2");
    dev.push(&world, &["--force", "main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "2");
    assert_eq!(at(&world, "refs/heads/main").await, Some(dev.head().await));
}

#[tokio::test]
async fn other_branches_and_tags_are_stored_not_deployed() {
    let world = world().await;
    let dev = Dev::with("1").await;
    dev.git(&["tag", "v1"]).await.fine();
    let said = dev.push(&world, &["main:fix", "v1"]).await;
    let printed = [
        "  fix is stored; main is deployed: git push REMOTE fix:main",
        "  tag v1 is stored, not deployed",
    ];
    assert_eq!(said.remote(), printed, "{}", said.text);
    said.fine();
    assert!(
        at(&world, "refs/heads/fix").await.is_some() && at(&world, "refs/tags/v1").await.is_some()
    );
    let said = dev.push(&world, &["--delete", "fix"]).await;
    assert_eq!(said.remote(), ["  fix is deleted; the functions are not changed"]);
    said.fine();
    assert_eq!(at(&world, "refs/heads/fix").await, None);
    assert_eq!(world.builder.begun(), 0);

    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    let text = dev.push(&world, &["--delete", "main"]).await.failed();
    assert!(text.contains("refused: main is the deployed branch and cannot be deleted"), "{text}");
    assert!(at(&world, "refs/heads/main").await.is_some());
}

#[tokio::test]
async fn branch_and_tags_to_deploy_are_settings() {
    let set = |settings: &mut Settings| {
        settings.git.branch = "live".into();
        settings.git.tags = Some("v*".into());
    };
    let world = world_with(set).await;
    let dev = Dev::with("1").await;
    assert!(dev.push(&world, &["main"]).await.fine().contains("live is deployed"));
    dev.git(&["tag", "-a", "v1", "-m", "one"]).await.fine();
    next(&world, "1");
    let text = dev.push(&world, &["v1"]).await.fine();
    assert!(text.contains("of tag v1") && text.contains("/hello"), "{text}");
    next(&world, "2");
    dev.push(&world, &["main:live"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "2");
}

#[tokio::test]
async fn a_request_without_a_key_gets_a_challenge() {
    let world = world().await;
    let path = "/git/shop/info/refs?service=git-receive-pack";
    let reply = world.ask_with("", Method::GET, path, "").await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("www-authenticate"), r#"Basic realm="Epsilon", charset="UTF-8""#);
    assert!(reply.body.contains("API key as the password"), "{}", reply.body);
    for wrong in ["any:", "any:epsilon_admin_000000000000_00", ":", "no colon"] {
        let coded = format!("Basic {}", BASE64_STANDARD.encode(wrong));
        assert_eq!(world.ask_with(&coded, Method::GET, path, "").await.status, 401, "{wrong}");
    }
    for coded in ["Basic", "Basic %%%", "Digest abc"] {
        assert_eq!(world.ask_with(coded, Method::GET, path, "").await.status, 401, "{coded}");
    }
    let good = format!("basic {}", BASE64_STANDARD.encode(format!(":{}", world.key)));
    assert_eq!(world.ask_with(&good, Method::GET, path, "").await.status, 200);
    for path in ["/git/shop/git-receive-pack", "/git/shop/git-upload-pack"] {
        assert_eq!(world.ask_with("", Method::POST, path, "0000").await.status, 401, "{path}");
    }

    let dev = Dev::with("1").await;
    let with = async |user: &str| {
        let url = format!("http://{user}{}/git/shop", world.control);
        dev.git(&["push", &url, "main"]).await.failed()
    };
    let wrong = with("any:wrong@").await;
    assert!(wrong.contains("Authentication failed"), "{wrong}");
    assert!(with("").await.contains("could not read Username"));
    assert_eq!(world.builder.begun(), 0);

    // As with a credential helper, which git calls because of the challenge.
    next(&world, "1");
    let helper =
        format!("credential.helper=!f() {{ echo username=x; echo password={}; }}; f", world.key);
    let url = format!("http://{}/git/shop", world.control);
    dev.git(&["-c", &helper, "push", &url, "main"]).await.fine();
}

#[tokio::test]
async fn names_lead_nowhere_else() {
    let world = world().await;
    for name in ["..", "%2e%2e", "..%2f..%2fetc", "a%2fb", ".hook", "-x", "%00", "a%20b", ".git"] {
        for rest in ["info/refs?service=git-receive-pack", "info/refs?service=git-upload-pack"] {
            let reply = world.ask(Method::GET, &format!("/git/{name}/{rest}"), "").await;
            assert!(reply.status.is_client_error(), "{name}: {reply:?}");
        }
    }
    let there = std::fs::read_dir(world.dir.path().join("git"));
    assert_eq!(there.map_or(0, Iterator::count), 0, "no repository was created");
    let dumb = world.ask(Method::GET, "/git/shop/info/refs", "").await;
    assert_eq!(dumb.status, 403);
    assert!(world.ask(Method::GET, "/git/shop", "").await.body.contains("git remote add"));
    let lfs = world.ask(Method::POST, "/git/shop.git/info/lfs/objects/batch", "{}").await;
    assert_eq!(lfs.status, 501);
    assert!(lfs.json()["message"].as_str().unwrap().contains("not supported"));
}

#[tokio::test]
async fn a_project_that_calls_itself_something_else_is_refused() {
    let world = world().await;
    let dev = Dev::with("1").await;
    world.builder.next(Ok(built("bank", &[("hello", "1")])));
    let text = dev.push(&world, &["main"]).await.failed();
    let want = "OTHER_PROJECT: the source is of project `bank`, but was pushed as `shop`";
    assert!(text.contains(want), "{text}");
    assert_eq!(world.get("/hello").await.status, 404);
    assert_eq!(at(&world, "refs/heads/main").await, None);
}

#[tokio::test]
async fn submodules_and_lfs_files_are_refused_with_the_reason() {
    let world = world().await;
    let dev = Dev::with("1").await;
    let commit = dev.head().await;
    let entry = format!("160000,{commit},lib/sub");
    dev.git(&["update-index", "--add", "--cacheinfo", &entry]).await.fine();
    dev.git(&["commit", "--quiet", "-m", "sub"]).await.fine();
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("refused: `lib/sub` is a submodule"), "{text}");

    let dev = Dev::new().await;
    let id = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
    dev.write(
        "logo.png",
        &format!("version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize 12345\n"),
    );
    dev.commit("1").await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("refused: `logo.png` is stored in Git LFS"), "{text}");
    assert_eq!(world.builder.begun(), 0);
}

#[tokio::test]
async fn a_too_large_push_is_refused_with_the_limit() {
    let world = world_with(|settings| settings.git.max_push = Bytes::mib(1)).await;
    let dev = Dev::new().await;
    let noise = |bytes: usize| {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b'!' + (state >> 33) as u8 % 90)
        };
        (0..bytes).map(|_| next()).collect::<String>()
    };
    dev.write("large", &noise(2_500_000));
    dev.commit("1").await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("pack exceeds maximum allowed size"), "{text}");
    assert_eq!(at(&world, "refs/heads/main").await, None);

    // Larger than `http.postBuffer`: git sends an empty request first, then chunks.
    let dev = Dev::new().await;
    dev.write("fits", &noise(900_000));
    dev.commit("1").await;
    next(&world, "1");
    let url = url(&world, "shop");
    dev.git(&["-c", "http.postBuffer=65536", "push", &url, "main"]).await.fine();
}

#[tokio::test]
async fn ci_may_push_a_checkout_without_history() {
    let world = world().await;
    let dev = Dev::with("1").await;
    dev.commit("2").await;
    let path = format!("file://{}", dev.dir.path().display());
    let ci = Dev::new().await;
    ci.git(&["fetch", "--quiet", "--depth=1", &path, "main"]).await.fine();
    next(&world, "1");
    ci.push(&world, &["FETCH_HEAD:refs/heads/main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "1");
    dev.commit("3").await;
    next(&world, "2");
    dev.push(&world, &["main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "2");
}

#[tokio::test]
async fn who_hangs_up_while_it_builds_cancels() {
    let world = world().await;
    let dev = Dev::with("1").await;
    world.builder.close_gate();
    let mut pushing = Pushing::start(&dev, &world, &["main"]);
    pushing.wait_for_line("deploying").await;
    eventually(1, || world.builder.begun()).await;
    kill(&mut pushing).await;
    eventually(1, || *world.builder.cancelled.lock().unwrap()).await;

    world.builder.gate.add_permits(2);
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "1");
}

/// An activation is not undone: the branch is updated too, also when the client has disconnected.
#[tokio::test]
async fn hanging_up_after_activation_changes_nothing() {
    let world = world().await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    let mut pushing = Pushing::start(&dev, &world, &["main"]);
    pushing.wait_for_line("activate").await;
    kill(&mut pushing).await;
    let began = Instant::now();
    let head = Some(dev.head().await);
    while at(&world, "refs/heads/main").await != head {
        assert!(
            began.elapsed() < TEST_TIMEOUT,
            "the version is active, but its branch is not updated"
        );
    }
    assert_eq!(world.get("/hello").await.body, "1");
}

#[tokio::test]
async fn of_an_empty_repository_nothing_is_deployed() {
    let world = world().await;
    let dev = Dev::new().await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("src refspec main does not match any"), "{text}");
    // The first request of a push creates the gateway's repository, without commits.
    let begin = "/git/shop/info/refs?service=git-receive-pack";
    assert_eq!(world.ask(Method::GET, begin, "").await.status, 200);
    assert_eq!(dev.git(&["ls-remote", &url(&world, "shop")]).await.fine(), "");
    let text = dev.git(&["clone", &url(&world, "shop"), "clone"]).await.fine();
    assert!(text.contains("empty repository"), "{text}");
    assert_eq!(world.builder.begun(), 0);
}

/// git's HTTP helper is another process: kill the whole group, as closing a terminal does.
async fn kill(pushing: &mut Pushing) {
    let group = format!("-{}", pushing.child.id().unwrap());
    let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
    assert!(patient(killed).await.unwrap().success());
}

#[tokio::test]
async fn a_stopping_gateway_cancels_the_push() {
    let mut world = world().await;
    let dev = Dev::with("1").await;
    world.builder.close_gate();
    let pushing = Pushing::start(&dev, &world, &["main"]);
    eventually(1, || world.builder.begun()).await;
    let draining = tokio::spawn(world.drain(Duration::from_millis(50)));
    let text = pushing.end().await.failed();
    assert!(text.contains("DEPLOYMENT_CANCELLED"), "{text}");
    assert!(text.contains("[remote rejected]"), "{text}");
    assert_eq!(patient(draining).await.unwrap().cut, 0);
    assert_eq!(at(&world, "refs/heads/main").await, None);

    let world =
        World::on(Arc::clone(&world.dir), open(&world.dir).await, Settings::default(), true);
    let world = world.await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
}

#[tokio::test]
async fn concurrent_pushes_run_one_after_another() {
    let world = world().await;
    let dev = Dev::with("1").await;
    world.builder.close_gate();
    next(&world, "1");
    let first = Pushing::start(&dev, &world, &["main"]);
    eventually(1, || world.builder.begun()).await;
    dev.commit("2").await;
    next(&world, "2");
    let second = Pushing::start(&dev, &world, &["main"]);
    world.builder.gate.add_permits(2);
    first.end().await.fine();
    let text = second.end().await.fine();
    assert!(text.contains("this push waited for another one, of"), "{text}");
    assert_eq!(world.get("/hello").await.body, "2");
    assert_eq!(at(&world, "refs/heads/main").await, Some(dev.head().await));
}

/// Both pushes have read the branches before either updates one.
#[tokio::test]
async fn the_later_of_two_pushes_is_refused() {
    let world = world().await;
    let base = Dev::with("base").await;
    next(&world, "0");
    base.push(&world, &["main"]).await.fine();
    let (one, two) = (Dev::new().await, Dev::new().await);
    for dev in [&one, &two] {
        dev.git(&["pull", "--quiet", &url(&world, "shop"), "main"]).await.fine();
    }
    one.commit("one").await;
    two.commit("two").await;

    // git runs this hook after it has read the branches.
    let (waits, go) = (two.dir.path().join("waits"), two.dir.path().join("go"));
    let script = format!(
        "#!/bin/sh\ntouch '{}'\nwhile [ ! -e '{}' ]; do sleep 0.02; done\n",
        waits.display(),
        go.display()
    );
    two.write(".git/hooks/pre-push", &script);
    let hook = two.dir.path().join(".git/hooks/pre-push");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(hook, executable).unwrap();
    let mut later = Pushing::start(&two, &world, &["main"]);
    eventually(true, || waits.exists()).await;

    world.builder.close_gate();
    world.builder.gate.forget_permits(1000);
    next(&world, "1");
    let first = Pushing::start(&one, &world, &["main"]);
    eventually(2, || world.builder.begun()).await;
    std::fs::write(go, "").unwrap();
    later.wait_for_line("waiting for an earlier deployment of shop (git push)").await;
    world.builder.gate.add_permits(1);
    first.end().await.fine();
    let text = later.end().await.failed();
    let now = &one.head().await[..7];
    let want =
        format!("refused: main was moved to {now} by another push; `git pull`, then push again");
    assert!(text.contains(&want), "{text}");
    assert_eq!(world.get("/hello").await.body, "2");

    // The developer follows the hint of the answer.
    let merge = ["pull", "--quiet", "--no-rebase", "-X", "ours", &url(&world, "shop"), "main"];
    two.git(&merge).await.fine();
    world.builder.gate.add_permits(1);
    next(&world, "2");
    two.push(&world, &["main"]).await.fine();
    assert_eq!(world.get("/hello").await.body, "3");
}

#[tokio::test]
async fn an_unmovable_branch_is_refused_before_deploying() {
    let world = world().await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    let lock = repository(&world).join("refs/heads/main.lock");
    std::fs::write(&lock, "").unwrap();
    dev.commit("2").await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("main.lock"), "{text}");
    assert_eq!(world.builder.begun(), 1);
    std::fs::remove_file(&lock).unwrap();
    next(&world, "2");
    dev.push(&world, &["main"]).await.fine();
}

/// The version is active, but git cannot report it.
#[tokio::test]
async fn an_unmoved_branch_moves_with_next_push() {
    let world = world().await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    dev.commit("2").await;
    world.builder.close_gate();
    world.builder.gate.forget_permits(1000);
    next(&world, "2");
    let pushing = Pushing::start(&dev, &world, &["main"]);
    eventually(2, || world.builder.begun()).await;
    let lock = repository(&world).join("refs/heads/main.lock");
    std::fs::write(&lock, "").unwrap();
    world.builder.gate.add_permits(2);
    let text = pushing.end().await.failed();
    assert!(text.contains("failed to update ref"), "{text}");
    assert_eq!(world.get("/hello").await.body, "2");
    std::fs::remove_file(&lock).unwrap();
    next(&world, "2");
    let text = dev.push(&world, &["main"]).await.fine();
    assert!(text.contains("(unchanged)"), "{text}");
    assert_eq!(at(&world, "refs/heads/main").await, Some(dev.head().await));
}

#[tokio::test]
async fn too_many_git_requests_are_refused() {
    let world = world_with(|settings| settings.git.limits.max_requests = 1).await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    dev.commit("2").await;
    world.builder.close_gate();
    world.builder.gate.forget_permits(1000);
    next(&world, "2");
    let pushing = Pushing::start(&dev, &world, &["main"]);
    eventually(2, || world.builder.begun()).await;
    let text = dev.git(&["ls-remote", &url(&world, "shop")]).await.failed();
    assert!(text.contains("try again in a moment"), "{text}");
    world.builder.gate.add_permits(1);
    pushing.end().await.fine();
    dev.git(&["ls-remote", &url(&world, "shop")]).await.fine();
}

#[tokio::test]
async fn missing_or_old_git_names_what_to_install() {
    let dev = Dev::with("1").await;
    let world =
        world_with(|settings| settings.git.limits.program = "/nonexistent/git".into()).await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("there is no `git` on the gateway's machine"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("git");
    std::fs::write(&old, "#!/bin/sh\necho git version 2.20.1\n").unwrap();
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let world = world_with(|settings| settings.git.limits.program = old).await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("git 2.20 on the gateway's machine is too old"), "{text}");
    let world = world_with(|settings| settings.git.enabled = false).await;
    let text = dev.push(&world, &["main"]).await.failed();
    assert!(text.contains("switched off"), "{text}");
}

#[tokio::test]
async fn invalid_git_requests_are_refused() {
    let world = world().await;
    let dev = Dev::with("1").await;
    next(&world, "1");
    dev.push(&world, &["main"]).await.fine();
    let path = "/git/shop/git-receive-pack";
    for nonsense in ["0000", "", "zzzz", "0008abc", "00000000PACK"] {
        let reply =
            tokio::time::timeout(Duration::from_secs(20), world.ask(Method::POST, path, nonsense));
        let reply = reply.await.unwrap();
        assert!(reply.status == 200 || reply.status.is_server_error(), "{nonsense}: {reply:?}");
    }
    assert_eq!(at(&world, "refs/heads/main").await, Some(dev.head().await));
}
