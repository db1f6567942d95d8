//! Durable state of a gateway, as one trait, [`Store`]: functions, their versions, deployments,
//! hashed keys, members of the fleet, VMs that drain.
//!
//! Nothing on the path of a call reads it: the gateway keeps the active versions in memory and
//! reads the store only when something changes. A method that returned `Ok` is durable.
//!
//! ```text
//! begin_deployment ─▶ prepare (numbers taken, nothing serves) ─▶ activate (all functions in one step)
//!                        └──────────────── fail_deployment ◀────────┘ when anything goes wrong
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `store` | the trait: those of the topics together |
//! | `deployments`, `functions`, `traffic`, `images`, `keys`, `fleet`, `leases` | a trait and its types each |
//! | `page` | pages of lists |
//! | `changes` | how a change reaches its listeners |
//! | `error` | why an operation did nothing |
//! | `copy` | moves a store from one back end to the other |
//! | `sql/backup` | a copy of a file that a gateway writes, and what its versions are made of |
//! | `sql` | the traits in SQL, for both back ends |
//! | `sqlite` | opens a file, for one gateway |
//! | `postgres` | opens a database, for several gateways, and receives their notifications |

mod changes;
mod copy;
mod deployments;
mod error;
mod fleet;
mod functions;
mod images;
mod keys;
mod leases;
mod page;
mod postgres;
mod sql;
mod sqlite;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod traffic;

pub use changes::Change;
pub use copy::{Copied, CopyError, Progress, copy};
pub use deployments::{Delivery, Deployed, Deployment, DeploymentStore, Prepared};
pub use error::StoreError;
pub use fleet::{FleetStore, Gateway, Member};
pub use functions::{FunctionStore, StoredVersion};
pub use images::{ImageStore, Outcome};
pub use keys::{Key, KeyRole, KeyStore, OwnedKey};
pub use leases::LeaseStore;
pub use page::{Page, Paged};
pub use sql::backup::{BackedUp, BackedUpVersion, BackupError, back_up, rename_images};
pub use store::{Shared, Store};
pub use traffic::{SplitRequest, Traffic, TrafficStore};

use std::{path::Path, sync::Arc};

/// Opens the store at a path or URL (`sqlite:PATH`, `postgres://…`), creates it if necessary, and
/// migrates its schema. Needs a tokio runtime.
///
/// # Errors
/// When the file or the server cannot be opened or holds something else, or when no back end
/// handles the URL.
pub async fn open(url_or_path: &str) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(open_sql(url_or_path).await?))
}

async fn open_sql(url_or_path: &str) -> Result<sql::Sql, StoreError> {
    sqlx::any::install_default_drivers();
    match file(url_or_path)? {
        Some(path) => sqlite::open(path).await,
        None => postgres::open(url_or_path).await,
    }
}

/// The file that is meant by a path or URL of [`open`]; `None` for a server.
///
/// # Errors
/// When no back end knows the URL.
pub fn file(url_or_path: &str) -> Result<Option<&Path>, StoreError> {
    match url_or_path.split_once(':') {
        Some(("sqlite", rest)) => Ok(Some(Path::new(rest.strip_prefix("//").unwrap_or(rest)))),
        Some(("postgres" | "postgresql", _)) => Ok(None),
        Some((scheme, rest)) if rest.starts_with("//") => {
            Err(StoreError::UnknownScheme(scheme.to_owned()))
        }
        _ => Ok(Some(Path::new(url_or_path))),
    }
}
