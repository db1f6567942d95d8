//! What every program tells collectors of itself: its version, the process (memory, open files, processor time; under the
//! names that all Prometheus clients give them). Called by each `main`.

use prometheus::{IntGaugeVec, Opts, Registry, process_collector::ProcessCollector};

/// The version of all programs of one release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Tells the version and the process. Once in a process.
///
/// # Errors
/// When the registry has these already.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let build = IntGaugeVec::new(
        Opts::new("epsilon_build_info", "1, with the version of the program."),
        &["version"],
    )?;
    build.with_label_values(&[VERSION]).set(1);
    registry.register(Box::new(build))?;
    registry.register(Box::new(ProcessCollector::for_self()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_process_are_told() {
        let registry = Registry::new();
        register(&registry).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [format!(r#"epsilon_build_info{{version="{VERSION}"}} 1"#)] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        for name in
            ["process_resident_memory_bytes ", "process_open_fds ", "process_cpu_seconds_total "]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
}
