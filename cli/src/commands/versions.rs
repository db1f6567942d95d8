//! `epsilon versions NAME`: every build of a function, newest first.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Versions {
    /// The function
    name: String,
}

impl Versions {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let versions = Client::new(globals)?.versions(&self.name).await?;
        if globals.json {
            return output::json(&versions);
        }
        let rows = versions.into_iter().map(|version| {
            [
                version.version.to_string(),
                if version.active { "active" } else { "" }.to_owned(),
                output::time(version.created_at),
                version.deployment.to_string(),
                version.image,
            ]
        });
        output::table(["VERSION", "", "CREATED", "DEPLOYMENT", "IMAGE"], &[0], rows)
    }
}
