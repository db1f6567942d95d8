//! The routes of the control API in groups: those of a group pass the same checks before their
//! handlers. The router (`control.rs`) puts the checks before each group, the OpenAPI document, which
//! is served here, says how they answer; neither can leave a route out.

use super::{
    Control, autoscaler, builders, deployments, fleet, functions, github, keys, logs,
    openapi::{self, Payload, answers},
    traffic, vms,
};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use std::sync::{Arc, LazyLock};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The routes of one group, with their part of the document.
pub(super) type Group = OpenApiRouter<Arc<Control>>;

/// The document, as it is served.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let Groups { stored, in_memory, members, local, open } = Groups::all();
    let groups = [stored, in_memory, members, local, open].map(Group::into_openapi);
    // Its maps have texts for keys, so this does not fail.
    openapi::of_groups(groups).to_pretty_json().unwrap_or_default().into()
});

/// This document.
///
/// OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "openapi",
    responses((status = 200, description = "The document.", body = inline(Payload))),
    security(()),
)]
async fn document() -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, kind)], DOCUMENT.clone()).into_response()
}

/// All routes.
pub(super) struct Groups {
    /// For the admin key, and for the store.
    pub(super) stored: Group,
    /// For the admin key; answered from memory, or by the VMs.
    pub(super) in_memory: Group,
    /// For members, which have keys of their own.
    pub(super) members: Group,
    /// For this machine, and for the admin key from others.
    pub(super) local: Group,
    /// For everybody; each checks what it must.
    pub(super) open: Group,
}

impl Groups {
    pub(super) fn all() -> Self {
        let stored = Group::new()
            .routes(routes!(functions::list))
            .routes(routes!(functions::delete))
            .routes(routes!(functions::versions))
            .routes(routes!(functions::retire))
            .routes(routes!(functions::rollback))
            .routes(routes!(traffic::split))
            .routes(routes!(traffic::promote))
            .routes(routes!(deployments::list))
            .routes(routes!(deployments::create))
            .routes(routes!(deployments::detail))
            .routes(routes!(vms::drain))
            .routes(routes!(vms::undrain))
            .routes(routes!(keys::list))
            .routes(routes!(keys::remove));
        let in_memory = Group::new()
            .routes(routes!(functions::detail))
            .routes(routes!(traffic::show))
            .routes(routes!(logs::stream))
            .routes(routes!(vms::list))
            .routes(routes!(builders::list))
            .routes(routes!(autoscaler::show));
        let members = Group::new()
            .routes(routes!(fleet::join))
            .routes(routes!(fleet::heartbeat))
            .routes(routes!(fleet::leave));
        let local = Group::new().routes(routes!(super::metrics));
        let open = Group::new()
            .routes(routes!(github::github))
            .routes(routes!(document))
            .routes(routes!(super::healthz));
        Self {
            stored: answers(stored, &[openapi::LISTENER, openapi::PARAMETERS, openapi::KEY]),
            in_memory: answers(in_memory, &[openapi::LISTENER, openapi::PARAMETERS, openapi::KEY]),
            members: answers(members, &[openapi::LISTENER, openapi::PARAMETERS, openapi::MEMBER]),
            local: answers(local, &[openapi::LISTENER, openapi::KEY]),
            open: answers(open, &[openapi::LISTENER]),
        }
    }
}
