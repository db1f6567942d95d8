//! A deployment over the control API, and its events.

use crate::{http::Call, project::Project, up::Epsilon, wait::LONG};
use epsilon_api::{
    admin::{DeployEvent, DeployedFunction, DeploymentInfo, Step},
    error::{ErrorBody, ErrorEnvelope},
};
use std::net::SocketAddr;
use tokio::sync::Semaphore;

/// Concurrent deployments of one test process: each keeps a core busy for a while, and a machine
/// with many cores would otherwise start one per test.
static AT_ONCE: Semaphore = Semaphore::const_new(3);

/// Result of a deployment.
#[derive(Debug)]
pub struct Deployment {
    /// The answer's status.
    pub status: u16,
    /// All events, in order; none when it was refused at once.
    pub events: Vec<DeployEvent>,
    refused: Option<ErrorBody>,
}

impl Deployment {
    /// The result of a successful one.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn done(&self) -> &DeploymentInfo {
        match self.events.last() {
            Some(DeployEvent::Done { deployment }) => deployment,
            _ => panic!("the deployment failed: {self:#?}"),
        }
    }

    /// The error of a failed one, refused at once or later.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn failed(&self) -> &ErrorBody {
        match (&self.refused, self.events.last()) {
            (Some(error), _) | (None, Some(DeployEvent::Failed { error })) => error,
            _ => panic!("the deployment should have failed: {self:#?}"),
        }
    }

    /// One function of the result.
    ///
    /// # Panics
    /// When it does not exist.
    #[track_caller]
    pub fn function(&self, name: &str) -> &DeployedFunction {
        let functions = &self.done().functions;
        functions
            .iter()
            .find(|function| function.name.as_str() == name)
            .unwrap_or_else(|| panic!("no `{name}` in {functions:?}"))
    }

    /// Name and version of the functions that were changed.
    pub fn changed(&self) -> Vec<(String, u32)> {
        let functions = self.done().functions.iter().filter(|function| function.changed);
        functions.map(|f| (f.name.to_string(), f.version.get())).collect()
    }

    /// The message at the end of a step.
    pub fn step(&self, wanted: Step) -> Option<&str> {
        self.events.iter().find_map(|event| match event {
            DeployEvent::StepDone { step, detail, .. } if *step == wanted => Some(detail.as_str()),
            _ => None,
        })
    }

    /// The lines of tools.
    pub fn log(&self) -> String {
        let lines = self.events.iter().filter_map(|event| match event {
            DeployEvent::Log { line } => Some(line.as_str()),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Epsilon {
    /// Deploys a project that must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn deploy(&self, project: &Project) -> Deployment {
        let deployment = self.try_deploy(project).await;
        deployment.done();
        deployment
    }

    /// Deploys a project, whatever the result.
    pub async fn try_deploy(&self, project: &Project) -> Deployment {
        self.deploy_archive(&format!("folder={}", project.name()), project.archive()).await
    }

    /// Deploys an archive unchanged.
    pub async fn deploy_archive(&self, query: &str, archive: Vec<u8>) -> Deployment {
        send(self.control(), self.key(), query, archive).await
    }
}

/// Deploys an archive through the control API at this address.
///
/// # Panics
/// When the answer does not follow the contract.
pub async fn send(control: SocketAddr, key: &str, query: &str, archive: Vec<u8>) -> Deployment {
    let _turn = AT_ONCE.acquire().await.expect("it is never closed");
    let call = Call::post(&format!("/v1/deployments?{query}"), "application/gzip", archive)
        .header("authorization", &format!("Bearer {key}"));
    let answer = call.limit(LONG).send(control).await;
    if answer.status >= 400 {
        let envelope: ErrorEnvelope = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|err| panic!("not an error of ours: {err}: {answer}"));
        return Deployment {
            status: answer.status,
            events: Vec::new(),
            refused: Some(envelope.error),
        };
    }
    assert_eq!(answer.header("content-type"), "application/x-ndjson", "{answer}");
    let text = answer.text();
    let events = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err} in `{line}`")));
    Deployment { status: answer.status, events: events.collect(), refused: None }
}
