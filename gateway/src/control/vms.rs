//! VMs: what each holds, and emptying one.

use super::{
    Control, Shared,
    error::ApiError,
    query::{InPath, PAGING, Params, data, listed},
};
use axum::{Json, extract::State};
use epsilon_api::{admin::Data, ids::VmId, suggest::nearest, vm::VmStatus};
use epsilon_store::Paged;
use http::{StatusCode, Uri};
use std::sync::Arc;

/// `GET /v1/vms`: a fleet is small; all of it is one part.
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Data<Vec<VmStatus>>>, ApiError> {
    Params::read(&uri, &PAGING)?.page()?;
    Ok(Json(listed(Paged { items: control.fleet.status(), next: None })))
}

/// `POST /v1/vms/{id}/drain`
pub(super) async fn drain(
    State(control): Shared,
    InPath(id): InPath<VmId>,
    uri: Uri,
) -> Result<Json<Data<VmStatus>>, ApiError> {
    set(control, id, &uri, true).await
}

/// `POST /v1/vms/{id}/undrain`
pub(super) async fn undrain(
    State(control): Shared,
    InPath(id): InPath<VmId>,
    uri: Uri,
) -> Result<Json<Data<VmStatus>>, ApiError> {
    set(control, id, &uri, false).await
}

/// Notes it first: a drain survives a restart.
async fn set(
    control: Arc<Control>,
    id: VmId,
    uri: &Uri,
    draining: bool,
) -> Result<Json<Data<VmStatus>>, ApiError> {
    Params::read(uri, &[])?;
    let shared = Arc::clone(&control);
    let status = control
        .to_the_end(async move {
            let member = shared.fleet.member(&id).ok_or_else(|| not_found(&shared, &id))?;
            shared.store.set_draining(&id, draining).await?;
            member.drain(draining);
            tracing::info!(vm = %id, draining, "Drain asked for.");
            Ok(member.vm.status())
        })
        .await?;
    Ok(Json(data(status)))
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
