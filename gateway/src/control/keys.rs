//! `/v1/keys`: lists the keys of gateways, without their secrets, and removes one, after which no
//! gateway accepts it. Reads and writes the store; called by operators (`epsilon keys`).

use super::{
    Shared,
    auth::KeyId as CallersKey,
    error::ApiError,
    query::{InPath, PAGING, Params, data, listed},
};
use crate::keys::lost::{OWNED_FOR, silent_before};
use axum::{Extension, Json, extract::State};
use epsilon_api::{
    admin::{Data, KeyInfo, KeyKind},
    ids::KeyId,
};
use epsilon_store::{KeyRole, OwnedKey};
use http::{StatusCode, Uri};
use jiff::Timestamp;

/// `GET /v1/keys`. Members' credentials are not listed; they are removed with the member.
pub(super) async fn list(
    State(control): Shared,
    Extension(CallersKey(own)): Extension<CallersKey>,
    uri: Uri,
) -> Result<Json<Data<Vec<KeyInfo>>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.keys(&page).await?;
    Ok(Json(listed(part.map(|key| info(key, &own)))))
}

/// `DELETE /v1/keys/{key}?force=`. The key of the request itself, and one whose gateway sent a
/// heartbeat within a day, are removed only with `force`.
pub(super) async fn remove(
    State(control): Shared,
    Extension(CallersKey(own)): Extension<CallersKey>,
    InPath(id): InPath<KeyId>,
    uri: Uri,
) -> Result<Json<Data<KeyInfo>>, ApiError> {
    let force = Params::read(&uri, &["force"])?.one("force")?.unwrap_or(false);
    if id.as_str() == own && !force {
        let message = format!("`{id}` is the key of this request");
        return Err(ApiError::new(StatusCode::CONFLICT, "KEY_IN_USE", message)
            .hint("use another admin key, or `epsilon keys rm --force`"));
    }
    let silent_before = (!force).then(|| silent_before(Timestamp::now(), OWNED_FOR));
    let removed = control.store.remove_key(id.as_str(), silent_before).await?;
    control.api_keys.forget(id.as_str());
    Ok(Json(data(info(removed, &own))))
}

fn info(OwnedKey { key, owner, owner_seen_at }: OwnedKey, own: &str) -> KeyInfo {
    KeyInfo {
        is_yours: key.id == own,
        id: key.id,
        role: match key.role {
            KeyRole::Admin => KeyKind::Admin,
            KeyRole::Fleet => KeyKind::Fleet,
            KeyRole::Builder => KeyKind::Builder,
            KeyRole::Member(_) => KeyKind::Member,
        },
        gateway: owner,
        gateway_seen_at: owner_seen_at,
        created_at: key.created_at,
    }
}
