//! What the hub shows beside a commit: pending, then how the deployment ended. Sent in order and behind the back of the
//! deployment, which never waits for it; a status that cannot be sent after some tries is given up and counted.

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

/// The hub refuses longer descriptions.
const LONGEST: usize = 140;
/// Statuses of one deployment: pending and the end of it.
const DEPTH: usize = 2;
/// Pause before the second try; doubled for each further one.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause that the hub may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How a deployment stands, in the hub's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Pending,
    Success,
    /// The code did not build or start.
    Failure,
    /// It was not tried, or not to the end.
    Error,
}

/// One status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Of which commit.
    pub(crate) commit: String,
    pub(crate) state: State,
    pub(crate) description: String,
    /// Where to look at the result.
    pub(crate) target: Option<String>,
}

/// The body that the hub's API takes.
#[derive(Serialize)]
struct Body<'a> {
    state: State,
    description: String,
    context: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_url: Option<&'a str>,
}

/// The statuses of one deployment; what was told is sent also after this is dropped.
#[derive(Debug)]
pub(crate) struct Statuses(mpsc::Sender<Status>);

impl Statuses {
    /// Of a deployment of this hook. Without a token, nothing is sent.
    pub(crate) fn of(
        hook: &Arc<Hook>,
        deployment: &DeploymentId,
        limits: Limits,
        metrics: &HookMetrics,
        tasks: &TaskTracker,
    ) -> Self {
        let (statuses, mut told) = mpsc::channel(DEPTH);
        let (hook, metrics, deployment) = (Arc::clone(hook), metrics.clone(), deployment.clone());
        tasks.spawn(async move {
            while let Some(status) = told.recv().await {
                match hook.token().await {
                    Ok(None) => {}
                    Ok(Some(token)) => {
                        let sent = send(&hook, &token, &status, &limits, PAUSE).await;
                        metrics.status_sent(sent.is_ok());
                        if let Err(err) = sent {
                            let (project, error) = (&hook.project, Chain(&err));
                            tracing::warn!(%project, %deployment, %error, "The hub did not take a commit's status.");
                        }
                    }
                    Err(err) => {
                        metrics.status_sent(false);
                        let (project, error) = (&hook.project, Chain(&err));
                        tracing::error!(%project, %deployment, %error, "A webhook's token cannot be used.");
                    }
                }
            }
        });
        Self(statuses)
    }

    /// Tells the next one.
    pub(crate) fn tell(&self, status: Status) {
        // There is room for all that one deployment has to say; a task that is gone ends with the process.
        let _ = self.0.try_send(status);
    }
}

/// Why the hub does not have a status.
#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error(transparent)]
    Unreachable(#[from] super::host::Unreachable),
    #[error("its API cannot be spoken to")]
    Client(#[source] reqwest::Error),
    #[error("its API does not answer")]
    Silent(#[source] reqwest::Error),
    #[error("its API answered {0}")]
    Answered(StatusCode, Option<Duration>),
}

impl NotSent {
    /// How long to wait before it is worth another try; never where it is not.
    fn pause(&self, otherwise: Duration) -> Option<Duration> {
        match self {
            Self::Unreachable(_) | Self::Silent(_) => Some(otherwise),
            Self::Client(_) => None,
            Self::Answered(status, asked) => {
                // 403 with `Retry-After` is the hub's way to say "too many at once".
                let again = status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || (*status == StatusCode::FORBIDDEN && asked.is_some());
                again.then(|| asked.unwrap_or(otherwise).min(LONGEST_PAUSE))
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
) -> Result<(), NotSent> {
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
) -> Result<(), NotSent> {
    let addresses = hook.api.addresses(limits.connect).await?;
    let client = Client::builder()
        .connect_timeout(limits.connect)
        .timeout(limits.status)
        .redirect(Policy::none())
        .no_proxy()
        // Nothing is looked up again.
        .resolve_to_addrs(hook.api.host(), &addresses)
        .build()
        .map_err(NotSent::Client)?;
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
        // The hub refuses requests without one.
        .header(USER_AGENT, "epsilon")
        .json(&body)
        .send()
        .await
        .map_err(|err| NotSent::Silent(err.without_url()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(NotSent::Answered(status, asked_pause(answer.headers()))),
    }
}

fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// One line that the hub takes.
fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
