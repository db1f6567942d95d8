//! Loads a project once, in a temporary container without network, to find its exports and the
//! files that they reach. The only place where a build runs the developer's code.
//!
//! `inspect.js` of the runtime inspects; `crate::inspection` parses its output. The same code on the
//! same runtime with the same packages is inspected once.

use crate::{
    blocking,
    cache::{Cache, container_user},
    engine::{
        Engine,
        container::{Bind, Ended, Exit, KILLED, Limits, Rights, Task},
    },
    error::{self, Hint},
    image::APP,
    inspection::Inspection,
    language::toolchain::{Inspect, Inspected, Project},
    source::{ContentDigest, Hasher},
};
use epsilon_api::{
    build::{BuildError, BuildEvent},
    units::Bytes,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Path of the inspector in the runtime.
const INSPECT: &str = "/epsilon/wrapper/inspect.js";
/// Path of the module graph reader, which finds the files that each export reaches; in the
/// inspector's image.
const GRAPH: &str = "/epsilon/graph/graph.js";
/// Path of its output: one file, not a folder, so that code cannot fill this machine's disk through
/// it.
const OUT: &str = "/run/epsilon/inspection.json";
/// Largest file that code can write while loading, the output included.
const LARGEST_FILE: Bytes = Bytes::mib(16);
/// Time for starting Node and writing the output, on top of the loading.
const MARGIN: Duration = Duration::from_secs(10);
/// Lines of the code's own output that an error shows.
const TAIL: usize = 20;

/// Inspects projects.
#[derive(Clone, Debug)]
pub(super) struct Inspector {
    pub(super) engine: Engine,
    pub(super) cache: Cache,
    pub(super) limits: Limits,
}

impl Inspector {
    /// The exports of a project's entries.
    pub(super) async fn inspect(
        &self,
        project: Project<'_>,
        inspect: Inspect<'_>,
    ) -> Result<Inspected, BuildError> {
        let environment = inspect.environment.iter();
        let env: Vec<_> = environment.map(|(name, value)| format!("{name}={value}")).collect();
        let key = key(project, &inspect, &env);
        let entry = self.cache.entry_path("inspections", &format!("{key}.json"));
        if let Some(inspection) =
            fs::read(&entry).ok().and_then(|text| Inspection::parse(&text).ok())
        {
            return Ok(Inspected { inspection, cached: true });
        }

        let out = project.work.file("inspection.json", container_user())?;
        let ended = self.run(&inspect.entries, env, project, &out).await?;
        if ended.exit != Exit::Code(0) {
            return Err(failed(&ended, self.limits));
        }
        let inspection = blocking::run("reading what the code exports", move || {
            let inspection = Inspection::load(&out)?;
            // Only successful inspections are cached: a failure may be the machine's.
            if inspection.entries.iter().all(|entry| entry.error.is_none()) {
                move_file(&out, &entry)?;
            }
            Ok(inspection)
        });
        Ok(Inspected {
            inspection: inspection.await.map_err(|err| with_output(err, &ended))?,
            cached: false,
        })
    }

    async fn run(
        &self,
        entries: &[String],
        mut env: Vec<String>,
        project: Project<'_>,
        out: &Path,
    ) -> Result<Ended, BuildError> {
        let Project { source, runtime, packages, work, log } = project;
        let (uid, gid) = container_user();
        let mut mounts = vec![
            Bind { host: source.root.clone(), inside: APP, writable: false },
            Bind { host: out.to_owned(), inside: OUT, writable: true },
        ];
        if let Some(packages) = packages {
            // The engine cannot create this mount point itself: its parent is read-only.
            mount_point(&source.root.join("node_modules"))
                .map_err(|err| error::file("preparing the inspection", &err))?;
            let host = packages.folder.clone();
            mounts.push(Bind { host, inside: "/app/node_modules", writable: false });
        }
        let limit = self.limits.time;
        env.push(format!("EPSILON_INSPECT_OUT={OUT}"));
        env.push(format!("EPSILON_INSPECT_GRAPH={GRAPH}"));
        env.push(format!("EPSILON_INSPECT_TIMEOUT_MS={}", limit.as_millis()));
        env.push("HOME=/tmp".into());
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let task = Task {
            purpose: "inspect",
            image: runtime.inspector.reference.clone(),
            command: ["node", INSPECT]
                .map(str::to_owned)
                .into_iter()
                .chain(entries.iter().cloned())
                .collect(),
            env,
            mounts,
            workdir: APP,
            rights: Rights::None { uid, gid },
            network: None,
            limits: Limits {
                time: limit.saturating_mul(count).saturating_add(MARGIN),
                ..self.limits
            },
            largest_file: Some(LARGEST_FILE),
        };
        // Both folders stay until the container is gone.
        let keep = Arc::new((Arc::clone(source), Arc::clone(work)));
        let container = self.engine.create(&task, Some(keep as _)).await?;
        Ok(container.run(|line| log.report(BuildEvent::Line(line.to_owned()))).await?)
    }
}

fn key(project: Project<'_>, inspect: &Inspect<'_>, env: &[String]) -> ContentDigest {
    let Project { source, runtime, packages, .. } = project;
    let mut key = Hasher::default().part(runtime.inspector.image.id.as_bytes());
    key = key.part(packages.map(|p| p.key.to_string()).unwrap_or_default().as_bytes());
    for texts in [&inspect.entries[..], env] {
        key = key.part(&texts.len().to_le_bytes());
        key = texts.iter().fold(key, |key, text| key.part(text.as_bytes()));
    }
    // Settings are not code: another `timeout` in the manifest needs no second inspection.
    for file in source.files.iter().filter(|file| inspect.manifest != Some(file.path.as_str())) {
        key = file.digest_into(key);
    }
    source.empty_folders_into(key).finish()
}

fn mount_point(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn move_file(from: &Path, to: &PathBuf) -> Result<(), BuildError> {
    fs::rename(from, to).map_err(|err| error::file("storing what the code exports", &err))
}

fn failed(ended: &Ended, limits: Limits) -> BuildError {
    let err = match ended.exit {
        Exit::TimedOut => {
            let limit = limits.time;
            error::load_failed(format!("the code did not finish loading within {limit:?}"))
                .hint("the operator's limit is `builder.inspect_timeout`; there is no network while code is loaded")
        }
        Exit::OutOfMemory => {
            let limit = limits.memory;
            error::load_failed(format!("the code needs more than {limit} to load"))
                .hint("the operator's limit is `builder.inspect_memory`")
        }
        // Only the exit code shows it: the engine did not report why.
        Exit::Code(KILLED) => {
            let limit = limits.memory;
            error::load_failed(format!(
                "the code was killed while it was loaded; it probably needs more memory than {limit}"
            ))
            .hint("the operator's limit is `builder.inspect_memory`")
        }
        Exit::Code(code) => error::load_failed(format!(
            "the code ended with exit status {code} while it was loaded"
        ))
        .hint("run `node` on the entry file to see why"),
    };
    with_output(err, ended)
}

/// Adds the code's output, which usually explains why it did not load.
fn with_output(err: BuildError, ended: &Ended) -> BuildError {
    let tail = &ended.tail[ended.tail.len().saturating_sub(TAIL)..];
    if tail.is_empty() {
        return err;
    }
    BuildError { message: format!("{}\n{}", err.message, tail.join("\n")), ..err }
}
