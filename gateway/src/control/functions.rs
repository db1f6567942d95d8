//! Functions and their versions: list, show, roll back, delete. The changes are made in
//! [`crate::functions`].

use super::{
    Shared,
    error::ApiError,
    query::{InPath, Listed, PAGING, PageParams, Params, VersionInPath, data, json, listed},
};
use crate::control::Control;
use crate::functions::actor::Actor;
use axum::{Json, body::Body, extract::State};
use epsilon_api::{
    admin::{Data, FunctionInfo, KeepAliveInfo, RollbackRequest, VersionInfo},
    error::ErrorEnvelope,
    function::Version,
    ids::{FunctionName, VersionNumber},
    vm::{KeepAliveSource, VmStatus},
};
use epsilon_store::{StoreError, StoredVersion};
use http::Uri;
use std::sync::Arc;

/// All functions, by name.
#[utoipa::path(
    get,
    path = "/v1/functions",
    operation_id = "list_functions",
    params(PageParams),
    responses(
        (status = 200, description = "A page of functions.", body = Listed<FunctionInfo>),
    ),
)]
pub(super) async fn list(
    State(control): Shared,
    uri: Uri,
) -> Result<Json<Listed<FunctionInfo>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.functions(&page).await?;
    let vms = control.fleet.status();
    Ok(Json(listed(part.map(|version| control.info(version, &vms)))))
}

