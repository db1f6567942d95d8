//! The runtime base of a language: an image with Debian or Ubuntu, the language's own programs and
//! our wrapper. Every function image and every container of a build is based on it. What it is made
//! of says a [`Recipe`](recipe::Recipe); this looks whether the engine has it, and makes it.
//!
//! ```text
//!   the operator's image ─┐
//!   a registry's image  ──┼─▶ base + wrapper layer ─▶ epsilon/runtime-node:KEY   (and :current)
//!   packages            ──┘
//! ```
//!
//! The first available one is used, in this order. KEY covers everything that determines the image,
//! so an engine that has the image needs no work and no network, even if another builder made it.
//!
//! `epsilon/inspector-node` has one more layer: what builds need to inspect code and functions do
//! not. It is made here too, so that nothing is installed while a developer waits for a push.

mod command;
mod mirror;
mod origin;
mod packages;
pub(crate) mod recipe;
pub(crate) mod seed;
pub(crate) mod step;

pub(crate) use origin::found;

use crate::{
    cache::{Cache, WorkDir},
    config::Config,
    egress_env::EgressEnv,
    engine::{Engine, EngineImage, container::Limits},
    error::{self, Hint},
    image::{Image, name::Name},
    publish::{Base, ImageSet, Local},
    source::Hasher,
};
use epsilon_api::{
    admin::Step,
    build::{BuildError, BuildEvent, BuildLog},
    chain::Chain,
    units::{Bytes, MilliCores},
};
use origin::Origin;
use recipe::{Program, Recipe};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use step::{Allowed, LastLine, Needs, Step as RuntimeStep};
use tokio::time::Instant;

/// How often a process checks whether another one has made the base.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A runtime in the engine.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// `epsilon/runtime-node:KEY`.
    pub(crate) reference: String,
    pub(crate) image: EngineImage,
    /// The image in which projects are inspected.
    pub(crate) inspector: Base,
}

/// Ensures that the engine has the runtime of one language. One per language and process.
#[derive(Debug)]
pub(crate) struct RuntimeBase {
    recipe: &'static dyn Recipe,
    config: Config,
    engine: Engine,
    cache: Cache,
    egress_env: EgressEnv,
    local: Arc<Local>,
    limits: Limits,
    /// A registry that did not answer is not tried again by this process.
    registry_unreachable: AtomicBool,
    /// The folder of the engine's socket, which is locked.
    lock: PathBuf,
    /// Serializes the work in this process.
    turn: tokio::sync::Mutex<()>,
}

/// The inputs for making one runtime.
#[derive(Clone, Copy)]
pub(crate) struct RuntimeContext<'a> {
    pub(crate) config: &'a Config,
    pub(crate) engine: &'a Engine,
    pub(crate) cache: &'a Cache,
    pub(crate) egress_env: &'a EgressEnv,
    pub(crate) limits: Limits,
    allowed: Allowed,
    /// The last line that a container printed, for progress.
    pub(crate) last_line: &'a LastLine,
    log: &'a dyn BuildLog,
}

