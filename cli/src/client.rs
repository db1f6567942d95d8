//! Client of the control API: one method per request, answers as types of `epsilon_api::admin`,
//! every error a [`Failure`] with a hint for the person.

mod connect;
mod lines;

pub(crate) use connect::{Trust, http_client};
pub(crate) use lines::{JsonLines, LineError};

use crate::{data_dir, failure::Failure, globals::Globals, output};
use epsilon_api::{
    admin::{BuilderInfo, Data, FunctionInfo, KeyInfo, RollbackRequest, VersionInfo, VmInfo},
    autoscaler::AutoscalerInfo,
    error::ErrorEnvelope,
    headers::{CONTROL, LISTENER},
    ids::{FunctionName, KeyId, RequestId, VersionNumber, VmId},
    log::LogCursor,
    redacted::Secret,
    suggest::nearest,
    traffic::{PromoteRequest, TrafficInfo, TrafficRequest},
};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Body, RequestBuilder, Response, Url};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{path::PathBuf, time::Duration};
use tokio::sync::OnceCell;

/// Default address of `epsilon up`'s control API.
const DEFAULT_GATEWAY: &str = "http://127.0.0.1:8081";
/// Timeout of plain requests; a rollback or a delete may wait for instances.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Upper bound for the pages of a list, against a server that is not a gateway.
const PAGES_MAX: usize = 10_000;

/// A gateway's health report while it starts.
#[derive(Debug, Deserialize)]
struct Starting {
    status: String,
    step: String,
}

/// A client of one gateway's control API.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    /// File of the authorities trusted for `base`.
    ca: Option<PathBuf>,
    key: Option<Secret<String>>,
    /// Path of the key file and the error of reading it, if no key was found.
    key_missing: Option<(PathBuf, std::io::Error)>,
    answer_within: Duration,
    /// Set once `base` has proved to be a control listener.
    probed: OnceCell<()>,
}

impl Client {
    /// A client for the gateway named by flags, environment or data folder. Sends nothing yet.
    pub(crate) fn new(globals: &Globals) -> Result<Self, Failure> {
        let data = data_dir::locate(globals.data_dir.as_deref())?;
        let (address, authority) = match &globals.gateway {
            Some(address) => (Some(address.clone()), None),
            None => {
                data_dir::holder(&data).map_or((None, None), |one| (one.control, one.authority))
            }
        };
        let base = parse_base(address.as_deref().unwrap_or(DEFAULT_GATEWAY))?;
        let ca = globals.ca.clone().or(authority);
        let (key, key_missing) = match &globals.key {
            Some(key) => (Some(key.clone()), None),
            None => match data_dir::admin_key(&data) {
                Ok(key) => (Some(key), None),
                Err(err) => (None, Some((data.join("admin.key"), err))),
            },
        };
        let answer_within = globals.timeout.unwrap_or(ANSWER_WITHIN);
        let http = http_client(&base, ca.as_deref().map_or(Trust::System, Trust::Only))?;
        let probed = OnceCell::new();
        Ok(Self { http, base, ca, key, key_missing, answer_within, probed })
    }

    /// All functions, by name.
    pub(crate) async fn functions(&self) -> Result<Vec<FunctionInfo>, Failure> {
        self.list(&["functions"]).await
    }

    /// One function.
    pub(crate) async fn function(&self, name: &str) -> Result<FunctionInfo, Failure> {
        let answer = self.ask(Method::GET, &["functions", name], None::<&()>).await;
        self.or_nearest_function(name, answer).await
    }

    /// The versions of a function, newest first.
    pub(crate) async fn versions(&self, name: &str) -> Result<Vec<VersionInfo>, Failure> {
        let answer = self.list(&["functions", name, "versions"]).await;
        self.or_nearest_function(name, answer).await
    }

    /// Removes one version.
    pub(crate) async fn retire(
        &self,
        name: &str,
        version: VersionNumber,
    ) -> Result<VersionInfo, Failure> {
        let path = ["functions", name, "versions", &version.to_string()];
        let answer = self.ask(Method::DELETE, &path, None::<&()>).await;
        self.or_nearest_function(name, answer).await
    }

