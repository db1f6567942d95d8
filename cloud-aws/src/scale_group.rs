//! One EC2 Auto Scaling group, as the gateway's autoscaler uses it. The SDK's errors become five
//! kinds here, each of which a person can act on; no other type of the SDK leaves this file.
//! Decides nothing; the autoscaler's `autoscaler/src/plan.rs` does.
//!
//! Each request has three attempts and half a minute in all, so that a caller need not retry.
//! Credentials, region and endpoint come from the SDK's default chain (environment, profile, the
//! instance's role), unless they are given.

#[cfg(feature = "fake")]
pub mod in_moto;

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_autoscaling::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::{Instance, LifecycleState},
};
use std::{error::Error, fmt, time::Duration};

/// Timeout of one attempt: the API answers in tenths of a second.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout of all attempts of one request, with the pauses between them.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 3;
/// AWS's limit of instances in one `SetInstanceProtection`.
const PROTECT_AT_ONCE: usize = 50;
/// The transition whose hooks hold an instance before its termination.
const TERMINATING: &str = "autoscaling:EC2_INSTANCE_TERMINATING";

/// Name and address of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupAddress {
    /// The group's name.
    pub group: String,
    /// The group's region; the SDK's default chain when absent.
    pub region: Option<String>,
    /// Another address of the API: a private endpoint, or a fake in tests.
    pub endpoint: Option<String>,
}

/// A group. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ScaleGroup {
    client: Client,
    name: String,
}

/// The state of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Desired number of instances.
    pub desired: u32,
    /// The group's minimum.
    pub min: u32,
    /// The group's maximum.
    pub max: u32,
    /// The group's instances, without warm pools.
    pub instances: Vec<GroupInstance>,
}

/// One instance of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInstance {
    /// EC2's id, `i-…`.
    pub id: String,
    /// The lifecycle state.
    pub phase: Phase,
    /// Whether it is protected from scale-in.
    pub protected: bool,
}

/// The lifecycle states that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `Pending`, its hook included.
    Starting,
    /// `InService`.
    Serving,
    /// `Terminating:Wait`: a hook holds it.
    Waiting,
    /// `Terminating` and all that follows.
    Terminating,
    /// Standby, detached, quarantined: not managed by the group.
    Unmanaged,
}

/// Why a request to the group failed.
#[derive(Debug)]
pub struct GroupError {
    /// The kind of failure.
    pub kind: Kind,
    /// AWS's error, or the connection's.
    source: Box<dyn Error + Send + Sync>,
}

/// Kinds of [`GroupError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Too many requests.
    Throttled,
    /// A permission is missing, or credentials are.
    Denied,
    /// There is no such group.
    Unknown,
    /// AWS refused the request.
    Refused,
    /// No answer, or none in time.
    NoAnswer,
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Throttled => "EC2 Auto Scaling throttles requests for now",
            Kind::Denied => "EC2 Auto Scaling does not allow this",
            Kind::Unknown => "EC2 Auto Scaling knows no such group",
            Kind::Refused => "EC2 Auto Scaling refused",
            Kind::NoAnswer => "EC2 Auto Scaling does not answer",
        })
    }
}

impl Error for GroupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl ScaleGroup {
    /// Prepares the client. Resolves region and credentials, which may query the instance's
    /// metadata service; the group itself is not queried yet.
    pub async fn connect(address: GroupAddress) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        if let Some(region) = address.region {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = address.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        Self::new(&loader.load().await, address.group)
    }

