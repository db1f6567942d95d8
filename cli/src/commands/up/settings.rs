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
            gateway: layers.section("gateway")?,
            vm_agent: layers.section("vm_agent")?,
            builder: layers.section("builder")?,
        })
    }
}
