//! `epsilon functions`: what can be called, and where.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Functions {}

impl Functions {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let functions = Client::new(globals)?.functions().await?;
        if globals.json {
            return output::json(&functions);
        }
        if functions.is_empty() {
            return output::line(
                "no functions yet; `epsilon init` writes one, `epsilon deploy` pushes it",
            );
        }
        let rows = functions.into_iter().map(|function| {
            [
                function.name.to_string(),
                function.active_version.to_string(),
                function.instances.to_string(),
                output::time(function.updated_at),
                function.project.to_string(),
                function.url,
            ]
        });
        output::table(
            ["FUNCTION", "VERSION", "INSTANCES", "UPDATED", "PROJECT", "URL"],
            &[1, 2],
            rows,
        )
    }
}
