//! `epsilon functions`: what can be called, and where; how calls are split, and which split ended by itself.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;
use epsilon_api::{admin::FunctionInfo, traffic};

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
        let notes: Vec<_> = functions.iter().filter_map(note).collect();
        let rows = functions.into_iter().map(|function| {
            [
                function.name.to_string(),
                match &function.shares[..] {
                    [] => function.active_version.to_string(),
                    shares => traffic::text(shares),
                },
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
        )?;
        notes.iter().try_for_each(|note| output::line(note))
    }
}

/// What an operator must not miss.
fn note(function: &FunctionInfo) -> Option<String> {
    let aborted = function.aborted.as_ref()?;
    let (name, serves, at) = (&function.name, function.active_version, output::time(aborted.at));
    Some(format!("`{name}` is back at version {serves} since {at}: {aborted}"))
}
