//! The driver `aws-asg`: an EC2 Auto Scaling group, through `cloud-aws`. Only translates types. A
//! VM's id is its EC2 instance id, so the group and the agent use the same name.

use super::{Group, GroupError, GroupInstance, Phase, ScaleGroup};
use async_trait::async_trait;
use epsilon_api::ids::VmId;
use epsilon_cloud_aws::scale_group as aws;
use tokio::sync::OnceCell;

/// The driver for an EC2 Auto Scaling group.
#[derive(Debug)]
pub(crate) struct Aws {
    address: aws::GroupAddress,
    /// Credentials are loaded at the first request, so that the gateway's start does not wait for
    /// them.
    group: OnceCell<aws::ScaleGroup>,
}

impl Aws {
    pub(crate) fn new(group: String, region: Option<String>, endpoint: Option<String>) -> Self {
        Self { address: aws::GroupAddress { group, region, endpoint }, group: OnceCell::new() }
    }

    /// Uses a group that is already connected.
    #[cfg(test)]
    pub(crate) fn of(group: aws::ScaleGroup) -> Self {
        Self { address: aws::GroupAddress::default(), group: OnceCell::new_with(Some(group)) }
    }

    async fn group(&self) -> &aws::ScaleGroup {
        self.group.get_or_init(|| aws::ScaleGroup::connect(self.address.clone())).await
    }

    fn error(&self, err: aws::GroupError) -> GroupError {
        match err.kind {
            aws::Kind::Throttled => GroupError::Throttled(err.into()),
            aws::Kind::Denied => GroupError::Denied(err.into()),
            aws::Kind::Unknown => GroupError::Unknown(self.address.group.clone()),
            aws::Kind::Refused => GroupError::Refused(err.into()),
            aws::Kind::NoAnswer => GroupError::NoAnswer(err.into()),
        }
    }
}

#[async_trait]
impl ScaleGroup for Aws {
    async fn describe(&self, _: &[VmId]) -> Result<Group, GroupError> {
        let standing = self.group().await.describe().await.map_err(|err| self.error(err))?;
        let instances = standing.instances.into_iter().filter_map(|member| {
            // Instance ids are VM ids; anything else is not an EC2 instance.
            let id = VmId::parse(&member.id).ok()?;
            Some(GroupInstance { id, phase: phase(member.phase), protected: member.protected })
        });
        Ok(Group {
            desired: standing.desired,
            min: standing.min,
            max: standing.max,
            instances: instances.collect(),
        })
    }

    async fn set_desired(&self, vms: u32) -> Result<(), GroupError> {
        self.group().await.set_desired(vms).await.map_err(|err| self.error(err))
    }

    async fn protect(&self, vms: &[VmId], protected: bool) -> Result<(), GroupError> {
        let ids: Vec<String> = vms.iter().map(ToString::to_string).collect();
        self.group().await.protect(&ids, protected).await.map_err(|err| self.error(err))
    }

    async fn terminate(&self, vm: &VmId) -> Result<(), GroupError> {
        self.group().await.terminate(vm.as_str()).await.map_err(|err| self.error(err))
    }

    async fn complete(&self, vm: &VmId) -> Result<(), GroupError> {
        self.group().await.complete(vm.as_str()).await.map_err(|err| self.error(err))
    }

    async fn heartbeat(&self, vm: &VmId) -> Result<(), GroupError> {
        self.group().await.heartbeat(vm.as_str()).await.map_err(|err| self.error(err))
    }
}

fn phase(phase: aws::Phase) -> Phase {
    match phase {
        aws::Phase::Starting => Phase::Starting,
        aws::Phase::Serving => Phase::Serving,
        aws::Phase::Waiting => Phase::Waiting,
        aws::Phase::Terminating => Phase::Terminating,
        aws::Phase::Unmanaged => Phase::Unmanaged,
    }
}
