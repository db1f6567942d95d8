//! Who may use the control API: the holder of the admin key, compared by its hash in constant time.
//! Who may act for a member of the fleet: a holder of its key that also connects from this machine
//! or shows a certificate of the fleet's authority, if TLS is set up.

use super::{
    Shared,
    error::{self, ApiError},
};
use crate::{
    functions::actor::{Actor, KeyHolder},
    keys,
    observe::audit::{Entrance, KeyRefused},
};
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::Response,
};
use epsilon_http_server::Certificate;
use epsilon_store::KeyRole;
use http::{HeaderMap, StatusCode, header::AUTHORIZATION, request::Parts};
use std::net::IpAddr;

/// Admits requests with the admin key.
pub(super) async fn require_key(
    State(control): Shared,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(key) = bearer(request.headers()) else {
        return Err(refused("the control API requires `Authorization: Bearer <key>`"));
    };
    let id = keys::id_of(key);
    if control.api_keys.role(key).await? != Some(KeyRole::Admin) {
        if let Some(Peer { address: peer, .. }) = request.extensions().get().copied() {
            KeyRefused { entrance: Entrance::Control, key: id, peer }.emit(&control.audit);
        }
        return Err(refused("this key is not valid for the control API"));
    }
    if let Some(id) = id.map(str::to_owned) {
        request.extensions_mut().insert(KeyId(id));
    }
    Ok(next.run(request).await)
}

/// The id of the request's valid key.
#[derive(Clone, Debug)]
pub(super) struct KeyId(pub(super) String);

/// Where a request comes from, and the certificate of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) certificate: Certificate,
}

/// Who changes something through the control API; [`require_key`] has admitted the request.
impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let key = parts.extensions.get().map(|KeyId(id)| id.clone());
        let peer = parts.extensions.get().map(|Peer { address, .. }| *address);
        match (key, peer) {
            (Some(key), Some(peer)) => Ok(Self::Api(KeyHolder { key, peer })),
            _ => Err(refused("this path requires a key of the control API")),
        }
    }
}

/// Admits requests whose connection may be a member's, as far as TLS shows. Tokens and credentials
/// are checked after it.
pub(super) async fn require_certificate(
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match request.extensions().get::<Peer>().map(|peer| peer.certificate) {
        Some(Certificate::NotRequested | Certificate::Verified) => Ok(next.run(request).await),
        Some(Certificate::Missing) | None => {
            let message = "members of the fleet must show a certificate of its authority";
            Err(ApiError::new(StatusCode::FORBIDDEN, "CERTIFICATE_REQUIRED", message).hint(
                "set `tls_certificate`, `tls_key` and `tls_authority` of the member, as for the gateway",
            ))
        }
    }
}

/// Admits requests from this machine, and others with the admin key: metrics contain names and
/// load, which are for the operator, and collectors on this machine have no keys.
pub(super) async fn require_key_unless_local(
    control: Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let is_local = |peer: &Peer| peer.address.is_loopback();
    if request.extensions().get().is_some_and(is_local) {
        Ok(next.run(request).await)
    } else {
        require_key(control, request, next).await
    }
}

/// Admits requests that need the store; fails fast while the store is unavailable.
pub(super) async fn require_store(
    State(control): Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if control.watch.unavailable_since().is_some() {
        return Err(error::store_unavailable());
    }
    Ok(next.run(request).await)
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn refused(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
        .hint("the key is in `admin.key` in the gateway's data folder; see `epsilon --key`")
}
