//! `epsilon builders`: the builders and their state.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::admin::BuilderInfo;

#[derive(Debug, Args)]
pub(crate) struct Builders {}

impl Builders {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let builders = Client::new(globals)?.builders().await?;
        if globals.json {
            return output::json(&builders);
        }
        output::table(
            ["BUILDER", "STATE", "VERSION", "BUILDS", "ADDRESS"],
            &[3],
            builders.iter().map(row),
        )
    }
}

fn row(builder: &BuilderInfo) -> [String; 5] {
    // The builder in the gateway's own process has neither.
    let here = || "here".to_owned();
    [
        builder.id.as_ref().map_or_else(here, ToString::to_string),
        match &builder.cause {
            None => "ready".to_owned(),
            Some(cause) => format!("out ({cause})"),
        },
        builder.version.clone().unwrap_or_else(|| "?".to_owned()),
        builder.builds.unwrap_or(builder.builds_from_here).to_string(),
        builder.address.clone().unwrap_or_else(here),
    ]
}
