//! ECR by AWS's SDK: one client and one cached token for each region.

use super::{EcrError, EcrHost, Retention, Token, token, token::TokenCache};
use aws_config::{BehaviorVersion, Region, SdkConfig, timeout::TimeoutConfig};
use aws_sdk_ecr::{
    Client,
    config::Credentials,
    error::{ProvideErrorMetadata, SdkError},
};
use parking_lot::Mutex;
use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// Timeout of one AWS request, with the SDK's own retries.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// ECR in all regions that were used so far, with the credentials of this machine: its role on EC2,
/// else what AWS's own tools would find (environment, profile).
#[derive(Debug, Default)]
pub struct Ecr {
    /// Address of a fake, in tests; else `AWS_ENDPOINT_URL`, else AWS.
    endpoint: Option<String>,
    sdk: OnceCell<SdkConfig>,
    regions: Mutex<HashMap<String, Arc<InRegion>>>,
}

#[derive(Debug)]
struct InRegion {
    client: Client,
    token: TokenCache,
}

impl Ecr {
    /// Uses a fake at this address, with made-up credentials.
    pub fn at(endpoint: &str) -> Self {
        Self { endpoint: Some(endpoint.to_owned()), ..Self::default() }
    }

    /// A token for this registry: cached until half its life is over, and fetched once for all
    /// concurrent callers. While AWS provides no new one, the cached token is used as long as it is
    /// valid.
    ///
    /// # Errors
    /// The failed AWS request.
    pub async fn token(&self, host: &EcrHost) -> Result<Token, EcrError> {
        let region = self.region(host).await;
        region.token.get(fetch(&region.client)).await
    }

    /// A token other than `refused`, which the registry did not accept.
    ///
    /// # Errors
    /// The failed AWS request.
    pub async fn token_after(&self, host: &EcrHost, refused: &Token) -> Result<Token, EcrError> {
        let region = self.region(host).await;
        region.token.forget(refused).await;
        region.token.get(fetch(&region.client)).await
    }

    /// Creates the repository if it is missing, with a lifecycle policy that removes old images. An
    /// existing policy stays.
    ///
    /// # Errors
    /// The failed AWS request.
    pub async fn ensure_repository(
        &self,
        host: &EcrHost,
        name: &str,
        keep: &Retention,
    ) -> Result<(), EcrError> {
        let client = &self.region(host).await.client;
        let request =
            client.describe_repositories().registry_id(host.account()).repository_names(name);
        match request.send().await {
            Ok(_) => {}
            Err(err) if is(&err, "RepositoryNotFoundException") => {
                let made =
                    client.create_repository().registry_id(host.account()).repository_name(name);
                match made.send().await {
                    Ok(_) => {
                        tracing::info!(repository = name, host = %host, "ECR repository created.");
                    }
                    // Another builder was faster.
                    Err(err) if is(&err, "RepositoryAlreadyExistsException") => {}
                    Err(err) => return Err(to_ecr_error("CreateRepository", err)),
                }
            }
            Err(err) => return Err(to_ecr_error("DescribeRepositories", err)),
        }
        let policy =
            client.get_lifecycle_policy().registry_id(host.account()).repository_name(name);
        match policy.send().await {
            Ok(_) => return Ok(()),
            Err(err) if is(&err, "LifecyclePolicyNotFoundException") => {}
            Err(err) => return Err(to_ecr_error("GetLifecyclePolicy", err)),
        }
        let put = client.put_lifecycle_policy().registry_id(host.account()).repository_name(name);
        let put = put.lifecycle_policy_text(keep.policy());
        put.send().await.map_err(|err| to_ecr_error("PutLifecyclePolicy", err))?;
        Ok(())
    }

    async fn region(&self, host: &EcrHost) -> Arc<InRegion> {
        if let Some(known) = self.regions.lock().get(host.region()) {
            return Arc::clone(known);
        }
        let sdk = self.sdk.get_or_init(|| self.load()).await;
        let region = Region::new(host.region().to_owned());
        let config = aws_sdk_ecr::config::Builder::from(sdk).region(region).build();
        let fresh = InRegion { client: Client::from_conf(config), token: TokenCache::default() };
        let mut regions = self.regions.lock();
        Arc::clone(regions.entry(host.region().to_owned()).or_insert_with(|| Arc::new(fresh)))
    }

    async fn load(&self) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(ATTEMPT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(REQUEST_TIMEOUT)
            .build();
        // The region comes with each host; without one here, the SDK would search for it at start.
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .timeout_config(timeouts);
        if let Some(endpoint) = &self.endpoint {
            let made_up = Credentials::new("stand-in", "stand-in", None, None, "stand-in");
            loader = loader.endpoint_url(endpoint).credentials_provider(made_up);
        }
        loader.load().await
    }
}

async fn fetch(client: &Client) -> Result<token::Fresh, EcrError> {
    const ACTION: &str = "GetAuthorizationToken";
    let answer =
        client.get_authorization_token().send().await.map_err(|err| to_ecr_error(ACTION, err))?;
    let invalid = |what: &str| EcrError::Failed { action: ACTION, source: what.into() };
    let data =
        answer.authorization_data().first().ok_or_else(|| invalid("the answer holds no token"))?;
    let text = data.authorization_token().ok_or_else(|| invalid("the answer holds no token"))?;
    let token = token::read(text).ok_or_else(|| invalid("the token is not one"))?;
    let expires_at = data.expires_at().and_then(|at| jiff::Timestamp::from_second(at.secs()).ok());
    Ok(token::Fresh { token, life: token::life(expires_at, jiff::Timestamp::now()) })
}

fn is<E: ProvideErrorMetadata>(err: &SdkError<E>, code: &str) -> bool {
    err.as_service_error().and_then(ProvideErrorMetadata::code) == Some(code)
}

fn to_ecr_error<E>(action: &'static str, err: SdkError<E>) -> EcrError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    const DENIALS: [&str; 6] = [
        "AccessDeniedException",
        "AccessDenied",
        "UnrecognizedClientException",
        "InvalidSignatureException",
        "ExpiredTokenException",
        "InvalidClientTokenId",
    ];
    let is_denied = DENIALS.iter().any(|code| is(&err, code));
    let source = Box::new(err);
    if is_denied {
        EcrError::Denied { action, source }
    } else {
        EcrError::Failed { action, source }
    }
}
