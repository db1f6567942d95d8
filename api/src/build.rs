//! One builder as the gateway sees it: a project's archive goes in, images come out, and progress
//! is reported as [`BuildEvent`]s for the person who waits.
//!
//! In `epsilon up` the builder itself implements [`Builder`]; in a fleet, a client of its listener
//! does: `POST /v1/builds?deployment=ID&folder=NAME&only=F&only=G` ([`BuildOrder`]) with a gateway
//! token and the archive as body, answered by lines of [`BuildMessage`].

mod order;

pub use order::{BuildOrder, PATH};

/// Path of a builder's listener that removes images.
pub const REMOVE_PATH: &str = "/v1/images/remove";
/// Path of a builder's listener that returns [`BuilderStatus`].
pub const STATUS_PATH: &str = "/v1/status";

/// State of a builder: the answer to `GET` of [`STATUS_PATH`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// The version of its program.
    pub version: String,
    /// Builds that run or wait for a slot, of all gateways.
    pub builds: u32,
}

use crate::{
    admin::Step,
    body::CallBody,
    error::ErrorBody,
    function::{FunctionSpec, ImageRef, Parts},
    ids::{DeploymentId, FunctionName, ProjectName},
};
use futures_util::future::BoxFuture;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// Longest silence of a builder during a build. npm can be silent for minutes.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// One piece of work for a builder.
pub struct BuildJob {
    /// The deployment that this build belongs to.
    pub deployment: DeploymentId,
    /// The project's tar.gz as it arrives; untrusted.
    pub archive: CallBody,
    /// Name of the project's folder, for a project without a name of its own.
    pub folder: Option<String>,
    /// Only these functions; empty for all.
    pub only: Vec<FunctionName>,
    /// Where the progress of the build is reported.
    pub log: Arc<dyn BuildLog>,
}

impl fmt::Debug for BuildJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildJob").field("deployment", &self.deployment).finish_non_exhaustive()
    }
}

/// Receives the progress of a build. Must not block; a slow reader loses lines, not the build.
pub trait BuildLog: Send + Sync {
    /// Reports one event.
    fn report(&self, event: BuildEvent);
}

/// Progress of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildEvent {
    /// A step started; `detail` names its subject.
    StepStarted {
        /// Which step.
        step: Step,
        /// For people: "57 files, 120 KiB".
        detail: String,
    },
    /// A step succeeded.
    StepDone {
        /// Which step.
        step: Step,
        /// For people: "cached", "3 layers shipped".
        detail: String,
        /// Duration of the step.
        #[serde(with = "crate::function::millis", rename = "took_ms")]
        took: Duration,
    },
    /// A line of a tool's output (npm, docker) or a message to the developer.
    Line(String),
}

/// One function that was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BuiltFunction {
    /// Its name.
    pub name: FunctionName,
    /// Its settings, with all defaults filled in.
    pub spec: FunctionSpec,
    /// Its image; the same source gives the same digest.
    pub image: ImageRef,
    /// The layers that the image is composed of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

/// The result of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Built {
    /// The project's name.
    pub project: ProjectName,
    /// Its functions, by name.
    pub functions: Vec<BuiltFunction>,
}

/// Why a build failed. The texts are for the developer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct BuildError {
    /// Stable, upper case: `MANIFEST_INVALID`, `SOURCE_REFUSED`, `DEPENDENCIES_FAILED`,
    /// `LOAD_FAILED`, `NO_FUNCTIONS`, `ENGINE_FAILED`, `REGISTRY_FAILED`, `DISK_FULL`, …
    pub code: Cow<'static, str>,
    /// 4xx: the source is wrong. 5xx: the builder failed.
    #[serde(with = "status")]
    pub status: StatusCode,
    /// What happened, where.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl BuildError {
    /// The wire form.
    pub fn body(&self) -> ErrorBody {
        ErrorBody::new(self.status, &self.code, self.message.clone(), self.hint.clone())
    }
}