    /// Makes an older version the active one.
    pub(crate) async fn rollback(
        &self,
        name: &str,
        version: Option<VersionNumber>,
    ) -> Result<FunctionInfo, Failure> {
        let body = RollbackRequest { version };
        let answer = self.ask(Method::POST, &["functions", name, "rollback"], Some(&body)).await;
        self.or_nearest_function(name, answer).await
    }

    /// How the calls of a function are routed.
    pub(crate) async fn traffic(&self, name: &str) -> Result<TrafficInfo, Failure> {
        let answer = self.ask(Method::GET, &["functions", name, "traffic"], None::<&()>).await;
        self.or_nearest_function(name, answer).await
    }

    /// Splits the calls of a function.
    pub(crate) async fn split(
        &self,
        name: &str,
        request: &TrafficRequest,
    ) -> Result<TrafficInfo, Failure> {
        let answer = self.ask(Method::POST, &["functions", name, "traffic"], Some(request)).await;
        self.or_nearest_function(name, answer).await
    }

    /// Routes all calls to one version.
    pub(crate) async fn promote(
        &self,
        name: &str,
        version: Option<VersionNumber>,
    ) -> Result<FunctionInfo, Failure> {
        let body = PromoteRequest { version };
        let answer = self.ask(Method::POST, &["functions", name, "promote"], Some(&body)).await;
        self.or_nearest_function(name, answer).await
    }

