//! `epsilon build [DIR]`: builds a project's images without a gateway. The builder runs in this
//! process, with this machine's engine, as in `epsilon up`; nothing is deployed.

use super::deploy::{self, Archive, DeployProgress};
use crate::{data_dir, failure::Failure, globals::Globals, output};
use clap::Args;
use epsilon_api::{
    admin::DeployEvent,
    body,
    build::{BuildEvent, BuildJob, BuildLog, Built},
    ids::{DeploymentId, FunctionName},
    units::Bytes,
};
use epsilon_bootstrap::{log, settings::Flag, settings::Layers, signals::ShutdownSignals};
use epsilon_builder::{
    app::App,
    config::{Config, Settings},
};
use parking_lot::Mutex;
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long removing the containers and folders of a cancelled build may take: a busy engine takes
/// some seconds.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
#[command(after_help = "\
WHERE is one of
  engine             this machine's container engine (the default)
  registry REF       a registry, `registry.example/prefix`, with the logins of the settings
  oci:FILE           an OCI image layout in one tar file, for `skopeo copy oci-archive:FILE:NAME …`
                     and `docker load`

The same source on the same base has the same digests on every machine. `--base REF@sha256:…` pins
the base. With --json, what is printed is what `epsilon deploy --built FILE` takes.")]
pub(crate) struct Build {
    /// The project's folder [default: .]
    dir: Option<PathBuf>,
    /// Build only this function (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<FunctionName>,
    /// Destination of the images
    #[arg(long, num_args = 1..=2, value_names = ["WHERE", "REF"], default_value = "engine")]
    to: Vec<String>,
    /// The image that Node functions are based on [default: the setting `builder.runtime_image`]
    #[arg(long, value_name = "REF")]
    base: Option<String>,
    /// Settings file, YAML: section `builder`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Refuse a larger file
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    max_file: Bytes,
    /// Show all that npm and docker print
    #[arg(long)]
    verbose: bool,
}

/// Destination of images.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Destination {
    Engine,
    Registry(String),
    File(PathBuf),
}

impl Build {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let filter = log::filter();
        let filter = filter.as_deref().unwrap_or("warn");
        let _logging = log::init(Some(log::Format::Compact), Some(filter))?;
        let (to, dir) = destination(&self.to, self.dir.as_deref())?;
        let archive = deploy::archive(&dir, self.max_file)?;
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        let config = Config::new(self.settings(&to)?, &data.join("builder"))
            .map_err(|err| Failure::usage("a setting cannot be used").with_cause(&err))?;
        let mut signals = ShutdownSignals::new()?;
        DirBuilder::new().recursive(true).mode(0o700).create(&data).map_err(|err| {
            Failure::new("DATA_DIR", format!("`{}` cannot be used", data.display()))
                .with_cause(&err)
        })?;
        let file = match &to {
            Destination::File(file) => Some(file.clone()),
            Destination::Engine | Destination::Registry(_) => None,
        };
        let app = App::build_without_cache(config, file)
            .await
            .map_err(|err| Failure::new("START", "the builder cannot start").with_cause(&err))?;

        let progress = Arc::new(Mutex::new(DeployProgress::new(false, self.verbose)));
        let limit = globals.timeout.unwrap_or(Duration::MAX);
        let built = tokio::select! {
            biased; // the signal first
            signal = signals.next() => Err(Failure::new("INTERRUPTED", format!("interrupted by {signal}"))),
            built = tokio::time::timeout(limit, self.build(&app, archive, &progress)) => built
                .unwrap_or_else(|_| Err(Failure::new("TIMEOUT", "the build took longer than `--timeout`"))),
        };
        progress.lock().end();
        app.shutdown(CLEANUP_TIMEOUT).await;
        let built = built?;
        if globals.json { output::json_line(&built) } else { table(built) }
    }

    fn settings(&self, to: &Destination) -> Result<Settings, Failure> {
        let flag = |name, key, value: &String| Flag {
            name,
            section: "builder",
            key,
            value: value.clone(),
        };
        let mut flags: Vec<_> =
            self.base.iter().map(|base| flag("--base", "runtime_image", base)).collect();
        if let Destination::Registry(reference) = to {
            flags.push(flag("--to", "registry", reference));
        }
        let layers = Layers::load(self.config.as_deref(), std::env::vars_os(), &flags)?;
        let mut settings: Settings = layers.section()?;
        if !matches!(to, Destination::Registry(_)) {
            settings.registry = None;
            settings.registry_user = None;
            settings.registry_password = None;
            settings.registry_password_file = None;
            settings.registry_docker_config = None;
        }
        Ok(settings)
    }

    async fn build(
        &self,
        app: &App,
        archive: Archive,
        progress: &Arc<Mutex<DeployProgress>>,
    ) -> Result<Built, Failure> {
        let Archive { folder, body, packing } = archive;
        let job = BuildJob {
            deployment: DeploymentId::random(),
            archive: body::boxed(body),
            folder,
            only: self.only.clone(),
            log: Arc::new(ProgressLog(Arc::clone(progress))),
        };
        let built = app.builder().build(job).await;
        // A file that could not be read breaks the archive: report the file as the cause.
        packing.await?;
        built.map_err(|err| progress.lock().failed(err.body()))
    }
}

