//! `GET /v1/functions/{name}/logs`: lines of all VMs as newline-delimited JSON, stored ones first.
//! A line contains its VM and its position there; a client that reconnects sends the last position
//! of each VM (`after`) and gets the lines since.

use super::{
    Shared,
    error::ApiError,
    query::{InPath, Params},
};
use crate::fleet::Fleet;
use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use epsilon_api::{
    error::ErrorEnvelope,
    ids::{FunctionName, RequestId, VmId},
    log::{LogCursor, LogQuery, LogRecord},
};
use futures_util::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use http::{HeaderValue, Uri, header::CONTENT_TYPE};
use serde::Serialize;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Pause before a follower retries a VM that cannot be reached, and between two checks for new VMs.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// The log of a function.
///
/// Stored lines of all VMs, oldest first; with `follow` then new ones, until the client hangs up or
/// the gateway stops. A client that reconnects sends the last position of each VM as `after`.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/logs",
    operation_id = "logs",
    params(
        ("name" = FunctionName, Path, description = "The function."),
        ("follow" = Option<bool>, Query, nullable = false, description = "Go on with new lines."),
        ("request_id" = Option<RequestId>, Query, nullable = false, description = "Only lines of this call."),
        ("tail" = Option<u32>, Query, nullable = false, description = "At most this many of the newest stored lines."),
        ("after" = Option<Vec<String>>, Query, nullable = false, description = "Only lines after this one: its `vm` and `position`, joined by `:`. Once for each VM."),
    ),
    responses(
        (status = 200, description = "One record per line, as they arrive.", body = LogRecord, content_type = "application/x-ndjson"),
        (status = 404, description = "`FUNCTION_NOT_FOUND`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn stream(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let params = Params::read(&uri, &["follow", "request_id", "tail", "after"])?;
    let query = LogQuery {
        request_id: params.one("request_id")?,
        follow: params.one("follow")?.unwrap_or(false),
        tail: params.one("tail")?,
        after: None,
    };
    let cursors: Vec<LogCursor> = params.all("after")?;
    control.active(&name)?;
    let fleet = Arc::clone(&control.fleet);
    let records = vms(Arc::clone(&fleet), query.follow).map(move |vm| {
        let of_vm = cursors.iter().filter(|cursor| cursor.vm == vm);
        let after = of_vm.map(|cursor| cursor.position).max();
        let mut log = VmLog {
            fleet: Arc::clone(&fleet),
            vm,
            function: name.clone(),
            query: LogQuery { after, ..query.clone() },
            lines: stream::empty().boxed(),
        };
        log.open();
        log.read()
    });
    let close = control.close.clone().cancelled_owned();
    Ok(lines(records.flatten_unordered(None).take_until(close)))
}

/// The VMs of the fleet; when following, also those that join later.
fn vms(fleet: Arc<Fleet>, follow: bool) -> impl Stream<Item = VmId> + Send {
    let later = stream::unfold((), |()| async {
        sleep(POLL_EVERY).await;
        Some(((), ()))
    });
    let polls = stream::iter([()]).chain(later).take(if follow { usize::MAX } else { 1 });
    let mut seen = HashSet::new();
    let new = polls.map(move |()| {
        let ids = fleet.members().into_iter().map(|member| member.id.clone());
        stream::iter(ids.filter(|id| seen.insert(id.clone())).collect::<Vec<_>>())
    });
    new.flatten()
}

/// A function's log on one VM. When following, it resumes at the last position after the VM was
/// unreachable.
struct VmLog {
    fleet: Arc<Fleet>,
    vm: VmId,
    function: FunctionName,
    /// Its `after` is advanced to the last line read.
    query: LogQuery,
    lines: BoxStream<'static, LogRecord>,
}

impl VmLog {
    fn read(self) -> BoxStream<'static, LogRecord> {
        stream::unfold(self, |mut log| async move { log.next().await.map(|record| (record, log)) })
            .boxed()
    }

    async fn next(&mut self) -> Option<LogRecord> {
        loop {
            if let Some(record) = self.lines.next().await {
                self.query.after = record.position.or(self.query.after);
                return Some(LogRecord { vm: Some(self.vm.clone()), ..record });
            }
            if !self.query.follow {
                return None;
            }
            sleep(POLL_EVERY).await;
            self.open();
        }
    }

    fn open(&mut self) {
        if let Some(member) = self.fleet.member(&self.vm) {
            self.lines = member.vm.logs(&self.function, self.query.clone());
        }
    }
}

/// An answer of one JSON value per line, sent as they arrive.
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
