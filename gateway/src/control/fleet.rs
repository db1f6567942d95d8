//! Join, heartbeat and leave of agents and builders. Called by them, not by people; the messages
//! are in `epsilon_api::fleet`. Joining requires the token of the member's kind, the others the
//! credential that joining returns.
//!
//! Each of these writes to the store, so their concurrency is limited; the others wait a moment or
//! get an answer that says to retry. A slot is taken only after the key was checked and the body
//! was read, so unauthenticated and slow clients occupy none.

use super::{
    Control, Shared,
    auth::{Peer, bearer},
    error::{self, ApiError},
    query::{Params, json},
};
use crate::{
    fleet::watch::SILENCE,
    keys,
    observe::audit::{Entrance, KeyRefused},
};
use axum::{Extension, Json, body::Body, extract::State};
use epsilon_api::{
    admin::Data,
    error::ErrorEnvelope,
    fleet::{GatewayKey, HEARTBEAT_INTERVAL, Join, Joined, MemberKind, PROTOCOL, Welcome},
    ids::VmId,
};
use epsilon_store::{KeyRole, Member, StoreError};
use http::{HeaderMap, StatusCode, Uri};
use jiff::Timestamp;
use std::time::Duration;
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, timeout},
};

/// Longest wait for a slot: a member waits 4 s for its answer, and the store's part comes after
/// this wait.
const TURN: Duration = Duration::from_secs(1);
/// A member without a heartbeat for one and a half intervals is gone, or has a problem that its id
/// cannot fix.
const ALIVE: Duration = Duration::from_millis(HEARTBEAT_INTERVAL.as_millis() as u64 * 3 / 2);

/// The fields of a [`Join`].
const JOIN: [&str; 7] = ["protocol", "kind", "id", "address", "tls", "memory_bytes", "cpu"];

/// Internal: an agent or a builder joins.
///
/// Takes the token of its kind.
#[utoipa::path(
    post,
    path = "/v1/fleet/join",
    operation_id = "join_fleet",
    request_body(content = Join),
    responses(
        (status = 200, description = "The public keys of all gateways, the clock of their tokens, and the member's credential.", body = Data<Joined>),
        (status = 409, description = "`ID_TAKEN`, `TLS_REQUIRED`, `PROTOCOL_MISMATCH`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `UNKNOWN_FIELD`", body = ErrorEnvelope),
    ),
    security(("token" = [])),
)]
pub(super) async fn join(
    State(control): Shared,
    Extension(Peer { address: peer, .. }): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Data<Joined>>, ApiError> {
    Params::read(&uri, &[])?;
    let role = control.role(&headers).await?;
    if !matches!(role, Some(KeyRole::Fleet | KeyRole::Builder)) {
        // A heartbeat or leave with an unknown credential is not audited: the member joins again
        // after it.
        if let Some(key) = bearer(&headers) {
            KeyRefused { entrance: Entrance::Fleet, key: keys::id_of(key), peer }
                .emit(&control.audit);
        }
        return Err(unauthorized("joining requires a token of the fleet"));
    }
    let join: Join = json(body, &JOIN).await?;
    if role != Some(joins_with(join.kind)) {
        return Err(wrong_token(join.kind));
    }
    control.check(&join)?;
    let _turn = control.turn().await?;
    control.check_free(&join).await?;
    let (key, credential) = keys::make(&KeyRole::Member(join.id.clone()));
    let now = Timestamp::now();
    let member = Member { join, joined_at: now, seen_at: now };
    control.in_time(control.store.join(&member, &key)).await?;
    let welcome = control.welcome().await?;
    tracing::info!(member = %member.join.id, kind = ?member.join.kind, address = member.join.address, %peer, "Member was registered in the store.");
    Ok(Json(Data { data: Joined { credential, welcome }, pagination: None }))
}

/// Internal: heartbeat of a member.
#[utoipa::path(
    post,
    path = "/v1/fleet/beat",
    operation_id = "beat",
    request_body(content = Join),
    responses(
        (status = 200, description = "The public keys of all gateways and the clock of their tokens.", body = Data<Welcome>),
        (status = 409, description = "`TLS_REQUIRED`, `PROTOCOL_MISMATCH`", body = ErrorEnvelope),
        (status = 413, description = "`BODY_TOO_LARGE`", body = ErrorEnvelope),
        (status = 422, description = "`INVALID_BODY`, `UNKNOWN_FIELD`", body = ErrorEnvelope),
    ),
    security(("credential" = [])),
)]
pub(super) async fn heartbeat(
    State(control): Shared,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Data<Welcome>>, ApiError> {
    Params::read(&uri, &[])?;
    let id = control.member(&headers).await?;
    let join: Join = json(body, &JOIN).await?;
    control.check(&join)?;
    if join.id != id {
        return Err(unauthorized("this credential belongs to another member"));
    }
    // The member's data is taken over when it joins; if its address has changed, it must join
    // again.
    let known = control.fleet.member(&id).and_then(|member| member.address.clone());
    let known = known.or_else(|| control.deploys.builders.address(&id));
    if known.is_some_and(|address| address != join.address) {
        return Err(unauthorized("the member's address has changed; it must join again"));
    }
    let _turn = control.turn().await?;
    let heartbeat = async {
        match control.store.member_heartbeat(&id, Timestamp::now()).await {
            Err(StoreError::MemberNotFound(_)) => Ok(false),
            done => done.map(|()| true),
        }
    };
    if !control.in_time(heartbeat).await? {
        return Err(unauthorized("the member has left the fleet; it must join again"));
    }
    Ok(Json(Data { data: control.welcome().await?, pagination: None }))
}

/// Internal: a member leaves.
#[utoipa::path(
    post,
    path = "/v1/fleet/leave",
    operation_id = "leave_fleet",
    responses(
        (status = 204, description = "The member has left."),
    ),
    security(("credential" = [])),
)]
pub(super) async fn leave(
    State(control): Shared,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    Params::read(&uri, &[])?;
    let id = control.member(&headers).await?;
    let _turn = control.turn().await?;
    control.in_time(control.store.leave(&id)).await?;
    tracing::info!(member = %id, "Member left.");
    Ok(StatusCode::NO_CONTENT)
}

