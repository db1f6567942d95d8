//! Which requests of the control API are changes: each is logged and counted, whatever its result
//! (`observe/audit.rs`). Reads are not.

use super::{
    Control,
    auth::{KeyId, Peer},
};
use crate::observe::audit::{Action, ChangeRequested};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use epsilon_api::ids::DeploymentId;
use http::{Method, StatusCode};
use std::{net::IpAddr, sync::Arc};

/// Longest part of a path that is logged.
const MAX_PATH: usize = 200;

/// Longest logged part of a key's path: as much as an id needs.
const KEY_PATH_LEN: usize = "/v1/keys/0123456789ab".len();

/// A deployment that began with the request; an answer that has one says so.
#[derive(Clone, Debug)]
pub(super) struct Began(pub(super) DeploymentId);

/// Runs an authenticated request and audits it if it is a change.
pub(super) async fn record(
    State(control): State<Arc<Control>>,
    matched: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let Some(action) = action(request.method(), matched.as_str()) else {
        return next.run(request).await;
    };
    // If the client sends a key's whole text in place of its id, the secret is not logged.
    let length = if action == Action::RemoveKey { KEY_PATH_LEN } else { MAX_PATH };
    let path: String = request.uri().path().chars().take(length).collect();
    let (Some(KeyId(key)), Some(Peer { address: peer, .. })) =
        (request.extensions().get().cloned(), request.extensions().get().copied())
    else {
        return next.run(request).await;
    };
    let mut record =
        Record { control: Arc::clone(&control), action, path, key, peer, answer: None };
    let response = next.run(request).await;
    let began = response.extensions().get().map(|Began(id)| id.to_string());
    record.answer = Some((response.status(), began));
    response
}

/// Emitted when it is dropped: if the client hangs up there is no answer, although the change may
/// run to its end.
struct Record {
    control: Arc<Control>,
    action: Action,
    path: String,
    key: String,
    peer: IpAddr,
    answer: Option<(StatusCode, Option<String>)>,
}

impl Drop for Record {
    fn drop(&mut self) {
        let (status, began) = self.answer.take().unzip();
        let Self { action, path, key, peer, .. } = self;
        let deployment = began.flatten();
        ChangeRequested {
            action: *action,
            path,
            key,
            peer: *peer,
            status,
            deployment: deployment.as_deref(),
        }
        .emit(&self.control.audit);
    }
}

fn action(method: &Method, path: &str) -> Option<Action> {
    let last = path.rsplit('/').next()?;
    match (method.as_str(), last) {
        ("DELETE", "{number}") => Some(Action::Retire),
        ("DELETE", "{key}") => Some(Action::RemoveKey),
        ("DELETE", "{name}") => Some(Action::Delete),
        ("POST", "deployments") => Some(Action::Deploy),
        ("POST", "rollback") => Some(Action::Rollback),
        ("POST", "promote") => Some(Action::Promote),
        ("POST", "traffic") => Some(Action::Split),
        ("POST", "drain") => Some(Action::Drain),
        ("POST", "undrain") => Some(Action::Undrain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_distinguished_from_reads() {
        for (method, path, want) in [
            (Method::POST, "/v1/deployments", Some(Action::Deploy)),
            (Method::GET, "/v1/deployments", None),
            (Method::DELETE, "/v1/functions/{name}", Some(Action::Delete)),
            (Method::DELETE, "/v1/functions/{name}/versions/{number}", Some(Action::Retire)),
            (Method::DELETE, "/v1/keys/{key}", Some(Action::RemoveKey)),
            (Method::DELETE, "/v1/vms/{id}", None),
            (Method::GET, "/v1/functions/{name}/traffic", None),
            (Method::POST, "/v1/functions/{name}/traffic", Some(Action::Split)),
            (Method::POST, "/v1/vms/{id}/undrain", Some(Action::Undrain)),
        ] {
            assert_eq!(action(&method, path), want, "{method} {path}");
        }
    }
}
