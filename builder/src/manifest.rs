//! `epsilon.yaml` → functions to deploy, strictly: unknown keys, duplicate keys, values out of
//! range and unsupported features are errors that name the position and a valid value.
//!
//! ```text
//! text ─▶ document ─▶ tree ─▶ section: key by key ─▶ values ─▶ Manifest
//!             ▲                   │ problem: under which keys
//!             └── line, column ◀──┘
//! ```
//!
//! Not here: what the code exports ([`crate::plan`] combines both), and anything about containers.

mod document;
mod function;
pub mod origin;
mod section;
#[cfg(test)]
mod tests;
pub(crate) mod values;

pub use crate::ceilings::Ceilings;
pub use crate::value_tree::Node;
pub(crate) use function::FunctionKeys;

use crate::error;
use crate::error::Hint;
use crate::language::{self, Language};
use crate::source::Source;
use document::Document;
use epsilon_api::{
    build::BuildError,
    function::Runtime,
    ids::{FunctionName, ProjectName},
};
use function::KeySource;
use origin::Origin;
use section::{Problem, Section};
use std::collections::{BTreeMap, BTreeSet};

/// File names of a manifest.
const FILES: [&str; 2] = ["epsilon.yaml", "epsilon.yml"];

/// The runtime of a manifest that names none.
const DEFAULT_RUNTIME: Runtime = Runtime::Node;

/// Docker's default.
const DOCKERFILE: &str = "Dockerfile";

/// A checked manifest, with defaults derived from the source.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The project's name.
    pub project: ProjectName,
    /// What runs its functions.
    pub runtime: Runtime,
    file: Option<&'static str>,
    ceilings: Ceilings,
    functions: Functions,
}

/// A command that runs before the functions are determined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) project: ProjectName,
    pub(crate) runtime: Runtime,
    pub(crate) command: String,
    /// The manifest's own file.
    pub(crate) file: Option<&'static str>,
}

/// The functions that a manifest declares.
#[derive(Clone, Debug)]
pub(crate) enum Functions {
    /// Code: every export of this entry.
    Exports(String),
    /// Code: these functions, each with its entry.
    Named(BTreeMap<FunctionName, (String, FunctionKeys)>),
    /// Containers: these functions, each with the origin of its image.
    Containers(BTreeMap<FunctionName, (Origin, FunctionKeys)>),
}

impl Manifest {
    /// Reads the manifest of a source; `folder` names the project when neither the manifest nor the
    /// language's project file (`package.json`) does. Blocking, but short: the sizes are capped.
    ///
    /// # Errors
    /// `MANIFEST_INVALID`, `NO_FUNCTIONS`.
    pub fn read(
        source: &Source,
        folder: Option<&str>,
        ceilings: &Ceilings,
    ) -> Result<Self, BuildError> {
        let (file, document) = Self::document(source)?;
        let node = document.parse()?;
        let problem = |problem: Problem| document.problem(&problem);

        let mut top = Section::open(Vec::new(), &node).map_err(problem)?;
        let written = Top::read(&mut top).map_err(problem)?;
        let runtime = written.runtime.unwrap_or(DEFAULT_RUNTIME);
        let named = written.functions(runtime, ceilings).map_err(problem)?;
        top.end().map_err(problem)?;

        let project = written.project_name(source, folder)?;
        let functions = match language::of(runtime) {
            Some(language) => code_functions(named, language, source),
            None => container_functions(named, &written, &project, source),
        };
        let functions = functions.map_err(|refusal| match refusal {
            Refusal::Problem(problem) => document.problem(&problem),
            Refusal::Error(error) => error,
        })?;
        Ok(Self { project, runtime, file, ceilings: ceilings.clone(), functions })
    }