impl Control {
    /// A slot among the concurrent writes of members.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let turn = timeout(TURN, self.joining.acquire()).await;
        turn.ok().and_then(Result::ok).ok_or_else(|| {
            let message = "too many members join or send heartbeats at once";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_MEMBERS", message)
                .hint("try again in a moment")
        })
    }

    async fn role(&self, headers: &HeaderMap) -> Result<Option<KeyRole>, ApiError> {
        let Some(key) = bearer(headers) else { return Ok(None) };
        self.in_time(self.api_keys.role(key)).await
    }

    /// The member to which this credential belongs.
    async fn member(&self, headers: &HeaderMap) -> Result<VmId, ApiError> {
        match self.role(headers).await? {
            Some(KeyRole::Member(id)) => Ok(id),
            Some(KeyRole::Admin | KeyRole::Fleet | KeyRole::Builder) | None => {
                Err(unauthorized("this is not a credential of a member"))
            }
        }
    }

    /// Whether this gateway can use the member as it describes itself.
    fn check(&self, join: &Join) -> Result<(), ApiError> {
        check(join)?;
        if self.identity.refuses(join) {
            let message = format!(
                "`{}` listens in plain HTTP, but this gateway requires TLS to other machines",
                join.id
            );
            return Err(ApiError::new(StatusCode::CONFLICT, "TLS_REQUIRED", message)
                .hint("set `tls_certificate`, `tls_key` and `tls_authority` of the member, as for the gateway"));
        }
        Ok(())
    }

    /// Two machines with the same id would get each other's calls. A member that restarts elsewhere
    /// is no longer alive at its old address when it joins again: a VM reports every second, a
    /// builder sends only heartbeats.
    async fn check_free(&self, join: &Join) -> Result<(), ApiError> {
        let taken = |there: &str, after: &str| {
            let message = format!("`{}` is already in the fleet, at {there}", join.id);
            let hint = format!(
                "was its data folder copied from another machine? Remove the id there, or wait {after} after a restart"
            );
            Err(ApiError::new(StatusCode::CONFLICT, "ID_TAKEN", message).hint(hint))
        };
        if let Some(member) = self.fleet.member(&join.id) {
            let view = member.view();
            let has_reported =
                view.has_reported && Instant::now().duration_since(view.at) < SILENCE;
            let there = member.address.as_deref().unwrap_or("this gateway's own process");
            if has_reported && (there != join.address || join.kind != MemberKind::Vm) {
                return taken(there, "3 s");
            }
        }
        let members = self.in_time(self.store.members()).await?;
        let builder = members
            .iter()
            .find(|other| other.join.id == join.id && other.join.kind == MemberKind::Builder);
        if let Some(other) = builder
            && Timestamp::now().duration_since(other.seen_at).unsigned_abs() < ALIVE
            && (other.join.address != join.address || join.kind != MemberKind::Builder)
        {
            return taken(&other.join.address, "8 s");
        }
        Ok(())
    }

    /// The gateways whose tokens a member accepts.
    async fn welcome(&self) -> Result<Welcome, ApiError> {
        let gateways = self.in_time(self.store.gateways()).await?;
        let key = |gateway: epsilon_store::Gateway| GatewayKey {
            id: gateway.id,
            public_key: gateway.public_key,
        };
        let gateways = gateways.into_iter().map(key).collect();
        Ok(Welcome { gateways, now: Some(self.identity.clock.now()) })
    }

    /// Members send requests every few seconds; one that would wait longer than that gets an error.
    async fn in_time<T, E: Into<ApiError>>(
        &self,
        operation: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ApiError> {
        match timeout(HEARTBEAT_INTERVAL, operation).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => {
                self.watch.mark_unavailable();
                Err(error::store_unavailable())
            }
        }
    }
}

fn check(join: &Join) -> Result<(), ApiError> {
    if join.protocol != PROTOCOL {
        let (theirs, ours) = (join.protocol, PROTOCOL);
        let message = format!("`{}` speaks protocol {theirs}, this gateway {ours}", join.id);
        let hint = if theirs > ours {
            "upgrade the gateways first, then their members"
        } else {
            "upgrade the member: it is older than its gateway"
        };
        return Err(ApiError::new(StatusCode::CONFLICT, "PROTOCOL_MISMATCH", message).hint(hint));
    }
    let port = join.address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
        let message = format!("`address`: `{}` is not `host:port`", join.address);
        return Err(error::unprocessable("INVALID_BODY", message));
    }
    Ok(())
}

/// Each kind has its own token: a VM runs the code of users, and a builder sees all sources and
/// makes all images.
const fn joins_with(kind: MemberKind) -> KeyRole {
    match kind {
        MemberKind::Vm => KeyRole::Fleet,
        MemberKind::Builder => KeyRole::Builder,
    }
}

fn wrong_token(kind: MemberKind) -> ApiError {
    let (message, file) = match kind {
        MemberKind::Vm => ("this token joins builders, not VMs", kind.token_file()),
        MemberKind::Builder => ("this token joins VMs, not builders", kind.token_file()),
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
        .hint(format!("its token is in `{file}` in a gateway's data folder"))
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
        .hint("tokens are in a gateway's data folder: `fleet.token` for VMs, `builder.token` for builders")
}
