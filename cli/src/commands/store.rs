//! `epsilon store copy --from STORE --to STORE`: copies control-plane state to another database.
//! Works on the stores themselves; it contacts no gateway, and none may use the source.

use crate::{failure::Failure, globals::Globals, output};
use clap::{Args, Subcommand};
use console::Term;
use epsilon_store::{Copied, CopyError, Progress, StoreError};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::time::Duration;

/// Spinner interval.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Store {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Copy everything from one store to another one that is empty; the source stays as it is
    #[command(after_help = "\
Stop all gateways of the source first; VMs continue their running calls.
A password in a URL can be seen by other users of this machine while this runs. It may come from PGPASSWORD instead.

  epsilon store copy --from /var/lib/epsilon/epsilon.db --to postgres://epsilon@db.internal/epsilon")]
    Copy(Copy),
}

#[derive(Debug, Args)]
struct Copy {
    /// Source: a file (`epsilon.db` in the data folder), or postgres://…
    #[arg(long, value_name = "STORE")]
    from: String,
    /// Target: a new file, or an empty database by postgres://…
    #[arg(long, value_name = "STORE")]
    to: String,
}

impl Store {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let Verb::Copy(copy) = self.verb;
        let shown = CopyProgress::new();
        let copied =
            epsilon_store::copy(&copy.from, &copy.to, &|progress| shown.show(&progress)).await;
        drop(shown);
        let copied = copied.map_err(|err| failure_of(&err))?;
        if globals.json {
            let rows = copied.iter().map(|one| json!({"what": one.what, "rows": one.rows}));
            return output::json(rows.collect::<Vec<_>>());
        }
        let rows = copied.iter().map(|one| [one.what.to_owned(), one.rows.to_string()]);
        output::table(["COPIED", "ROWS"], &[1], rows)?;
        output::line("")?;
        output::line(if copy.to.starts_with("postgres") {
            "Next: start gateways with the target as `gateway.store` (EPSILON_GATEWAY_STORE). The source is unchanged."
        } else {
            "Next: start the gateway with the target as `epsilon.db` in its data folder. The source is unchanged."
        })
    }
}

fn failure_of(err: &CopyError) -> Failure {
    let failure = Failure::new("STORE_COPY", "nothing was copied").with_cause(err);
    match err {
        CopyError::Source(StoreError::UnknownScheme(_))
        | CopyError::Target(StoreError::UnknownScheme(_)) => {
            Failure::usage("nothing was copied").with_cause(err)
        }
        CopyError::NoSource(_) => {
            failure.hint("a gateway keeps its file at `epsilon.db` in its data folder")
        }
        CopyError::Newer => failure.hint("copy it with the `epsilon` of the gateways that use it"),
        CopyError::InUse(_) => {
            failure.hint("stop all gateways first: what they write after the copy would be lost")
        }
        CopyError::NotEmpty(_) => failure.hint("name a new file, or an empty database"),
        CopyError::Source(_) | CopyError::Target(_) => failure,
    }
}

/// Shows the progress: a line that changes on a terminal; in a pipe only waits.
struct CopyProgress(Option<ProgressBar>);

impl CopyProgress {
    fn new() -> Self {
        Self(Term::stderr().is_term().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("  {spinner:.cyan} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(TICK);
            bar
        }))
    }

    fn show(&self, progress: &Progress) {
        match (&self.0, progress) {
            (Some(bar), _) => bar.set_message(line(progress)),
            (None, Progress::Waiting { .. }) => eprintln!("{}", line(progress)),
            (None, Progress::Copying { .. }) => {}
        }
    }
}

impl Drop for CopyProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn line(progress: &Progress) -> String {
    match progress {
        Progress::Waiting { gateway, up_to } => format!(
            "waiting {} s to see whether gateway `{gateway}` has stopped",
            up_to.as_secs() + 1
        ),
        Progress::Copying { copied: Copied { what, rows }, of } => {
            format!("{what}: {rows} of {of}")
        }
    }
}
