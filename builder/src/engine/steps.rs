//! The limits of the steps of a Dockerfile, which the engine runs as root: memory, CPUs, the size
//! of a file, and a cgroup around all steps of one build, which identifies them and bounds their
//! processes.
//!
//! The engine's API has these options and bollard does not support all of them: they are added to
//! the request. Disk space of a step has no option and is checked while the build runs.

use super::{Engine, container::Limits};
use bollard::{
    BollardRequest,
    models::ContainerUpdateBody,
    query_parameters::{InspectContainerOptionsBuilder, ListContainersOptionsBuilder},
};
use epsilon_api::{chain::Chain, ids::InstanceId, units::Bytes};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Time between two checks for new steps.
const EVERY: Duration = Duration::from_millis(250);
/// Checks for new steps between two checks of disk space.
const SIZE_EVERY: u32 = 8;
/// How often removing a cgroup is tried: containers go within a second, on a busy machine within a
/// few.
const REMOVE_TRIES: u32 = 120;
/// Where the kernel's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Period of the CPU quota in microseconds.
const PERIOD: u64 = 100_000;

/// Limits of the steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLimits {
    pub(crate) limits: Limits,
    /// Bytes that one step may write.
    pub(crate) size: Bytes,
}

/// The cgroup of one build's steps. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Steps {
    engine: Engine,
    limits: StepLimits,
    /// The engine's name of it.
    parent: String,
    root: PathBuf,
}

impl Steps {
    /// `is_systemd`: systemd manages the engine's cgroups, with other names and rules.
    pub(super) fn new(engine: Engine, limits: StepLimits, is_systemd: bool) -> Self {
        let id = format!("{}{}", engine.owner(), InstanceId::random());
        let parent = if is_systemd {
            format!("epsilonbuild{id}.slice")
        } else {
            format!("/epsilon-build-{id}")
        };
        let steps = Self { engine, limits, parent, root: CGROUPS.into() };
        if !is_systemd {
            steps.bound_processes();
        }
        steps
    }

    /// Limits processes from the first one on. Where this is impossible (no root, another machine's
    /// cgroups) each step is limited as soon as it is seen.
    fn bound_processes(&self) {
        let pids = self.limits.limits.pids;
        let bounded = make_group(&self.root, self.name(), pids);
        if let Err(err) = bounded {
            tracing::debug!(error = %Chain(&err), "No cgroup for the steps of a Dockerfile; limiting each step when it is seen.");
        }
    }

    /// Of the folder, below the root or below each hierarchy.
    fn name(&self) -> &str {
        self.parent.trim_start_matches('/')
    }

    /// The additional query of the build request.
    fn query(&self) -> String {
        let StepLimits { limits, size } = &self.limits;
        let memory = limits.memory.get();
        let quota = u64::from(limits.cpu.0) * PERIOD / 1000;
        let ulimits = format!(r#"[{{"Name":"fsize","Soft":{0},"Hard":{0}}}]"#, size.get());
        let parent = escaped(&self.parent);
        let ulimits = escaped(&ulimits);
        format!(
            "cgroupparent={parent}&memory={memory}&memswap={memory}&cpuperiod={PERIOD}&cpuquota={quota}\
             &ulimits={ulimits}"
        )
    }

    /// Adds the limits to the request of a build.
    pub(super) fn modifier(
        &self,
    ) -> impl Fn(BollardRequest) -> BollardRequest + Send + Sync + 'static {
        let more = self.query();
        move |mut request| {
            if let Some(uri) = with_query(request.uri(), &more) {
                *request.uri_mut() = uri;
            }
            request
        }
    }

    /// Resolves when a step has written more than it may. Cancel-safe.
    pub(super) async fn exceeds_limit(&self, network: &str) {
        let mut others = HashSet::new();
        let mut steps = HashSet::new();
        for look in 0u32.. {
            tokio::time::sleep(EVERY).await;
            for id in self.running(network).await {
                if others.contains(&id) {
                    continue;
                }
                if !steps.contains(&id) {
                    if !self.is_ours(&id).await {
                        others.insert(id);
                        continue;
                    }
                    self.bound(&id).await;
                    steps.insert(id.clone());
                }
                if look % SIZE_EVERY == 0 && self.written(&id).await > self.limits.size.get() {
                    return;
                }
            }
        }
    }

