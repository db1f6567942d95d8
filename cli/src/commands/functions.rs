//! `epsilon functions`: functions and their URLs; traffic splits, aborted splits, and how long idle
//! instances stay. For one function, the reasons.

use crate::{client::Client, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{
    admin::{FunctionInfo, KeepAliveInfo},
    traffic,
    vm::KeepAliveSource,
};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Functions {
    /// Only this one, with the reason for how long its idle instances stay
    name: Option<String>,
}

impl Functions {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        if let Some(name) = self.name {
            let function = client.function(&name).await?;
            if globals.json {
                return output::json(&function);
            }
            let why = why(&function);
            table(vec![function])?;
            return output::line(&why);
        }
        let functions = client.functions().await?;
        if globals.json {
            return output::json(&functions);
        }
        if functions.is_empty() {
            return output::line(
                "no functions yet; `epsilon init` writes one, `epsilon deploy` pushes it",
            );
        }
        table(functions)
    }
}

fn table(functions: Vec<FunctionInfo>) -> Result<(), Failure> {
    let notes: Vec<_> = functions.iter().filter_map(note).collect();
    let rows = functions.into_iter().map(|function| {
        [
            function.name.to_string(),
            match &function.shares[..] {
                [] => function.active_version.to_string(),
                shares => traffic::text(shares),
            },
            function.instances.to_string(),
            keep(function.keep.as_ref()),
            output::time(function.updated_at),
            function.project.to_string(),
            function.url,
        ]
    });
    output::table(
        ["FUNCTION", "VERSION", "INSTANCES", "KEEP", "UPDATED", "PROJECT", "URL"],
        &[1, 2],
        rows,
    )?;
    notes.iter().try_for_each(|note| output::line(note))
}

/// `11m adaptive`, `2m set`, `5m default`; `prewarm 54m` where an instance is prewarmed before each
/// call.
fn keep(keep: Option<&KeepAliveInfo>) -> String {
    match keep {
        None => "default".to_owned(),
        Some(KeepAliveInfo { ready_after: Some(after), .. }) => {
            format!("prewarm {}", short(*after))
        }
        Some(KeepAliveInfo { idle, by, .. }) => {
            let by = match by {
                KeepAliveSource::Default => "default",
                KeepAliveSource::Adaptive => "adaptive",
                KeepAliveSource::Set => "set",
            };
            format!("{} {by}", short(*idle))
        }
    }
}

fn why(function: &FunctionInfo) -> String {
    let name = &function.name;
    let Some(KeepAliveInfo { idle, ready_after, why, .. }) = &function.keep else {
        return format!(
            "Idle instances of `{name}` stay for the VM's default time: no pause between calls was measured yet."
        );
    };
    let ready = ready_after.map_or_else(String::new, |after| {
        format!(", and an instance is prewarmed {} after the last call", short(after))
    });
    format!("Idle instances of `{name}` stay for {}{ready}: {why}.", short(*idle))
}

/// To the second, above an hour to the minute.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let whole = match seconds {
        0 => time,
        1..3600 => Duration::from_secs(seconds),
        _ => Duration::from_secs(seconds / 60 * 60),
    };
    humantime::format_duration(whole).to_string()
}

/// A notice of an aborted split.
fn note(function: &FunctionInfo) -> Option<String> {
    let aborted = function.aborted.as_ref()?;
    let name = &function.name;
    let serves = function.active_version;
    let at = output::time(aborted.at);
    Some(format!("`{name}` is back at version {serves} since {at}: {aborted}"))
}
