//! Why an operation of the store failed. The first group is for the caller of the store to solve,
//! the second for the operator. None of this is sent to a caller of a function.

use epsilon_api::{
    ids::{DeploymentId, FunctionName, GatewayId, ProjectName, VersionNumber, VmId},
    traffic::slots::InvalidShares,
};
use std::path::PathBuf;

/// Why an operation failed and changed nothing.
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
        /// The requested version.
        number: VersionNumber,
    },
    /// The version was removed by retention.
    #[error("version {number} of `{function}` was removed; the oldest one that exists is {oldest}")]
    VersionRemoved {
        /// The function.
        function: FunctionName,
        /// The requested version.
        number: VersionNumber,
        /// The oldest version that can serve again.
        oldest: VersionNumber,
    },
    /// A version gets calls, or a running deployment needs it.
    #[error(
        "version {number} of `{function}` serves, has a share of the calls, or is being deployed"
    )]
    VersionServes {
        /// The function.
        function: FunctionName,
        /// The requested version.
        number: VersionNumber,
    },
    /// A builder reused the image of this function while it was being removed because no version
    /// needed it.
    #[error("the image of `{0}` was removed meanwhile, because no version needed it")]
    ImageBeingRemoved(FunctionName),
    /// The active version is the oldest one.
    #[error("`{function}` has no version older than the active one")]
    NoOlderVersion {
        /// The function.
        function: FunctionName,
    },
    /// Shares that do not make a split.
    #[error(transparent)]
    Shares(#[from] InvalidShares),
    /// No split is running, and no version was named.
    #[error("the calls of `{function}` are not split: there is no version to promote")]
    NothingToPromote {
        /// The function.
        function: FunctionName,
    },
    /// The split has more than one version beside the stable one.
    #[error("the split of `{function}` has more than one version to promote")]
    AmbiguousPromotion {
        /// The function.
        function: FunctionName,
    },
    /// Another version became the active one meanwhile.
    #[error("the active version of `{function}` changed to v{active} meanwhile")]
    ActiveChanged {
        /// The function.
        function: FunctionName,
        /// The active version now.
        active: VersionNumber,
    },
    /// No such deployment.
    #[error("no deployment has the id `{0}`")]
    DeploymentNotFound(DeploymentId),
    /// The deployment is already done or failed.
    #[error("deployment `{0}` has already ended")]
    DeploymentEnded(DeploymentId),
    /// Another project has a function of this name.
    #[error("function `{function}` belongs to project `{owner}`")]
    OwnedByOther {
        /// The function.
        function: FunctionName,
        /// The owning project.
        owner: ProjectName,
    },
    /// A later deployment is already active; continuing would undo it.
    #[error("deployment `{by}` is newer, and `{function}` already serves its version")]
    Superseded {
        /// The function.
        function: FunctionName,
        /// The later deployment.
        by: DeploymentId,
    },
    /// The function was deleted while its deployment ran.
    #[error("`{0}` was deleted while it was deployed")]
    DeletedMeanwhile(FunctionName),
    /// No such member, or it left the fleet.
    #[error("no member of the fleet has the id `{0}`")]
    MemberNotFound(VmId),
    /// No gateway's key has this id.
    #[error("no key has the id `{0}`")]
    KeyNotFound(String),
    /// The gateway that has this key in its file has sent a heartbeat recently.
    #[error("gateway `{gateway}` has the key `{id}` in its file")]
    KeyInUse {
        /// The key's id.
        id: String,
        /// The gateway that has it.
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
    /// The file cannot be created or opened.
    #[error("the store at `{}` cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of SQLite or the file system.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server cannot be reached or refuses the login.
    #[error("the store at {to} cannot be opened")]
    Connect {
        /// Host, port and database.
        to: String,
        /// The error of the connection or the login.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not answer now; the same operation may succeed later.
    #[error("the store does not answer")]
    Unavailable(#[source] sqlx::Error),
    /// The database can be read but not written: its disk is full.
    #[error("the store's disk is full")]
    Full(#[source] sqlx::Error),
    /// The database refused: file gone, or locked by another process for too long.
    #[error("the store failed")]
    Database(#[source] sqlx::Error),
    /// A row holds a value that no release writes.
    #[error("the store holds a {what} that cannot be read")]
    Corrupt {
        /// The column, for people.
        what: &'static str,
        /// The parser's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(err: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let unavailable = match &err {
            E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed => true,
            E::Database(err) => err.code().is_some_and(|code| is_unavailable(&code)),
            _ => false,
        };
        let full = match &err {
            E::Database(err) => err.code().is_some_and(|code| is_disk_full(&code)),
            _ => false,
        };
        match (unavailable, full) {
            (true, _) => Self::Unavailable(err),
            (false, true) => Self::Full(err),
            (false, false) => Self::Database(err),
        }
    }
}

/// Whether the code means a full disk: `SQLITE_FULL` or PostgreSQL's `disk_full`.
fn is_disk_full(code: &str) -> bool {
    matches!(code, "13" | "53100")
}

/// Whether PostgreSQL's code means "not now": connection exceptions, too many connections, lock or
/// statement timeouts, shutdown or startup, and a read-only server after a failover.
fn is_unavailable(code: &str) -> bool {
    code.starts_with("08")
        || code.starts_with("57P")
        || matches!(code, "53300" | "55P03" | "57014" | "25006" | "25P03")
}