    async fn running(&self, network: &str) -> Vec<String> {
        let filters = HashMap::from([("network", vec![network])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let found = self.engine.docker.list_containers(Some(options)).await;
        found.unwrap_or_default().into_iter().filter_map(|container| container.id).collect()
    }

    async fn is_ours(&self, id: &str) -> bool {
        let options = InspectContainerOptionsBuilder::default().build();
        let found = self.engine.docker.inspect_container(id, Some(options)).await;
        let parent =
            found.ok().and_then(|found| found.host_config).and_then(|host| host.cgroup_parent);
        parent.is_some_and(|parent| parent == self.parent)
    }

    async fn bound(&self, id: &str) {
        let pids_limit = Some(i64::from(self.limits.limits.pids));
        let update = ContainerUpdateBody { pids_limit, ..ContainerUpdateBody::default() };
        if let Err(err) = self.engine.docker.update_container(id, update).await {
            tracing::debug!(error = %Chain(&err), "Step of a Dockerfile ended before it was limited.");
        }
    }

    async fn written(&self, id: &str) -> u64 {
        let options = InspectContainerOptionsBuilder::default().size(true).build();
        let found = self.engine.docker.inspect_container(id, Some(options)).await;
        let bytes = found.ok().and_then(|found| found.size_rw).unwrap_or_default();
        u64::try_from(bytes).unwrap_or_default()
    }
}

impl Drop for Steps {
    /// The engine creates the folder in each hierarchy, and leaves it. Its last step may still be
    /// exiting.
    fn drop(&mut self) {
        let (root, name) = (self.root.clone(), self.name().to_owned());
        self.engine.tasks.spawn(async move {
            for _ in 0..REMOVE_TRIES {
                if is_removed(&root, &name) {
                    return;
                }
                tokio::time::sleep(EVERY).await;
            }
            tracing::warn!(
                cgroup = name,
                "Cgroup of a Dockerfile's steps could not be removed and stays on this machine."
            );
        });
    }
}

/// Makes a group that bounds processes, in either version of control groups.
fn make_group(root: &Path, name: &str, pids: u32) -> io::Result<()> {
    let root = if root.join("cgroup.controllers").exists() {
        let _set_already_or_not_ours = fs::write(root.join("cgroup.subtree_control"), "+pids");
        root.to_owned()
    } else {
        root.join("pids")
    };
    let group = root.join(name);
    fs::create_dir(&group)?;
    fs::write(group.join("pids.max"), pids.to_string())
}

/// Removes the group in all hierarchies, and returns whether it is gone from all of them. Does not
/// block.
fn is_removed(root: &Path, name: &str) -> bool {
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let roots = hierarchies.map(|entry| entry.path()).chain([root.to_owned()]);
    let folders = roots.map(|root| root.join(name)).filter(|folder| folder.is_dir());
    folders.filter(|folder| fs::remove_dir(folder).is_err()).count() == 0
}

/// `uri` with a longer query, if it is that of a build.
fn with_query(uri: &http::Uri, more: &str) -> Option<http::Uri> {
    if !uri.path().ends_with("/build") {
        return None;
    }
    let query = uri.query().map(|query| format!("{query}&")).unwrap_or_default();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}{more}", uri.path()).parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_build_gets_limits() {
        let uri = |text: &str| text.parse::<http::Uri>().unwrap();
        let build = with_query(&uri("http://localhost/v1.41/build?rm=true"), "memory=1").unwrap();
        assert_eq!(build.to_string(), "http://localhost/v1.41/build?rm=true&memory=1");
        assert_eq!(with_query(&uri("http://localhost/v1.41/images/json"), "memory=1"), None);
        assert_eq!(escaped(r#"[{"a":1}]/"#), "%5B%7B%22a%22%3A1%7D%5D%2F");
    }

    #[test]
    fn a_group_bounds_processes_in_either_version() {
        for (version, files, group, others) in [
            ("1", &["pids/pids.max"][..], "pids/epsilon-build-1", &["memory", "pids"][..]),
            ("2", &["cgroup.controllers", "cgroup.subtree_control"], "epsilon-build-1", &[]),
        ] {
            let root = tempfile::tempdir().unwrap();
            let root = root.path();
            for folder in others.iter().chain(&["system.slice"]) {
                fs::create_dir(root.join(folder)).unwrap();
            }
            for file in files {
                fs::write(root.join(file), "").unwrap();
            }
            make_group(root, "epsilon-build-1", 64).unwrap();
            let limit = root.join(group).join("pids.max");
            assert_eq!(fs::read_to_string(&limit).unwrap(), "64", "version {version}");
            let handed_on = fs::read_to_string(root.join("cgroup.subtree_control"));
            assert_eq!(handed_on.ok().as_deref(), (version == "2").then_some("+pids"));

            // The engine has made it in the other hierarchies, too. A group with members stays.
            for other in others.iter().filter(|other| **other != "pids") {
                fs::create_dir(root.join(other).join("epsilon-build-1")).unwrap();
            }
            assert!(!is_removed(root, "epsilon-build-1"), "version {version}");
            fs::remove_file(limit).unwrap();
            assert!(is_removed(root, "epsilon-build-1"), "version {version}");
            assert!(!root.join(group).exists(), "version {version}");
        }
    }
}
