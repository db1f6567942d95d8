//! Metrics of every program: its version, the process (memory, open files, CPU time; under the
//! names that all Prometheus clients give them), lines of its own log that were lost, and how full
//! the disks are that it writes to. Registered by each `main`.

use crate::log;
use epsilon_api::chain::Chain;
use prometheus::{
    IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// The version of all programs of a release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often disk space is read.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// Registers the metrics of version and process. Once per process.
///
/// # Errors
/// When the registry already has these metrics.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let build = IntGaugeVec::new(
        Opts::new("epsilon_build_info", "1, with the version of the program."),
        &["version"],
    )?;
    build.with_label_values(&[VERSION]).set(1);
    registry.register(Box::new(build))?;
    registry.register(Box::new(LogLosses::new()?))?;
    registry.register(Box::new(ProcessCollector::for_self()))
}

/// The log counts its losses itself; this collector reads that count at each scrape.
struct LogLosses {
    counter: IntCounter,
    /// Serializes concurrent scrapes.
    lock: Mutex<()>,
}

impl LogLosses {
    fn new() -> Result<Self, prometheus::Error> {
        let help = "Lines of the program's own log that were lost because standard error is not read fast enough.";
        let counter = IntCounter::new("epsilon_own_log_lines_lost_total", help)?;
        Ok(Self { counter, lock: Mutex::default() })
    }
}

impl Collector for LogLosses {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.counter.inc_by(log::lost_lines().saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}

/// How full a disk is. Several parts of one process may each have theirs.
#[derive(Clone, Debug)]
pub struct Disk {
    free: IntGauge,
    size: IntGauge,
}

impl Disk {
    /// The disk of a folder; label value `data` or `engine`.
    ///
    /// # Errors
    /// When the registry already has this folder's metrics.
    pub fn register(registry: &Registry, folder: &str) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let made = IntGauge::with_opts(Opts::new(name, help).const_label("folder", folder))?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let help = "Free space for non-root users on the disk of a folder, in bytes.";
        Ok(Self {
            free: gauge("epsilon_disk_free_bytes", help)?,
            size: gauge("epsilon_disk_size_bytes", "Size of the disk of a folder, in bytes.")?,
        })
    }

    /// Sets values that were measured elsewhere.
    pub fn set(&self, free: u64, size: u64) {
        self.free.set(i64::try_from(free).unwrap_or(i64::MAX));
        self.size.set(i64::try_from(size).unwrap_or(i64::MAX));
    }

    /// Measures the disk of this folder periodically, until the runtime ends. A disk that hangs
    /// blocks one thread of its own. Needs a tokio runtime.
    pub fn watch(self, folder: PathBuf) {
        tokio::spawn(async move {
            let mut ticks = interval(MEASURE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let folder = folder.clone();
                let disk = self.clone();
                let measured = tokio::task::spawn_blocking(move || disk.measure(&folder)).await;
                if let Ok(Err(error)) = measured {
                    tracing::debug!(error = %Chain(&error), "Disk space could not be read; trying again later.");
                }
            }
        });
    }

    fn measure(&self, folder: &Path) -> std::io::Result<()> {
        let found = rustix::fs::statvfs(folder)?;
        self.set(
            found.f_bavail.saturating_mul(found.f_frsize),
            found.f_blocks.saturating_mul(found.f_frsize),
        );
        Ok(())
    }
}

/// Registers all of these for a program with its data in this folder. Needs a tokio runtime.
///
/// # Errors
/// When the registry already has them.
pub fn register_all(registry: &Registry, data: &Path) -> Result<(), prometheus::Error> {
    register(registry)?;
    Disk::register(registry, "data")?.watch(data.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn version_process_and_disks_are_reported() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let (data, engine) =
            (Disk::register(&registry, "data"), Disk::register(&registry, "engine"));
        data.unwrap().measure(Path::new("/")).unwrap();
        engine.unwrap().set(25, 100);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            format!(r#"epsilon_build_info{{version="{VERSION}"}} 1"#),
            "epsilon_own_log_lines_lost_total 0".to_owned(),
            r#"epsilon_disk_free_bytes{folder="engine"} 25"#.to_owned(),
            r#"epsilon_disk_size_bytes{folder="engine"} 100"#.to_owned(),
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        for name in
            ["process_resident_memory_bytes ", "process_open_fds ", "process_cpu_seconds_total "]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
        let seen =
            text.lines().find(|line| line.starts_with(r#"epsilon_disk_size_bytes{folder="data"}"#));
        assert!(!seen.unwrap().ends_with(" 0"), "{text}");
        assert_eq!(text.matches("# HELP epsilon_disk_free_bytes").count(), 1, "one family");
    }
}
