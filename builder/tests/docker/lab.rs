//! A builder of its own for each test, and helpers around Docker. [`Lab::end`] removes what a test
//! made, and fails when the builder itself left something.

use epsilon_api::{
    admin::Step,
    body,
    build::{BuildError, BuildEvent, BuildJob, BuildLog, Built},
    ids::DeploymentId,
};
use epsilon_bootstrap::settings::Section as _;
use epsilon_builder::{
    app::App,
    config::{Config, ImageTransfer, MemberConfig, Settings},
};
use std::{
    collections::BTreeSet,
    fs,
    future::Future,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Upper bound for anything here except the base; test machines are slow at times.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Lab {
    app: Option<App>,
    member: Option<MemberConfig>,
    data: TempDir,
    log: Arc<Log>,
    images: Mutex<BTreeSet<String>>,
}

/// All reported events.
#[derive(Default)]
pub(crate) struct Log(Mutex<Vec<BuildEvent>>);

impl BuildLog for Log {
    fn report(&self, event: BuildEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with("{}").await
    }

    pub(crate) async fn with(yaml: &str) -> Self {
        Self::into(yaml, None).await
    }

    /// A lab whose images go into this file.
    pub(crate) async fn into(yaml: &str, file: Option<PathBuf>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let settings = settings(yaml);
        let config = Config::new(settings, &data.path().join("builder")).unwrap();
        let member = config.member().cloned();
        let app = match file {
            Some(_) => App::build_without_cache(config, file).await.unwrap(),
            None => App::build(config).await.unwrap(),
        };
        Self { app: Some(app), member, data, log: Arc::default(), images: Mutex::default() }
    }

    /// Settings of fleet membership of this lab's builder.
    pub(crate) fn member(&self) -> &MemberConfig {
        self.member.as_ref().unwrap()
    }

    pub(crate) fn layer_cache_folder(&self) -> PathBuf {
        self.data.path().join("builder/shelf")
    }

    /// Layers cached for this machine's agent.
    pub(crate) fn layer_cache(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.layer_cache_folder()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Removes these images when the lab ends.
    pub(crate) fn owns(&self, built: &Built) {
        let references = built.functions.iter().map(|function| function.image.reference.clone());
        self.images.lock().unwrap().extend(references);
    }

    pub(crate) fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Builds a project with these files.
    pub(crate) async fn build(&self, files: &[(&str, &str)]) -> Result<Built, BuildError> {
        self.build_archive(archive(files)).await
    }

    pub(crate) async fn build_archive(&self, archive: Vec<u8>) -> Result<Built, BuildError> {
        self.log.0.lock().unwrap().clear();
        let job = BuildJob {
            deployment: DeploymentId::random(),
            archive: body::full(archive),
            folder: Some("lab".into()),
            only: Vec::new(),
            log: Arc::clone(&self.log) as _,
        };
        let built = self.app().builder().build(job).await?;
        self.owns(&built);
        Ok(built)
    }

    /// The last build's message at the end of a step.
    pub(crate) fn done(&self, step: Step) -> String {
        let events = self.log.0.lock().unwrap();
        events
            .iter()
            .find_map(|event| match event {
                BuildEvent::StepDone { step: s, detail, .. } if *s == step => Some(detail.clone()),
                _ => None,
            })
            .unwrap_or_else(|| panic!("{step} was not done: {events:?}"))
    }

    /// All lines of the last build.
    pub(crate) fn lines(&self) -> String {
        let events = self.log.0.lock().unwrap();
        let lines = events.iter().filter_map(|event| match event {
            BuildEvent::Line(line) => Some(line.as_str()),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The builder's id.
    pub(crate) fn id(&self) -> String {
        fs::read_to_string(self.data.path().join("builder/id")).unwrap()
    }

    /// Existing containers and temporary images of this lab's builder.
    pub(crate) fn left(&self) -> String {
        let id = self.id();
        let label = format!("label=epsilon.builder={id}");
        let images = format!("epsilon/scratch:{id}-*");
        docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"])
            + &docker(&["images", "-q", "--filter", &format!("reference={images}")])
    }

    /// Whether nothing of a build is left.
    pub(crate) fn is_clean(&self) -> bool {
        let work = fs::read_dir(self.data.path().join("builder/work")).unwrap();
        self.left().is_empty() && work.count() == 0
    }

    /// Shuts the builder down and starts another one on the same folder.
    pub(crate) async fn restart(mut self) -> Self {
        let app = self.app.take().unwrap();
        assert!(app.shutdown(LIMIT).await, "the builder did not clean up in time");
        let config = Config::new(Settings::default(), &self.data.path().join("builder")).unwrap();
        self.app = Some(App::build(config).await.unwrap());
        self
    }

    /// Shuts the builder down; nothing may be left of it.
    pub(crate) async fn end(mut self) {
        let app = self.app.take().unwrap();
        assert!(app.shutdown(LIMIT).await, "the builder did not clean up in time");
        assert!(self.is_clean(), "left: {}", self.left());
        let label = format!("label=epsilon.builder={}", self.id());
        assert_eq!(docker(&["network", "ls", "-q", "--filter", &label]), "");
    }
}

/// Settings from YAML, with limits that operators cannot set among them.
fn settings(yaml: &str) -> Settings {
    let mut written: serde_yaml::Mapping = serde_yaml::from_str(yaml).unwrap();
    let mut fixed = |key: &str| written.remove(key);
    let duration =
        |value: serde_yaml::Value| humantime::parse_duration(value.as_str().unwrap()).unwrap();
    let mut limits = Settings::default().limits;
    limits.pull_timeout = fixed("pull_timeout").map_or(limits.pull_timeout, duration);
    if let Some(pids) = fixed("install_pids") {
        limits.install_pids = pids.as_u64().unwrap() as u32;
    }
    match fixed("image_transfer").as_ref().map(|way| way.as_str().unwrap()) {
        Some("whole") => limits.image_transfer = ImageTransfer::Whole,
        Some("commit") => limits.image_transfer = ImageTransfer::Commit,
        way => assert_eq!(way, None),
    }
    let settings = Settings::read(&serde_yaml::to_string(&written).unwrap()).unwrap();
    Settings { limits, ..settings }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for image in self.images.lock().unwrap().iter() {
            let _ = Command::new("docker").args(["rmi", "-f", image]).output();
        }
    }
}

pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gz);
    for (path, content) in files {
        add(&mut tar, path, content.as_bytes());
    }
    tar.into_inner().unwrap().finish().unwrap()
}

pub(crate) fn add<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

/// Runs `docker`; returns its output without the last newline.
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A container that serves on 8080, started by plain `docker run`.
pub(crate) struct Served(String);

impl Served {
    pub(crate) fn run(image: &str) -> Self {
        let hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"];
        let mut arguments = vec!["run", "-d", "-p", "127.0.0.1::8080"];
        arguments.extend(hardened);
        arguments.push(image);
        Self(docker(&arguments))
    }

    /// The body of `GET path`, as soon as it is answered.
    pub(crate) fn get(&self, path: &str) -> String {
        let address: SocketAddr =
            docker(&["port", &self.0, "8080/tcp"]).lines().next().unwrap().parse().unwrap();
        let begun = Instant::now();
        loop {
            let answer = ask(address, path);
            match answer {
                Ok(body) if !body.is_empty() => return body,
                other if begun.elapsed() > LIMIT => {
                    panic!("{other:?}: {}", docker(&["logs", &self.0]));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rm", "-f", &self.0]).output();
    }
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Waits for a condition.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LIMIT, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A file of an image, or `None`.
pub(crate) fn file_of(image: &str, path: &str) -> Option<String> {
    let arguments = ["run", "--rm", "--network", "none", "--entrypoint", "cat", image, path];
    let mut errors = Vec::new();
    // An engine that has much to do refuses a container now and then; that says nothing of the file.
    while errors.len() < 3 {
        let output = Command::new("docker").args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        if error.contains("No such file") {
            return None;
        }
        errors.push(error);
    }
    panic!("docker run: {errors:?}");
}
