//! `epsilon rollback NAME [VERSION]`: routes all calls to an older version. Nothing is built.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{admin::FunctionInfo, ids::VersionNumber};

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The function
    name: String,
    /// The version to go back to [default: the stable one of a split, else the one before the
    /// active one]
    version: Option<VersionNumber>,
}

impl Rollback {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let function = Client::new(globals)?.rollback(&self.name, self.version).await?;
        print_active(globals, &function)
    }
}

/// Prints the active version.
pub(crate) fn print_active(globals: &Globals, function: &FunctionInfo) -> Result<(), Failure> {
    if globals.json {
        return output::json(function);
    }
    output::line(&format!(
        "`{}` serves version {} at {}",
        function.name, function.active_version, function.url
    ))
}
