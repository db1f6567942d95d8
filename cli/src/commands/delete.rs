//! `epsilon delete NAME`: removes a function. Running calls may finish; its version numbers are
//! never reused. Asks for confirmation on a terminal, not in scripts.

use crate::{client::Client, confirm, failure::Failure, globals::Globals, output};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The function
    name: String,
    /// Do not ask, also on a terminal
    #[arg(long, short)]
    yes: bool,
}

impl Delete {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        if !self.yes && !globals.json && confirm::can_ask() {
            let versions = output::count(client.versions(&self.name).await?.len(), "version");
            let name = &self.name;
            let what =
                format!("`{name}` and its {versions} will be removed, and calls to it will fail.");
            confirm::by_name(&what, name)?;
        }
        client.delete(&self.name).await?;
        if globals.json {
            return output::json(serde_json::json!({ "deleted": self.name }));
        }
        output::line(&format!("`{}` is deleted", self.name))
    }
}
