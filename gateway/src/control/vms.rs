//! VMs: their state, and draining one.

use super::{
    Control, Shared,
    error::ApiError,
    query::{InPath, Listed, PAGING, PageParams, Params, data, listed},
};
use axum::{Json, extract::State};
use epsilon_api::{
    admin::{Data, VmInfo},
    error::ErrorEnvelope,
    ids::VmId,
    suggest::nearest,
};
use epsilon_store::Paged;
use http::{StatusCode, Uri};
use std::sync::Arc;
use tokio::time::Instant;

/// All VMs, with their instances.
///
/// A fleet has few VMs, so they are one page.
#[utoipa::path(
    get,
    path = "/v1/vms",
    operation_id = "list_vms",
    params(PageParams),
    responses(
        (status = 200, description = "The VMs.", body = Listed<VmInfo>),
    ),
)]
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Listed<VmInfo>>, ApiError> {
    Params::read(&uri, &PAGING)?.page()?;
    let now = Instant::now();
    let items = control.fleet.members().iter().map(|member| member.info(now)).collect();
    Ok(Json(listed(Paged { items, next: None })))
}

/// Drain a VM: it gets no new calls, running ones finish.
///
/// Survives a restart. Idempotent.
#[utoipa::path(
    post,
    path = "/v1/vms/{id}/drain",
    operation_id = "drain",
    params(("id" = VmId, Path, description = "The VM.")),
    responses(
        (status = 200, description = "The VM after the change.", body = Data<VmInfo>),
        (status = 404, description = "`VM_NOT_FOUND`, `MEMBER_NOT_FOUND`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn drain(
    State(control): Shared,
    InPath(id): InPath<VmId>,
    uri: Uri,
) -> Result<Json<Data<VmInfo>>, ApiError> {
    set(control, id, &uri, true).await
}

/// Let a VM take calls again.
///
/// Idempotent.
#[utoipa::path(
    post,
    path = "/v1/vms/{id}/undrain",
    operation_id = "undrain",
    params(("id" = VmId, Path, description = "The VM.")),
    responses(
        (status = 200, description = "The VM after the change.", body = Data<VmInfo>),
        (status = 404, description = "`VM_NOT_FOUND`, `MEMBER_NOT_FOUND`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn undrain(
    State(control): Shared,
    InPath(id): InPath<VmId>,
    uri: Uri,
) -> Result<Json<Data<VmInfo>>, ApiError> {
    set(control, id, &uri, false).await
}

/// Writes to the store first: a drain survives a restart, and other gateways learn of it from the
/// store.
async fn set(
    control: Arc<Control>,
    id: VmId,
    uri: &Uri,
    draining: bool,
) -> Result<Json<Data<VmInfo>>, ApiError> {
    Params::read(uri, &[])?;
    let shared = Arc::clone(&control);
    let info = control
        .run_to_completion(async move {
            let member = shared.fleet.member(&id).ok_or_else(|| not_found(&shared, &id))?;
            // What it holds before the drain; soon it holds nothing.
            let holds = member.vm.status();
            shared.store.set_draining(&id, draining).await?;
            if member.drain(draining) && draining {
                shared.drain_prewarm.begin(holds);
            }
            if draining {
                tracing::info!(vm = %id, "VM drains, as requested.");
            } else {
                tracing::info!(vm = %id, "VM takes calls again, as requested.");
            }
            Ok(member.info(Instant::now()))
        })
        .await?;
    Ok(Json(data(info)))
}

fn not_found(control: &Control, id: &VmId) -> ApiError {
    let error =
        ApiError::new(StatusCode::NOT_FOUND, "VM_NOT_FOUND", format!("no VM has the id `{id}`"));
    let members = control.fleet.members();
    let known = members.iter().map(|member| member.id.as_str());
    match nearest(id.as_str(), known) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`epsilon vms` lists the ids"),
    }
}
