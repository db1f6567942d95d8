//! Settings of `epsilon up`'s parts: the sections as each part declares them.

use epsilon_bootstrap::{
    failure::Failure,
    settings::{Flag, Layers},
};
use std::{ffi::OsString, path::Path, time::Duration};

/// Settings of all parts.
#[derive(Debug)]
pub(super) struct Settings {
    /// `gateway.drain_grace`: needed by the program that shuts the parts down.
    pub(super) drain_grace: Duration,
    pub(super) gateway: epsilon_gateway::config::Settings,
    pub(super) vm_agent: epsilon_vm_agent::config::Settings,
    pub(super) builder: epsilon_builder::config::Settings,
}

impl Settings {
    /// Reads all sources.
    pub(super) fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[Flag],
    ) -> Result<Self, Failure> {
        let mut layers = Layers::load(file, env, flags)?;
        Ok(Self {
            drain_grace: layers.take_drain_grace()?,
            gateway: layers.section()?,
            vm_agent: layers.section()?,
            builder: layers.section()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &Path) -> Result<Settings, Failure> {
        Settings::load(Some(file), [], &[])
    }

    #[test]
    fn shipped_files_are_settings() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in [
            "infra/systemd/epsilon.yaml",
            "vm-agent/config.default.yaml",
            "builder/config.default.yaml",
        ] {
            load(&root.join(file)).unwrap();
        }
    }

    /// Both have the same default: one program reads it before its part is there.
    #[test]
    fn the_grace_without_settings_is_the_documented_one() {
        let none = Settings::load(None, [], &[]).unwrap();
        let text = include_str!("../../../../gateway/config.default.yaml");
        let grace = humantime::format_duration(none.drain_grace);
        assert!(text.contains(&format!("\n  drain_grace: {grace}\n")), "{grace}");
    }
}
