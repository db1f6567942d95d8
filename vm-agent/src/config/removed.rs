//! Names in the section `vm_agent:` that are no longer settings, with what replaced them.

use epsilon_bootstrap::settings::Removed;

/// Refused with its reason.
pub(super) const REMOVED: &[Removed] = &[
    Removed::fixed("engine_timeout", "60s", "an engine that needs longer hangs"),
    Removed::fixed("pulls_at_once", "3", "as many as an engine fetches layers at once"),
    Removed::fixed("starts_per_version", "half of `starts_at_once`", "the rest is for others"),
    Removed::fixed("queue_depth", "1000", "`queue_wait` limits the wait"),
    Removed::fixed("connection_idle", "1500ms", "common servers keep connections for 2 s"),
    Removed::fixed("instance_idle_min", "30s", "less would turn short gaps into starts"),
    Removed::fixed("instance_idle_max", "4h", "memory that is needed is taken back at once"),
    Removed::fixed("open_files", "16384", "for each instance"),
    Removed::fixed("log_line", "16KiB", "the rest of a longer line is cut"),
    Removed::fixed("layers_at_once", "8", "each costs one round trip to the registry"),
    Removed::fixed("reconcile_every", "10s", "exits are noticed without it"),
    Removed::fixed("max_connections", "4096", "a call takes one"),
    Removed::fixed("head_timeout", "10s", "gateways are near"),
    Removed::fixed("idle_timeout", "60s", "longer than gateways keep a connection"),
    Removed::renamed("layer_shelf", "layer_cache"),
];
