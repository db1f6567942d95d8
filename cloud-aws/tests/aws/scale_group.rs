//! The Auto Scaling group through the real SDK: against moto for what it knows, against a scripted
//! one for lifecycle actions (which moto lacks), throttling and refusals.

mod fake;

use aws_config::{BehaviorVersion, Region, profile::ProfileFileCredentialsProvider};
use epsilon_cloud_aws::{
    moto::Moto,
    scale_group::{GroupAddress, GroupError, GroupInstance, Kind, Phase, ScaleGroup, in_moto},
};
use fake::Fake;
use std::error::Error;

fn text_of(err: &GroupError) -> String {
    format!("{err}: {}", err.source().unwrap())
}

#[tokio::test]
async fn group_grows_protects_and_terminates_named_instance() {
    let moto = Moto::start().await;
    let group = in_moto::group(&moto, 1, 5, 1).await;
    let before = group.describe().await.unwrap();
    assert_eq!((before.desired, before.min, before.max), (1, 1, 5));

    group.set_desired(3).await.unwrap();
    let grown = group.describe().await.unwrap();
    assert_eq!((grown.desired, grown.instances.len()), (3, 3));
    assert!(grown.instances.iter().all(|vm| vm.phase == Phase::Serving && !vm.protected));

    let ids: Vec<String> = grown.instances.iter().map(|vm| vm.id.clone()).collect();
    group.protect(&ids, true).await.unwrap();
    group.protect(&ids[1..2], false).await.unwrap();
    let marks: Vec<(String, bool)> = marks(&group.describe().await.unwrap().instances);
    assert_eq!(marks, [(ids[0].clone(), true), (ids[1].clone(), false), (ids[2].clone(), true)]);

    group.terminate(&ids[1]).await.unwrap();
    let left = group.describe().await.unwrap();
    assert_eq!(left.desired, 2, "one less desired, so that it is not replaced");
    assert!(!left.instances.iter().any(|vm| vm.id == ids[1]));
}

fn marks(instances: &[GroupInstance]) -> Vec<(String, bool)> {
    instances.iter().map(|vm| (vm.id.clone(), vm.protected)).collect()
}

#[tokio::test]
async fn missing_group_is_reported() {
    let moto = Moto::start().await;
    let group = ScaleGroup::new(&in_moto::sdk(moto.endpoint()).await, "vmz".into());
    let err = group.describe().await.unwrap_err();
    assert_eq!(err.kind, Kind::Unknown);
    assert!(text_of(&err).contains("`vmz`"), "{}", text_of(&err));
}

#[tokio::test]
async fn more_than_fifty_are_protected_in_parts() {
    let aws = Fake::start().await;
    aws.answers("SetInstanceProtection", 200, "");
    let group = aws.group().await;
    let ids: Vec<String> = (0..120).map(|n| format!("i-{n}")).collect();
    group.protect(&ids, true).await.unwrap();
    let requests = aws.requests("SetInstanceProtection");
    let counts: Vec<usize> =
        requests.iter().map(|q| q.matches("InstanceIds.member.").count()).collect();
    assert_eq!(counts, [50, 50, 20]);
}

#[tokio::test]
async fn cooldowns_of_the_group_do_not_delay_a_surge() {
    let aws = Fake::start().await;
    aws.answers("SetDesiredCapacity", 200, "");
    aws.group().await.set_desired(7).await.unwrap();
    let requests = &aws.requests("SetDesiredCapacity")[0];
    assert!(
        requests.contains("DesiredCapacity=7") && requests.contains("HonorCooldown=false"),
        "{requests}"
    );
}

#[tokio::test]
async fn phases_are_read_and_warm_pools_left_out() {
    let aws = Fake::start().await;
    let states = [
        ("Pending", Some(Phase::Starting)),
        ("Pending:Wait", Some(Phase::Starting)),
        ("InService", Some(Phase::Serving)),
        ("Terminating:Wait", Some(Phase::Waiting)),
        ("Terminating:Proceed", Some(Phase::Terminating)),
        ("Standby", Some(Phase::Unmanaged)),
        ("Detached", Some(Phase::Unmanaged)),
        ("Warmed:Stopped", None),
        ("SomethingNew", Some(Phase::Unmanaged)),
    ];
    let members: String = states.iter().enumerate().map(|(n, (state, _))| {
        format!("<member><InstanceId>i-{n}</InstanceId><LifecycleState>{state}</LifecycleState></member>")
    }).collect();
    let body = format!(
        "<AutoScalingGroups><member><MinSize>1</MinSize><MaxSize>9</MaxSize><DesiredCapacity>4</DesiredCapacity>\
         <Instances>{members}</Instances></member></AutoScalingGroups>"
    );
    aws.answers("DescribeAutoScalingGroups", 200, &body);
    let read = aws.group().await.describe().await.unwrap().instances;
    let want: Vec<Phase> = states.iter().filter_map(|(_, phase)| *phase).collect();
    assert_eq!(read.iter().map(|vm| vm.phase).collect::<Vec<_>>(), want);
}

