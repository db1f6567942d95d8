//! `epsilon versions NAME`: every build of a function, newest first; `--retire N` removes one.

use crate::{client::Client, confirm, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{admin::VersionInfo, ids::VersionNumber};

#[derive(Debug, Args)]
pub(crate) struct Versions {
    /// The function
    name: String,

    /// Remove this version: it can no longer be called by its address or rolled back to
    #[arg(long, value_name = "VERSION")]
    retire: Option<VersionNumber>,

    /// Do not ask, also on a terminal
    #[arg(long, short, requires = "retire")]
    yes: bool,
}

impl Versions {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        if let Some(version) = self.retire {
            if !self.yes && !globals.json {
                let name = &self.name;
                let what = format!(
                    "`{name}` v{version} can no longer be called by its address or rolled back to."
                );
                confirm::by_name(&what, name)?;
            }
            let retired = client.retire(&self.name, version).await?;
            return if globals.json {
                output::json(&retired)
            } else {
                output::line(&format!("`{}` v{version} is retired", self.name))
            };
        }
        let versions = client.versions(&self.name).await?;
        if globals.json {
            return output::json(&versions);
        }
        let rows = versions.into_iter().map(|version| {
            [
                version.version.to_string(),
                state(&version),
                output::time(version.created_at),
                version.deployment.to_string(),
                version.image,
            ]
        });
        output::table(["VERSION", "", "CREATED", "DEPLOYMENT", "IMAGE"], &[0], rows)
    }
}

fn state(version: &VersionInfo) -> String {
    match (version.active, version.percent) {
        (true, None) => "active".to_owned(),
        (true, Some(percent)) => format!("stable, {percent}%"),
        (false, Some(percent)) => format!("{percent}%"),
        (false, None) => String::new(),
    }
}