    /// Removes a function.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let request =
            self.request(Method::DELETE, &["functions", name]).timeout(self.answer_within);
        let answer = self.send(request).await.map(drop);
        self.or_nearest_function(name, answer).await
    }

    /// The function's log, line by line. Ends after the stored lines, unless `follow`.
    pub(crate) async fn logs(
        &self,
        name: &str,
        follow: bool,
        request: Option<&RequestId>,
        tail: Option<usize>,
        after: impl Iterator<Item = LogCursor>,
    ) -> Result<JsonLines, Failure> {
        let mut builder = self.request(Method::GET, &["functions", name, "logs"]);
        builder = builder.query(&[("follow", follow)]);
        if let Some(id) = request {
            builder = builder.query(&[("request_id", id.as_str())]);
        }
        if let Some(tail) = tail {
            builder = builder.query(&[("tail", tail)]);
        }
        for cursor in after {
            builder = builder.query(&[("after", cursor.to_string())]);
        }
        let answer = self.send(builder).await;
        Ok(JsonLines::new(self.or_nearest_function(name, answer).await?))
    }

    /// Pushes a project; the answer is the deployment's progress.
    pub(crate) async fn deploy(
        &self,
        folder: Option<&str>,
        only: &[FunctionName],
        archive: Body,
    ) -> Result<JsonLines, Failure> {
        let mut builder = self.request(Method::POST, &["deployments"]);
        if let Some(folder) = folder {
            builder = builder.query(&[("folder", folder)]);
        }
        for name in only {
            builder = builder.query(&[("only", name.as_str())]);
        }
        let builder = builder.header(header::CONTENT_TYPE, "application/gzip").body(archive);
        Ok(JsonLines::new(self.send(builder).await?))
    }

    /// Deploys images built elsewhere; the answer is the deployment's progress.
    pub(crate) async fn deploy_built(
        &self,
        only: &[FunctionName],
        document: String,
    ) -> Result<JsonLines, Failure> {
        let mut builder = self.request(Method::POST, &["deployments"]);
        for name in only {
            builder = builder.query(&[("only", name.as_str())]);
        }
        let builder = builder.header(header::CONTENT_TYPE, "application/json").body(document);
        Ok(JsonLines::new(self.send(builder).await?))
    }

    /// The VMs.
    pub(crate) async fn vms(&self) -> Result<Vec<VmInfo>, Failure> {
        self.list(&["vms"]).await
    }

    /// The builders.
    pub(crate) async fn builders(&self) -> Result<Vec<BuilderInfo>, Failure> {
        self.list(&["builders"]).await
    }

    /// The keys of gateways.
    pub(crate) async fn keys(&self) -> Result<Vec<KeyInfo>, Failure> {
        self.list(&["keys"]).await
    }

    /// Removes one of them.
    pub(crate) async fn remove_key(&self, id: &KeyId, force: bool) -> Result<KeyInfo, Failure> {
        let mut request = self.request(Method::DELETE, &["keys", id.as_str()]);
        if force {
            request = request.query(&[("force", true)]);
        }
        let answer = self.send(request.timeout(self.answer_within)).await?;
        let answer: Data<KeyInfo> = self.json(answer).await?;
        Ok(answer.data)
    }

    /// How many VMs are wanted, and why.
    pub(crate) async fn autoscaler(&self) -> Result<AutoscalerInfo, Failure> {
        self.ask(Method::GET, &["autoscaler"], None::<&()>).await
    }

    /// Starts (`drain`) or ends (`undrain`) a drain.
    pub(crate) async fn drain(&self, vm: &VmId, draining: bool) -> Result<(), Failure> {
        let verb = if draining { "drain" } else { "undrain" };
        let request = self.request(Method::POST, &["vms", vm.as_str(), verb]);
        match self.send(request.timeout(self.answer_within)).await {
            Err(failure) if failure.code() == "VM_NOT_FOUND" => {
                let vms = self.vms().await.unwrap_or_default();
                Err(failure.hint(did_you_mean(
                    vm.as_str(),
                    vms.iter().map(|vm| vm.status.id.as_str()),
                    "vms",
                )))
            }
            other => other.map(drop),
        }
    }

    async fn list<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut request = self.request(Method::GET, path).timeout(self.answer_within);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let page: Data<Vec<T>> = self.json(self.send(request).await?).await?;
            all.extend(page.data);
            cursor = page.pagination.filter(|page| page.has_more).and_then(|page| page.next_cursor);
            if cursor.is_none() {
                break;
            }
        }
        Ok(all)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let mut request = self.request(method, path).timeout(self.answer_within);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer: Data<T> = self.json(self.send(request).await?).await?;
        Ok(answer.data)
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let request = self.http.request(method, url);
        match self.key.as_ref().and_then(|key| bearer(key.reveal())) {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    /// The first request carries no key, because the server may be any. On the same connection as
    /// the following ones.
    async fn probe(&self) -> Result<(), Failure> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("healthz");
        }
        let answered = self.http.get(url).timeout(self.answer_within).send().await;
        let response = answered.map_err(|err| self.unreachable(err))?;
        let is_control = response.headers().get(LISTENER) == Some(&CONTROL);
        let status = response.status();
        let body = response.bytes().await.map_err(|err| self.unreachable(err))?;
        if !is_control {
            return Err(self.not_control(status, &body));
        }
        // Other problems are reported by the request itself.
        match serde_json::from_slice::<Data<Starting>>(&body) {
            Ok(Data { data, .. }) if data.status == "starting" => Err(self.not_ready(&data.step)),
            _ => Ok(()),
        }
    }

    /// The gateway listens and does not serve yet.
    fn not_ready(&self, step: &str) -> Failure {
        let at = self.base.as_str().trim_end_matches('/');
        let message = format!("the gateway at {at} is starting: {step}");
        Failure::new("STARTING", output::visible(&message)).hint(
            "try again in a moment; a first start makes the runtime base, which takes minutes",
        )
    }

    /// Another server answered, or the listener refused the connection before reading a request.
    fn not_control(&self, status: StatusCode, body: &[u8]) -> Failure {
        let rest = self.base.as_str().trim_end_matches('/').strip_prefix("http:");
        match (serde_json::from_slice::<ErrorEnvelope>(body), rest) {
            (Ok(envelope), Some(rest)) if envelope.error.code == "TLS_REQUIRED" => {
                Failure::from(envelope).hint(format!("use `--gateway https:{rest}`"))
            }
            _ => self.not_a_gateway(&format!("status {status}")),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        self.probed.get_or_try_init(|| self.probe()).await?;
        let response = request.send().await.map_err(|err| self.unreachable(err))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response).await)
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let bytes = response.bytes().await.map_err(|err| self.unreachable(err))?;
        serde_json::from_slice(&bytes)
            .map_err(|err| self.not_a_gateway("this version").with_cause(&err))
    }

    /// The error of a status other than 2xx.
    async fn refused(&self, response: Response) -> Failure {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let Ok(envelope) = serde_json::from_slice::<ErrorEnvelope>(&body) else {
            return self.not_a_gateway(&format!("status {status}"));
        };
        let failure = Failure::from(envelope);
        match (&self.key_missing, status) {
            (Some((path, err)), StatusCode::UNAUTHORIZED) => failure.hint(format!(
                "no key: `{}` cannot be read ({err}); run this as the user who runs `epsilon up`, name \
                 its `--data-dir`, or pass `--key KEY`",
                path.display()
            )),
            (None, StatusCode::UNAUTHORIZED) => failure.hint(
                "the key is not this gateway's; it is in `admin.key` in the data folder of `epsilon up` or of the gateway",
            ),
            _ => failure,
        }
    }

    /// The error of a request without an answer.
    pub(crate) fn unreachable(&self, err: reqwest::Error) -> Failure {
        let at = self.base.as_str().trim_end_matches('/');
        if let Some(failure) = connect::tls_failure(&err, &self.base, self.ca.as_deref()) {
            failure
        } else if err.is_connect()
            && connect::is_loopback(&self.base)
            && self.base.scheme() == "http"
        {
            Failure::new("NOT_RUNNING", format!("`epsilon up` is not running at {at}")).hint(
                "start it with `epsilon up`, or point elsewhere with `--gateway URL` or EPSILON_GATEWAY",
            )
        } else if err.is_connect() {
            Failure::new("NOT_RUNNING", format!("no gateway can be reached at {at}"))
                .with_cause(&err.without_url())
                .hint("is it the control address (`--gateway URL`, EPSILON_GATEWAY), and reachable from here?")
        } else if err.is_timeout() {
            Failure::new("TIMEOUT", format!("no answer from {at} in time"))
                .hint("wait longer with `--timeout 5m`")
        } else {
            let hint = match self.base.scheme() {
                "http" => {
                    "check that the gateway still runs, then try again; if it uses TLS, use `https://`"
                }
                _ => "check that the gateway still runs, then try again",
            };
            Failure::new("CONNECTION_LOST", format!("the connection to {at} broke"))
                .with_cause(&err.without_url())
                .hint(hint)
        }
    }

    fn not_a_gateway(&self, what: &str) -> Failure {
        let at = self.base.as_str().trim_end_matches('/');
        Failure::new("NOT_EPSILON", format!("{at} did not answer like a gateway ({what})")).hint(
            "`--gateway` takes the control address (by default port 8081), not the one for calls; a gateway of an earlier \
             release has to be upgraded before this program",
        )
    }

    /// Adds the nearest existing name when the function does not exist.
    async fn or_nearest_function<T>(
        &self,
        name: &str,
        answer: Result<T, Failure>,
    ) -> Result<T, Failure> {
        match answer {
            Err(failure) if failure.code() == "FUNCTION_NOT_FOUND" => {
                let known = self.functions().await.unwrap_or_default();
                let names = known.iter().map(|function| function.name.as_str());
                Err(failure.hint(did_you_mean(name, names, "functions")))
            }
            other => other,
        }
    }
}

