//! A container as Docker gets it: the function's limits and the hardening that no function and no
//! image can turn off.
//!
//! The seccomp profile is `seccomp.json` beside this file: Moby's default for containers without
//! capabilities, less what docs/decisions/0030-isolation-of-instances.md lists.

use crate::engine::limits::Seccomp;
use crate::engine::{Attachment, ContainerSpec, SOCKETS};
use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use epsilon_api::units::{Bytes, MilliCores};

/// Nanoseconds of CPU time per second in a thousandth of a core.
const NANOS_PER_MILLICORE: i64 = 1_000_000;
/// When the machine is out of memory, the kernel kills functions before the platform and the
/// engine.
const OOM_SCORE_ADJ: i64 = 500;
const SECCOMP_PROFILE: &str = include_str!("seccomp.json");
/// World-writable, as `/tmp`: the image does not know the user.
const VOLUME_MODE: i64 = 0o1777;

/// Builds the request. `cores`: of the machine. Docker refuses a share beyond it; a function with a
/// limit of four cores runs on two, only slower.
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
    // As a slave mount: what the machine mounts there appears inside, and nothing propagates back.
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
    let passwd = spec.passwd.as_ref().map(|file| Mount {
        target: Some("/etc/passwd".into()),
        source: Some(file.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Default::default()
    });
    // A declared volume would be a directory on the engine's disk, without a limit. A tmpfs is
    // memory of the instance, which has one.
    let volumes = spec.image.volumes.iter().filter(|path| *path != "/tmp").map(|path| Mount {
        target: Some(path.clone()),
        typ: Some(MountType::TMPFS),
        tmpfs_options: Some(MountTmpfsOptions {
            size_bytes: Some(memory / 2),
            mode: Some(VOLUME_MODE),
            ..Default::default()
        }),
        ..Default::default()
    });
    // Docker adds `noexec` by default; packages unpack programs and native add-ons there, as on
    // Lambda.
    let tmp = format!("rw,exec,nosuid,nodev,mode=1777,size={}", spec.limits.tmp_size.get());
    let mut security = vec!["no-new-privileges:true".to_owned()];
    match spec.limits.seccomp {
        Seccomp::Own => security.push(format!("seccomp={SECCOMP_PROFILE}")),
        Seccomp::Engine => {}
    }
    let host = HostConfig {
        readonly_rootfs: Some(true),
        tmpfs: Some([("/tmp".to_owned(), tmp)].into()),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(security),
        oom_score_adj: Some(OOM_SCORE_ADJ),
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
        mounts: Some(sockets.into_iter().chain(mounts).chain(passwd).chain(volumes).collect()),
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
        image: Some(spec.image.name.clone()),
        hostname: Some(spec.labels.instance.to_string()),
        user: Some(spec.user.clone()),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(spec.labels.to_map()),
        // An image's own health check would run at any rate that the image sets, outside of the
        // function's limits.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..Default::default()
    }
}

/// New limits for a running container: the same two that [`container`] sets.
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
