//! `epsilon autoscaler`: how many VMs are wanted and why, and the last actions.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::autoscaler::{AutoscalerDecision, AutoscalerInfo, AutoscalerState};

#[derive(Debug, Args)]
pub(crate) struct Autoscaler {}

impl Autoscaler {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let info = Client::new(globals)?.autoscaler().await?;
        if globals.json {
            return output::json(&info);
        }
        output::line(&format!(
            "{} wanted, {} there: {}",
            output::count(info.wanted as usize, "VM"),
            info.current,
            info.reason
        ))?;
        output::line(&format!(
            "{:.1} of {:.1} places busy; driver {}{}, {}",
            info.demand,
            info.places,
            info.driver,
            if info.dry_run { " (dry run)" } else { "" },
            state(&info)
        ))?;
        if let Some(problem) = &info.problem {
            output::line(&format!("problem: {problem}"))?;
        }
        if info.decisions.is_empty() {
            return Ok(());
        }
        output::line("")?;
        let rows = info.decisions.iter().map(|made| {
            let count = |number: u32| number.to_string();
            [output::time(made.at), count(made.wanted), count(made.current), what(made)]
        });
        output::table(["WHEN", "WANTED", "THERE", "WHY, AND WHAT WAS DONE"], &[1, 2], rows)
    }
}

fn state(info: &AutoscalerInfo) -> &'static str {
    match info.state {
        AutoscalerState::Watching => "no driver: no gateway acts on it",
        AutoscalerState::Following => "another gateway leads",
        AutoscalerState::Leading => "this gateway leads",
        AutoscalerState::StoreAway => "the store is unavailable: no gateway acts",
        AutoscalerState::GroupAway => {
            "this gateway leads, the group does not carry out its requests"
        }
    }
}

fn what(made: &AutoscalerDecision) -> String {
    let mut text = made.reason.clone();
    if !made.steps.is_empty() {
        text.push_str(" → ");
        text.push_str(&made.steps.join(", "));
    }
    if let Some(problem) = &made.problem {
        text.push_str("; failed: ");
        text.push_str(problem);
    }
    text
}
