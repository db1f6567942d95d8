//! The defaults of the section `gateway:` with all its areas. Below the settings of every area, so
//! that none of them imports the root `config`.

use epsilon_bootstrap::settings::Defaults;

/// `config.default.yaml`.
pub(crate) const DEFAULTS: Defaults =
    Defaults::new("gateway", include_str!("../../config.default.yaml"));
