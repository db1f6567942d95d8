//! The runtime base of Node functions: an image with Debian or Ubuntu, Node 24, npm and the
//! wrapper. Every function image and every container of a build is based on it.
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
//! `epsilon/inspector-node` has one more layer: the module graph reader, which builds need and
//! functions do not. It is made here too, so that nothing is installed while a developer waits for
//! a push.

mod command;
mod layer;
mod mirror;
mod packages;
mod step;

use crate::cache::{Cache, WorkDir};
use crate::config::Config;
use crate::egress_env::EgressEnv;
use crate::engine::container::Limits;
use crate::engine::{Engine, EngineImage};
use crate::error;
use crate::error::Hint;
use crate::image::Image;
use crate::image::name::Name;
use crate::publish::{Base, ImageSet, Local};
use crate::source::Hasher;
use epsilon_api::{
    admin::Step,
    build::{BuildError, BuildEvent, BuildLog},
    chain::Chain,
    units::{Bytes, MilliCores},
};
use rustix::fs::{FlockOperation, flock};
use std::{
    fmt,
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

/// The name of bases made from packages.
const BASE_NAME: &str = "epsilon/base-node";
/// The image of a public registry. Without a host: the engine's own settings choose the registry or
/// mirror.
const PUBLIC_IMAGE: &str = "node:24-bookworm-slim";
/// Version of the composition; part of the key. Raised when the parts are put together differently.
const VERSION: &str = "1";
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

/// Ensures that the engine has the runtime. One per process.
#[derive(Debug)]
pub(crate) struct Runtimes {
    engine: Engine,
    cache: Cache,
    egress_env: EgressEnv,
    local: Arc<Local>,
    operators: Option<String>,
    registry_wait: Duration,
    pull_timeout: Duration,
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
struct RuntimeContext<'a> {
    engine: &'a Engine,
    cache: &'a Cache,
    egress_env: &'a EgressEnv,
    limits: Limits,
    allowed: Allowed,
    last_line: &'a LastLine,
    log: &'a dyn BuildLog,
}

/// Origin of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// The operator's image: its name, and its current id.
    Operator { name: String, id: String },
    /// The public registry's image.
    PublicRegistry,
    /// Packages of this machine's distribution.
    Packages { release: Option<String> },
}

impl Runtimes {
    pub(crate) fn new(
        config: &Config,
        engine: Engine,
        cache: Cache,
        egress_env: EgressEnv,
        local: Arc<Local>,
    ) -> Self {
        Self {
            engine,
            cache,
            egress_env,
            local,
            operators: config.runtime_image.clone(),
            registry_wait: config.registry_wait,
            pull_timeout: config.pull_timeout,
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
        log.report(BuildEvent::StepStarted { step: Step::Runtime, detail: "Node 24".into() });
        let (Base { reference, image }, mut how) = match self.find().await? {
            Some(runtime) => (runtime, "cached"),
            None => (self.make(log).await?, "made"),
        };
        let name = inspector(&image);
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
        for origin in self.origins().await? {
            if let Some(runtime) = self.existing(&origin).await? {
                return Ok(Some(runtime));
            }
        }
        Ok(None)
    }

    async fn origins(&self) -> Result<Vec<Origin>, BuildError> {
        origins(&self.engine, self.operators.as_deref(), self.registry_wait).await
    }

    async fn existing(&self, origin: &Origin) -> Result<Option<Base>, BuildError> {
        self.named(&Name::runtime(&origin.key())).await
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
        let layer = layer::make(layer::GRAPH, &context, runtime, &work);
        let layer = context.step("what looks at module graphs", Needs::NpmRegistry, layer).await?;
        let image = Image::runtime(&base.image, &layer)?;
        let image_set = ImageSet { base, layers: vec![layer], images: vec![(image, name.clone())] };
        self.local.put(&image_set).await?;
        self.named(name).await?.ok_or_else(|| {
            error::runtime_failed("the engine lost the inspector's image right after it was made")
        })
    }

    fn context<'a>(&'a self, log: &'a dyn BuildLog, last_line: &'a LastLine) -> RuntimeContext<'a> {
        RuntimeContext {
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
        let layer = layer::make(layer::WRAPPER, &context, &base.reference, &work);
        let layer = context.step("the wrapper's packages", Needs::NpmRegistry, layer).await?;
        let image = Image::runtime(&base.image, &layer)?;
        let name = Name::runtime(&origin.key());
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
        if let Some(name) = &self.operators {
            if self.engine.image(name).await?.is_none() {
                let pull = self.engine.pull(name, self.pull_timeout, self.pull_timeout);
                let pulled = context.step(name, Needs::Registry, async { Ok(pull.await) }).await?;
                pulled.map_err(|err| {
                    let says = err.message().unwrap_or("no answer").to_owned();
                    error::runtime_failed(format!("`{name}` cannot be pulled: {says}"))
                        .hint("the setting is `builder.runtime_image`")
                })?;
            }
            let base = Base::of(&self.engine, name).await?;
            return Ok((Origin::Operator { name: name.clone(), id: base.image.id.clone() }, base));
        }
        if self.registry_has(context).await? {
            return Ok((Origin::PublicRegistry, Base::of(&self.engine, PUBLIC_IMAGE).await?));
        }
        let origin = Origin::Packages { release: packages::release() };
        // The base alone is cached too: another wrapper needs no other Debian.
        let tag = Hasher::default().part(origin.recipe().as_bytes()).finish().to_string();
        let (tag, _) = tag.split_at(12);
        let reference = format!("{BASE_NAME}:{tag}");
        if self.engine.image(&reference).await?.is_none() {
            packages::make(context, work, BASE_NAME, tag).await?;
        }
        Ok((origin, Base::of(&self.engine, &reference).await?))
    }

