//! [`TrafficStore`] in SQL: the transaction, the time limit and the announcement around the
//! statements of `sql/traffic.rs`.

use crate::{
    Change, SplitRequest, StoreError, Traffic, TrafficStore,
    sql::{Sql, traffic},
};
use async_trait::async_trait;
use epsilon_api::{
    function::Version,
    ids::{FunctionName, VersionNumber},
    traffic::Aborted,
};
use jiff::Timestamp;

#[async_trait]
impl TrafficStore for Sql {
    async fn traffic(&self) -> Result<Vec<Traffic>, StoreError> {
        self.with_limit(async {
            // Most stores have none, and gateways ask often.
            if traffic::count(&self.read).await? == 0 {
                return Ok(Vec::new());
            }
            traffic::list(&mut self.begin_snapshot().await?).await
        })
        .await
    }

    async fn split(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        wanted: &SplitRequest,
        now: Timestamp,
    ) -> Result<(Version, Option<Traffic>), StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let split = traffic::split(&mut tx, name, seen, wanted, now).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(split)
        })
        .await
    }

    async fn promote(
        &self,
        name: &FunctionName,
        seen: VersionNumber,
        to: Option<VersionNumber>,
    ) -> Result<Version, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let version = traffic::promote(&mut tx, name, seen, to).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(version)
        })
        .await
    }

    async fn abort_split(
        &self,
        name: &FunctionName,
        since: Timestamp,
        why: &Aborted,
    ) -> Result<bool, StoreError> {
        self.with_limit(async {
            let mut tx = self.begin().await?;
            let done = traffic::abort(&mut tx, name, since, why).await?;
            self.commit(tx, Change::Routes).await?;
            Ok(done)
        })
        .await
    }
}
