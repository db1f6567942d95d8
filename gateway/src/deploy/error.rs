//! Why a deployment failed, and how the developer reads it. The reason is stored with the
//! deployment and is the last event of its log; a push, a webhook and the control API get the same.

use super::start::NotReady;
use crate::store_error;
use epsilon_api::{
    build::BuildError,
    chain::Chain,
    error::{ErrorBody, VmError},
    ids::{DeploymentId, FunctionName, ProjectName},
};
use epsilon_store::StoreError;
use http::StatusCode;
use std::{error::Error, time::Duration};

/// Why a deployment failed without changing anything.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeployError {
    #[error("the build failed")]
    Build(#[source] BuildError),
    #[error("the source is of project `{named}`")]
    OtherProject { named: ProjectName, pushed: ProjectName },
    #[error("the new versions are not ready")]
    NotReady(#[from] NotReady),
    #[error("no VM has the image of `{function}` in its engine")]
    ImageNotLoaded {
        function: FunctionName,
        #[source]
        cause: VmError,
    },
    #[error("the versions could not be stored")]
    Store(#[source] StoreError),
    #[error("the deployment took longer than {0:?}")]
    TookTooLong(Duration),
    #[error("the client hung up, or the gateway stopped")]
    Cancelled,
    #[error("a bug ended the deployment; the panic is in the log above")]
    Panicked,
}

impl DeployError {
    /// The error for the developer.
    pub(super) fn body(&self, deployment: &DeploymentId) -> ErrorBody {
        match self {
            Self::Build(err) => err.body(),
            Self::OtherProject { named, pushed } => ErrorBody::new(
                StatusCode::CONFLICT,
                "OTHER_PROJECT",
                format!("{self}, but was pushed as `{pushed}`"),
                Some(format!(
                    "push it as `{named}`, or write `project: {pushed}` into `epsilon.yaml`"
                )),
            ),
            Self::NotReady(NotReady::Start(err)) => start_failed(err),
            Self::NotReady(err @ NotReady::ImageUnreachable { .. }) => ErrorBody::new(
                StatusCode::BAD_GATEWAY,
                "IMAGE_UNREACHABLE",
                format!("{err}: it is stored only in the engine of the builder's machine"),
                Some("give the builder a registry: `epsilon-builder --registry REF`".into()),
            ),
            Self::ImageNotLoaded { .. } => ErrorBody::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "IMAGE_UNREACHABLE",
                self.to_string(),
                Some("push it to a registry and name it by digest, or load it into this machine's engine".into()),
            ),
            Self::Store(err) => match store_error::refusal(err) {
                Some((_, body)) => body,
                None => internal(deployment, err),
            },
            Self::TookTooLong(limit) => ErrorBody::new(
                StatusCode::GATEWAY_TIMEOUT,
                "DEPLOYMENT_TIMEOUT",
                format!(
                    "the deployment did not finish within {}",
                    humantime::format_duration(*limit)
                ),
                Some("the wait for another deployment of the project counts; push again, or a part with `--only`".into()),
            ),
            Self::Cancelled => ErrorBody::new(
                StatusCode::CONFLICT,
                "DEPLOYMENT_CANCELLED",
                "the deployment was cancelled: its caller hung up or the gateway stopped",
                Some("nothing was changed; deploy again".into()),
            ),
            Self::Panicked => internal(deployment, self),
        }
    }
}

/// Includes why the code does not load: callers never see that, but the developer must.
fn start_failed(err: &VmError) -> ErrorBody {
    let verdict = err.verdict();
    let message = match err {
        VmError::InitFailed { detail, .. } if !detail.is_empty() => format!("{err}: {detail}"),
        other => Chain(other).to_string(),
    };
    let hint = Some("the previous version still serves; fix the error and deploy again".to_owned());
    ErrorBody::new(verdict.status, verdict.code, message, hint)
}

fn internal(deployment: &DeploymentId, err: &(dyn Error + 'static)) -> ErrorBody {
    tracing::error!(%deployment, error = %Chain(err), "Deployment failed with an internal error.");
    store_error::internal().1
}
