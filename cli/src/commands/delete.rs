//! `epsilon delete NAME`: removes a function. Calls that run may end; its version numbers are never
//! used again. A person at a terminal is asked first; a script has said what it wants.

use crate::{args::Globals, client::Client, failure::Failure, output};
use clap::Args;
use console::Term;
use std::io::IsTerminal as _;

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
        let asks = std::io::stdin().is_terminal() && Term::stderr().is_term();
        if asks && !self.yes && !globals.json {
            self.confirm(client.versions(&self.name).await?.len())?;
        }
        client.delete(&self.name).await?;
        if globals.json {
            return output::json(serde_json::json!({ "deleted": self.name }));
        }
        output::line(&format!("`{}` is deleted", self.name))
    }

    /// Nothing is deleted unless its name is typed.
    fn confirm(&self, versions: usize) -> Result<(), Failure> {
        let (name, versions) = (&self.name, output::count(versions, "version"));
        eprintln!("`{name}` and its {versions} will be gone, and calls to it will fail.");
        eprint!("Type its name to delete it: ");
        let mut typed = String::new();
        let read = std::io::stdin().read_line(&mut typed);
        match read.is_ok() && typed.trim() == name {
            true => Ok(()),
            false => Err(Failure::new("NOT_CONFIRMED", "nothing was deleted")
                .hint("type the name as it is, or pass `--yes`")),
        }
    }
}
