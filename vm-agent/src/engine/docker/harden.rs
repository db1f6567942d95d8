//! A container as Docker gets it: the function's share and everything that no function can turn off.

use crate::engine::{Attachment, ContainerSpec, SOCKETS};
use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use epsilon_api::units::{Bytes, MilliCores};

/// Nanoseconds of processor time per second in a thousandth of a core.
const NANOS_PER_MILLICORE: i64 = 1_000_000;

/// `cores`: what the machine has. Docker refuses a share beyond it; a function that may use four cores
/// runs on two, only slower.
pub(super) fn container(spec: &ContainerSpec, code: &str, cores: u32) -> ContainerCreateBody {
    let memory = spec.memory.get() as i64;
    let limit = |name: &str, value: i64| ResourcesUlimits {
        name: Some(name.into()),
        soft: Some(value),
        hard: Some(value),
    };
    let sockets = spec.sockets.as_ref().map(|folder| Mount {
        target: Some(SOCKETS.into()),
        source: Some(folder.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        ..Default::default()
    });
    // As a slave: what the machine mounts there comes in, and nothing goes out.
    let mounts = spec.mounts.as_ref().map(|folder| Mount {
        target: Some(code.into()),
        source: Some(folder.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RSLAVE),
            ..Default::default()
        }),
        ..Default::default()
    });
    let tmp = format!("rw,nosuid,nodev,mode=1777,size={}", spec.limits.tmp_size.get());
    let host = HostConfig {
        readonly_rootfs: Some(true),
        tmpfs: Some([("/tmp".to_owned(), tmp)].into()),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges:true".into()]), // seccomp: Docker's own profile
        privileged: Some(false),
        pids_limit: Some(i64::from(spec.limits.pids)),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nanos(spec.cpu, cores)),
        ulimits: Some(vec![limit("nofile", i64::from(spec.limits.open_files)), limit("core", 0)]),
        init: Some(true),
        ipc_mode: Some("private".into()),
        network_mode: Some(match &spec.network {
            Attachment::None => "none".into(),
            Attachment::Bridge(name) => name.clone(),
        }),
        mounts: Some(sockets.into_iter().chain(mounts).collect()),
        // The agent reads the attached streams and keeps the log within its own limits.
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        runtime: spec.limits.runtime.clone(),
        ..Default::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.0.clone()),
        hostname: Some(spec.labels.instance.to_string()),
        user: Some(spec.user.clone()),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(spec.labels.to_map()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..Default::default()
    }
}

/// Other limits for a container that runs: the same two that [`container`] gave it.
pub(super) fn update(memory: Bytes, cpu: MilliCores, cores: u32) -> ContainerUpdateBody {
    let memory = memory.get() as i64;
    ContainerUpdateBody {
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nanos(cpu, cores)),
        ..Default::default()
    }
}

fn nanos(cpu: MilliCores, cores: u32) -> i64 {
    i64::from(cpu.0).min(i64::from(cores) * 1000) * NANOS_PER_MILLICORE
}