    /// The build command of a source, if it has one. Everything is checked except what the command
    /// may create: entry files.
    pub(crate) fn build(
        source: &Source,
        folder: Option<&str>,
        ceilings: &Ceilings,
    ) -> Result<Option<Build>, BuildError> {
        let (file, document) = Self::document(source)?;
        let node = document.parse()?;
        let problem = |problem: Problem| document.problem(&problem);
        let mut top = Section::open(Vec::new(), &node).map_err(problem)?;
        let written = Top::read(&mut top).map_err(problem)?;
        let Some(command) = written.build.clone() else { return Ok(None) };
        let runtime = written.runtime.unwrap_or(DEFAULT_RUNTIME);
        written.functions(runtime, ceilings).map_err(problem)?;
        top.end().map_err(problem)?;
        let project = written.project_name(source, folder)?;
        Ok(Some(Build { project, runtime, command, file }))
    }

    fn document(source: &Source) -> Result<(Option<&'static str>, Document), BuildError> {
        let mut there = FILES.into_iter().filter(|name| source.get(name).is_some());
        let name = match (there.next(), there.next()) {
            (Some(one), Some(other)) => {
                let text = format!("there is both an `{one}` and an `{other}`");
                return Err(error::manifest_invalid(text).hint("keep one of them"));
            }
            (one, _) => one,
        };
        let bytes = match name {
            Some(name) => source.read(name, document::MAX_BYTES)?.unwrap_or_default(),
            None => Vec::new(),
        };
        Ok((name, Document::new(name.unwrap_or(FILES[0]), bytes)?))
    }

    /// The name of the manifest's file, if there is one. It is not part of an image.
    pub fn file(&self) -> Option<&str> {
        self.file
    }

    /// The files to inspect, sorted, without duplicates. Empty for `runtime: container`.
    pub fn entries(&self) -> Vec<String> {
        let entries: BTreeSet<&String> = match &self.functions {
            Functions::Exports(entry) => [entry].into(),
            Functions::Named(named) => named.values().map(|(entry, _)| entry).collect(),
            Functions::Containers(_) => BTreeSet::new(),
        };
        entries.into_iter().cloned().collect()
    }

    /// The environment of the manifest's functions: code may need it to load at all. Entries are
    /// loaded once for all functions, so they see the variables of all.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let Functions::Named(functions) = &self.functions else { return BTreeMap::new() };
        let specs = functions.iter().filter_map(|(name, (entry, keys))| {
            keys.clone().spec(self.runtime, entry, name.as_str()).ok()
        });
        specs.flat_map(|spec| spec.env).collect()
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.functions
    }

    pub(crate) fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }
}

/// The top-level keys of a manifest.
struct Top<'a> {
    project: Option<ProjectName>,
    runtime: Option<Runtime>,
    image: Option<String>,
    dockerfile: Option<String>,
    build: Option<String>,
    functions: Option<Section<'a>>,
}

impl<'a> Top<'a> {
    fn read(top: &mut Section<'a>) -> Result<Self, Problem> {
        let project = top.take("project", |node| {
            ProjectName::parse(&values::text(node)?)
                .map_err(|invalid| format!("is wrong: {invalid}"))
        })?;
        let runtime = top.take("runtime", |node| {
            let runtimes = [
                ("node", Some(Runtime::Node)),
                ("container", Some(Runtime::Container)),
                ("python", None),
            ];
            values::word(node, &runtimes)?.ok_or_else(|| {
                "is `python`, which is not supported yet; `runtime: container` runs any image"
                    .into()
            })
        })?;
        let mut image = None;
        let mut dockerfile = None;
        let mut build = None;
        match runtime {
            Some(Runtime::Container) => {
                image = top.take("image", values::image)?;
                dockerfile = top.take("dockerfile", values::path)?;
                top.refuse(
                    &["build"],
                    "has a meaning only with `runtime: node`; a Dockerfile has `RUN`",
                )?;
            }
            Some(Runtime::Node) | None => {
                let why = "has a meaning only with `runtime: container`";
                top.refuse(&["image", "dockerfile"], why)?;
                build = top.take("build", values::command)?;
            }
        }
        let functions = match top.take_node("functions")? {
            Some(node) => Some(Section::open(top.path_of("functions"), node)?),
            None => None,
        };
        Ok(Self { project, runtime, image, dockerfile, build, functions })
    }

