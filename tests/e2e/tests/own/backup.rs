//! `epsilon backup` beside a running platform, and `epsilon restore` on a machine without its
//! images: a second engine, without any image, is that machine. Needs root.

use epsilon_e2e::{
    cli::{self, Outcome},
    dockerd::Dockerd,
    engine::ask,
    http::Call,
    project,
    project::Project,
    up::{Epsilon, Settings, binary},
    wait::{SOON, until},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A function of the runtime: its code may be mounted into a cell.
fn greeter(word: &str) -> Project {
    project!("greeter", { "index.js" => format!(
        r#"exports.greet = (req, res) => res.send("{word} " + req.query.name);"#) })
}

/// A `runtime: container` function, on the one image with Node that is on this machine in any case.
async fn boxed() -> Project {
    let listed = ask(&["images", "-q", "--filter", "label=epsilon.image=runtime"]).await;
    let base = listed.lines().next().expect("the runtime base is there").to_owned();
    project!("crate", {
        "Dockerfile" => format!(
            "FROM {base}\nCOPY server.js /server.js\nENTRYPOINT [\"node\", \"/server.js\"]\n"),
        "server.js" => r#"
            require("http").createServer((req, res) => res.end("boxed " + req.url))
              .listen(process.env.PORT);"#,
        "epsilon.yaml" => "runtime: container\nfunctions:\n  boxed:\n    memory: 128MiB\n",
    })
}

/// The new machine: an engine without images, and a folder for the data folder.
struct Machine {
    engine: Dockerd,
    home: TempDir,
}

impl Machine {
    async fn new() -> Self {
        let engine = Dockerd::start().await;
        Self { engine, home: TempDir::with_prefix("epsilon-e2e-restored-").unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    async fn restore(&self, file: &Path) -> Outcome {
        self.restore_to(file, &self.data()).await
    }

    async fn restore_to(&self, file: &Path, data: &Path) -> Outcome {
        let mut command = tokio::process::Command::new(binary());
        let (name, value) = self.engine.variable();
        command.arg("restore").arg(file).arg("--data-dir").arg(data).arg("--json");
        command.env(name, value).env("NO_COLOR", "1");
        cli::run(command).await
    }

    /// The first name of an image of this repository, except for the moving tag `current`.
    async fn name_of(&self, repository: &str) -> String {
        let list = ["images", "--format", "{{.Repository}}:{{.Tag}}", repository];
        let listed = self.engine.docker(&list).await.expect(0).stdout;
        let name = listed.lines().find(|name| !name.ends_with(":current"));
        name.unwrap_or_else(|| panic!("no {repository}: {listed}")).to_owned()
    }

    /// The id of the image of this name.
    async fn id_of(&self, name: &str) -> String {
        let id = ["image", "inspect", "--format", "{{.Id}}", name];
        self.engine.docker(&id).await.expect(0).stdout
    }

    /// Asserts that nothing was restored.
    async fn is_untouched(&self) {
        let images = self.engine.docker(&["images", "-aq"]).await.expect(0).stdout;
        assert_eq!(images, "");
        assert_eq!(fs::read_dir(self.home.path()).unwrap().count(), 0);
    }

    /// Asserts that no registry was contacted.
    async fn pulled_nothing(&self, up: &Epsilon) {
        let metrics = up.send_admin(Call::get("/metrics")).await.expect(200).text();
        assert!(metrics.contains(r#"epsilon_engine_call_seconds_count{call="inspect_image"}"#));
        assert!(!metrics.contains(r#"call="pull""#), "{metrics}");
        let log = self.engine.log();
        for word in ["registry-1.docker.io", "for pull"] {
            assert!(!log.contains(word), "{log}");
        }
    }
}

/// `engine`: the platform's `DOCKER_HOST`.
async fn backup(up: &Epsilon, file: &Path, engine: Option<(String, String)>) -> Outcome {
    let mut command = up.command(file.parent().unwrap());
    command.envs(engine);
    command.arg("backup").arg(file).arg("--data-dir").arg(up.data()).arg("--json");
    cli::run(command).await
}

#[tokio::test]
async fn a_restored_backup_serves_without_network_and_build() {
    let backups = TempDir::new().unwrap();
    let file = backups.path().join("epsilon.tar.gz");
    let machine = Machine::new().await;

    let mut old = Epsilon::start().await;
    old.deploy(&greeter("hi")).await;
    old.deploy(&greeter("hello")).await;
    old.deploy(&boxed().await).await;
    assert_eq!(old.get("/greet?name=Ann").await.expect(200).text(), "hello Ann");
    let key = old.key().to_owned();
    let made = backup(&old, &file, None).await.expect(0).json();
    assert_eq!((&made["functions"], &made["versions"]), (&2.into(), &3.into()), "{made}");
    assert_eq!(made["is_complete"], true, "{made}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(backups.path()).unwrap().count(), 1, "no draft stays");
    assert_eq!(old.get("/greet?name=Ann").await.expect(200).text(), "hello Ann");
    backup(&old, &file, None).await.expect(2); // it already exists
    old.terminate().await;
    drop(old);

    // One byte of an image.
    let damaged = backups.path().join("damaged.tar.gz");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let refused = machine.restore(&damaged).await.expect(1);
    assert!(refused.stderr.contains("BACKUP_UNFIT"), "{refused}");
    machine.is_untouched().await;

    let restored = machine.restore(&file).await.expect(0).json();
    assert_eq!(restored["images_there"], 0, "{restored}");
    let again = machine.restore(&file).await.expect(1);
    assert!(again.stderr.contains("DATA_DIR_NOT_EMPTY"), "{again}");

    let (data, env) = (Some(machine.data()), vec![machine.engine.variable()]);
    let mut up = Epsilon::start_with(Settings { data, env, ..Settings::default() }).await;
    assert_eq!(up.key(), key, "the key that opened it opens it");
    assert_eq!(up.get("/greet?name=Ann").await.expect(200).text(), "hello Ann");
    assert_eq!(up.get("/boxed/x").await.expect(200).text(), "boxed /x");
    let versions = up.admin("/v1/functions/greet/versions").await;
    assert_eq!((&versions[0]["active"], &versions[1]["version"]), (&true.into(), &1.into()));
    up.cli(&["rollback", "greet", "1"]).await.expect(0);
    assert_eq!(up.get("/greet?name=Ann").await.expect(200).text(), "hi Ann");
    let deployed = up.deploy(&greeter("good day,")).await;
    assert_eq!(deployed.changed(), [("greet".to_owned(), 3)]);
    assert_eq!(up.get("/greet?name=Ann").await.expect(200).text(), "good day, Ann");
    machine.pulled_nothing(&up).await;

    // An image that is removed from the engine now: its function fails, with the reason in the log,
    // and no registry is contacted.
    up.terminate().await;
    let lost = machine.name_of("epsilon/crate/boxed").await;
    machine.engine.docker(&["rmi", "-f", &lost]).await.expect(0);
    up.start_again().await;
    up.get("/boxed/x").await.expect_error(503, "NO_CAPACITY");
    for part in [&*lost, "is not on this VM", "names no registry", "`epsilon restore`"] {
        until(&format!("the log says `{part}`"), SOON, async || {
            let log = up.log();
            if log.contains(part) { Ok(()) } else { Err(log) }
        })
        .await;
    }
    assert_eq!(up.get("/greet?name=Ann").await.expect(200).text(), "good day, Ann");
    machine.pulled_nothing(&up).await;

    // A serving version without its image makes the backup incomplete.
    let second = backups.path().join("second.tar");
    let incomplete = backup(&up, &second, Some(machine.engine.variable())).await.expect(1);
    assert!(incomplete.stderr.contains("BACKUP_INCOMPLETE") && second.exists(), "{incomplete}");
    assert_eq!(incomplete.json()["left_out"][0]["version"], "boxed@1", "{incomplete}");
    up.terminate().await;

    // A name that another image has stays with it: of a runtime base, which versions do not need...
    let (base, other) =
        (machine.name_of("epsilon/runtime-node").await, machine.name_of("epsilon/greeter/*").await);
    machine.engine.docker(&["tag", &other, &base]).await.expect(0);
    let others = machine.id_of(&base).await;
    let beside = machine.home.path().join("beside");
    machine.restore_to(&file, &beside).await.expect(0);
    assert_eq!(machine.id_of(&base).await, others);
    // ...and of a version, which needs it: refused.
    machine.engine.docker(&["tag", &other, &lost]).await.expect(0);
    let refused = machine.restore_to(&file, &machine.home.path().join("third")).await.expect(1);
    assert!(refused.stderr.contains("IMAGE_NAME_TAKEN"), "{refused}");
    assert!(refused.stderr.contains("boxed@1"), "{refused}");
    assert_eq!(machine.id_of(&lost).await, others);
    let names = fs::read_dir(machine.home.path()).unwrap().count();
    assert_eq!(names, 1, "`beside`, and no draft");
}
