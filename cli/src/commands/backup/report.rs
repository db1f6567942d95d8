//! What `epsilon backup` prints: progress, what is in the backup, what is missing, and what to do
//! next.

use super::left_out;
use crate::{
    backup::manifest::{LeftOut, Manifest, Store, Why},
    failure::Failure,
    output,
};
use console::Term;
use epsilon_api::units::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{path::PathBuf, time::Duration};

/// Spinner interval.
const TICK: Duration = Duration::from_millis(100);
/// Most lost versions that are listed.
const LISTED: usize = 20;

/// A finished backup.
pub(super) struct FinishedBackup {
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
    /// Names of the data folder's files in the backup.
    pub(super) keys: Vec<String>,
    /// Names of files that were skipped: too large, or too long a name, for a key.
    pub(super) skipped: Vec<String>,
    pub(super) manifest: Manifest,
}

/// Prints the backup. A backup without the image of a serving version is a failure, although the
/// file is written.
pub(super) fn print(made: &FinishedBackup, json: bool) -> Result<(), Failure> {
    let manifest = &made.manifest;
    let lost = manifest.lost().count();
    if json {
        output::json(json!({
            "file": made.file,
            "bytes": made.bytes,
            "store": manifest.store,
            "functions": manifest.functions,
            "versions": manifest.versions,
            "images": manifest.images.len(),
            "keys": made.keys,
            "skipped": made.skipped,
            "left_out": manifest.left_out,
            "is_complete": lost == 0,
        }))?;
    } else {
        lines(made)?;
    }
    if lost == 0 {
        return Ok(());
    }
    let message = format!(
        "the backup is not complete: the container engine has lost the images of {}",
        output::count(lost, "serving version")
    );
    Err(Failure::new("BACKUP_INCOMPLETE", message)
        .hint("deploy their functions again, then back up once more"))
}

fn lines(made: &FinishedBackup) -> Result<(), Failure> {
    let manifest = &made.manifest;
    output::line(&format!("{}  {}", made.file.display(), Bytes(made.bytes)))?;
    output::line(&match manifest.store {
        Store::Sqlite => format!(
            "store   {}, {}",
            output::count(manifest.functions, "function"),
            output::count(manifest.versions, "version")
        ),
        Store::Elsewhere => "store   not in it: it is in a database server, see below".to_owned(),
    })?;
    output::line(&format!("keys    {}", made.keys.join(", ")))?;
    if manifest.store == Store::Sqlite {
        output::line(&format!("images  {}", manifest.images.len()))?;
    }
    if !made.skipped.is_empty() {
        output::line(&format!(
            "not in it, too large or too long a name for a key: {}",
            made.skipped.join(", ")
        ))?;
    }
    let of = |why| move |one: &&LeftOut| one.why == why;
    let lost: Vec<_> = manifest.left_out.iter().filter(of(Why::NotInEngine)).collect();
    for one in lost.iter().take(LISTED) {
        output::line(&format!("lost    {}", left_out(one)))?;
    }
    if lost.len() > LISTED {
        output::line(&format!("lost    and {} more", lost.len() - LISTED))?;
    }
    let elsewhere = manifest.left_out.iter().filter(of(Why::InRegistry)).count();
    if elsewhere > 0 {
        output::line(&format!(
            "Next: back up the registry too: it has the images of {}.",
            output::count(elsewhere, "version")
        ))?;
    }
    if manifest.store == Store::Elsewhere {
        output::line(
            "Next: back up the database, `pg_dump --format=custom \"$URL\" > epsilon.dump`, and the registry.",
        )?;
    }
    Ok(())
}

/// Progress: a line that changes on a terminal, nothing in a pipe.
#[derive(Clone)]
pub(in crate::commands) struct ProgressLine(Option<ProgressBar>);

impl ProgressLine {
    pub(in crate::commands) fn new() -> Self {
        Self(Term::stderr().is_term().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("  {spinner:.cyan} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    pub(in crate::commands) fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
        }
    }

    /// Shows the number of bytes so far.
    pub(in crate::commands) fn say_bytes(&self, what: &str, bytes: u64) {
        self.say(&format!("{what}: {}", Bytes(bytes >> 20 << 20)));
    }

    /// Receives the size of each piece; `all` is the total in bytes.
    pub(in crate::commands) fn bytes(&self, all: u64) -> impl Fn(u64) + Send + use<> {
        let bar = self.0.clone();
        if let Some(bar) = &bar {
            bar.set_position(0);
            bar.set_message("the file");
        }
        move |bytes| {
            if let Some(bar) = &bar {
                bar.inc(bytes);
                let percent = bar.position().saturating_mul(100) / all.max(1);
                bar.set_message(format!("the file: {percent} % of {}", Bytes(all >> 20 << 20)));
            }
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
