//! Who may use the control API: the holder of the admin key, compared in constant time by its hash. Who may speak for a
//! member of the fleet: whoever also comes from this machine, or shows a certificate of the fleet's authority, where there is one.

use super::{
    Shared,
    error::{self, ApiError},
};
use crate::{
    call::accept::Certificate,
    keys,
    observe::audit::{Door, Refused},
};
use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use epsilon_store::KeyRole;
use http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use std::net::IpAddr;

/// Lets a request through that carries the admin key.
pub(super) async fn require_key(
    State(control): Shared,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(key) = bearer(request.headers()) else {
        return Err(refused("the control API wants `Authorization: Bearer <key>`"));
    };
    let id = keys::id_of(key);
    if control.doors.role(key).await? != Some(KeyRole::Admin) {
        if let Some(Peer { address: peer, .. }) = request.extensions().get().copied() {
            Refused { door: Door::Control, key: id, peer }.emit(&control.audit);
        }
        return Err(refused("this key does not open the control API"));
    }
    if let Some(id) = id.map(str::to_owned) {
        request.extensions_mut().insert(KeyId(id));
    }
    Ok(next.run(request).await)
}

/// The id of the key that opened.
#[derive(Clone, Debug)]
pub(super) struct KeyId(pub(super) String);

/// Where a request comes from, and what its connection showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    pub(super) certificate: Certificate,
}

/// Lets a request through whose connection is a member's as far as TLS can tell. Tokens and credentials are looked at after it.
pub(super) async fn require_certificate(
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match request.extensions().get::<Peer>().map(|peer| peer.certificate) {
        Some(Certificate::NotAsked | Certificate::Verified) => Ok(next.run(request).await),
        Some(Certificate::Missing) | None => {
            let message = "members of the fleet show a certificate of its authority";
            Err(ApiError::new(StatusCode::FORBIDDEN, "CERTIFICATE_REQUIRED", message).hint(
                "set `tls_certificate`, `tls_key` and `tls_authority` of the member, as they are set of the gateway",
            ))
        }
    }
}

/// Lets a request through that comes from this machine, or carries the admin key: what metrics tell (names, load) is for
/// the operator, and collectors on this machine have no keys.
pub(super) async fn require_key_from_afar(
    control: Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let is_here = |peer: &Peer| peer.address.is_loopback();
    match request.extensions().get().is_some_and(is_here) {
        true => Ok(next.run(request).await),
        false => require_key(control, request, next).await,
    }
}

/// Lets a request through that will ask the store, unless it is known to be away: nobody waits for nothing.
pub(super) async fn require_store(
    State(control): Shared,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if control.watch.away_since().is_some() {
        return Err(error::store_away());
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
