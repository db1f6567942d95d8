//! `/v1/keys`: lists the keys of gateways, without their secrets, and removes one, after which no
//! gateway accepts it. Reads and writes the store; called by operators (`epsilon keys`).

use super::{
    Shared,
    auth::KeyId as CallersKey,
    error::ApiError,
    query::{InPath, Listed, PAGING, PageParams, Params, data, listed},
};
use crate::keys::lost::{OWNED_FOR, silent_before};
use axum::{Extension, Json, extract::State};
use epsilon_api::{
    admin::{Data, KeyInfo, KeyKind},
    error::ErrorEnvelope,
    ids::KeyId,
};
use epsilon_store::{KeyRole, OwnedKey};
use http::{StatusCode, Uri};
use jiff::Timestamp;

/// Keys that every gateway accepts, without their secrets.
///
/// Admin keys and the tokens of VMs and builders; each gateway has its own. Credentials of members
/// are not listed; they are removed with the member.
#[utoipa::path(
    get,
    path = "/v1/keys",
    operation_id = "list_keys",
    params(PageParams),
    responses(
        (status = 200, description = "Keys, by id.", body = Listed<KeyInfo>),
    ),
)]
pub(super) async fn list(
    State(control): Shared,
    Extension(CallersKey(own)): Extension<CallersKey>,
    uri: Uri,
) -> Result<Json<Listed<KeyInfo>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.keys(&page).await?;
    Ok(Json(listed(part.map(|key| info(key, &own)))))
}

/// Remove a key: no gateway accepts it any more.
///
/// Keys of gateways without a heartbeat for 30 days are removed automatically. Refused for the key
/// of the request itself, and for one whose gateway sent a heartbeat within a day, unless `force` is
/// given; that gateway enters the key in its file again when it starts.
#[utoipa::path(
    delete,
    path = "/v1/keys/{key}",
    operation_id = "remove_key",
    params(
        ("key" = KeyId, Path, description = "The id of the key."),
        ("force" = Option<bool>, Query, nullable = false, description = "Also if it is in use."),
    ),
    responses(
        (status = 200, description = "The key that was removed.", body = Data<KeyInfo>),
        (status = 404, description = "`KEY_NOT_FOUND`", body = ErrorEnvelope),
        (status = 409, description = "`KEY_IN_USE`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
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
