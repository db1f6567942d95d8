//! Docker Engine as an [`Engine`], through bollard. Only this file and those in `docker/` name
//! bollard; its errors become ours here.

mod firewall;
pub mod freezer;
mod harden;

use super::{
    ContainerInfo, ContainerName, ContainerSpec, Disk, Engine, EngineError, Exit, Firewall,
    Freezer, LocalImage, Machine, NetworkSpec, Output,
};
use crate::{config::Config, labels, registry::Pulls};
use async_trait::async_trait;
use bollard::{
    Docker,
    auth::DockerCredentials,
    container::LogOutput,
    errors::Error,
    models::{
        ContainerState, ContainerSummaryStateEnum, ImageSummary, NetworkCreateRequest,
        NetworkDisconnectRequest,
    },
    query_parameters::{
        AttachContainerOptions, CreateContainerOptions, CreateImageOptions,
        DownloadFromContainerOptions, KillContainerOptions, ListContainersOptions,
        ListImagesOptions, RemoveContainerOptions, RemoveImageOptions, WaitContainerOptions,
    },
};
use bytes::Bytes;
use epsilon_api::{
    chain::Chain,
    function::ImageRef,
    ids::VmId,
    units::{Bytes as Size, MilliCores},
    vm::ImageRemoval,
};
use epsilon_registry::{Host, Login};
use freezer::CgroupFreezer;
use futures_util::{
    StreamExt, TryStreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use prometheus::HistogramVec;
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// First pause between two attempts to remove a network that still has endpoints; doubled up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Exit status of a killed process: by itself, or by the kernel when its memory limit was reached.
const KILLED: i64 = 137;
/// Docker reports full memory and the exit on two paths: on a busy machine the former may come
/// last.
const OOM_REPORT_PAUSES: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(15),
    Duration::from_millis(40),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// A Docker Engine on this machine.
#[derive(Clone)]
pub struct DockerEngine {
    docker: Docker,
    /// Timeout of one request.
    request_timeout: Duration,
    pulls: Pulls,
    pull_timeout: Duration,
    /// Limits the attempts to remove a network.
    remove_timeout: Duration,
    cores: u32,
    /// `epsilon_engine_call_seconds{call}`.
    seconds: HistogramVec,
}

impl std::fmt::Debug for DockerEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerEngine").finish_non_exhaustive()
    }
}

impl DockerEngine {
    /// Prepares connections to the engine of `config`; sends no request yet.
    ///
    /// # Errors
    /// When the address is invalid.
    pub fn new(config: &Config, seconds: HistogramVec) -> Result<Self, EngineError> {
        let docker = epsilon_engine_socket::connect(&config.engine_socket, config.engine_timeout)
            .map_err(to_engine_error)?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Ok(Self {
            docker,
            request_timeout: config.engine_timeout,
            pulls: Pulls::new(config.registries.clone(), config.pulls_at_once, config.pull_timeout),
            pull_timeout: config.pull_timeout,
            remove_timeout: config.remove_timeout,
            cores,
            seconds,
        })
    }

