//! One builder as the gateway sees it: a project's archive goes in, images come out, and everything that
//! happens meanwhile is told as [`BuildEvent`]s for the person who waits.

use crate::{
    admin::Step,
    body::CallBody,
    error::ErrorBody,
    function::{FunctionSpec, ImageRef},
    ids::{DeploymentId, FunctionName, ProjectName},
};
use futures_util::future::BoxFuture;
use http::StatusCode;
use std::{fmt, sync::Arc, time::Duration};

/// One piece of work for a builder.
pub struct BuildJob {
    /// The deployment that this build belongs to.
    pub deployment: DeploymentId,
    /// The project's tar.gz as it comes in; not trusted in any way.
    pub archive: CallBody,
    /// What the project's folder is called, for a project without a name of its own.
    pub folder: Option<String>,
    /// Only these functions; empty for all.
    pub only: Vec<FunctionName>,
    /// Where the story of the build goes.
    pub log: Arc<dyn BuildLog>,
}

impl fmt::Debug for BuildJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildJob").field("deployment", &self.deployment).finish_non_exhaustive()
    }
}

/// Where a builder tells what it does. Must not block; a slow reader loses lines, not the build.
pub trait BuildLog: Send + Sync {
    /// Tells one event.
    fn tell(&self, event: BuildEvent);
}

/// What happens in a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// A step began; `detail` says on what.
    StepStarted {
        /// Which step.
        step: Step,
        /// For people: "57 files, 120 KiB".
        detail: String,
    },
    /// A step ended well.
    StepDone {
        /// Which step.
        step: Step,
        /// For people: "cached", "3 layers shipped".
        detail: String,
        /// How long it took.
        took: Duration,
    },
    /// A line of a tool's output (npm, docker) or a word to the developer.
    Line(String),
}

/// One function that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltFunction {
    /// Its name.
    pub name: FunctionName,
    /// Its settings, complete.
    pub spec: FunctionSpec,
    /// Its image; the same source gives the same digest.
    pub image: ImageRef,
}

/// All that a build made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The project's name.
    pub project: ProjectName,
    /// Its functions, by name.
    pub functions: Vec<BuiltFunction>,
}

/// Why a build ended without images. The texts are for the developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// Stable, upper case: `MANIFEST_INVALID`, `SOURCE_REFUSED`, `DEPENDENCIES_FAILED`, `LOAD_FAILED`,
    /// `NO_FUNCTIONS`, `ENGINE_FAILED`, `REGISTRY_FAILED`, `DISK_FULL`, …
    pub code: &'static str,
    /// 4xx: the source is wrong. 5xx: the builder is in trouble.
    pub status: StatusCode,
    /// What happened, where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl BuildError {
    /// The wire form.
    pub fn body(&self) -> ErrorBody {
        ErrorBody::new(self.status, self.code, self.message.clone(), self.hint.clone())
    }
}

/// Makes images out of source.
pub trait Builder: Send + Sync + fmt::Debug {
    /// Builds one project. Dropping the future cancels the build and cleans up after it.
    ///
    /// # Errors
    /// [`BuildError`], written for the developer who pushed.
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>>;
}
