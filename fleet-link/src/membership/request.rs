//! One request to one gateway's control listener, on a connection of its own: requests are seconds
//! apart, and a fresh connection is never stale.

use crate::{connection::Connection, tls};
use bytes::Bytes;
use epsilon_api::{body, error::ErrorEnvelope, fleet::Join, redacted::Secret};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use std::{fmt, io, net::IpAddr, str::FromStr, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Time limit for a gateway's answer, its store query included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest answer in bytes: the keys of about a thousand gateways.
const ANSWER_SIZE: usize = 256 << 10;
/// Characters of a gateway's refusal that are logged.
const MAX_LOGGED: usize = 300;

/// The control address of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    is_tls: bool,
    host: String,
    port: u16,
}

/// Control addresses of gateways, at least one: URLs with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateways(Vec<Gateway>);

/// A text that is not such an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the URL of a gateway; write for example `http://10.0.0.4:8081`")]
pub struct BadGateway(String);

impl Gateways {
    pub(crate) fn as_slice(&self) -> &[Gateway] {
        &self.0
    }

    /// Whether one of them is at `https://`.
    pub fn need_tls(&self) -> bool {
        self.0.iter().any(|gateway| gateway.is_tls)
    }
}

impl FromStr for Gateways {
    type Err = BadGateway;
    fn from_str(text: &str) -> Result<Self, BadGateway> {
        text.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Gateway {
    type Err = BadGateway;
    fn from_str(text: &str) -> Result<Self, BadGateway> {
        let bad = || BadGateway(text.chars().filter(|c| !c.is_control()).take(80).collect());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let is_plain = uri.query().is_none() && matches!(uri.path(), "" | "/");
        let host = uri.host().filter(|host| !host.is_empty() && is_plain).ok_or_else(bad)?;
        // The rest of the authority is a port or nothing; user names and invalid ports are refused.
        let rest =
            uri.authority().and_then(|all| all.as_str().strip_prefix(host)).ok_or_else(bad)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| bad())?,
            None if rest.is_empty() => {
                if is_tls {
                    443
                } else {
                    80
                }
            }
            None => return Err(bad()),
        };
        Ok(Self { is_tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Why there is no answer: another gateway may have one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("`{gateway}`")]
    Unreachable {
        gateway: Gateway,
        #[source]
        source: io::Error,
    },
    #[error("`{gateway}` did not answer within {limit:?}")]
    Timeout { gateway: Gateway, limit: Duration },
    #[error("`{gateway}` answered {status}: {text}")]
    ServerError { gateway: Gateway, status: StatusCode, text: String },
    #[error("`{gateway}` is at an `https:")]
    NoTls { gateway: Gateway },
}

/// A gateway's answer.
pub(crate) struct Reply<T> {
    /// The answer, or status and text of the refusal.
    pub(crate) answer: Result<T, (StatusCode, String)>,
    /// The gateway's wall clock, from the header `date`: for gateways whose answer does not carry
    /// the clock of their tokens.
    pub(crate) date: Option<Timestamp>,
    /// Our local address on this connection.
    pub(crate) local: IpAddr,
}

/// A request to one gateway.
pub(crate) struct GatewayRequest<'a> {
    pub(crate) gateway: &'a Gateway,
    pub(crate) tls: Option<&'a tls::Client>,
    /// Last segment of the path, after `/v1/fleet/`.
    pub(crate) verb: &'a str,
    pub(crate) key: &'a Secret<String>,
}

/// The envelope of the control API.
#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

struct Raw {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    local: IpAddr,
}

impl GatewayRequest<'_> {
    /// Sends the request and reads the answer. `me` is given our local address on the connection.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        me: Option<&(dyn Fn(IpAddr) -> Join + Sync)>,
    ) -> Result<Reply<T>, RequestError> {
        let raw = self.exchange(me).await?;
        let date = raw.headers.get(header::DATE).and_then(|date| read_date(date.to_str().ok()?));
        let answer = if raw.status.is_success() {
            let read = serde_json::from_slice(&raw.body).map(|Data { data }| data);
            Ok(read.map_err(|err| self.unreachable(io::Error::other(err)))?)
        } else {
            Err((raw.status, error_message(&raw.body)))
        };
        Ok(Reply { answer, date, local: raw.local })
    }

    /// Deregisters. For a gateway that does not know this member there is nothing to do.
    pub(crate) async fn deregister(&self) -> Result<(), RequestError> {
        self.exchange(None).await.map(drop)
    }

    async fn exchange(
        &self,
        me: Option<&(dyn Fn(IpAddr) -> Join + Sync)>,
    ) -> Result<Raw, RequestError> {
        let gateway = self.gateway;
        let answered = timeout(ANSWER_TIMEOUT, self.serve_connection(me)).await.map_err(|_| {
            RequestError::Timeout { gateway: gateway.clone(), limit: ANSWER_TIMEOUT }
        })?;
        let raw = answered?;
        // The gateway's own error, such as an unavailable store or too many members.
        if raw.status.is_server_error() || raw.status == StatusCode::TOO_MANY_REQUESTS {
            let text = error_message(&raw.body);
            return Err(RequestError::ServerError {
                gateway: gateway.clone(),
                status: raw.status,
                text,
            });
        }
        Ok(raw)
    }

    fn unreachable(&self, source: io::Error) -> RequestError {
        RequestError::Unreachable { gateway: self.gateway.clone(), source }
    }

    async fn serve_connection(
        &self,
        me: Option<&(dyn Fn(IpAddr) -> Join + Sync)>,
    ) -> Result<Raw, RequestError> {
        let Gateway { is_tls, host, port } = self.gateway;
        let io = |source| self.unreachable(source);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, *port)).await.map_err(io)?;
        let local = stream.local_addr().map_err(io)?.ip();
        let connection = if *is_tls {
            let tls =
                self.tls.ok_or_else(|| RequestError::NoTls { gateway: self.gateway.clone() })?;
            Connection::handshake(tls.connect(host, stream).await.map_err(io)?).await
        } else {
            Connection::handshake(stream).await
        };
        let mut connection = connection.map_err(io)?;
        let text = match me {
            Some(me) => serde_json::to_string(&me(local)).map_err(|err| io(err.into()))?,
            None => String::new(),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/v1/fleet/{}", self.verb))
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.reveal()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(body::full(text))
            .map_err(|err| io(io::Error::other(err)))?;
        let response = connection
            .sender
            .send_request(request)
            .await
            .map_err(|err| io(io::Error::other(err)))?;
        let (head, incoming) = response.into_parts();
        let body = Limited::new(incoming, ANSWER_SIZE).collect().await;
        let body = body.map_err(|err| io(io::Error::other(err)))?.to_bytes();
        Ok(Raw { status: head.status, headers: head.headers, body, local })
    }
}

