//! A function's calls are split among versions, and a split ends because one of them fails too
//! often. Which call goes where is decided in `call/version.rs`; whether a version fails too often,
//! in `routes/error_window.rs`.

use super::{Functions, actor::Actor, error::ChangeError, ready::Started};
use crate::{routes::split::Split, traffic::config};
use epsilon_api::{
    ids::{FunctionName, VersionNumber},
    traffic::{TrafficRequest, slots::InvalidShares, text},
};
use epsilon_store::{SplitRequest, StoreError};
use jiff::Timestamp;
use std::sync::Arc;

impl Functions {
    /// Splits the calls. Versions that get none yet are started before they do. Returns the stable
    /// version.
    pub(crate) async fn split(
        self: &Arc<Self>,
        by: Actor,
        name: FunctionName,
        request: TrafficRequest,
    ) -> Result<VersionNumber, ChangeError> {
        let wanted = self.wanted(request)?;
        let seen = self.store.active(&name).await?.number;
        let this = Arc::clone(self);
        self.run_to_completion(async move {
            let mut started = Started::new(&this.routes, &this.fleet);
            let done = this.split_from(&name, seen, &wanted, &mut started).await;
            started.settle().await;
            let stable = done?;
            let shares = text(&wanted.shares);
            tracing::info!(function = %name, %stable, shares, by = %by, "Function's calls are split among versions.");
            Ok(stable)
        })
        .await
    }

    /// Ends a split whose version fails too often: the stable version gets all calls. Returns
    /// whether this gateway ended it; if another one was first, the store has its record, which
    /// `reconcile/store_sync.rs` will read. May be dropped while it waits for the store.
    pub(crate) async fn abort(&self, by: &Actor, split: &Split) -> Result<bool, ChangeError> {
        let Some(why) = split.breach() else { return Ok(false) };
        let terms = &split.terms;
        let change = self.routes.change().await;
        let is_ours = self.store.abort_split(&terms.function, terms.since, why).await?;
        change.abort(terms, is_ours.then_some(why), &self.fleet);
        if is_ours {
            self.metrics.traffic.aborted.inc();
            let reason = why.to_string();
            tracing::warn!(function = %terms.function, stable = %terms.stable, reason, by = %by, "Split ended because a version failed too often; all calls go to the stable version.");
        }
        Ok(is_ours)
    }

    /// The requested split, completed with the operator's defaults.
    fn wanted(&self, request: TrafficRequest) -> Result<SplitRequest, ChangeError> {
        let mut abort = self.traffic.abort;
        abort.above = request.abort_above_percent.unwrap_or(abort.above);
        abort.window_ms = request.abort_window_ms.unwrap_or(abort.window_ms);
        abort.min_calls = request.abort_min_calls.unwrap_or(abort.min_calls);
        if !config::is_sound(&abort) {
            return Err(ChangeError::AbortRule);
        }
        let shares = InvalidShares::check(&request.shares).map_err(StoreError::from)?;
        Ok(SplitRequest { shares, stable: request.stable, sticky: request.sticky, abort })
    }

    async fn split_from(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        wanted: &SplitRequest,
        started: &mut Started<'_>,
    ) -> Result<VersionNumber, ChangeError> {
        for share in &wanted.shares {
            let version = self.store.version(name, share.version).await?;
            self.ready(started, version).await?;
        }
        let change = self.routes.change().await;
        let (version, traffic) = self.store.split(name, seen, wanted, Timestamp::now()).await?;
        let stable = version.number;
        change.share(version, traffic, &self.fleet);
        Ok(stable)
    }
}