    /// The group of this name, with SDK settings that were resolved already.
    pub fn new(found: &SdkConfig, group: String) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(REQUEST_TIMEOUT)
            .build();
        let config = aws_sdk_autoscaling::config::Builder::from(found)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts)
            .build();
        Self { client: Client::from_conf(config), name: group }
    }

    /// The group's current state.
    ///
    /// # Errors
    /// [`Kind::Unknown`] when there is no such group; any other kind.
    pub async fn describe(&self) -> Result<GroupState, GroupError> {
        let answer = self
            .client
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(&self.name)
            .send()
            .await
            .map_err(failed)?;
        let group = answer.auto_scaling_groups().first().ok_or_else(|| GroupError {
            kind: Kind::Unknown,
            source: format!("there is no Auto Scaling group `{}` in this region", self.name).into(),
        })?;
        Ok(GroupState {
            desired: count(group.desired_capacity()),
            min: count(group.min_size()),
            max: count(group.max_size()),
            instances: group.instances().iter().filter_map(instance_of).collect(),
        })
    }

    /// Sets the desired number of instances.
    ///
    /// # Errors
    /// Any kind; [`Kind::Refused`] beyond the group's limits.
    pub async fn set_desired(&self, instances: u32) -> Result<(), GroupError> {
        self.client
            .set_desired_capacity()
            .auto_scaling_group_name(&self.name)
            .desired_capacity(i32::try_from(instances).unwrap_or(i32::MAX))
            // The autoscaler's policy has cool-downs; the group's own would make it miss a surge.
            .honor_cooldown(false)
            .send()
            .await
            .map(drop)
            .map_err(failed)
    }

    /// Protects instances from scale-in, or ends the protection.
    ///
    /// # Errors
    /// Any kind; [`Kind::Refused`] when one of them is not in service any more. Some may be changed
    /// then.
    pub async fn protect(&self, ids: &[String], protected: bool) -> Result<(), GroupError> {
        for ids in ids.chunks(PROTECT_AT_ONCE) {
            self.client
                .set_instance_protection()
                .auto_scaling_group_name(&self.name)
                .set_instance_ids(Some(ids.to_vec()))
                .protected_from_scale_in(protected)
                .send()
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Terminates an instance and decrements the desired number. Its hooks hold it first.
    ///
    /// # Errors
    /// Any kind; [`Kind::Refused`] at the group's minimum. An instance that is gone already is no
    /// error.
    pub async fn terminate(&self, id: &str) -> Result<(), GroupError> {
        let answer = self
            .client
            .terminate_instance_in_auto_scaling_group()
            .instance_id(id)
            .should_decrement_desired_capacity(true)
            .send()
            .await;
        ok_if_gone(answer.map(drop), "not found")
    }

    /// Lets an instance that hooks hold proceed to its termination.
    ///
    /// # Errors
    /// Any kind. An instance that no hook holds any more is no error.
    pub async fn complete(&self, id: &str) -> Result<(), GroupError> {
        for hook in self.hooks().await? {
            let answer = self
                .client
                .complete_lifecycle_action()
                .auto_scaling_group_name(&self.name)
                .lifecycle_hook_name(hook)
                .instance_id(id)
                .lifecycle_action_result("CONTINUE")
                .send()
                .await;
            ok_if_gone(answer.map(drop), "no active lifecycle action")?;
        }
        Ok(())
    }

    /// Restarts the timeout of the hooks that hold an instance.
    ///
    /// # Errors
    /// Any kind. An instance that no hook holds any more is no error.
    pub async fn heartbeat(&self, id: &str) -> Result<(), GroupError> {
        for hook in self.hooks().await? {
            let answer = self
                .client
                .record_lifecycle_action_heartbeat()
                .auto_scaling_group_name(&self.name)
                .lifecycle_hook_name(hook)
                .instance_id(id)
                .send()
                .await;
            ok_if_gone(answer.map(drop), "no active lifecycle action")?;
        }
        Ok(())
    }

    /// The hooks that hold an instance before its termination. Queried each time: VMs end rarely,
    /// and hooks change.
    async fn hooks(&self) -> Result<Vec<String>, GroupError> {
        let answer = self
            .client
            .describe_lifecycle_hooks()
            .auto_scaling_group_name(&self.name)
            .send()
            .await
            .map_err(failed)?;
        let terminating = answer
            .lifecycle_hooks()
            .iter()
            .filter(|hook| hook.lifecycle_transition() == Some(TERMINATING));
        Ok(terminating.filter_map(|hook| hook.lifecycle_hook_name().map(str::to_owned)).collect())
    }
}

fn count(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

fn instance_of(instance: &Instance) -> Option<GroupInstance> {
    use LifecycleState as State;
    let phase = match instance.lifecycle_state()? {
        State::Pending | State::PendingWait | State::PendingProceed => Phase::Starting,
        State::InService => Phase::Serving,
        State::TerminatingWait => Phase::Waiting,
        State::Terminating
        | State::TerminatingProceed
        | State::TerminatingRetained
        | State::Terminated => Phase::Terminating,
        state if state.as_str().starts_with("Warmed") => return None,
        _ => Phase::Unmanaged,
    };
    Some(GroupInstance {
        id: instance.instance_id()?.to_owned(),
        phase,
        protected: instance.protected_from_scale_in().unwrap_or(false),
    })
}

/// Maps "it is gone already" to success.
fn ok_if_gone<E>(answer: Result<(), SdkError<E>>, message: &str) -> Result<(), GroupError>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match answer {
        Err(err) if err.message().is_some_and(|text| text.to_lowercase().contains(message)) => {
            Ok(())
        }
        other => other.map_err(failed),
    }
}

/// Maps the SDK's errors to ours.
fn failed<E>(err: SdkError<E>) -> GroupError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let code = err.code().unwrap_or_default();
    let kind = match code {
        "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException" => Kind::Throttled,
        "AccessDenied"
        | "AccessDeniedException"
        | "UnauthorizedOperation"
        | "AuthFailure"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "OptInRequired" => Kind::Denied,
        // AWS has one code for all invalid requests; only its text identifies a missing group.
        "ValidationError" => {
            let message = err.message().unwrap_or_default().to_lowercase();
            let group = message.contains("group")
                && (message.contains("not found") || message.contains("does not exist"));
            if group { Kind::Unknown } else { Kind::Refused }
        }
        "" | "InternalFailure" | "ServiceUnavailable" => match &err {
            // No credentials: the default chain found none.
            SdkError::DispatchFailure(failure) if failure.is_user() || failure.is_other() => {
                Kind::Denied
            }
            _ => Kind::NoAnswer,
        },
        _ => Kind::Refused,
    };
    let source = match (code, err.message()) {
        ("", _) => err.into(),
        (code, message) => format!("{code}: {}", message.unwrap_or("no words")).into(),
    };
    GroupError { kind, source }
}