/// One line of a builder's answer to `POST /v1/builds` (newline-delimited JSON). The last one is
/// `built` or `failed`; an answer that ends without one was cut. An answer whose status is not 200
/// is an [`ErrorBody`] in its envelope, and the archive was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildMessage {
    /// Heartbeat: no event for a [`HEARTBEAT`]; the build continues.
    Alive,
    /// An event of the build.
    Event(BuildEvent),
    /// The build succeeded.
    Built(Built),
    /// The build failed.
    Failed(BuildError),
}

impl BuildMessage {
    /// Longest line in bytes: a project's functions with the largest environments.
    pub const LONGEST_LINE: usize = 16 << 20;

    /// As a line of JSON with its newline.
    pub fn to_line(&self) -> String {
        // Serialization cannot fail; a reader takes an invalid line for a cut.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// A status as its number.
mod status {
    use http::StatusCode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u16(status.as_u16())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Makes images from source.
pub trait Builder: Send + Sync + fmt::Debug {
    /// Builds one project. Dropping the future cancels the build and cleans up after it.
    ///
    /// # Errors
    /// [`BuildError`], written for the developer who pushed.
    fn build(&self, job: BuildJob) -> BoxFuture<'_, Result<Built, BuildError>>;

    /// Removes an image that no version needs any more from where this builder puts images, if that
    /// place allows it. Images elsewhere are not touched. Idempotent. A builder that stores no
    /// images does nothing.
    ///
    /// # Errors
    /// [`BuildError`], written for the operator: whether the image still exists is unknown.
    fn remove(&self, _: ImageRef) -> BoxFuture<'_, Result<(), BuildError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::function::Runtime;

    fn all() -> Vec<(BuildMessage, &'static str)> {
        let took = Duration::from_millis(1500);
        let (step, detail) = (Step::Dependencies, "57 packages".to_owned());
        let image =
            ImageRef { reference: "r.example/hi@sha256:1".into(), digest: "sha256:2".into() };
        let spec = FunctionSpec::new(Runtime::Node, "index.js", "hi");
        let name = FunctionName::parse("hi").unwrap();
        let built = Built {
            project: ProjectName::parse("shop").unwrap(),
            functions: vec![BuiltFunction { name, spec, image, parts: None }],
        };
        let failed = BuildError {
            code: "LOAD_FAILED".into(),
            status: StatusCode::UNPROCESSABLE_ENTITY,
            message: "line 1\nline 2".into(),
            hint: None,
        };
        vec![
            (BuildMessage::Alive, r#""alive""#),
            (
                BuildMessage::Event(BuildEvent::StepStarted { step, detail: detail.clone() }),
                r#"{"event":{"step_started":{"step":"dependencies","detail":"57 packages"}}}"#,
            ),
            (
                BuildMessage::Event(BuildEvent::StepDone { step, detail, took }),
                r#"{"event":{"step_done":{"step":"dependencies","detail":"57 packages","took_ms":1500}}}"#,
            ),
            (
                BuildMessage::Event(BuildEvent::Line("added\n".into())),
                r#"{"event":{"line":"added\n"}}"#,
            ),
            (
                BuildMessage::Built(built),
                r#"{"built":{"project":"shop","functions":[{"name":"hi","spec":{"runtime":"node","#,
            ),
            (
                BuildMessage::Failed(failed),
                r#"{"failed":{"code":"LOAD_FAILED","status":422,"message":"line 1\nline 2","hint":null}}"#,
            ),
        ]
    }

    #[test]
    fn messages_are_one_line_and_round_trip() {
        for (message, text) in all() {
            let line = message.to_line();
            assert!(line.starts_with(text), "{line}");
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
            assert_eq!(serde_json::from_str::<BuildMessage>(&line).unwrap(), message);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in ["", "null", "{}", r#""dead""#, r#"{"failed":{"code":"X","status":42}}"#] {
            assert!(serde_json::from_str::<BuildMessage>(wrong).is_err(), "{wrong}");
        }
    }
}
