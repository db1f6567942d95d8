//! Commit statuses on GitHub: pending, then the result of the deployment. Sent in order and in the
//! background: the deployment never waits for it. A status that cannot be sent after some attempts
//! is dropped and counted.

use super::{config::Limits, metrics::HookMetrics, project::Hook};
use epsilon_api::{chain::Chain, ids::DeploymentId, redacted::Secret};
use http::{
    HeaderMap, StatusCode,
    header::{ACCEPT, RETRY_AFTER, USER_AGENT},
};
use reqwest::{Client, redirect::Policy};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Longest description that GitHub accepts.
const MAX_DESCRIPTION: usize = 140;
/// Statuses of one deployment: pending and the result.
const QUEUE_LEN: usize = 2;
/// Pause before the second attempt; doubled for each further one.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause that GitHub may request.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// State of a deployment, in GitHub's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Pending,
    Success,
    /// The code did not build or start.
    Failure,
    /// It was not attempted, or was cancelled.
    Error,
}

/// One status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The commit to which it belongs.
    pub(crate) commit: String,
    pub(crate) state: State,
    pub(crate) description: String,
    /// URL of the result.
    pub(crate) target: Option<String>,
}

/// The request body for GitHub's API.
#[derive(Serialize)]
struct Body<'a> {
    state: State,
    description: String,
    context: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_url: Option<&'a str>,
}

/// Sends the statuses of one deployment; queued ones are sent even after this is dropped.
#[derive(Debug)]
pub(crate) struct Statuses(mpsc::Sender<Status>);

impl Statuses {
    /// For a deployment of this webhook. Without a token, nothing is sent.
    pub(crate) fn of(
        hook: &Arc<Hook>,
        deployment: &DeploymentId,
        limits: Limits,
        metrics: &HookMetrics,
        tasks: &TaskTracker,
    ) -> Self {
        let (statuses, mut queued) = mpsc::channel(QUEUE_LEN);
        let hook = Arc::clone(hook);
        let metrics = metrics.clone();
        let deployment = deployment.clone();
        tasks.spawn(async move {
            while let Some(status) = queued.recv().await {
                match hook.token().await {
                    Ok(None) => {}
                    Ok(Some(token)) => {
                        let sent = send(&hook, &token, &status, &limits, PAUSE).await;
                        metrics.status_sent(sent.is_ok());
                        if let Err(err) = sent {
                            let project = &hook.project;
                            let error = Chain(&err);
                            tracing::warn!(%project, %deployment, %error, "Commit status could not be sent to GitHub; it is dropped.");
                        }
                    }
                    Err(err) => {
                        metrics.status_sent(false);
                        let project = &hook.project;
                        let error = Chain(&err);
                        tracing::error!(%project, %deployment, %error, "Webhook's token cannot be used; the commit status is dropped.");
                    }
                }
            }
        });
        Self(statuses)
    }

    /// Queues a status.
    pub(crate) fn send(&self, status: Status) {
        // The queue holds all statuses of a deployment; the task ends only with the process.
        let _ = self.0.try_send(status);
    }
}

/// Why a status was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Unreachable(#[from] super::allowed_hosts::Unreachable),
    #[error("the client for GitHub's API cannot be built")]
    Client(#[source] reqwest::Error),
    #[error("GitHub's API does not answer")]
    NoAnswer(#[source] reqwest::Error),
    #[error("GitHub's API answered {0}")]
    Answered(StatusCode, Option<Duration>),
}

impl SendError {
    /// Pause before another attempt; `None` if another attempt is useless.
    fn pause(&self, otherwise: Duration) -> Option<Duration> {
        match self {
            Self::Unreachable(_) | Self::NoAnswer(_) => Some(otherwise),
            Self::Client(_) => None,
            Self::Answered(status, retry_after) => {
                // GitHub sends 403 with `Retry-After` when there are too many requests.
                let again = status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || (*status == StatusCode::FORBIDDEN && retry_after.is_some());
                again.then(|| retry_after.unwrap_or(otherwise).min(LONGEST_PAUSE))
            }
        }
    }
}

async fn send(
    hook: &Hook,
    token: &Secret<String>,
    status: &Status,
    limits: &Limits,
    mut pause: Duration,
) -> Result<(), SendError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let Err(err) = send_once(hook, token, status, limits).await else { return Ok(()) };
        match err.pause(pause) {
            Some(wait) if tries < limits.status_tries => tokio::time::sleep(wait).await,
            Some(_) | None => return Err(err),
        }
        pause *= 2;
    }
}

async fn send_once(
    hook: &Hook,
    token: &Secret<String>,
    status: &Status,
    limits: &Limits,
) -> Result<(), SendError> {
    let addresses = hook.api.addresses(limits.connect).await?;
    let client = Client::builder()
        .connect_timeout(limits.connect)
        .timeout(limits.status)
        .redirect(Policy::none())
        .no_proxy()
        // The host is not resolved again.
        .resolve_to_addrs(hook.api.host(), &addresses)
        .build()
        .map_err(SendError::Client)?;
    let context = format!("epsilon/{}", hook.project);
    let body = Body {
        state: status.state,
        description: shortened(&status.description),
        context: &context,
        target_url: status.target.as_deref(),
    };
    let answer = client
        .post(format!("{}{}", hook.api.url(), status.commit))
        .bearer_auth(token.reveal())
        .header(ACCEPT, "application/vnd.github+json")
        .header("x-github-api-version", "2022-11-28")
        // GitHub refuses requests without a user agent.
        .header(USER_AGENT, "epsilon")
        .json(&body)
        .send()
        .await
        .map_err(|err| SendError::NoAnswer(err.without_url()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(SendError::Answered(status, requested_pause(answer.headers()))),
    }
}

fn requested_pause(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// One line that GitHub accepts.
fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= MAX_DESCRIPTION {
        return line.to_owned();
    }
    line.chars().take(MAX_DESCRIPTION - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
