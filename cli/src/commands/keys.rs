//! `epsilon keys`: the keys that gateways accept, and their owners; `epsilon keys rm ID` removes
//! one.

use crate::{client::Client, confirm, failure::Failure, globals::Globals, output};
use clap::{Args, Subcommand};
use epsilon_api::{admin::KeyInfo, ids::KeyId};

#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Remove a key of a lost gateway; it is refused from then on
    Rm(Rm),
}

#[derive(Debug, Args)]
struct Rm {
    /// The key's id: the third word of a key, between the underscores
    id: KeyId,

    /// Also the key of this request, or one of a running gateway. That gateway enters the key in
    /// its file again when it starts
    #[arg(long)]
    force: bool,

    /// Do not ask, also on a terminal
    #[arg(long, short)]
    yes: bool,
}

impl Keys {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        match self.verb {
            None => list(&client, globals.json).await,
            Some(Verb::Rm(rm)) => rm.run(&client, globals.json).await,
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let keys = client.keys().await?;
    if json {
        return output::json(&keys);
    }
    output::table(
        ["KEY", "", "OPENS", "GATEWAY", "LAST SEEN", "CREATED"],
        &[],
        keys.iter().map(row),
    )
}

fn row(key: &KeyInfo) -> [String; 6] {
    [
        key.id.clone(),
        if key.is_yours { "yours".to_owned() } else { String::new() },
        key.role.opens().to_owned(),
        key.gateway.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string),
        key.gateway_seen_at.map_or_else(|| "unknown".to_owned(), output::time),
        output::time(key.created_at),
    ]
}

impl Rm {
    async fn run(self, client: &Client, json: bool) -> Result<(), Failure> {
        let Self { id, force, yes } = self;
        if !yes && !json {
            confirm::by_name(
                &format!("Requests with the key `{id}` will be refused."),
                id.as_str(),
            )?;
        }
        let removed = client.remove_key(&id, force).await?;
        if json {
            return output::json(&removed);
        }
        output::line(&format!("`{id}` is removed; requests with it are refused"))
    }
}