    fn project_name(
        &self,
        source: &Source,
        folder: Option<&str>,
    ) -> Result<ProjectName, BuildError> {
        let stated = language::project_name(source)?;
        let loose =
            || [stated.as_deref(), folder].into_iter().flatten().find_map(ProjectName::from_loose);
        self.project.clone().or_else(loose).ok_or_else(|| {
            error::manifest_invalid("the project has no name")
                .hint("write `project: NAME` into `epsilon.yaml`")
        })
    }

    fn functions(&self, runtime: Runtime, ceilings: &Ceilings) -> Result<Named, Problem> {
        let Some(section) = &self.functions else { return Ok(Named::new()) };
        if section.entries().len() > ceilings.functions {
            let why = format!("are more than the operator's ceiling of {}", ceilings.functions);
            return Err(Problem::new(&["functions".into()], why));
        }
        let mut named = Named::new();
        for (key, node) in section.entries() {
            let path = section.path_of(key);
            let name = FunctionName::parse(key)
                .map_err(|invalid| Problem::new(&path, format!("is wrong: {invalid}")))?;
            let keys = FunctionKeys::read(
                Section::open(path, node)?,
                KeySource::InFile(runtime),
                ceilings,
            )?;
            named.insert(name, keys);
        }
        Ok(named)
    }
}

/// Functions named in a manifest.
type Named = BTreeMap<FunctionName, FunctionKeys>;

/// Why functions are refused: with or without a position in the manifest.
enum Refusal {
    Problem(Problem),
    Error(BuildError),
}

impl Refusal {
    fn at(function: &FunctionName, key: &str, message: impl Into<String>) -> Self {
        Self::Problem(Problem::new(
            &["functions".into(), function.to_string(), key.into()],
            message,
        ))
    }
}

fn code_functions(
    named: Named,
    language: &dyn Language,
    source: &Source,
) -> Result<Functions, Refusal> {
    if named.is_empty() {
        return language.entry(source).map(Functions::Exports).map_err(Refusal::Error);
    }
    let mut functions = BTreeMap::new();
    for (name, keys) in named {
        let entry = match &keys.entry {
            Some(entry) => {
                language
                    .check_entry(entry, source)
                    .map_err(|why| Refusal::at(&name, "entry", why))?;
                entry.clone()
            }
            None => language.entry(source).map_err(Refusal::Error)?,
        };
        functions.insert(name, (entry, keys));
    }
    Ok(Functions::Named(functions))
}

fn container_functions(
    mut named: Named,
    top: &Top<'_>,
    project: &ProjectName,
    source: &Source,
) -> Result<Functions, Refusal> {
    if named.is_empty() {
        let name = FunctionName::parse(project.as_str()).map_err(|invalid| {
            let text = format!("the function would be named after the project, but {invalid}");
            Refusal::Error(error::manifest_invalid(text).hint("name it under `functions:`"))
        })?;
        named.insert(name, FunctionKeys::default());
    }
    let origin = |name: &FunctionName, keys: &FunctionKeys| {
        let own = keys.image.is_some() || keys.dockerfile.is_some();
        let (image, dockerfile) =
            if own { (&keys.image, &keys.dockerfile) } else { (&top.image, &top.dockerfile) };
        match (image, dockerfile) {
            (Some(_), Some(_)) => {
                Err("has both `image` and `dockerfile`; keep one of them".to_owned())
            }
            (Some(image), None) => Ok(Origin::Image(image.clone())),
            (None, Some(file)) if source.get(file).is_none() => {
                Err(format!("has the dockerfile `{file}`, which does not exist"))
            }
            (None, Some(file)) => Ok(Origin::Dockerfile(file.clone())),
            (None, None) if source.get(DOCKERFILE).is_some() => {
                Ok(Origin::Dockerfile(DOCKERFILE.into()))
            }
            (None, None) => {
                Err(format!("has no image: name one with `image`, or add a `{DOCKERFILE}`"))
            }
        }
        .map_err(|why| Refusal::Problem(Problem::new(&["functions".into(), name.to_string()], why)))
    };
    let functions: Result<_, Refusal> = named
        .into_iter()
        .map(|(name, keys)| Ok((name.clone(), (origin(&name, &keys)?, keys))))
        .collect();
    functions.map(Functions::Containers)
}
