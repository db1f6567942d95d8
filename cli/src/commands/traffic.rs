//! `epsilon traffic NAME [VERSION=PERCENT …]`: shows how a function's calls are routed, or splits
//! them among versions.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{
    ids::VersionNumber,
    traffic::{Rate, Share, SplitInfo, Sticky, TrafficInfo, TrafficRequest},
};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  epsilon traffic pay                      where its calls go now
  epsilon traffic pay 3=90 4=10            a tenth of the calls to version 4
  epsilon traffic pay 3=50 4=50 --sticky header:x-user
  epsilon promote pay                      all calls to version 4
  epsilon rollback pay                     all calls back to version 3")]
pub(crate) struct Traffic {
    /// The function
    name: String,
    /// Versions and their percents, together 100 [default: show the current ones]
    #[arg(value_name = "VERSION=PERCENT")]
    shares: Vec<Share>,
    /// Keep a caller on its version: by a `cookie`, or by a header's value (`header:NAME`)
    #[arg(long, value_name = "cookie|header:NAME", requires = "shares")]
    sticky: Option<Sticky>,
    /// Abort the split when more of a version's calls fail than this; 100% never does [default: the
    /// gateway's, 5%]
    #[arg(long, value_name = "PERCENT", requires = "shares")]
    abort_above: Option<Rate>,
    /// How far back calls count for that [default: the gateway's, 1m]
    #[arg(long, value_name = "DURATION", requires = "shares", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
    /// Calls of a version before it is judged [default: the gateway's, 20]
    #[arg(long, value_name = "CALLS", requires = "shares")]
    min_calls: Option<u32>,
    /// The version that gets all calls when the split is aborted [default: that of the running
    /// split, else the oldest]
    #[arg(long, value_name = "VERSION", requires = "shares")]
    stable: Option<VersionNumber>,
}

impl Traffic {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        let info = if self.shares.is_empty() {
            client.traffic(&self.name).await?
        } else {
            client.split(&self.name, &self.request()).await?
        };
        if globals.json {
            return output::json(&info);
        }
        show(&info)
    }

    fn request(&self) -> TrafficRequest {
        let millis = |window: Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        TrafficRequest {
            shares: self.shares.clone(),
            stable: self.stable,
            sticky: self.sticky.clone(),
            abort_above_percent: self.abort_above,
            abort_window_ms: self.window.map(millis),
            abort_min_calls: self.min_calls,
        }
    }
}

fn show(info: &TrafficInfo) -> Result<(), Failure> {
    let rows = info.shares.iter().map(|share| {
        [
            share.version.to_string(),
            format!("{}%", share.percent),
            if share.version == info.stable { "stable" } else { "" }.to_owned(),
            share.calls.to_string(),
            share.failed.to_string(),
            share.url.clone(),
        ]
    });
    output::table(["VERSION", "SHARE", "", "CALLS", "FAILED", "URL"], &[0, 1, 3, 4], rows)?;
    if let Some(split) = &info.split {
        output::line(&terms(split))?;
    }
    if let Some(aborted) = &info.aborted {
        output::line(&format!("a split was aborted at {}: {aborted}", output::time(aborted.at)))?;
    }
    Ok(())
}

fn terms(split: &SplitInfo) -> String {
    let SplitInfo { since, sticky, abort } = split;
    let window = humantime::format_duration(abort.window());
    let assigned = match sticky {
        Some(sticky) => format!("callers stay on their version by {sticky}"),
        None => "each call is assigned independently".to_owned(),
    };
    let ends = match abort.above {
        Rate::ALL => "never aborted automatically".to_owned(),
        above => format!(
            "aborted when more than {above} of a version's calls fail within {window} (at least {} calls)",
            abort.min_calls
        ),
    };
    format!("since {}; {assigned}; {ends}", output::time(*since))
}
