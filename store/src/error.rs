//! Why an operation of the store did nothing. The first group is the asker's to solve, the second the
//! operator's. Nothing here is sent to a caller of a function.

use epsilon_api::{
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber, VmId},
    traffic::slots::BadShares,
};
use std::path::PathBuf;

/// Why an operation did nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such function, or it was deleted.
    #[error("no function is named `{0}`")]
    FunctionNotFound(FunctionName),
    /// The function never had this version, or the version never served.
    #[error("`{function}` has no version {number}")]
    VersionNotFound {
        /// The function.
        function: FunctionName,
        /// What was asked for.
        number: VersionNumber,
    },
    /// The version is older than all that are kept.
    #[error("`{function}` keeps version {number} no more; the oldest one is {oldest}")]
    VersionNotKept {
        /// The function.
        function: FunctionName,
        /// What was asked for.
        number: VersionNumber,
        /// The oldest version that can serve again.
        oldest: VersionNumber,
    },
    /// A version gets calls, or a deployment at work counts on it.
    #[error(
        "version {number} of `{function}` serves, has a share of the calls, or is being deployed"
    )]
    VersionServes {
        /// The function.
        function: FunctionName,
        /// Which version.
        number: VersionNumber,
    },
    /// A builder found the image of this function while it was being removed, because no version needed it.
    #[error("the image of `{0}` was removed in this moment, because no version needed it")]
    ImageLeaving(FunctionName),
    /// The active version is the oldest one.
    #[error("`{function}` has no version older than the active one")]
    NothingOlder {
        /// The function.
        function: FunctionName,
    },
    /// Shares that make no split.
    #[error(transparent)]
    Shares(#[from] BadShares),
    /// No split holds, and no version was named.
    #[error("the calls of `{function}` are not split: there is no version to promote")]
    NothingToPromote {
        /// The function.
        function: FunctionName,
    },
    /// More than one version stands beside the stable one.
    #[error("the split of `{function}` has more than one version to promote")]
    PromoteWhich {
        /// The function.
        function: FunctionName,
    },
    /// Another version became the active one while this was at work on the one that it saw.
    #[error("the active version of `{function}` changed to v{active} meanwhile")]
    ActiveChanged {
        /// The function.
        function: FunctionName,
        /// What is active now.
        active: VersionNumber,
    },
    /// No such deployment.
    #[error("no deployment has the id `{0}`")]
    DeploymentNotFound(DeploymentId),
    /// The deployment is done or failed already.
    #[error("deployment `{0}` is over")]
    DeploymentOver(DeploymentId),
    /// Another project has a function of this name.
    #[error("function `{function}` belongs to project `{owner}`")]
    OwnedByOther {
        /// The function.
        function: FunctionName,
        /// Whose it is.
        owner: ProjectName,
    },
    /// A deployment that came in later serves already; going on would turn time back.
    #[error("deployment `{by}` came in later and `{function}` serves what it made")]
    Superseded {
        /// The function.
        function: FunctionName,
        /// The later deployment.
        by: DeploymentId,
    },
    /// The function was deleted while its deployment was at work.
    #[error("`{0}` was deleted while it was deployed")]
    DeletedMeanwhile(FunctionName),
    /// No such member, or it left.
    #[error("no member of the fleet has the id `{0}`")]
    MemberNotFound(VmId),
    /// No gateway's key has this id.
    #[error("no key has the id `{0}`")]
    KeyNotFound(String),
    /// The gateway that has this key in its file was heard a while ago.
    #[error("gateway `{gateway}` has the key `{id}` in its file")]
    KeyInUse {
        /// The key's id.
        id: String,
        /// Whose it is.
        gateway: GatewayId,
    },
    /// The list did not hand out this cursor.
    #[error("`{0}` is not a cursor of this list")]
    BadCursor(String),

    /// No back end for this kind of URL.
    #[error(
        "there is no store for `{0}:` addresses; a path, `sqlite:PATH` or `postgres://…` works"
    )]
    UnknownScheme(String),
    /// The file cannot be made or opened.
    #[error("the store at `{}` cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server cannot be reached or does not let us in.
    #[error("the store at {to} cannot be opened")]
    Connect {
        /// Host, port and data base.
        to: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The data base does not answer now; the same call may succeed later.
    #[error("the store does not answer")]
    Unavailable(#[source] sqlx::Error),
    /// The data base can be read and does not write: its disk is full.
    #[error("the store's disk is full")]
    Full(#[source] sqlx::Error),
    /// The data base refused: file gone, locked by another process for too long.
    #[error("the store failed")]
    Database(#[source] sqlx::Error),
    /// A row holds what no release wrote.
    #[error("the store holds a {what} that cannot be read")]
    Corrupt {
        /// Which column.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(err: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let away = match &err {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed => true,
            E::Database(told) => told.code().is_some_and(|code| says_away(&code)),
            _ => false,
        };
        let full = match &err {
            E::Database(told) => told.code().is_some_and(|code| says_full(&code)),
            _ => false,
        };
        match (away, full) {
            (true, _) => Self::Unavailable(err),
            (false, true) => Self::Full(err),
            (false, false) => Self::Database(err),
        }
    }
}

/// `SQLITE_FULL`, and PostgreSQL's `disk_full`.
fn says_full(code: &str) -> bool {
    matches!(code, "13" | "53100")
}

/// PostgreSQL's own words for "not now": connection exceptions, too many connections, a lock or a statement
/// that took too long, shutting down or starting up, and a server that only reads after a failover.
fn says_away(code: &str) -> bool {
    code.starts_with("08")
        || code.starts_with("57P")
        || matches!(code, "53300" | "55P03" | "57014" | "25006" | "25P03")
}
