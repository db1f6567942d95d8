//! `epsilon invoke NAME`: calls a function like any caller, through the public listener. The
//! answer's body is streamed to standard output; errors of the platform become errors of this
//! program.

mod payload;
mod receipt;
mod sink;

use crate::{
    client::{self, Client, Trust},
    failure::Failure,
    globals::Globals,
    output,
};
use bytes::Bytes;
use clap::Args;
use console::style;
use epsilon_api::{
    error::{ErrorBody, ErrorEnvelope},
    headers::REQUEST_ID,
    ids::{InvalidId, VersionNumber},
};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use payload::Payload;
use receipt::Timing;
use reqwest::{Response, Url};
use serde::Serialize;
use sink::BodyOutput;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The function's own `timeout` ends a call; this is for a gateway that does not.
const CALL_WITHIN: Duration = Duration::from_secs(15 * 60);
/// Largest body parsed as an error: the platform's errors have some hundred bytes; a longer answer
/// is the function's own.
const ERROR_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// The function, or one version of it: NAME@3
    name: String,
    /// What to send: the text itself, @FILE, or @- for standard input
    #[arg(long, short, value_name = "DATA|@FILE")]
    data: Option<String>,
    /// The HTTP method [default: GET, or POST with --data]
    #[arg(long, short = 'X', value_name = "METHOD")]
    method: Option<Method>,
    /// A header to send (may be given several times)
    #[arg(long, short = 'H', value_name = "K:V", value_parser = parse_header)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// What follows the function's name in the address, with a query if wanted
    #[arg(long, value_name = "/PATH", default_value = "", hide_default_value = true)]
    path: String,
    /// Show status and headers before the body, and the timing
    #[arg(long, short)]
    include: bool,
    /// File for the answer's body instead of standard output (`-`: standard output, also for binary
    /// data)
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show status and timing on standard error; of a cold start, each phase
    #[arg(long)]
    timing: bool,
}

/// The `--json` output.
#[derive(Debug, Serialize)]
struct JsonAnswer {
    status: u16,
    took_ms: f64,
    /// Time spent by the platform, by phase, in milliseconds.
    timing_ms: BTreeMap<String, f64>,
    request_id: Option<String>,
    headers: BTreeMap<String, String>,
    /// The body as JSON if it is JSON, else as text; invalid UTF-8 is replaced.
    body: serde_json::Value,
}

impl Invoke {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let address = self.address(&Client::new(globals)?).await?;
        let url = self.url(&address)?;
        let within = globals.timeout.unwrap_or(CALL_WITHIN);
        // A balancer in front of functions may have a public certificate, or one of the gateway's
        // authority.
        let trust = globals.ca.as_deref().map_or(Trust::System, Trust::SystemAnd);
        let request = self.request(&url, trust).await?.timeout(within);
        let lost = |err: reqwest::Error| lost(&url, err);

        let began = Instant::now();
        let response = request.send().await.map_err(lost)?;
        let status = response.status();
        let headers = response.headers().clone();
        let mut body = Body::Coming(response);
        let mut error = None;
        if body.may_be_platform_error() {
            let bytes = body.whole().await.map_err(lost)?;
            error = platform_error(&bytes, &headers);
            if let Some(error) = error.as_mut().filter(|_| !globals.json) {
                error.message = format!("{} {}: {}", status.as_u16(), error.code, error.message);
            }
            body = Body::Whole(bytes);
        }

        if self.include && !globals.json {
            print_head(status, &headers)?;
        }
        if error.is_none() {
            if globals.json {
                let bytes = body.whole().await.map_err(lost)?;
                output::json(JsonAnswer::new(status, &headers, began.elapsed(), &bytes))?;
            } else {
                body.print(&mut BodyOutput::open(self.output.as_deref())?, lost).await?;
            }
        }
        if (self.timing || self.include) && !globals.json {
            let is_terminal = console::Term::stderr().is_term();
            let line = Timing::of(&headers).describe(status, began.elapsed(), is_terminal);
            eprintln!("{}", style(line).for_stderr().dim());
        }
        match error {
            Some(error) => Err(Failure::from(error)),
            None if status.is_server_error() => {
                let message = format!("`{}` answered with status {status}", self.name);
                Err(Failure::new("FUNCTION_STATUS", message))
            }
            None => Ok(()),
        }
    }

    /// URL of the function or of its version.
    async fn address(&self, client: &Client) -> Result<String, Failure> {
        let Some((name, version)) = self.name.split_once('@') else {
            return Ok(client.function(&self.name).await?.url);
        };
        let version: VersionNumber = version.parse().map_err(|err: InvalidId| {
            Failure::usage(format!("`{}` does not name a version", self.name)).with_cause(&err)
        })?;
        let versions = client.versions(name).await?;
        let found = versions.into_iter().find(|one| one.version == version);
        let missing = || {
            Failure::new("VERSION_NOT_FOUND", format!("`{name}` has no version {version}"))
                .hint(format!("`epsilon versions {name}` lists the versions that exist"))
        };
        Ok(found.ok_or_else(missing)?.url)
    }

    fn url(&self, function: &str) -> Result<Url, Failure> {
        let slash =
            if self.path.is_empty() || self.path.starts_with(['/', '?']) { "" } else { "/" };
        let text = format!("{function}{slash}{}", self.path);
        Url::parse(&text)
            .map_err(|err| Failure::usage(format!("`{text}` is not an address")).with_cause(&err))
    }

    async fn request(
        &self,
        url: &Url,
        trust: Trust<'_>,
    ) -> Result<reqwest::RequestBuilder, Failure> {
        let payload = match &self.data {
            Some(data) => Some(Payload::open(data).await?),
            None => None,
        };
        let usual = if payload.is_some() { Method::POST } else { Method::GET };
        let method = self.method.clone().unwrap_or(usual);
        let mut headers: HeaderMap = self.header.iter().cloned().collect();
        let mut request = client::http_client(url, trust)?.request(method, url.clone());
        if let Some(payload) = payload {
            let guessed = HeaderValue::from_static(payload.content_type());
            headers.entry(header::CONTENT_TYPE).or_insert(guessed);
            request = request.body(payload.into_body());
        }
        Ok(request.headers(headers))
    }
}