    /// Whether the public registry's image is in the engine, or could be pulled.
    async fn registry_has(&self, context: &RuntimeContext<'_>) -> Result<bool, BuildError> {
        if self.registry_wait.is_zero() {
            return Ok(false);
        }
        if self.engine.image(PUBLIC_IMAGE).await?.is_some() {
            return Ok(true);
        }
        if self.registry_unreachable.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let pull = self.engine.pull(PUBLIC_IMAGE, self.registry_wait, self.pull_timeout);
        let pulled = context.step(PUBLIC_IMAGE, Needs::Registry, async { Ok(pull.await) }).await?;
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

/// Possible origins of a base, best first, as far as they are known without a network.
async fn origins(
    engine: &Engine,
    operators: Option<&str>,
    registry_wait: Duration,
) -> Result<Vec<Origin>, BuildError> {
    if let Some(name) = operators {
        let found = engine.image(name).await?;
        let origin = found.map(|image| Origin::Operator { name: name.to_owned(), id: image.id });
        return Ok(origin.into_iter().collect());
    }
    let mut origins = vec![Origin::Packages { release: packages::release() }];
    if !registry_wait.is_zero() {
        origins.insert(0, Origin::PublicRegistry);
    }
    Ok(origins)
}

/// The images in the engine that a start with these settings would not have to make: the operator's
/// image, the best runtime, its inspector.
pub(crate) async fn found(engine: &Engine, config: &Config) -> Result<Vec<String>, BuildError> {
    let mut found = Vec::new();
    let operators = config.runtime_image.as_deref();
    for origin in origins(engine, operators, config.registry_wait).await? {
        let name = Name::runtime(&origin.key()).to_string();
        let Some(image) = engine.image(&name).await? else { continue };
        found.push(name);
        let inspector = inspector(&image).to_string();
        if engine.image(&inspector).await?.is_some() {
            found.push(inspector);
        }
        if let Origin::Operator { name, .. } = origin {
            found.push(name);
        }
        break;
    }
    Ok(found)
}

/// What the inspector's image on top of this runtime is called.
fn inspector(runtime: &EngineImage) -> Name {
    let key = Hasher::default()
        .part(VERSION.as_bytes())
        .part(runtime.id.as_bytes())
        .part(layer::GRAPH.digest().to_string().as_bytes())
        .finish();
    Name::inspector(&key.to_string()[..12])
}

impl Origin {
    /// Text that identifies what the base is made of.
    fn recipe(&self) -> String {
        match self {
            Self::Operator { name: _, id } => format!("image {id}"),
            // `hub` is a part of existing tags.
            Self::PublicRegistry => format!("hub {PUBLIC_IMAGE}"),
            Self::Packages { release } => {
                format!("{} {}", release.as_deref().unwrap_or_default(), packages::recipe())
            }
        }
    }

    /// Tag of the runtime on top of it.
    fn key(&self) -> String {
        let key = Hasher::default()
            .part(VERSION.as_bytes())
            .part(std::env::consts::ARCH.as_bytes())
            .part(self.recipe().as_bytes())
            .part(layer::WRAPPER.digest().to_string().as_bytes())
            .finish();
        key.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator { name, id: _ } => write!(f, "the operator's `{name}`"),
            Self::PublicRegistry => write!(f, "`{PUBLIC_IMAGE}` of the public registry"),
            Self::Packages { release } => {
                let release = release.as_deref().unwrap_or("this machine's release");
                write!(f, "{release} from this machine's own packages")
            }
        }
    }
}

impl RuntimeContext<'_> {
    /// Does one part of the work within its limit, and reports how long it took.
    async fn step<T>(
        &self,
        doing: &str,
        needs: Needs,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        let step = RuntimeStep { doing: doing.into(), needs };
        step.run(self.allowed, self.log, self.last_line, work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_what_the_runtime_is_made_of() {
        let operator = |id: &str| Origin::Operator { name: "mine:1".into(), id: id.into() };
        let packages = |release: &str| Origin::Packages { release: Some(release.into()) };
        let keys = [
            operator("sha256:1").key(),
            operator("sha256:2").key(),
            Origin::PublicRegistry.key(),
            packages("bookworm").key(),
            packages("noble").key(),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert_eq!(key.len(), 12);
            assert!(!keys[..at].contains(key));
        }
        assert_eq!(packages("noble").key(), keys[4]);
    }
}
