//! The instance's own metadata service on EC2 (IMDSv2): the VM's instance id, and notices of its
//! end. Not for credentials: the SDK fetches those itself. Used by the agent.
//!
//! A client of its own instead of the SDK's, because it has to give up quickly where there is no
//! such service, and because it is only two requests: `PUT` for a token, `GET` with it.

#[cfg(feature = "fake")]
pub mod fake;
mod notice;

pub use notice::Notice;

use bytes::Bytes;
use epsilon_api::chain::Chain;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use notice::Seen;
use std::{collections::VecDeque, env, fs, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

/// Interval for [`Imds::watch`], as AWS recommends. A spot VM has two minutes from its notice on.
pub const POLL_EVERY: Duration = Duration::from_secs(5);
/// Timeout of [`Imds::find`] on machines that may not be EC2: packets to the service's address
/// often vanish there, and an agent's start should not wait for them.
const FIND_TIMEOUT: Duration = Duration::from_secs(1);
/// The same on a machine whose firmware says that it is EC2: the service exists there, though it
/// may be slow while the machine boots, and a VM without its instance id would join under another
/// name.
const FIND_TIMEOUT_ON_EC2: Duration = Duration::from_secs(20);
/// Pause between two attempts of [`Imds::find`].
const PAUSE: Duration = Duration::from_millis(200);
/// Timeout of one request. The service is on the host below.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Requested life of a token: the longest that the service allows.
const TOKEN_LIFE: Duration = Duration::from_secs(21_600);
/// Size limit of an answer in bytes: a line or a small document.
const MAX_ANSWER_SIZE: usize = 16 << 10;
/// The service's address, unless `AWS_EC2_METADATA_SERVICE_ENDPOINT` is set.
const ENDPOINT: &str = "http://169.254.169.254";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// A metadata service that has answered.
#[derive(Clone, Debug)]
pub struct Imds {
    service: Arc<Service>,
    instance_id: Arc<str>,
}

#[derive(Debug)]
struct Service {
    /// Without a trailing `/`.
    endpoint: String,
    client: Client<HttpConnector, Full<Bytes>>,
    token: Mutex<Option<Token>>,
}

#[derive(Debug)]
struct Token {
    value: HeaderValue,
    renew_at: Instant,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the metadata service cannot be reached")]
    Unreachable(#[source] hyper_util::client::legacy::Error),
    #[error("the metadata service broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the metadata service did not answer within {0:?}")]
    Silent(Duration),
    #[error("the metadata service answered {0}")]
    Status(StatusCode),
    #[error("the address of the metadata service is wrong")]
    Address(#[from] http::Error),
}

impl Imds {
    /// The metadata service of this machine; `None` where there is none. Takes at most a second off
    /// EC2. Honours `AWS_EC2_METADATA_DISABLED` and `AWS_EC2_METADATA_SERVICE_ENDPOINT`, as AWS's
    /// own tools.
    pub async fn find() -> Option<Self> {
        let is_off =
            env::var("AWS_EC2_METADATA_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
        if is_off {
            return None;
        }
        let endpoint = env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let find_timeout =
            if endpoint.is_ok() || is_ec2() { FIND_TIMEOUT_ON_EC2 } else { FIND_TIMEOUT };
        Self::find_at(endpoint.as_deref().unwrap_or(ENDPOINT), find_timeout).await
    }

    /// The metadata service at `endpoint`; `None` when it does not answer within `find_timeout`.
    pub async fn find_at(endpoint: &str, find_timeout: Duration) -> Option<Self> {
        let service = Service::at(endpoint);
        let request = async {
            loop {
                match service.get("instance-id").await {
                    Ok(Some(id)) => return Some(id),
                    // A server answers, but it is not EC2's service.
                    Ok(None) => return None,
                    Err(failure) => {
                        tracing::debug!(error = %Chain(&failure), "Metadata service provides no instance id; trying again.");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        let id = timeout(find_timeout, request).await.ok()??;
        let id = id.trim();
        let is_id = id.len() <= 63 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if id.is_empty() || !is_id {
            tracing::warn!("Instance id of the metadata service is invalid; ignoring it.");
            return None;
        }
        Some(Self { instance_id: id.into(), service: Arc::new(service) })
    }

    /// This VM's instance id, `i-…`: the same as long as the VM exists.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// Notices of the end of this VM: polls at this interval, as long as the stream is read. Each
    /// notice comes once, although the service repeats it, and again only after it was withdrawn. A
    /// request that fails is repeated at the next poll.
    pub fn watch(&self, every: Duration) -> BoxStream<'static, Notice> {
        let mut polls = interval(every);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Watch {
            service: Arc::clone(&self.service),
            polls,
            seen: Seen::default(),
            pending: VecDeque::new(),
            is_failing: false,
        };
        stream::unfold(watch, |mut watch| async move {
            let notice = watch.next().await;
            Some((notice, watch))
        })
        .boxed()
    }
}

struct Watch {
    service: Arc<Service>,
    polls: tokio::time::Interval,
    seen: Seen,
    /// Found in the last poll and not returned yet.
    pending: VecDeque<Notice>,
    is_failing: bool,
}

impl Watch {
    async fn next(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.pending.pop_front() {
                return notice;
            }
            self.polls.tick().await;
            self.poll().await;
        }
    }

    async fn poll(&mut self) {
        let mut failure = None;
        for source in notice::SOURCES {
            match self.service.get(source.path()).await {
                Ok(text) => self.pending.extend(self.seen.update(source, text.as_deref())),
                Err(err) => failure = Some(err),
            }
        }
        match failure {
            Some(failure) if !self.is_failing => {
                tracing::warn!(error = %Chain(&failure), "Metadata service does not answer; polling on.");
                self.is_failing = true;
            }
            Some(_) => {}
            None => self.is_failing = false,
        }
    }
}

impl Service {
    fn at(endpoint: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(REQUEST_TIMEOUT));
        // No idle connections: three requests each five seconds are not worth the races of pooled
        // ones.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { endpoint, client, token: Mutex::default() }
    }

    /// Gets one path under `meta-data`; `None` when it does not exist (404). Retries once with a
    /// new token when the service does not accept ours any more.
    async fn get(&self, path: &str) -> Result<Option<String>, Failure> {
        let path = format!("/latest/meta-data/{path}");
        for is_last in [false, true] {
            let token = self.token().await?;
            let mut request = self.request(Method::GET, &path)?;
            request.headers_mut().insert(TOKEN_HEADER, token);
            let (status, _, body) = self.ask(request).await?;
            match status {
                StatusCode::OK => return Ok(Some(String::from_utf8_lossy(&body).into_owned())),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !is_last => *self.token.lock().await = None,
                other => return Err(Failure::Status(other)),
            }
        }
        Err(Failure::Status(StatusCode::UNAUTHORIZED))
    }

    /// A token; renewed at half its life.
    async fn token(&self) -> Result<HeaderValue, Failure> {
        let mut cached = self.token.lock().await;
        if let Some(token) = cached.as_ref().filter(|token| Instant::now() < token.renew_at) {
            return Ok(token.value.clone());
        }
        let mut request = self.request(Method::PUT, "/latest/api/token")?;
        request.headers_mut().insert(TTL_HEADER, HeaderValue::from(TOKEN_LIFE.as_secs()));
        let (status, headers, body) = self.ask(request).await?;
        if status != StatusCode::OK {
            return Err(Failure::Status(status));
        }
        let mut value = HeaderValue::from_bytes(&body).map_err(http::Error::from)?;
        value.set_sensitive(true);
        // Some fakes do not say how long; then it is what was requested, and a 401 corrects it.
        let life = headers
            .get(TTL_HEADER)
            .and_then(|ttl| ttl.to_str().ok()?.parse().ok())
            .map_or(TOKEN_LIFE, Duration::from_secs);
        *cached = Some(Token {
            value: value.clone(),
            renew_at: Instant::now() + life.min(TOKEN_LIFE) / 2,
        });
        Ok(value)
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let uri: Uri = format!("{}{path}", self.endpoint).parse().map_err(http::Error::from)?;
        Ok(Request::builder().method(method).uri(uri).body(Full::default())?)
    }

    async fn ask(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, http::HeaderMap, Bytes), Failure> {
        let request = async {
            let answer = self.client.request(request).await.map_err(Failure::Unreachable)?;
            let (head, body) = answer.into_parts();
            let body =
                Limited::new(body, MAX_ANSWER_SIZE).collect().await.map_err(Failure::Broken)?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        timeout(REQUEST_TIMEOUT, request).await.unwrap_or(Err(Failure::Silent(REQUEST_TIMEOUT)))
    }
}

/// Whether the firmware says EC2. Without firmware data (containers, other systems) it is not.
fn is_ec2() -> bool {
    fs::read_to_string("/sys/class/dmi/id/sys_vendor")
        .is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}
