//! `git push` with the real client, the real builder and concurrent calls.

use crate::up;
use epsilon_e2e::{
    load::Load,
    project,
    project::Project,
    up::Epsilon,
    wait::{LONG, SOON, until, within},
};
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

/// Result of a git command.
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
}

/// git as on an unconfigured machine.
fn git(project: &Project, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", project.path())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .args(["-c", "user.name=Dev", "-c", "user.email=dev@example.org"])
        .args(["-c", "init.defaultBranch=main"])
        .args(args)
        .current_dir(project.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(project: &Project, args: &[&str]) -> Said {
    let ended = within("git", LONG, git(project, args).output()).await.unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    Said { ok: ended.status.success(), text }
}

fn url(up: &Epsilon, name: &str) -> String {
    format!("http://any:{}@{}/git/{name}", up.key(), up.control())
}

/// Commits everything and pushes it.
async fn push(up: &Epsilon, project: &Project) -> Said {
    for args in [&["init", "--quiet"][..], &["add", "--all"], &["commit", "--quiet", "-m", "x"]] {
        run(project, args).await.fine();
    }
    run(project, &["push", &url(up, project.name()), "main"]).await
}

fn answers(project: &Project, name: &str, text: &str) {
    project.write("index.js", format!("exports.{name} = (req, res) => res.send('{text}')"));
}

#[tokio::test]
async fn pushes_under_traffic_lose_no_call() {
    let up = up().await;
    let project = project!("pushed", {});
    answers(&project, "pushed", "1");
    let text = push(up, &project).await.fine();
    let address = format!("http://{}/pushed", up.public());
    assert!(text.contains("remote:   pushed: deploying"), "{text}");
    assert!(
        text.lines().any(|l| l.starts_with("remote: pushed  v1") && l.contains(&address)),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");

    let load = Load::start(up.public(), "/pushed", 4);
    for number in 2..=4 {
        answers(&project, "pushed", &number.to_string());
        push(up, &project).await.fine();
        // Calls after a push get what was pushed.
        assert_eq!(up.get("/pushed").await.expect(200).text(), number.to_string());
    }
    let tally = load.stop().await;
    assert_eq!(tally.lost(), 0, "{tally:?}");
    assert!(tally.of(200) > 0, "{tally:?}");
}

#[tokio::test]
async fn code_that_does_not_load_fails_the_push() {
    let up = up().await;
    let project = project!("pushbad", {});
    answers(&project, "pushbad", "good");
    push(up, &project).await.fine();
    project.write("index.js", "exports.pushbad = () => {};\nthrow new Error('no key given')");
    let text = push(up, &project).await.failed();
    assert!(text.contains("no key given") && text.contains("index.js:2"), "{text}");
    assert!(text.contains("remote: nothing was changed"), "{text}");
    assert!(text.contains("pre-receive hook declined"), "{text}");
    assert_eq!(up.get("/pushbad").await.expect(200).text(), "good");
}

#[tokio::test]
async fn the_address_and_the_project_agree_on_its_name() {
    let up = up().await;
    let project = project!("pushname", { "epsilon.yaml" => "project: othername\n" });
    answers(&project, "pushname", "1");
    let text = push(up, &project).await.failed();
    let want = "OTHER_PROJECT: the source is of project `othername`, but was pushed as `pushname`";
    assert!(text.contains(want), "{text}");
    let main = ["push", &url(up, "othername"), "main"];
    run(&project, &main).await.fine();
    // A project without a name takes the URL's.
    std::fs::remove_file(project.path().join("epsilon.yaml")).unwrap();
    answers(&project, "pushfree", "1");
    push(up, &project).await.fine();
    let deployments = up.admin("/v1/deployments?limit=20").await;
    let projects: Vec<_> =
        deployments.as_array().unwrap().iter().map(|one| &one["project"]).collect();
    assert!(projects.iter().any(|name| *name == "pushname"), "{projects:?}");
    assert!(projects.iter().any(|name| *name == "othername"), "{projects:?}");
}

#[tokio::test]
async fn gateway_killed_in_a_push_changes_nothing() {
    let mut up = Epsilon::start().await;
    let project = project!("killed", {});
    answers(&project, "killed", "1");
    push(&up, &project).await.fine();

    // Loading takes some seconds: time for the kill.
    project.write(
        "index.js",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4000);\n\
         exports.killed = (req, res) => res.send('2')",
    );
    run(&project, &["commit", "--quiet", "--all", "-m", "2"]).await.fine();
    let url = url(&up, "killed");
    let mut child = git(&project, &["push", &url, "main"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let begun = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("deploying") {
                return;
            }
        }
        panic!("the push ended before it deployed");
    };
    within("the deployment begins", LONG, begun).await;
    up.kill().await;
    assert!(!within("the push ends", LONG, child.wait()).await.unwrap().success());

    up.start_again().await;
    until("the old version answers", SOON, async || {
        let answer = up.get("/killed").await;
        if answer.status == 200 { Ok(answer.text()) } else { Err(answer.status) }
    })
    .await;
    assert_eq!(up.get("/killed").await.expect(200).text(), "1");
    let objects = std::fs::read_dir(up.data().join("git/killed.git/objects")).unwrap();
    let names = objects.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with("tmp_objdir")).collect();
    assert!(left.is_empty(), "what was pushed and not accepted: {left:?}");
    let main = ["push", &url, "main"];
    let text = run(&project, &main).await.fine();
    assert!(!text.contains("up-to-date"), "the branch has not moved: {text}");
    assert_eq!(up.get("/killed").await.expect(200).text(), "2");
}
