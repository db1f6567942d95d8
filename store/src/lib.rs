//! Durable state of a gateway behind one trait, [`Store`]: functions, their versions, deployments,
//! hashed keys, members of the fleet, VMs that drain.
//!
//! Nothing on the path of a call reads it: the gateway keeps the active versions in memory and asks
//! the store only when something changes. What a method answered with `Ok` is on disk.
//!
//! ```text
//! begin_deployment ─▶ prepare (numbers taken, nothing serves) ─▶ activate (all functions in one step)
//!                        └──────────────── fail_deployment ◀────────┘ when anything goes wrong
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `store` | the trait and its words |
//! | `changes` | how a change reaches those who want to hear of it |
//! | `error` | why an operation did nothing |
//! | `sql` | the trait in SQL, for both back ends |
//! | `sqlite` | opens a file, for one gateway |
//! | `postgres` | opens a data base, for several gateways, and hears what they tell each other |

mod changes;
mod error;
mod postgres;
mod sql;
mod sqlite;
mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::StoreError;
pub use store::{
    Change, Deployed, Deployment, Gateway, Key, KeyRole, Member, Page, Paged, Prepared, Store,
    StoredVersion,
};

use std::{path::Path, sync::Arc};

/// Opens the store at a path or URL (`sqlite:PATH`, `postgres://…`), makes what is missing of it, and brings its
/// schema up to date. Needs a tokio runtime.
///
/// # Errors
/// When the file or the server cannot be opened or holds something else, or when no back end knows the URL.
pub async fn open(url_or_path: &str) -> Result<Arc<dyn Store>, StoreError> {
    sqlx::any::install_default_drivers();
    let path = match url_or_path.split_once(':') {
        Some(("sqlite", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some(("postgres" | "postgresql", _)) => {
            return Ok(Arc::new(postgres::open(url_or_path).await?));
        }
        Some((scheme, _)) if url_or_path[scheme.len()..].starts_with("://") => {
            return Err(StoreError::UnknownScheme(scheme.to_owned()));
        }
        _ => url_or_path,
    };
    Ok(Arc::new(sqlite::open(Path::new(path)).await?))
}