/// The answer's body: read already, or a stream.
enum Body {
    Whole(Bytes),
    Coming(Response),
}

impl Body {
    fn may_be_platform_error(&self) -> bool {
        let Self::Coming(response) = self else { return false };
        let kind = response.headers().get(header::CONTENT_TYPE);
        response.status().as_u16() >= 400
            && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
            && response.content_length().is_some_and(|length| length <= ERROR_MAX)
    }

    async fn whole(self) -> Result<Bytes, reqwest::Error> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Coming(response) => response.bytes().await,
        }
    }

    /// Streams it to `sink`. `lost` makes the error of a broken connection.
    async fn print(
        self,
        sink: &mut BodyOutput,
        lost: impl Fn(reqwest::Error) -> Failure,
    ) -> Result<(), Failure> {
        match self {
            Self::Whole(bytes) => sink.write(&bytes)?,
            Self::Coming(response) => {
                let mut pieces = response.bytes_stream();
                while let Some(piece) = pieces.next().await {
                    sink.write(&piece.map_err(&lost)?)?;
                }
            }
        }
        sink.end()
    }
}

impl JsonAnswer {
    fn new(status: StatusCode, headers: &HeaderMap, took: Duration, body: &[u8]) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            status: status.as_u16(),
            took_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
            timing_ms: Timing::of(headers).to_ms(),
            request_id: headers.get(REQUEST_ID).map(text),
            headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: serde_json::from_slice(body)
                .unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned().into()),
        }
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `Name: value`")?;
    let name = HeaderName::try_from(name.trim()).map_err(|err| err.to_string())?;
    let value = HeaderValue::try_from(value.trim()).map_err(|err| err.to_string())?;
    Ok((name, value))
}

/// The platform's own error contains the request id of the answer's header; a function that
/// imitates it has no reason to know that id.
fn platform_error(body: &[u8], headers: &HeaderMap) -> Option<ErrorBody> {
    let error = serde_json::from_slice::<ErrorEnvelope>(body).ok()?.error;
    let id = error.request_id.as_ref()?;
    (headers.get(REQUEST_ID)?.as_bytes() == id.as_str().as_bytes()).then_some(error)
}

fn print_head(status: StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
    output::line(&format!("HTTP/1.1 {status}"))?;
    for (name, value) in headers {
        output::line(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))?;
    }
    output::line("")
}

fn lost(url: &Url, err: reqwest::Error) -> Failure {
    let at = url.origin().ascii_serialization();
    if err.is_timeout() {
        return Failure::new("TIMEOUT", format!("{at} did not answer in time"))
            .hint("wait longer with `--timeout 1h`");
    }
    let what = if err.is_connect() { "cannot be reached" } else { "broke the connection" };
    Failure::new("CONNECTION_LOST", format!("{at} {what}"))
        .with_cause(&err.without_url())
        .hint("this is the gateway's address for calls; check that it can be reached from here")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_error_needs_the_calls_own_id() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("0123456789abcdef"));
        let error = |id: &str| {
            let id = id.to_owned();
            format!(
                r#"{{"error":{{"type":"x","code":"X","message":"m","hint":null,"request_id":"{id}"}}}}"#
            )
        };
        assert!(platform_error(error("0123456789abcdef").as_bytes(), &headers).is_some());
        assert!(platform_error(error("another-call-1").as_bytes(), &headers).is_none());
        assert!(platform_error(br#"{"error":"mine"}"#, &headers).is_none());
    }
}