/// Shows the builder's events on the screen.
struct ProgressLog(Arc<Mutex<DeployProgress>>);

impl BuildLog for ProgressLog {
    fn report(&self, event: BuildEvent) {
        let event = match event {
            BuildEvent::StepStarted { step, detail } => DeployEvent::StepStarted { step, detail },
            BuildEvent::StepDone { step, detail, took } => DeployEvent::StepDone {
                step,
                detail,
                took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            },
            BuildEvent::Line(line) => DeployEvent::Log { line },
        };
        // Fails only when standard error is closed: the build continues without progress.
        let _closed = self.0.lock().show(&event);
    }
}

/// Destination and project folder: an extra word after a destination that takes none is the folder.
fn destination(to: &[String], dir: Option<&Path>) -> Result<(Destination, PathBuf), Failure> {
    let words: Vec<_> = to.iter().map(String::as_str).collect();
    let (to, dir) = match (words.as_slice(), dir) {
        (["registry", reference], dir) => (Destination::Registry((*reference).to_owned()), dir),
        ([to], dir) => (parse_destination(to)?, dir),
        ([to, folder], None) => (parse_destination(to)?, Some(Path::new(*folder))),
        _ => return Err(Failure::usage("one folder can be built at a time")),
    };
    if let Destination::File(file) = &to {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let is_there = folder.unwrap_or(Path::new(".")).is_dir();
        if !is_there || file.is_dir() || file.file_name().is_none() {
            return Err(Failure::usage(format!("the file `{}` cannot be created", file.display()))
                .hint("name a file in an existing folder: `--to oci:shop.tar`"));
        }
    }
    Ok((to, dir.unwrap_or(Path::new(".")).to_owned()))
}

fn parse_destination(word: &str) -> Result<Destination, Failure> {
    match (word, word.split_once(':')) {
        ("engine", _) => Ok(Destination::Engine),
        (_, Some(("registry", reference))) => Ok(Destination::Registry(reference.to_owned())),
        (_, Some(("oci", file))) => Ok(Destination::File(file.into())),
        _ => Err(Failure::usage(format!("`--to {word}` is not a destination of images"))
            .hint("it is `engine`, `registry REF` or `oci:FILE`")),
    }
}

fn table(built: Built) -> Result<(), Failure> {
    let rows = built.functions.into_iter().map(|function| {
        [function.name.to_string(), function.image.digest, function.image.reference]
    });
    output::table(["FUNCTION", "DIGEST", "IMAGE"], &[], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_images_go_and_from_which_folder() {
        let here = PathBuf::from(".");
        for (typed, dir, want) in [
            (&["engine"][..], None, (Destination::Engine, here.clone())),
            (&["engine", "shop"], None, (Destination::Engine, "shop".into())),
            (&["oci:a.tar"], Some("shop"), (Destination::File("a.tar".into()), "shop".into())),
            (
                &["registry", "r.example/x"],
                None,
                (Destination::Registry("r.example/x".into()), here),
            ),
            (
                &["registry:r.example/x", "shop"],
                None,
                (Destination::Registry("r.example/x".into()), "shop".into()),
            ),
        ] {
            let typed: Vec<_> = typed.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(destination(&typed, dir.map(Path::new)).unwrap(), want, "{typed:?}");
        }
        for (typed, dir) in [
            (&["registry"][..], None),
            (&["docker"], None),
            (&["oci:"], None),
            (&["oci:/no/such/folder/a.tar"], None),
            (&["engine", "shop"], Some("other")),
        ] {
            let typed: Vec<_> = typed.iter().map(|word| (*word).to_owned()).collect();
            assert!(destination(&typed, dir.map(Path::new)).is_err(), "{typed:?}");
        }
    }
}
