//! `epsilon delete NAME`: removes a function. Calls that run may end; its version numbers are never
//! used again.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The function
    name: String,
}

impl Delete {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        Client::new(globals)?.delete(&self.name).await?;
        if globals.json {
            return output::json(serde_json::json!({ "deleted": self.name }));
        }
        output::line(&format!("`{}` is deleted", self.name))
    }
}
