//! One build, from the archive to the images: the steps in the order in which the developer sees
//! them.
//!
//! ```text
//! Source ─▶ Runtime ─▶ Dependencies ─▶ Inspect ─▶ Image ─▶ Ship        code
//!                      and `build:`
//! Source ────────────────────────────────────────▶ Image ─▶ Ship       runtime: container
//! ```
//!
//! Steps decide for themselves; this only orders them. Dropping a build stops it at any point:
//! containers, folders and half-written results belong to handles that clean up when they are
//! dropped.

use crate::{
    blocking,
    cache::{Cache, WorkDir},
    config::Config,
    dockerfile::Dockerfiles,
    error,
    image::{Image, name::Name, tree},
    inspection::Inspection,
    language::{
        self, Language, Toolchains,
        toolchain::{BuildCommand, CommandResult, Inspect, Installed, Project, Toolchain},
    },
    manifest::{Build as Ahead, Manifest, origin::Origin},
    plan::{self, FunctionPlan, Plan},
    publish::{Base, Destination, ImageSet, Published},
    rebuild_reasons::{self, Snapshot},
    runtime::Runtime,
    source::{self, Hasher, Source},
    text::short,
};
use epsilon_api::{
    admin::Step,
    build::{BuildError, BuildEvent, BuildJob, BuildLog, Built, BuiltFunction},
    function::{ImageRef, Parts},
    units::Bytes,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;

/// Version of image composition; part of the cache key. Raised when the same parts make another
/// image than before.
const VERSION: &[u8] = b"2";

/// Everything that builds need.
#[derive(Debug)]
pub(crate) struct BuildContext {
    pub(crate) config: Config,
    pub(crate) cache: Cache,
    pub(crate) toolchains: Toolchains,
    pub(crate) dockerfiles: Dockerfiles,
    pub(crate) destination: Destination,
    /// Each image is composed anew, so that it follows from the source alone: a cached one may hold
    /// older versions of files that do not matter to its function.
    pub(crate) no_cache: bool,
}

/// One function's published image, cached under the key of all that decides it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct CachedImage {
    image: ImageRef,
    parts: Option<Parts>,
}

/// Reports the start of a step, and its end with the duration.
struct StepTimer<'a> {
    log: &'a dyn BuildLog,
    step: Step,
    begun: Instant,
}

impl<'a> StepTimer<'a> {
    fn begin(log: &'a dyn BuildLog, step: Step, detail: impl Into<String>) -> Self {
        log.report(BuildEvent::StepStarted { step, detail: detail.into() });
        Self { log, step, begun: Instant::now() }
    }

    fn done(self, detail: impl Into<String>) {
        let took = self.begun.elapsed();
        self.log.report(BuildEvent::StepDone { step: self.step, detail: detail.into(), took });
    }
}

impl BuildContext {
    /// Builds one project.
    pub(crate) async fn build(&self, job: BuildJob) -> Result<Built, BuildError> {
        let log = Arc::clone(&job.log);
        let log = &*log;
        let only = job.only.clone();
        let work = self.cache.work()?;
        let folder = job.folder.clone();
        let (ahead, source) = self.source(job, &work).await?;
        let (source, made) = match ahead {
            Some(ahead) => {
                let tools = self.toolchains.of(ahead.runtime).ok_or_else(no_code)?;
                let (source, made) = command(tools, &ahead, &source, &work, log).await?;
                (source, Some(made))
            }
            None => (source, None),
        };
        let from = Arc::clone(&source);
        let ceilings = self.config.ceilings.clone();
        let manifest = blocking::run("reading the manifest", move || {
            Manifest::read(&from, folder.as_deref(), &ceilings).map(Arc::new)
        })
        .await?;
        let code = language::of(manifest.runtime).zip(self.toolchains.of(manifest.runtime));
        let functions = match code {
            Some(code) => self.code(code, &manifest, &source, made, &only, &work, log).await?,
            None => self.containers(&manifest, &source, &only, &work, log).await?,
        };
        self.destination.finish().await?;
        Ok(Built { project: manifest.project.clone(), functions })
    }