    /// The state of a container; `None` if it is gone.
    async fn state(&self, name: &ContainerName) -> Result<Option<ContainerState>, EngineError> {
        match self.request("inspect", self.docker.inspect_container(name.as_str(), None)).await {
            Ok(found) => Ok(found.state),
            Err(EngineError::NotFound(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Sends one request within the timeout and measures its time.
    async fn request<T>(
        &self,
        verb: &'static str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EngineError> {
        self.request_within(verb, self.request_timeout, request).await
    }

    async fn request_within<T>(
        &self,
        verb: &'static str,
        limit: Duration,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EngineError> {
        let began = Instant::now();
        let answer = timeout(limit, request).await;
        self.seconds.with_label_values(&[verb]).observe(began.elapsed().as_secs_f64());
        match answer {
            Ok(answer) => answer.map_err(to_engine_error),
            Err(_) => Err(EngineError::Down(format!("`{verb}` took longer than {limit:?}").into())),
        }
    }

    /// Disconnects everything that the network lists: foreign containers, which run on without it,
    /// and removed containers whose endpoints Docker 20.10 forgot. Those are known by the
    /// container's name only.
    async fn disconnect_all(&self, network: &str) -> Result<(), EngineError> {
        let inspection = self.docker.inspect_network(network_name(network)?, None);
        let found = match self.request("inspect_network", inspection).await {
            Err(EngineError::NotFound(_)) => return Ok(()),
            found => found?,
        };
        for (id, endpoint) in found.containers.unwrap_or_default() {
            let container = endpoint.name.filter(|name| !name.is_empty()).unwrap_or(id);
            tracing::warn!(
                network,
                container,
                "Container is still in the network; disconnecting it."
            );
            let request = NetworkDisconnectRequest { container, force: Some(true) };
            match self.request("disconnect", self.docker.disconnect_network(network, request)).await
            {
                Ok(()) | Err(EngineError::NotFound(_)) => {}
                Err(err) => {
                    tracing::warn!(network, error = %Chain(&err), "Container could not be disconnected from the network; trying again.");
                }
            }
        }
        Ok(())
    }

    /// Has the engine pull an image. If the name contains a digest, the engine verifies it.
    async fn pull(&self, name: &str, host: Host, login: Option<Login>) -> Result<(), EngineError> {
        let options =
            CreateImageOptions { from_image: Some(name.to_owned()), ..Default::default() };
        let login = login.map(|login| DockerCredentials {
            username: Some(login.user),
            password: Some(login.password.reveal().clone()),
            serveraddress: Some(host.to_string()),
            ..Default::default()
        });
        let pull =
            self.docker.create_image(Some(options), None, login).try_for_each(|_| ready(Ok(())));
        self.request_within("pull", self.pull_timeout, pull).await
    }

    /// The name to create from, if the image is in the engine.
    async fn local(&self, image: &ImageRef) -> Result<Option<LocalImage>, EngineError> {
        // By digest first: a tag may point to another image by now.
        for name in [&image.digest, &image.reference] {
            match self.request("inspect_image", self.docker.inspect_image(image_name(name)?)).await
            {
                Ok(found) => {
                    let same = found.id.as_deref() == Some(image.digest.as_str());
                    if same || name.contains('@') {
                        let config = found.config.unwrap_or_default();
                        let volumes = config.volumes.into_iter().flatten();
                        return Ok(Some(LocalImage::new(name).with_volumes(volumes)));
                    }
                }
                Err(EngineError::NotFound(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn ping(&self) -> Result<Machine, EngineError> {
        let info = self.request("info", self.docker.info()).await?;
        Ok(Machine {
            memory: Size(info.mem_total.unwrap_or_default().max(0) as u64),
            cores: info.ncpu.unwrap_or(1).max(1) as u32,
        })
    }

    /// The engine has a unix socket, so it is most likely on this machine; the first cell shows it
    /// for sure.
    fn sees_mounts(&self) -> bool {
        true
    }

    async fn ensure_image(&self, image: &ImageRef) -> Result<LocalImage, EngineError> {
        if let Some(local) = self.local(image).await? {
            return Ok(local);
        }
        let name = image_name(&image.reference)?;
        self.pulls.run(image, |host, login| self.pull(name, host, login)).await?;
        self.local(image).await?.ok_or_else(|| {
            EngineError::NotFound(format!(
                "`{}` is not the image {}",
                image.reference, image.digest
            ))
        })
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<ImageRemoval, EngineError> {
        let name = image_name(&image.reference)?;
        let found = match self.request("inspect_image", self.docker.inspect_image(name)).await {
            Ok(found) => found,
            Err(EngineError::NotFound(_)) => return Ok(ImageRemoval::Gone),
            Err(other) => return Err(other),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let is_function = labels.get(labels::IMAGE).is_some_and(|kind| kind == "function");
        // A tag may point to another image by now; a digest cannot.
        let is_same = name.contains('@') || found.id.as_deref() == Some(image.digest.as_str());
        if !is_same || !(is_function || name.starts_with(labels::IMAGE_NAMES)) {
            return Ok(ImageRemoval::Gone);
        }
        let removal = async {
            use Error::DockerResponseServerError as Said;
            match self.docker.remove_image(name, None::<RemoveImageOptions>, None).await {
                Ok(_) | Err(Said { status_code: 404, .. }) => Ok(ImageRemoval::Gone),
                Err(Said { status_code: 409, .. }) => Ok(ImageRemoval::InUse),
                Err(other) => Err(other),
            }
        };
        self.request("remove_image", removal).await
    }

    async fn pulled_images(&self) -> Result<Vec<ImageRef>, EngineError> {
        let label = format!("{}=function", labels::IMAGE);
        let filters = Some([("label".to_owned(), vec![label])].into());
        let options = ListImagesOptions { filters, ..Default::default() };
        let found = self.request("list_images", self.docker.list_images(Some(options))).await?;
        Ok(found.into_iter().flat_map(pulled).collect())
    }

    async fn disk(&self) -> Result<Option<Disk>, EngineError> {
        let root = self.request("info", self.docker.info()).await?.docker_root_dir;
        // An engine in a container or on another machine has its directory elsewhere.
        let Some(found) = root.and_then(|root| rustix::fs::statvfs(root).ok()) else {
            return Ok(None);
        };
        // As `df` counts: what is reserved for root is neither used nor free.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(Some(Disk {
            size: Size(used.saturating_add(found.f_bavail).saturating_mul(found.f_frsize)),
            free: Size(found.f_bavail.saturating_mul(found.f_frsize)),
        }))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), EngineError> {
        let options =
            CreateContainerOptions { name: Some(spec.name.to_string()), ..Default::default() };
        let body = harden::container(spec, self.code(), self.cores);
        self.request("create", self.docker.create_container(Some(options), body)).await.map(drop)
    }

    async fn attach(
        &self,
        name: &ContainerName,
    ) -> Result<BoxStream<'static, Output>, EngineError> {
        let options = AttachContainerOptions {
            stdout: true,
            stderr: true,
            stream: true,
            ..Default::default()
        };
        let attached = self
            .request("attach", self.docker.attach_container(name.as_str(), Some(options)))
            .await?;
        let output = attached.output.filter_map(|piece| {
            ready(match piece {
                Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => {
                    Some(Output::Stdout(message))
                }
                Ok(LogOutput::StdErr { message }) => Some(Output::Stderr(message)),
                Ok(LogOutput::StdIn { .. }) | Err(_) => None,
            })
        });
        // The writing half must live as long as the stream: closing it ends both.
        let input = attached.input;
        Ok(output
            .map(move |piece| {
                let _open = &input;
                piece
            })
            .boxed())
    }

    async fn code_of(
        &self,
        name: &ContainerName,
    ) -> Result<BoxStream<'static, Result<Bytes, EngineError>>, EngineError> {
        let options = DownloadFromContainerOptions { path: self.code().to_owned() };
        let mut pieces = self.docker.download_from_container(name.as_str(), Some(options)).boxed();
        // A missing directory is reported before the first byte.
        let first = self.request("archive", async { pieces.try_next().await }).await?;
        Ok(stream::iter(first.map(Ok)).chain(pieces.map_err(to_engine_error)).boxed())
    }

    async fn start(&self, name: &ContainerName) -> Result<(), EngineError> {
        self.request("start", self.docker.start_container(name.as_str(), None)).await
    }

    async fn update(
        &self,
        name: &ContainerName,
        memory: Size,
        cpu: MilliCores,
    ) -> Result<(), EngineError> {
        let body = harden::update(memory, cpu, self.cores);
        self.request("update", self.docker.update_container(name.as_str(), body)).await
    }

    async fn freezer(&self, name: &ContainerName) -> Result<Option<Box<dyn Freezer>>, EngineError> {
        let found =
            self.request("inspect", self.docker.inspect_container(name.as_str(), None)).await?;
        let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        let (Some(pid), Some(id)) = (pid, found.id) else { return Ok(None) };
        let freezer = CgroupFreezer::open(&id, pid);
        Ok(freezer.map(|freezer| Box::new(freezer) as Box<dyn Freezer>))
    }

    async fn address(&self, name: &ContainerName) -> Result<IpAddr, EngineError> {
        let found =
            self.request("inspect", self.docker.inspect_container(name.as_str(), None)).await?;
        found
            .network_settings
            .and_then(|settings| settings.networks)
            .into_iter()
            .flat_map(HashMap::into_values)
            .find_map(|endpoint| endpoint.ip_address?.parse().ok())
            .ok_or_else(|| EngineError::NotFound(format!("`{name}` has no address")))
    }

    async fn wait(&self, name: &ContainerName) -> Result<Exit, EngineError> {
        let options = WaitContainerOptions { condition: "not-running".into() };
        let mut answers = std::pin::pin!(self.docker.wait_container(name.as_str(), Some(options)));
        let code = match answers.next().await {
            Some(Ok(exit)) => exit.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
            Some(Err(other)) => return Err(to_engine_error(other)),
            None => return Err(EngineError::Down("the wait was cut".into())),
        };
        let mut state = self.state(name).await?;
        // When the engine itself stops, it ends its waits with 0 while the container runs on.
        if state.as_ref().is_some_and(|state| state.running == Some(true)) {
            return Err(EngineError::Down("the wait was cut".into()));
        }
        let is_oom_known = |state: &Option<ContainerState>| {
            state.as_ref().is_none_or(|state| state.oom_killed == Some(true))
        };
        for pause in OOM_REPORT_PAUSES {
            if code != KILLED || is_oom_known(&state) {
                break;
            }
            sleep(pause).await;
            state = self.state(name).await?;
        }
        let out_of_memory = state.and_then(|state| state.oom_killed).unwrap_or(false);
        Ok(Exit { code, out_of_memory })
    }

    async fn terminate(&self, name: &ContainerName) -> Result<(), EngineError> {
        let options = KillContainerOptions { signal: "SIGTERM".to_owned() };
        self.request("terminate", self.docker.kill_container(name.as_str(), Some(options))).await
    }

    async fn remove(&self, name: &ContainerName) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
        match self
            .request("remove", self.docker.remove_container(name.as_str(), Some(options)))
            .await
        {
            Err(EngineError::NotFound(_)) => Ok(()),
            // Another removal is in progress; the container is gone when the engine does not know
            // it any more.
            Err(EngineError::Refused(text)) if text.contains("already in progress") => {
                match self
                    .docker
                    .inspect_container(name.as_str(), None)
                    .await
                    .map_err(to_engine_error)
                {
                    Err(EngineError::NotFound(_)) => Ok(()),
                    _ => Err(EngineError::Refused(text)),
                }
            }
            other => other,
        }
    }

    async fn list(&self, vm: &VmId) -> Result<Vec<ContainerInfo>, EngineError> {
        let options = ListContainersOptions {
            all: true,
            filters: Some([("label".into(), vec![format!("{}={vm}", labels::VM)])].into()),
            ..Default::default()
        };
        let found = self.request("list", self.docker.list_containers(Some(options))).await?;
        Ok(found
            .into_iter()
            .filter_map(|container| {
                let name = container.names?.first()?.trim_start_matches('/').to_owned();
                Some(ContainerInfo {
                    name: ContainerName::parse(&name).ok()?,
                    labels: container.labels.unwrap_or_default(),
                    is_running: container.state == Some(ContainerSummaryStateEnum::RUNNING),
                })
            })
            .collect())
    }

    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError> {
        let known = self.docker.inspect_network(network_name(&network.name)?, None);
        match self.request("inspect_network", known).await {
            Ok(_) => return Ok(()),
            Err(EngineError::NotFound(_)) => {}
            Err(other) => return Err(other),
        }
        let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some("bridge".into()),
            options: Some(
                [
                    option("com.docker.network.bridge.name", &network.bridge),
                    option("com.docker.network.bridge.enable_icc", "false"),
                ]
                .into(),
            ),
            labels: Some([option(labels::VM, network.vm.as_str())].into()),
            ..Default::default()
        };
        self.request("create_network", self.docker.create_network(request)).await.map(drop)
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let give_up = Instant::now() + self.remove_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let removal = self.docker.remove_network(network_name(name)?);
            match self.request("remove_network", removal).await {
                Err(EngineError::NotFound(_)) => return Ok(()),
                Err(EngineError::Refused(text))
                    if text.contains("active endpoints") && Instant::now() < give_up =>
                {
                    self.disconnect_all(name).await?;
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                other => return other,
            }
        }
    }

    async fn ensure_firewall(&self, firewall: &Firewall) -> Result<(), EngineError> {
        firewall::ensure(firewall).await
    }

    async fn remove_firewall(&self, bridge: &str) -> Result<(), EngineError> {
        firewall::remove(bridge).await
    }
}

fn last_cause(err: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(err), |err| err.source()).last().unwrap_or(err).to_string()
}

fn to_engine_error(err: Error) -> EngineError {
    match err {
        Error::DockerResponseServerError { status_code: 404, message } => {
            EngineError::NotFound(message)
        }
        Error::DockerResponseServerError { message, .. } => EngineError::Refused(message),
        Error::DockerStreamError { error } => EngineError::Refused(error),
        // Its text says three times that it could not connect, and only the last cause says why.
        Error::HyperLegacyError { err } => EngineError::Down(last_cause(&err).into()),
        other => EngineError::Down(Box::new(other)),
    }
}

/// The names by which an image can be pulled again: those that say in which registry. An engine
/// with containerd's image store gives a digest to what was made here, too, and that may be the
/// only copy.
fn pulled(image: ImageSummary) -> Vec<ImageRef> {
    // A builder's label is on all its images; what it put into this engine is known by the name
    // only.
    if image.repo_tags.iter().any(|name| name.starts_with(labels::IMAGE_NAMES)) {
        return Vec::new();
    }
    let digest = image.id;
    let names = image.repo_digests.into_iter().filter(|name| Host::named_in(name).is_some());
    names.map(|reference| ImageRef { reference, digest: digest.clone() }).collect()
}

/// Names go into the path of a request as they are, so they must not be able to change it.
fn image_name(name: &str) -> Result<&str, EngineError> {
    let good = name.len() <= 512
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.contains("..")
        && !name.contains("//")
        && name.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/' | b':' | b'@')
        });
    if good { Ok(name) } else { Err(EngineError::Refused("bad image name".into())) }
}

fn network_name(name: &str) -> Result<&str, EngineError> {
    ContainerName::parse(name).map(|_| name)
}

#[cfg(test)]
mod tests {
    use super::{ImageSummary, image_name, pulled};

    #[test]
    fn names_cannot_change_the_path_of_a_request() {
        for good in ["epsilon/hello:3", "localhost:5000/a/b@sha256:00ff", "sha256:ab"] {
            assert!(image_name(good).is_ok(), "{good}");
        }
        for bad in ["", "../containers", "a/../../b", "a?x=1", "a#b", "a b", "/a", "a//b", "a%2e"] {
            assert!(image_name(bad).is_err(), "{bad}");
        }
    }

    /// An engine with containerd's image store gives a digest to what was made here, too.
    #[test]
    fn only_registry_images_count_as_pulled() {
        for (row, tags, digests, want) in [
            ("a registry's", &[][..], &["r.example/shop/pay@sha256:00"][..], 1),
            ("by port", &[], &["registry:5000/shop/pay@sha256:00"], 1),
            ("on this machine", &[], &["localhost/shop/pay@sha256:00"], 1),
            ("in two", &[], &["a.example/pay@sha256:00", "b.example/pay@sha256:00"], 2),
            ("pulled and named", &["mine:1"], &["r.example/pay@sha256:00", "mine@sha256:00"], 1),
            ("made here", &["epsilon/shop/pay:1"], &[], 0),
            ("made here, containerd", &["epsilon/shop/pay:1"], &["epsilon/shop/pay@sha256:00"], 0),
            ("adopted", &["epsilon/shop/pay:1"], &["r.example/pay@sha256:00"], 0),
            ("of a stranger's name", &["shop.example:1"], &["shop.example@sha256:00"], 0),
            ("without a name", &[], &["<none>@<none>"], 0),
        ] {
            let text = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let image = ImageSummary {
                id: "sha256:11".into(),
                repo_tags: text(tags),
                repo_digests: text(digests),
                ..Default::default()
            };
            let found = pulled(image);
            assert_eq!(found.len(), want, "{row}");
            for image in found {
                assert!(digests.contains(&image.reference.as_str()), "{row}");
                assert_eq!(image.digest, "sha256:11", "{row}");
            }
        }
    }
}
