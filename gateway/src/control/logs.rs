//! `GET /v1/functions/{name}/logs`: lines of all VMs as newline-delimited JSON, kept ones first.

use super::{
    Shared,
    error::ApiError,
    query::{InPath, Params},
};
use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use epsilon_api::{ids::FunctionName, log::LogQuery};
use futures_util::{Stream, StreamExt, stream::select_all};
use http::{HeaderValue, Uri, header::CONTENT_TYPE};
use serde::Serialize;

/// See the module. With `follow=true` it ends when the client hangs up or the gateway stops.
pub(super) async fn stream(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let params = Params::read(&uri, &["follow", "request_id", "tail"])?;
    let query = LogQuery {
        request_id: params.one("request_id")?,
        follow: params.one("follow")?.unwrap_or(false),
        tail: params.one("tail")?,
    };
    control.active(&name)?;
    let members = control.fleet.members();
    let streams = members.iter().map(|member| member.vm.logs(&name, query.clone()));
    let records = select_all(streams).take_until(control.close.clone().cancelled_owned());
    Ok(lines(records))
}

/// An answer of one JSON text per line, sent as they come.
pub(super) fn lines<T>(items: impl Stream<Item = T> + Send + 'static) -> Response
where
    T: Serialize + 'static,
{
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    ([(CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response()
}
