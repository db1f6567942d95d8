//! What a person reads when the store refuses a change: status, stable code and hint of each of its
//! errors. Below everything that answers with them: the control API, deployments (whose failures
//! are stored with the code) and webhooks.

use epsilon_api::{chain::Chain, error::ErrorBody};
use epsilon_store::StoreError;
use http::StatusCode;

pub(crate) const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
pub(crate) const STORE_HINT: &str = "calls are not affected; try again in a moment";

/// The answer for an error of the store. `None`: the database is broken or the gateway has a bug,
/// and only the log can say more.
pub(crate) fn refusal(err: &StoreError) -> Option<(StatusCode, ErrorBody)> {
    use StoreError as E;
    let (status, code, hint) = match err {
        E::FunctionNotFound(_) => (
            StatusCode::NOT_FOUND,
            "FUNCTION_NOT_FOUND",
            Some("`epsilon functions` lists the names".into()),
        ),
        E::VersionNotFound { function, .. } => (
            StatusCode::NOT_FOUND,
            "VERSION_NOT_FOUND",
            Some(format!("`epsilon versions {function}` lists the versions")),
        ),
        E::VersionRemoved { function, .. } => (
            StatusCode::GONE,
            "VERSION_NOT_KEPT",
            Some(format!(
                "`epsilon versions {function}` lists the stored versions; `gateway.keep_versions` sets how many are stored"
            )),
        ),
        E::VersionServes { function, .. } => (
            StatusCode::CONFLICT,
            "VERSION_SERVES",
            Some(format!(
                "activate another version first: `epsilon rollback {function} --to N`, or deploy"
            )),
        ),
        E::ImageBeingRemoved(_) => (StatusCode::CONFLICT, "IMAGE_LEAVING", Some("deploy again".into())),
        E::DeploymentNotFound(_) => (StatusCode::NOT_FOUND, "DEPLOYMENT_NOT_FOUND", None),
        E::NoOlderVersion { .. } => (
            StatusCode::CONFLICT,
            "NO_OLDER_VERSION",
            Some("name a version to roll back to".into()),
        ),
        E::Shares(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_SHARES",
            Some("name each version once, like `3=90 4=10`".into()),
        ),
        E::NothingToPromote { .. } => (
            StatusCode::CONFLICT,
            "NOTHING_TO_PROMOTE",
            Some("name the version that should get all calls".into()),
        ),
        E::AmbiguousPromotion { function } => (
            StatusCode::CONFLICT,
            "PROMOTE_WHICH",
            Some(format!("name it: `epsilon traffic {function}` shows the versions")),
        ),
        E::ActiveChanged { function, .. } => (
            StatusCode::CONFLICT,
            "ACTIVE_VERSION_CHANGED",
            Some(format!("check with `epsilon traffic {function}`")),
        ),
        E::DeploymentEnded(_) => (StatusCode::CONFLICT, "DEPLOYMENT_OVER", None),
        E::OwnedByOther { function, .. } => (
            StatusCode::CONFLICT,
            "NAME_TAKEN",
            Some(format!("rename the function, or `epsilon delete {function}` first")),
        ),
        E::Superseded { .. } => (StatusCode::CONFLICT, "SUPERSEDED", None),
        E::DeletedMeanwhile(_) => {
            (StatusCode::CONFLICT, "DELETED_MEANWHILE", Some("deploy again".into()))
        }
        E::KeyNotFound(_) => {
            (StatusCode::NOT_FOUND, "KEY_NOT_FOUND", Some("`epsilon keys` lists the ids".into()))
        }
        E::KeyInUse { .. } => (
            StatusCode::CONFLICT,
            "KEY_IN_USE",
            Some(
                "delete that file and restart the gateway, and it makes another key; or force it (`epsilon keys rm --force`)"
                    .into(),
            ),
        ),
        E::BadCursor(_) => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_PARAMETER",
            Some("use `pagination.next_cursor` of the previous page".into()),
        ),
        E::MemberNotFound(_) => {
            (StatusCode::NOT_FOUND, "MEMBER_NOT_FOUND", Some("join again".into()))
        }
        E::Unavailable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE, Some(STORE_HINT.into()))
        }
        E::Full(_) => {
            tracing::debug!(error = %Chain(err), "Store is full; the request fails.");
            (
                StatusCode::INSUFFICIENT_STORAGE,
                "STORE_FULL",
                Some(
                    "calls are not affected; the operator must free disk space of the database"
                        .into(),
                ),
            )
        }
        E::UnknownScheme(_)
        | E::Open { .. }
        | E::Connect { .. }
        | E::Database(_)
        | E::Corrupt { .. } => {
            return None;
        }
    };
    Some((status, ErrorBody::new(status, code, err.to_string(), hint)))
}

/// The answer where only the log can say more; the caller writes the cause there.
pub(crate) fn internal() -> (StatusCode, ErrorBody) {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let message = "the platform failed; its log has the cause";
    (status, ErrorBody::new(status, "INTERNAL", message, None))
}
