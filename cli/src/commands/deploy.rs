//! `epsilon deploy [DIR]`: packs a project, pushes it, and shows the progress of its deployment
//! until its functions serve.
//!
//! | file | what it does |
//! |---|---|
//! | `tree.rs` | lists the project's files, and refuses what cannot be pushed |
//! | `pack.rs` | creates the archive while it is sent |
//! | `progress.rs` | shows the progress |

mod pack;
mod progress;
mod tree;

use crate::{
    client::{Client, JsonLines},
    failure::Failure,
    globals::Globals,
    output,
};
use clap::Args;
use epsilon_api::{
    admin::{DeployEvent, DeploymentInfo},
    ids::FunctionName,
    units::Bytes,
};
use futures_util::future::BoxFuture;
use reqwest::Body;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tree::Tree;

pub(super) use progress::DeployProgress;
pub(super) use tree::walk;

/// A first deployment installs dependencies and may build an image of some GiB.
const DEPLOY_WITHIN: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Args)]
#[command(after_help = "\
All files of the folder are pushed and become part of the image, `.env` too; but not `.git`, not
`node_modules`, and nothing that `.gitignore` or `.epsilonignore` names. A line `!dist/` in
`.epsilonignore` takes back in what `.gitignore` leaves out.

`git push` deploys, too: to `http://CONTROL-ADDRESS/git/PROJECT`, with the key as password.")]
pub(crate) struct Deploy {
    /// The project's folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Deploy only this function (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<FunctionName>,
    /// Deploy images made elsewhere instead of a folder: a document that `epsilon build --json`
    /// printed (`-`: from standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    built: Option<PathBuf>,
    /// Refuse a larger file before anything is sent; the builder has limits of its own
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    max_file: Bytes,
    /// Show all that npm and docker print
    #[arg(long)]
    verbose: bool,
}

impl Deploy {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        let within = globals.timeout.unwrap_or(DEPLOY_WITHIN);
        let mut progress = DeployProgress::new(globals.json, self.verbose);
        let work = async {
            match &self.built {
                Some(file) => self.send(file, &client, &mut progress).await,
                None => self.push(&client, &mut progress).await,
            }
        };
        match tokio::time::timeout(within, work).await {
            Ok(deployed) => {
                progress.end();
                let deployment = deployed?;
                if globals.json { Ok(()) } else { table(deployment) }
            }
            Err(_) => {
                progress.end();
                let message = format!(
                    "the deployment did not end within {}",
                    humantime::format_duration(within)
                );
                Err(Failure::new("TIMEOUT", message).hint("wait longer with `--timeout 30m`"))
            }
        }
    }

    async fn push(
        &self,
        client: &Client,
        progress: &mut DeployProgress,
    ) -> Result<DeploymentInfo, Failure> {
        let tree = Tree::read(&self.dir, self.max_file)?;
        let folder = tree.name();
        let upload = progress.upload(tree.files(), tree.bytes());
        let most = tree.most();
        let too_large = move |failure: Failure| match failure.code() {
            "SOURCE_TOO_LARGE" | "BODY_TOO_LARGE" => failure.hint(most.clone()),
            _ => failure,
        };
        let (archive, packing) = pack::stream(tree, move |sent| upload.advance(sent));
        let answer = client.deploy(folder.as_deref(), &self.only, archive).await;
        // A file that could not be read breaks the request: report the file as the cause.
        let packed = packing.await;
        let lines = match (answer, packed) {
            (_, Err(failure)) => return Err(failure),
            (answer, Ok(())) => answer.map_err(&too_large)?,
        };
        progress.uploaded();
        follow(lines, progress).await.map_err(too_large)
    }

    /// Deploys images that exist already.
    async fn send(
        &self,
        file: &Path,
        client: &Client,
        progress: &mut DeployProgress,
    ) -> Result<DeploymentInfo, Failure> {
        let read = match file.to_str() {
            Some("-") => {
                let read = tokio::task::spawn_blocking(|| io::read_to_string(io::stdin()));
                read.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
            }
            _ => tokio::fs::read_to_string(file).await,
        };
        let document = read.map_err(|err| {
            Failure::usage(format!("`{}` cannot be read", file.display())).with_cause(&err)
        })?;
        let lines = client.deploy_built(&self.only, document).await?;
        follow(lines, progress).await
    }
}

/// Shows the progress until the deployment ends.
async fn follow(
    mut lines: JsonLines,
    progress: &mut DeployProgress,
) -> Result<DeploymentInfo, Failure> {
    loop {
        let event = lines.next::<DeployEvent>().await.map_err(|err| cut().with_cause(&err))?;
        let Some(event) = event else { return Err(cut()) };
        progress.show(&event)?;
        match event {
            DeployEvent::Done { deployment } => return Ok(deployment),
            DeployEvent::Failed { error } => return Err(progress.failed(error)),
            DeployEvent::Accepted { .. }
            | DeployEvent::StepStarted { .. }
            | DeployEvent::StepDone { .. }
            | DeployEvent::Log { .. } => {}
        }
    }
}

/// A project being packed, for other commands that push one.
pub(super) struct Archive {
    /// Name of its folder.
    pub(super) folder: Option<String>,
    pub(super) body: Body,
    /// The result of packing, once the body was read.
    pub(super) packing: BoxFuture<'static, Result<(), Failure>>,
}

/// Packs a folder like `epsilon deploy`.
pub(super) fn archive(dir: &Path, max_file: Bytes) -> Result<Archive, Failure> {
    let tree = Tree::read(dir, max_file)?;
    let folder = tree.name();
    let (body, packing) = pack::stream(tree, |_| {});
    Ok(Archive { folder, body, packing: Box::pin(packing) })
}

fn cut() -> Failure {
    Failure::new(
        "CONNECTION_LOST",
        "the connection to the gateway broke before the deployment ended",
    )
    .hint("`epsilon functions` shows what serves now; deploying again is safe")
}

fn table(deployment: DeploymentInfo) -> Result<(), Failure> {
    let rows = deployment.functions.into_iter().map(|function| {
        [
            function.name.to_string(),
            function.version.to_string(),
            if function.changed { "yes" } else { "no" }.to_owned(),
            function.url,
        ]
    });
    output::table(["FUNCTION", "VERSION", "CHANGED", "URL"], &[1], rows)
}
