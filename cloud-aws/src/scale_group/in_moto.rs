//! A group in moto, for tests of this crate and of those that use it. Its instances start and end
//! at once; hooks hold none. Moto has no machines: the test plays them.

use super::ScaleGroup;
use crate::moto::Moto;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::{Client, config::Credentials};

/// The SDK's settings for a fake at this address, with dummy credentials.
pub async fn sdk(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new("eu-central-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .load()
        .await
}

/// Creates the group `vms` of `min` to `max` instances, `desired` now.
///
/// # Panics
/// When moto does not create it: the test has failed.
pub async fn group(moto: &Moto, min: i32, max: i32, desired: i32) -> ScaleGroup {
    let sdk = sdk(moto.endpoint()).await;
    let client = Client::new(&sdk);
    let template = client.create_launch_configuration().launch_configuration_name("vm");
    let template = template.image_id("ami-12c6146b").instance_type("t3.medium");
    template.send().await.expect("moto makes launch configurations");
    let group = client.create_auto_scaling_group().auto_scaling_group_name("vms");
    let group = group.launch_configuration_name("vm").availability_zones("eu-central-1a");
    let group = group.min_size(min).max_size(max).desired_capacity(desired);
    group.send().await.expect("moto makes groups");
    ScaleGroup::new(&sdk, "vms".into())
}