fn did_you_mean<'a>(given: &str, known: impl Iterator<Item = &'a str>, verb: &str) -> String {
    match nearest(given, known) {
        Some(name) => format!("did you mean `{name}`? `epsilon {verb}` lists all"),
        None => format!("`epsilon {verb}` lists them"),
    }
}

fn bearer(key: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn parse_base(address: &str) -> Result<Url, Failure> {
    let text =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let wrong = |why: &str| {
        Failure::usage(format!("`{address}` is not a control address: {why}"))
            .hint(format!("write it like {DEFAULT_GATEWAY}"))
    };
    let url = Url::parse(&text).map_err(|err| wrong(&err.to_string()))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(wrong(&format!("`{other}` is not a supported protocol"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_address_is_a_url() {
        assert_eq!(parse_base("10.0.0.7:8081").unwrap().as_str(), "http://10.0.0.7:8081/");
        assert_eq!(parse_base("https://x").unwrap().as_str(), "https://x/");
        assert!(parse_base("unix://x").is_err());
    }

    #[test]
    fn names_near_and_far() {
        assert!(did_you_mean("helo", ["hello"].into_iter(), "functions").contains("`hello`"));
        assert!(!did_you_mean("pay", ["hello"].into_iter(), "functions").contains("hello"));
    }
}