/// One function.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}",
    operation_id = "get_function",
    params(("name" = FunctionName, Path, description = "The function.")),
    responses(
        (status = 200, description = "The function.", body = Data<FunctionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn detail(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Json<Data<FunctionInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let version = control.active(&name)?;
    Ok(Json(data(control.info(Version::clone(&version), &control.fleet.status()))))
}

/// Versions of a function, newest first.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/versions",
    operation_id = "list_versions",
    params(("name" = FunctionName, Path, description = "The function."), PageParams),
    responses(
        (status = 200, description = "A page of versions.", body = Listed<VersionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn versions(
    State(control): Shared,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Json<Listed<VersionInfo>>, ApiError> {
    let page = Params::read(&uri, &PAGING)?.page()?;
    let part = control.store.versions(&name, &page).await?;
    let table = control.routes.table();
    let split = table.named(name.as_str()).and_then(|route| route.split());
    let percent = |number| {
        let arm = split?.targets().iter().find(|arm| arm.plain.version.number == number);
        arm.map(|arm| arm.percent)
    };
    Ok(Json(listed(part.map(|stored| {
        let percent = percent(stored.version.number);
        control.version_info(stored, percent)
    }))))
}

/// Remove one version of a function.
///
/// It cannot be called by its address or rolled back to any more. Refused for a version that
/// serves, has a share of the calls, or is needed by a running deployment. Other gateways may
/// serve it for half a minute more.
#[utoipa::path(
    delete,
    path = "/v1/functions/{name}/versions/{number}",
    operation_id = "retire_version",
    params(
        ("name" = FunctionName, Path, description = "The function."),
        ("number" = VersionNumber, Path, description = "The version."),
    ),
    responses(
        (status = 200, description = "The version that was removed.", body = Data<VersionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`, `VERSION_NOT_FOUND`", body = ErrorEnvelope),
        (status = 409, description = "`VERSION_SERVES`", body = ErrorEnvelope),
        (status = 410, description = "`VERSION_NOT_KEPT`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn retire(
    State(control): Shared,
    actor: Actor,
    VersionInPath(name, number): VersionInPath,
    uri: Uri,
) -> Result<Json<Data<VersionInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let version = control.functions.retire(actor, name, number).await?;
    Ok(Json(data(control.version_info(StoredVersion { version, active: false }, None))))
}

/// Make another version the active one.
///
/// Without a version: the stable one of a split, else the newest one older than the active one.
/// Ends a split. Running calls finish on the version where they began.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/rollback",
    operation_id = "rollback",
    params(("name" = FunctionName, Path, description = "The function.")),
    request_body(content = RollbackRequest, description = "Nothing counts as an empty object."),
    responses(
        (status = 200, description = "The function after the change.", body = Data<FunctionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`, `VERSION_NOT_FOUND`", body = ErrorEnvelope),
        (status = 409, description = "`NO_OLDER_VERSION`", body = ErrorEnvelope),
        (status = 410, description = "`VERSION_NOT_KEPT`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `UNKNOWN_FIELD`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn rollback(
    State(control): Shared,
    actor: Actor,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
    body: Body,
) -> Result<Json<Data<FunctionInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let RollbackRequest { version } = json(body, &["version"]).await?;
    let version = control.functions.rollback(actor, name, version).await?;
    Ok(Json(data(control.info(version, &control.fleet.status()))))
}

/// Remove a function with its versions.
///
/// Calls that run end where they began. The name is free for any project; version numbers are not
/// used again.
#[utoipa::path(
    delete,
    path = "/v1/functions/{name}",
    operation_id = "delete_function",
    params(("name" = FunctionName, Path, description = "The function.")),
    responses(
        (status = 200, description = "What served until now.", body = Data<FunctionInfo>),
        (status = 404, description = "`FUNCTION_NOT_FOUND`", body = ErrorEnvelope),
        (status = 507, description = "`STORE_FULL`", body = ErrorEnvelope),
    ),
)]
pub(super) async fn delete(
    State(control): Shared,
    actor: Actor,
    InPath(name): InPath<FunctionName>,
    uri: Uri,
) -> Result<Json<Data<FunctionInfo>>, ApiError> {
    Params::read(&uri, &[])?;
    let version = control.functions.delete(actor, name).await?;
    Ok(Json(data(control.info(version, &control.fleet.status()))))
}

impl Control {
    fn version_info(&self, stored: StoredVersion, percent: Option<u8>) -> VersionInfo {
        let StoredVersion { version, active } = stored;
        VersionInfo {
            version: version.number,
            active,
            percent,
            url: self.urls.of_version(&version.function, version.number),
            image: version.image.reference,
            digest: version.image.digest,
            deployment: version.deployment,
            created_at: version.created_at,
            spec: version.spec,
        }
    }

    /// The active version of this function.
    pub(super) fn active(&self, name: &FunctionName) -> Result<Arc<Version>, ApiError> {
        let table = self.routes.table();
        let route = table.named(name.as_str());
        let route = route.ok_or_else(|| StoreError::FunctionNotFound(name.clone()))?;
        Ok(Arc::clone(&route.version))
    }

    pub(super) fn info(&self, version: Version, vms: &[VmStatus]) -> FunctionInfo {
        let instances = vms
            .iter()
            .flat_map(|vm| &vm.instances)
            .filter(|instance| instance.function == version.function)
            .count();
        let table = self.routes.table();
        let route = table.named(version.function.as_str());
        let split = route.and_then(|route| route.split());
        FunctionInfo {
            shares: split.map_or_else(Vec::new, |split| split.terms.split.slots.shares()),
            aborted: route.and_then(|route| route.aborted()).cloned(),
            url: self.urls.of(&version.function),
            keep: keep(&version, vms),
            name: version.function,
            project: version.project,
            active_version: version.number,
            instances: u32::try_from(instances).unwrap_or(u32::MAX),
            updated_at: version.created_at,
            spec: version.spec,
        }
    }
}

/// The keep-alive of the VM that keeps instances longest. Each VM decides by the calls that it has
/// seen, and home has seen most.
fn keep(version: &Version, vms: &[VmStatus]) -> Option<KeepAliveInfo> {
    let effective = vms
        .iter()
        .flat_map(|vm| &vm.keeps)
        .filter(|keep| keep.function == version.function && keep.version == version.number)
        .max_by_key(|keep| (keep.by, keep.idle));
    let set = || {
        let idle = version.spec.idle_timeout?;
        let why = "set by the function's `idleTimeout`".to_owned();
        Some(KeepAliveInfo { idle, ready_after: None, by: KeepAliveSource::Set, why })
    };
    effective.map(KeepAliveInfo::from).or_else(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::{
        function::{FunctionSpec, ImageRef, Runtime},
        ids::{DeploymentId, ProjectName},
        vm::Keep,
    };
    use jiff::Timestamp;
    use std::time::Duration;

    fn version(idle: Option<u64>) -> Version {
        let mut spec = FunctionSpec::new(Runtime::Node, "index.js", "hello");
        spec.idle_timeout = idle.map(Duration::from_secs);
        Version {
            parts: None,
            function: FunctionName::parse("hello").unwrap(),
            number: VersionNumber::new(2).unwrap(),
            project: ProjectName::parse("test").unwrap(),
            deployment: DeploymentId::random(),
            image: ImageRef { reference: "hello".into(), digest: "sha256:hello".into() },
            spec,
            created_at: Timestamp::now(),
        }
    }

    fn vm(number: u32, idle: u64, by: KeepAliveSource) -> VmStatus {
        let keep = Keep {
            function: FunctionName::parse("hello").unwrap(),
            version: VersionNumber::new(number).unwrap(),
            idle: Duration::from_secs(idle),
            ready_after: None,
            by,
            why: "so it is".into(),
        };
        let vm = r#"{"id":"vm-1","state":"ready","memory_bytes":1,"memory_used_bytes":0,"calls_active":0,
            "calls_waiting":0,"instances":[]}"#;
        VmStatus { keeps: vec![keep], ..serde_json::from_str(vm).unwrap() }
    }

    #[test]
    fn the_vm_that_chose_by_calls_is_believed() {
        let vms = [
            vm(2, 300, KeepAliveSource::Default),
            vm(2, 90, KeepAliveSource::Adaptive),
            vm(1, 999, KeepAliveSource::Set),
        ];
        let effective = keep(&version(None), &vms).unwrap();
        assert_eq!((effective.idle.as_secs(), effective.by), (90, KeepAliveSource::Adaptive));
        assert_eq!(
            keep(&version(None), &vms[2..]),
            None,
            "reports of another version do not count"
        );
    }

    #[test]
    fn a_set_keep_time_is_shown_without_a_vm() {
        let effective = keep(&version(Some(120)), &[]).unwrap();
        assert_eq!((effective.idle.as_secs(), effective.by), (120, KeepAliveSource::Set));
    }
}
