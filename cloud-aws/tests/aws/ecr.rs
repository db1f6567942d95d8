//! ECR through the real SDK: against moto for what it knows, against a scripted AWS for what it
//! does not.

use aws_config::{BehaviorVersion, Region};
use aws_sdk_ecr::config::Credentials;
use epsilon_cloud_aws::{
    ecr::{Ecr, EcrError, EcrHost, Retention},
    moto::Moto,
    scripted::Aws,
};
use std::time::Duration;

const KEEP: Retention = Retention { images: 7, untagged: Duration::from_secs(3 * 24 * 3600) };

fn host() -> EcrHost {
    EcrHost::parse("123456789012.dkr.ecr.eu-central-1.amazonaws.com").unwrap()
}

/// The repository's policy in moto, by the bare SDK.
async fn policy(moto: &Moto, repository: &str) -> String {
    let made_up = Credentials::new("test", "test", None, None, "test");
    let config = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(moto.endpoint())
        .credentials_provider(made_up);
    let client = aws_sdk_ecr::Client::new(&config.load().await);
    let requests = client.get_lifecycle_policy().repository_name(repository).send();
    requests.await.unwrap().lifecycle_policy_text().unwrap().to_owned()
}

#[tokio::test]
async fn expired_token_of_moto_is_cached_all_the_same() {
    let moto = Moto::start().await;
    let front = Aws::before(&moto).await;
    let ecr = Ecr::at(front.endpoint());
    let all = (0..20).map(|_| async { ecr.token(&host()).await.unwrap() });
    let tokens = futures_util::future::join_all(all).await;
    assert!(tokens.iter().all(|token| token.reveal() == "123456789012-auth-token"));
    for _ in 0..20 {
        ecr.token(&host()).await.unwrap();
    }
    assert_eq!(front.requests("GetAuthorizationToken"), 1);
}

#[tokio::test]
async fn a_repository_is_made_once_with_its_policy() {
    let moto = Moto::start().await;
    let front = Aws::before(&moto).await;
    let ecr = Ecr::at(front.endpoint());
    // Two builders at once: one of them gets "already exists".
    let host = host();
    let make = || ecr.ensure_repository(&host, "epsilon/shop/pay", &KEEP);
    let (one, two) = tokio::join!(make(), make());
    one.unwrap();
    two.unwrap();
    let policy = policy(&moto, "epsilon/shop/pay").await;
    assert!(policy.contains("imageCountMoreThan") && policy.contains('7'), "{policy}");

    // An operator's own policy stays, whatever its settings.
    let other = Retention { images: 99, ..KEEP };
    ecr.ensure_repository(&host, "epsilon/shop/pay", &other).await.unwrap();
    assert_eq!(self::policy(&moto, "epsilon/shop/pay").await, policy);
    let made = front.requests("CreateRepository");
    assert!((1..=2).contains(&made), "{made}");
}

#[tokio::test]
async fn a_repository_that_another_builder_makes_meanwhile_is_fine() {
    let aws = Aws::scripted().await;
    aws.answers("DescribeRepositories", 400, r#"{"__type":"RepositoryNotFoundException"}"#);
    aws.answers("CreateRepository", 400, r#"{"__type":"RepositoryAlreadyExistsException"}"#);
    aws.answers("GetLifecyclePolicy", 200, r#"{"lifecyclePolicyText":"{}"}"#);
    let ecr = Ecr::at(aws.endpoint());
    ecr.ensure_repository(&host(), "pay", &KEEP).await.unwrap();
    assert_eq!(aws.requests("PutLifecyclePolicy"), 0);
}

#[tokio::test]
async fn missing_permission_is_named() {
    let aws = Aws::scripted().await;
    let denied = r#"{"__type":"AccessDeniedException","Message":"not authorized to perform"}"#;
    aws.answers("GetAuthorizationToken", 400, denied);
    aws.answers("DescribeRepositories", 400, denied);
    let ecr = Ecr::at(aws.endpoint());
    let token = ecr.token(&host()).await.unwrap_err();
    let made = ecr.ensure_repository(&host(), "pay", &KEEP).await.unwrap_err();
    for (err, right) in [(token, "ecr:GetAuthorizationToken"), (made, "ecr:DescribeRepositories")] {
        assert!(matches!(err, EcrError::Denied { .. }), "{err:?}");
        assert!(err.to_string().contains(right) && err.hint().contains(right), "{err}");
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_by_a_fresh_one() {
    let aws = Aws::scripted().await;
    aws.gives_tokens();
    let ecr = Ecr::at(aws.endpoint());
    let first = ecr.token(&host()).await.unwrap();
    assert_eq!(ecr.token(&host()).await.unwrap(), first);
    let second = ecr.token_after(&host(), &first).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(ecr.token_after(&host(), &first).await.unwrap(), second, "it is replaced already");
    assert_eq!(aws.requests("GetAuthorizationToken"), 2);
}

#[tokio::test]
async fn unreachable_aws_is_reported_within_timeout() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let err = Ecr::at(&endpoint).token(&host()).await.unwrap_err();
    assert!(matches!(err, EcrError::Failed { .. }), "{err:?}");
}