impl RuntimeBase {
    pub(crate) fn new(
        recipe: &'static dyn Recipe,
        config: &Config,
        engine: Engine,
        cache: Cache,
        egress_env: EgressEnv,
        local: Arc<Local>,
    ) -> Self {
        Self {
            recipe,
            config: config.clone(),
            engine,
            cache,
            egress_env,
            local,
            limits: Limits {
                // apt and npm take 300 MiB at most; the rest is for the page cache of their files.
                memory: Bytes::mib(1024),
                cpu: MilliCores(2000),
                pids: 512,
                time: config.runtime_timeout,
            },
            registry_unreachable: AtomicBool::new(false),
            lock: config.engine.parent().unwrap_or(Path::new("/")).to_owned(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// The runtime, made if the engine lacks it. Otherwise quick, and without network.
    pub(crate) async fn ensure(&self, log: &dyn BuildLog) -> Result<Runtime, BuildError> {
        let begun = Instant::now();
        let _turn = self.turn.lock().await;
        log.report(BuildEvent::StepStarted {
            step: Step::Runtime,
            detail: self.recipe.facts().title.into(),
        });
        let (Base { reference, image }, mut how) = match self.find().await? {
            Some(runtime) => (runtime, "cached"),
            None => (self.make(log).await?, "made"),
        };
        let name = origin::inspector(self.recipe, &image);
        let inspector = match self.named(&name).await? {
            Some(inspector) => inspector,
            None => {
                how = "made";
                self.make_inspector(&reference, &name, log).await?
            }
        };
        let detail = format!("{how}: {reference}");
        log.report(BuildEvent::StepDone { step: Step::Runtime, detail, took: begun.elapsed() });
        Ok(Runtime { reference, image, inspector })
    }

    /// The best runtime that the engine already has.
    async fn find(&self) -> Result<Option<Base>, BuildError> {
        for origin in Origin::possible(self.recipe, &self.engine, &self.config).await? {
            if let Some(runtime) = self.existing(&origin).await? {
                return Ok(Some(runtime));
            }
        }
        Ok(None)
    }

    async fn existing(&self, origin: &Origin) -> Result<Option<Base>, BuildError> {
        self.named(&origin.runtime(self.recipe)).await
    }

    /// The image with this name, if the engine has it; it becomes the current one.
    async fn named(&self, name: &Name) -> Result<Option<Base>, BuildError> {
        let reference = name.to_string();
        let Some(image) = self.engine.image(&reference).await? else { return Ok(None) };
        self.engine.tag(&reference, &name.repository(), "current").await?;
        Ok(Some(Base { reference, image }))
    }

    /// The inspector's image, on top of this runtime.
    async fn make_inspector(
        &self,
        runtime: &str,
        name: &Name,
        log: &dyn BuildLog,
    ) -> Result<Base, BuildError> {
        let (_lock, waited) = self.lock(log).await?;
        if waited && let Some(inspector) = self.named(name).await? {
            return Ok(inspector);
        }
        let last_line = LastLine::default();
        let (context, work) = (self.context(log, &last_line), self.cache.work()?);
        let base = Base::of(&self.engine, runtime).await?;
        let layer = self.recipe.layer(Program::Inspector, &context, runtime, &work);
        let layer = context.step("the inspector's packages", Needs::NpmRegistry, layer).await?;
        let image = Image::runtime(&base.image, &layer, self.recipe.facts().launch)?;
        let image_set = ImageSet { base, layers: vec![layer], images: vec![(image, name.clone())] };
        self.local.put(&image_set).await?;
        self.named(name).await?.ok_or_else(|| {
            error::runtime_failed("the engine lost the inspector's image right after it was made")
        })
    }

    fn context<'a>(&'a self, log: &'a dyn BuildLog, last_line: &'a LastLine) -> RuntimeContext<'a> {
        RuntimeContext {
            config: &self.config,
            engine: &self.engine,
            cache: &self.cache,
            egress_env: &self.egress_env,
            limits: self.limits,
            allowed: Allowed::new(self.limits.time),
            last_line,
            log,
        }
    }

    async fn make(&self, log: &dyn BuildLog) -> Result<Base, BuildError> {
        let (_lock, waited) = self.lock(log).await?;
        if waited && let Some(runtime) = self.find().await? {
            return Ok(runtime);
        }
        let last_line = LastLine::default();
        let (context, work) = (self.context(log, &last_line), self.cache.work()?);
        let (origin, base) = self.base(&context, &work).await?;
        log.report(BuildEvent::Line(format!("the runtime base is {origin}")));
        let layer = self.recipe.layer(Program::Wrapper, &context, &base.reference, &work);
        let layer = context.step("the wrapper's packages", Needs::NpmRegistry, layer).await?;
        let image = Image::runtime(&base.image, &layer, self.recipe.facts().launch)?;
        let name = origin.runtime(self.recipe);
        let image_set = ImageSet { base, layers: vec![layer], images: vec![(image, name)] };
        let put = self.local.put(&image_set);
        context.step("the runtime becomes an image", Needs::Machine, put).await?;
        self.existing(&origin).await?.ok_or_else(|| {
            error::runtime_failed("the engine lost the runtime base right after it was made")
        })
    }

    /// The base itself, from its origin.
    async fn base(
        &self,
        context: &RuntimeContext<'_>,
        work: &Arc<WorkDir>,
    ) -> Result<(Origin, Base), BuildError> {
        let facts = self.recipe.facts();
        if let Some(name) = self.recipe.operators(&self.config) {
            if self.engine.image(name).await?.is_none() {
                let pull =
                    self.engine.pull(name, self.config.pull_timeout, self.config.pull_timeout);
                let pulled = context.step(name, Needs::Registry, async { Ok(pull.await) }).await?;
                pulled.map_err(|err| {
                    let says = err.message().unwrap_or("no answer").to_owned();
                    error::runtime_failed(format!("`{name}` cannot be pulled: {says}"))
                        .hint(format!("the setting is `{}`", facts.setting))
                })?;
            }
            let base = Base::of(&self.engine, name).await?;
            return Ok((
                Origin::Operator { name: name.to_owned(), id: base.image.id.clone() },
                base,
            ));
        }
        if self.registry_has(context).await? {
            let base = Base::of(&self.engine, facts.public_image).await?;
            return Ok((Origin::PublicRegistry(facts.public_image), base));
        }
        let origin = Origin::Packages { release: packages::release() };
        // The base alone is cached too: another wrapper needs no other Debian.
        let tag = Hasher::default().part(origin.text(self.recipe).as_bytes()).finish().to_string();
        let (tag, _) = tag.split_at(12);
        let name = format!("{}base-{}", crate::image::name::NAMES, facts.name);
        let reference = format!("{name}:{tag}");
        if self.engine.image(&reference).await?.is_none() {
            packages::make(self.recipe, context, work, &name, tag).await?;
        }
        Ok((origin, Base::of(&self.engine, &reference).await?))
    }

    /// Whether the public registry's image is in the engine, or could be pulled.
    async fn registry_has(&self, context: &RuntimeContext<'_>) -> Result<bool, BuildError> {
        let image = self.recipe.facts().public_image;
        if self.config.registry_wait.is_zero() {
            return Ok(false);
        }
        if self.engine.image(image).await?.is_some() {
            return Ok(true);
        }
        if self.registry_unreachable.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let pull = self.engine.pull(image, self.config.registry_wait, self.config.pull_timeout);
        let pulled = context.step(image, Needs::Registry, async { Ok(pull.await) }).await?;
        if let Err(err) = &pulled {
            self.registry_unreachable.store(true, Ordering::Relaxed);
            tracing::info!(error = %Chain(err), "No public registry has the runtime base; making it from packages.");
            let line = "no public registry can be reached: the base is made from this machine's own packages, once";
            context.log.report(BuildEvent::Line(line.into()));
        }
        Ok(pulled.is_ok())
    }

    /// One process at a time makes a base for an engine, whatever its data folder is: the lock is
    /// on the folder of the engine's socket. Also returns whether another process had it.
    async fn lock(&self, log: &dyn BuildLog) -> Result<(File, bool), BuildError> {
        let broken = |err: std::io::Error| error::file("locking the runtime base", &err);
        let file = File::open(&self.lock).map_err(broken)?;
        let is_locked = || match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(err) => Err(broken(err.into())),
        };
        if is_locked()? {
            return Ok((file, false));
        }
        let locked = async {
            while !is_locked()? {
                tokio::time::sleep(LOCK_POLL_INTERVAL).await;
            }
            Ok(())
        };
        let doing = "another process is making the runtime base".into();
        let step = RuntimeStep { doing, needs: Needs::AnotherProcess };
        let allowed = Allowed::new(self.limits.time);
        step.run(allowed, log, &LastLine::default(), locked).await?;
        Ok((file, true))
    }
}

impl RuntimeContext<'_> {
    /// Does one part of the work within its limit, and reports how long it took.
    pub(crate) async fn step<T>(
        &self,
        doing: &str,
        needs: Needs,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        let step = RuntimeStep { doing: doing.into(), needs };
        step.run(self.allowed, self.log, self.last_line, work).await
    }
}