/// The message of an error body, in one line.
fn error_message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<ErrorEnvelope>(body) {
        Ok(ErrorEnvelope { error }) => match error.hint {
            Some(hint) => format!("{} ({hint})", error.message),
            None => error.message,
        },
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(MAX_LOGGED).collect()
}

/// Parses the header `date`.
fn read_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_urls_with_commas_between() {
        for (text, want) in [
            ("http://10.0.0.4:8081", Some("http://10.0.0.4:8081")),
            ("https://gateway.internal", Some("https://gateway.internal:443")),
            ("http://[::1]:8081/", Some("http://[::1]:8081")),
            ("http://a:1, http://b:2", Some("http://a:1 http://b:2")),
            ("", None),
            ("10.0.0.4:8081", None),
            ("http://a:1,", None),
            ("ftp://a:1", None),
            ("http://a:1/v1", None),
            ("http://a:99999", None),
            ("http://u@a:1", None),
            ("http://:1", None),
        ] {
            let read = text.parse::<Gateways>().ok().map(|gateways| {
                let all: Vec<_> = gateways.0.iter().map(ToString::to_string).collect();
                all.join(" ")
            });
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn dates_are_read_as_servers_write_them() {
        let read = read_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(read.to_string(), "1994-11-06T08:49:37Z");
        assert_eq!(read_date("yesterday"), None);
    }

    #[test]
    fn errors_are_shown_in_one_line() {
        let json = r#"{"error":{"type":"conflict","code":"X","message":"no","hint":"do","request_id":null}}"#;
        assert_eq!(error_message(json.as_bytes()), "no (do)");
        assert_eq!(error_message(b"<html>\n\x1b[31mno</html>"), "<html>[31mno</html>");
        assert_eq!(error_message(&[b'x'; 9000]).len(), MAX_LOGGED);
    }
}