const HOOKS: &str = "<LifecycleHooks>\
    <member><LifecycleHookName>drain</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition></member>\
    <member><LifecycleHookName>boot</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_LAUNCHING</LifecycleTransition></member>\
    </LifecycleHooks>";

#[tokio::test]
async fn only_termination_hooks_are_completed() {
    let aws = Fake::start().await;
    aws.answers("DescribeLifecycleHooks", 200, HOOKS);
    aws.answers("CompleteLifecycleAction", 200, "");
    aws.answers("RecordLifecycleActionHeartbeat", 200, "");
    let group = aws.group().await;
    group.heartbeat("i-7").await.unwrap();
    group.complete("i-7").await.unwrap();
    for operation in ["RecordLifecycleActionHeartbeat", "CompleteLifecycleAction"] {
        let requests = aws.requests(operation);
        assert_eq!(requests.len(), 1, "{requests:?}");
        for part in ["LifecycleHookName=drain", "AutoScalingGroupName=vms", "InstanceId=i-7"] {
            assert!(requests[0].contains(part), "{}", requests[0]);
        }
    }
    assert!(aws.requests("CompleteLifecycleAction")[0].contains("LifecycleActionResult=CONTINUE"));
}

#[tokio::test]
async fn gone_instances_are_no_error() {
    let aws = Fake::start().await;
    aws.answers("DescribeLifecycleHooks", 200, HOOKS);
    let over = "No active Lifecycle Action found with instance ID i-7";
    aws.refuses("CompleteLifecycleAction", 400, "ValidationError", over);
    aws.refuses("RecordLifecycleActionHeartbeat", 400, "ValidationError", over);
    let gone = "Instance Id not found - No managed instance found for instance ID: i-7";
    aws.refuses("TerminateInstanceInAutoScalingGroup", 400, "ValidationError", gone);
    let group = aws.group().await;
    group.complete("i-7").await.unwrap();
    group.heartbeat("i-7").await.unwrap();
    group.terminate("i-7").await.unwrap();
}

#[tokio::test]
async fn refusals_are_classified_with_aws_texts() {
    let not_found = "Group not found - AutoScalingGroup name not found - null";
    for (status, code, words, kind) in [
        (400, "Throttling", "Rate exceeded", Kind::Throttled),
        (
            403,
            "AccessDenied",
            "User: x is not authorized to perform: autoscaling:SetDesiredCapacity",
            Kind::Denied,
        ),
        (
            403,
            "ExpiredToken",
            "The security token included in the request is expired",
            Kind::Denied,
        ),
        (
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
            Kind::Denied,
        ),
        (
            400,
            "ValidationError",
            "New SetDesiredCapacity value 9 is above max value 5 for the AutoScalingGroup.",
            Kind::Refused,
        ),
        (400, "ValidationError", not_found, Kind::Unknown),
        (400, "ScalingActivityInProgress", "Scaling activity is in progress", Kind::Refused),
        (500, "InternalFailure", "try again", Kind::NoAnswer),
    ] {
        let aws = Fake::start().await;
        aws.refuses("SetDesiredCapacity", status, code, words);
        let err = aws.group().await.set_desired(9).await.unwrap_err();
        assert_eq!(err.kind, kind, "{code}: {}", text_of(&err));
        assert!(text_of(&err).contains(words), "{}", text_of(&err));
    }
}

#[tokio::test]
async fn throttled_request_has_three_attempts() {
    let aws = Fake::start().await;
    aws.refuses("DescribeAutoScalingGroups", 400, "Throttling", "Rate exceeded");
    let err = aws.group().await.describe().await.unwrap_err();
    assert_eq!((err.kind, aws.requests("DescribeAutoScalingGroups").len()), (Kind::Throttled, 3));
}

#[tokio::test]
async fn unparsable_answer_is_no_answer() {
    let aws = Fake::start().await;
    aws.page("SetDesiredCapacity", 500, "<html>Internal Server Error</html>");
    let err = aws.group().await.set_desired(2).await.unwrap_err();
    assert_eq!(err.kind, Kind::NoAnswer, "{}", text_of(&err));
}

#[tokio::test]
async fn unreachable_api_is_reported() {
    let group = ScaleGroup::new(&in_moto::sdk("http://127.0.0.1:1").await, "vms".into());
    let err = group.describe().await.unwrap_err();
    assert_eq!(err.kind, Kind::NoAnswer, "{}", text_of(&err));
}

#[tokio::test]
async fn missing_credentials_are_reported() {
    let aws = Fake::start().await;
    let nowhere = ProfileFileCredentialsProvider::builder().profile_name("epsilon-none").build();
    let sdk = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .region(Region::new("eu-central-1"))
        .endpoint_url(aws.endpoint())
        .credentials_provider(nowhere);
    let sdk = sdk.load().await;
    let err = ScaleGroup::new(&sdk, "vms".into()).describe().await.unwrap_err();
    assert_eq!(err.kind, Kind::Denied, "{}", text_of(&err));
}

#[tokio::test]
async fn connecting_sends_no_request() {
    let address = GroupAddress {
        group: "vms".into(),
        region: Some("eu-central-1".into()),
        endpoint: Some("http://127.0.0.1:1".into()),
    };
    ScaleGroup::connect(address).await;
}
