//! Names in the section `builder:` that are no longer settings, with what replaced them.

use epsilon_bootstrap::settings::Removed;

/// Refused with its reason.
pub(super) const REMOVED: &[Removed] = &[
    Removed::fixed("engine_timeout", "2m", "loading a large image is silent until it is done"),
    Removed::fixed("image_transfer", "`lacking`", "the other methods are tried where it fails"),
    Removed::fixed("hub_patience", "8s", "then the base is made from packages"),
    Removed::fixed("pull_timeout", "5m", "of one image"),
    Removed::fixed("install_pids", "512", "processes and threads of one install"),
    Removed::fixed("inspect_cpu", "2", "every deployment waits for it"),
    Removed::fixed("inspect_pids", "128", "processes and threads of one inspection"),
    Removed::fixed("build_timeout", "30m", "its steps have limits of their own"),
    Removed::fixed("registry_keep_untagged", "14days", "nothing serves an untagged image"),
    Removed::fixed("shelf_size", "a fifth of `cache_size`", "code layers are small"),
    Removed::fixed("source_file", "256MiB", "of one file; `source_unpacked` limits the project"),
    Removed::fixed("source_files", "20000", "`source_unpacked` limits the project"),
    Removed::fixed("source_stall", "60s", "of silence in an upload"),
    Removed::fixed("max_idle_timeout", "24h", "memory is reclaimed when it is needed"),
    Removed::fixed("max_concurrency", "1000", "one process serves no more at once"),
    Removed::fixed("max_functions", "200", "of one project"),
    Removed::fixed("builds_waiting", "16", "gateways send more to another builder"),
    Removed::fixed("max_connections", "64", "each build has one"),
    Removed::fixed("head_timeout", "10s", "gateways are near"),
    Removed::fixed("idle_timeout", "60s", "longer than gateways keep a connection"),
];