    async fn source(
        &self,
        job: BuildJob,
        work: &Arc<WorkDir>,
    ) -> Result<(Option<Ahead>, Arc<Source>), BuildError> {
        let timer = StepTimer::begin(&*job.log, Step::Source, "receiving the project");
        let source = source::receive(job.archive, &self.config.source, work.path()).await?;
        let source = Arc::new(source);
        for note in &source.notes {
            job.log.report(error::note(note));
        }
        let bytes = Bytes(source.files.iter().map(|file| file.bytes).sum());
        let detail = format!("{}, {bytes}", counted(source.files.len(), "file"));
        let from = Arc::clone(&source);
        let ceilings = self.config.ceilings.clone();
        let ahead = blocking::run("reading the manifest", move || {
            let ahead = Manifest::build(&from, job.folder.as_deref(), &ceilings)?;
            // Errors of the manifest are reported before anything is installed.
            if ahead.is_none() {
                Manifest::read(&from, job.folder.as_deref(), &ceilings)?;
            }
            Ok(ahead)
        })
        .await?;
        timer.done(detail);
        Ok((ahead, source))
    }

    #[expect(clippy::too_many_arguments, reason = "all results of the steps before")]
    async fn code(
        &self,
        (language, tools): (&'static dyn Language, &dyn Toolchain),
        manifest: &Arc<Manifest>,
        source: &Arc<Source>,
        made: Option<(Runtime, Option<Installed>)>,
        only: &[epsilon_api::ids::FunctionName],
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Vec<BuiltFunction>, BuildError> {
        let (runtime, packages) = match made {
            Some(made) => made,
            None => install(tools, manifest, source, work, log).await?,
        };

        let inspect = Inspect {
            entries: manifest.entries(),
            environment: manifest.environment(),
            manifest: manifest.file(),
        };
        let timer = StepTimer::begin(log, Step::Inspect, inspect.entries.join(", "));
        let packages_of = packages.as_ref();
        let project = Project { source, runtime: &runtime, packages: packages_of, work, log };
        let seen = tools.inspect(project, inspect).await?;
        let plan = self.plan(manifest, source, seen.inspection, only, log).await?;
        let cached = if seen.cached { ", cached" } else { "" };
        timer.done(counted(plan.functions.len(), "function") + cached);

        let is_all = only.is_empty();
        self.compose(language, manifest, source, plan, is_all, runtime, packages, work, log).await
    }

    async fn plan(
        &self,
        manifest: &Arc<Manifest>,
        source: &Arc<Source>,
        inspection: Inspection,
        only: &[epsilon_api::ids::FunctionName],
        log: &dyn BuildLog,
    ) -> Result<Plan, BuildError> {
        let manifest = Arc::clone(manifest);
        let source = Arc::clone(source);
        let only = only.to_vec();
        let plan =
            blocking::run("planning", move || plan::plan(&manifest, &source, &inspection, &only))
                .await?;
        for note in &plan.notes {
            log.report(error::note(note));
        }
        Ok(plan)
    }

    /// Composes and publishes the images of changed functions; looks up the others'.
    #[expect(clippy::too_many_arguments, reason = "all results of the steps before")]
    async fn compose(
        &self,
        language: &'static dyn Language,
        manifest: &Manifest,
        source: &Arc<Source>,
        plan: Plan,
        is_all: bool,
        runtime: Runtime,
        packages: Option<Installed>,
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Vec<BuiltFunction>, BuildError> {
        let project = self.own_key(Hasher::default().part(manifest.project.as_str().as_bytes()));
        let digest = packages.as_ref().map_or("", |packages| packages.layer.diff_id.as_str());
        let now = Snapshot::of(&plan, source, &runtime.image.id, digest);
        let timer = StepTimer::begin(log, Step::Image, counted(plan.functions.len(), "function"));
        let mut images: BTreeMap<_, CachedImage> = BTreeMap::new();
        let mut changed = Vec::new();
        for function in &plan.functions {
            let key = self.key(manifest, function, &runtime, packages.as_ref());
            match self.cached_image(&key).await? {
                Some(made) => drop(images.insert(function.name.clone(), made)),
                None => changed.push((function, key)),
            }
        }
        let unchanged = images.len();
        let image_set = if changed.is_empty() {
            None
        } else {
            let set = image_set(language, manifest, source, &changed, runtime, packages, work);
            Some(set.await?)
        };
        timer.done(format!("{} composed, {unchanged} unchanged", changed.len()));
        let before = self.cache.load::<Snapshot>("projects", &project);
        let is_built = |function: &FunctionPlan| !images.contains_key(&function.name);
        let before = before.filter(|_| !self.no_cache);
        for line in rebuild_reasons::explain(before.as_ref(), &now, &plan, source, is_built) {
            log.report(error::note(line));
        }

        let timer = StepTimer::begin(log, Step::Ship, "");
        if let Some(image_set) = image_set {
            let Published { images: shipped, parts } = self.destination.publish(&image_set).await?;
            for ((function, key), image) in changed.iter().zip(shipped) {
                let made = CachedImage { image, parts: parts.clone() };
                self.store(key, &made)?;
                images.insert(function.name.clone(), made);
            }
        }
        timer.done(counted(changed.len(), "image"));
        // A build with `only` does not know when the other functions were built last.
        if is_all && !self.no_cache && before.as_ref() != Some(&now) {
            self.cache.store("projects", &project, &now)?;
        }
        Ok(plan
            .functions
            .iter()
            .filter_map(|function| {
                let CachedImage { image, parts } = images.remove(&function.name)?;
                Some(BuiltFunction {
                    name: function.name.clone(),
                    spec: function.spec.clone(),
                    image,
                    parts,
                })
            })
            .collect())
    }

    async fn containers(
        &self,
        manifest: &Arc<Manifest>,
        source: &Arc<Source>,
        only: &[epsilon_api::ids::FunctionName],
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<Vec<BuiltFunction>, BuildError> {
        let plan = self.plan(manifest, source, Inspection::default(), only, log).await?;
        let mut built = Vec::with_capacity(plan.functions.len());
        for function in plan.functions {
            let key = Hasher::default()
                .part(VERSION)
                .part(manifest.project.as_str().as_bytes())
                .part(function.name.as_str().as_bytes())
                .part(function.content.to_string().as_bytes());
            let key = self.own_key(key);
            // A tag may name another image tomorrow: only what a Dockerfile made is looked up.
            let is_fixed = matches!(function.origin, Origin::Dockerfile(_));
            let cached_image = if is_fixed { self.cached_image(&key).await? } else { None };
            let image = match cached_image {
                Some(CachedImage { image, parts: _ }) => {
                    StepTimer::begin(log, Step::Image, function.name.as_str()).done("unchanged");
                    image
                }
                None => self.container(manifest, source, &function, &key, work, log).await?,
            };
            built.push(BuiltFunction {
                name: function.name,
                spec: function.spec,
                image,
                parts: None,
            });
        }
        Ok(built)
    }

    async fn container(
        &self,
        manifest: &Manifest,
        source: &Arc<Source>,
        function: &FunctionPlan,
        key: &str,
        work: &Arc<WorkDir>,
        log: &dyn BuildLog,
    ) -> Result<ImageRef, BuildError> {
        let timer = StepTimer::begin(log, Step::Image, function.name.as_str());
        let found = match &function.origin {
            Origin::Image(reference) => self.dockerfiles.existing(reference, log).await?,
            Origin::Dockerfile(path) => self.dockerfiles.build(source, path, work, log).await?,
            Origin::Code => {
                return Err(no_code());
            }
        };
        let image = &found.image;
        let name = Name::function(&manifest.project, &function.name, &image.image.id);
        timer.done(image.image.id.chars().take(19).collect::<String>());

        let timer = StepTimer::begin(log, Step::Ship, function.name.as_str());
        let shipped = self.destination.publish_foreign(image, &name).await?;
        let made = CachedImage { image: shipped, parts: None };
        self.store(key, &made)?;
        timer.done("1 image");
        Ok(made.image)
    }

    /// The key over everything that decides a function's image.
    fn key(
        &self,
        manifest: &Manifest,
        function: &FunctionPlan,
        runtime: &Runtime,
        packages: Option<&Installed>,
    ) -> String {
        let packages = packages.map(|packages| packages.layer.diff_id.clone()).unwrap_or_default();
        let key = Hasher::default()
            .part(VERSION)
            .part(manifest.project.as_str().as_bytes())
            .part(function.name.as_str().as_bytes())
            .part(runtime.image.id.as_bytes())
            .part(packages.as_bytes())
            .part(function.content.to_string().as_bytes());
        self.own_key(key)
    }

    /// Includes the destination: an image in one registry does not exist in another.
    fn own_key(&self, key: Hasher) -> String {
        key.part(self.destination.identity().as_bytes()).finish().to_string()
    }

    /// The image made under this key, if it still exists.
    async fn cached_image(&self, key: &str) -> Result<Option<CachedImage>, BuildError> {
        if self.no_cache {
            return Ok(None);
        }
        let Some(made) = self.cache.load::<CachedImage>("images", key) else { return Ok(None) };
        Ok(self.destination.has(&made.image).await?.then_some(made))
    }

    fn store(&self, key: &str, made: &CachedImage) -> Result<(), BuildError> {
        if self.no_cache { Ok(()) } else { self.cache.store("images", key, made) }
    }
}

/// Runs the project's `build` command, with the packages that it needs.
async fn command(
    tools: &dyn Toolchain,
    ahead: &Ahead,
    source: &Arc<Source>,
    work: &Arc<WorkDir>,
    log: &dyn BuildLog,
) -> Result<(Arc<Source>, (Runtime, Option<Installed>)), BuildError> {
    let runtime = tools.base(log).await?;
    let timer = StepTimer::begin(log, Step::Dependencies, "with those of development");
    let project = Project { source, runtime: &runtime, packages: None, work, log };
    let installed = tools.packages(project, &ahead.project, true).await?;
    timer.done(installed_as(installed.as_ref()));
    let Ahead { command, file, .. } = ahead;
    let timer = StepTimer::begin(log, Step::Dependencies, format!("build: {}", short(command)));
    let project = Project { packages: installed.as_ref(), ..project };
    let made = tools.command(project, BuildCommand { command, manifest: *file });
    let CommandResult { source, packages, cached } = made.await?;
    let cached = if cached { ", cached" } else { "" };
    timer.done(format!("built, {}{cached}", counted(source.files.len(), "file")));
    Ok((source, (runtime, packages)))
}

async fn install(
    tools: &dyn Toolchain,
    manifest: &Manifest,
    source: &Arc<Source>,
    work: &Arc<WorkDir>,
    log: &dyn BuildLog,
) -> Result<(Runtime, Option<Installed>), BuildError> {
    let runtime = tools.base(log).await?;
    let timer = StepTimer::begin(log, Step::Dependencies, "");
    let project = Project { source, runtime: &runtime, packages: None, work, log };
    let packages = tools.packages(project, &manifest.project, false).await?;
    timer.done(installed_as(packages.as_ref()));
    Ok((runtime, packages))
}

async fn image_set(
    language: &'static dyn Language,
    manifest: &Manifest,
    source: &Arc<Source>,
    changed: &[(&FunctionPlan, String)],
    runtime: Runtime,
    packages: Option<Installed>,
    work: &Arc<WorkDir>,
) -> Result<ImageSet, BuildError> {
    let from = Arc::clone(source);
    let to = work.path().join("code.tar");
    let manifest_file = manifest.file().map(str::to_owned);
    let code = blocking::run("writing the code layer", move || {
        let is_left_out =
            |path: &str| manifest_file.as_deref() == Some(path) || language.is_left_out(path);
        tree::code(&from, |file| is_left_out(&file.path), &to)
    })
    .await?;
    let layers: Vec<_> = packages.map(|p| p.layer).into_iter().chain([code]).collect();
    let launch = language.recipe().facts().launch;
    let mut images = Vec::with_capacity(changed.len());
    for (function, _) in changed {
        let diff_ids = layers.iter().map(|layer| layer.diff_id.clone());
        let image =
            Image::function(&runtime.image, launch, diff_ids, &function.name, &function.spec)?;
        let name = Name::function(&manifest.project, &function.name, &image.id());
        images.push((image, name));
    }
    let base = Base { reference: runtime.reference, image: runtime.image };
    Ok(ImageSet { base, layers, images })
}

fn no_code() -> BuildError {
    error::manifest_invalid("`runtime: container` runs no code")
}

fn installed_as(packages: Option<&Installed>) -> String {
    match packages {
        None => "none".to_owned(),
        Some(packages) if packages.cached => format!("cached, {}", Bytes(packages.layer.bytes)),
        Some(packages) => format!("installed, {}", Bytes(packages.layer.bytes)),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
