//! The keys of the gateway's own doors: made at the first start, kept in a file that only the operator can
//! read, recognised by a hash. A file that is gone or does not match makes a new key, and the old one
//! opens nothing any more.
//!
//! Text form: `epsilon_<role>_<id>_<secret>`; the id finds the hash, the secret has 256 bits, so a plain
//! SHA-256 is enough.

use epsilon_api::{ids::GatewayId, redacted::Secret};
use epsilon_store::{Key, KeyRole, Store, StoreError};
use jiff::Timestamp;
use rand::RngExt;
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq;

/// A key that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The hash cannot be kept.
    #[error("the hash of the key in `{}` cannot be kept", path.display())]
    Store {
        /// Whose.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

const fn role_name(role: &KeyRole) -> &'static str {
    match role {
        KeyRole::Admin => "admin",
        KeyRole::Fleet => "fleet",
        KeyRole::Member(_) => "member",
    }
}

/// Makes sure that the file holds a key that opens this role's doors.
pub(crate) async fn ensure(
    store: &dyn Store,
    gateway: &GatewayId,
    role: &KeyRole,
    path: &Path,
) -> Result<(), KeyError> {
    let file = |source| KeyError::File { path: path.to_owned(), source };
    let kept = |source| KeyError::Store { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) if opens(store, role, text.trim()).await.map_err(kept)? => return Ok(()),
        Ok(_) => tracing::warn!(path = %path.display(), "Key is not known; a new one is made."),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(file(err)),
    }
    let (key, text) = make(role);
    // The hash first: a crash in between leaves no file, or an old one, and the next start comes here again.
    store.replace_key(gateway, &key).await.map_err(kept)?;
    write_private(path, text.reveal()).map_err(file)?;
    tracing::info!(path = %path.display(), "Key written.");
    Ok(())
}

/// Whether this text is a key for this role.
pub(crate) async fn opens(
    store: &dyn Store,
    role: &KeyRole,
    text: &str,
) -> Result<bool, StoreError> {
    let Some((id, secret)) = parse(role, text) else { return Ok(false) };
    let Some(key) = store.key(id).await? else { return Ok(false) };
    let same = hash(secret).as_bytes().ct_eq(key.hash.as_bytes());
    Ok(key.role == *role && bool::from(same))
}

fn parse<'t>(role: &KeyRole, text: &'t str) -> Option<(&'t str, &'t str)> {
    text.strip_prefix("epsilon_")?.strip_prefix(role_name(role))?.strip_prefix('_')?.split_once('_')
}

fn make(role: &KeyRole) -> (Key, Secret<String>) {
    let mut rng = rand::rng();
    let id = format!("{:012x}", rng.random::<u64>() >> 16);
    let secret = format!("{:032x}{:032x}", rng.random::<u128>(), rng.random::<u128>());
    let text = format!("epsilon_{}_{id}_{secret}", role_name(role));
    let key = Key { id, role: role.clone(), hash: hash(&secret), created_at: Timestamp::now() };
    (key, Secret::new(text))
}

fn hash(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Temp, fsync, rename: a reader sees the old key or the new one, never half of it.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let half = path.with_extension("new");
    match fs::remove_file(&half) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn the_first_start_makes_a_key_and_the_next_one_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let gateway = GatewayId::random();
        let path = dir.path().join("admin.key");
        let store = epsilon_store::open(dir.path().join("db").to_str().unwrap()).await.unwrap();
        ensure(&*store, &gateway, &KeyRole::Admin, &path).await.unwrap();
        let first = fs::read_to_string(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        ensure(&*store, &gateway, &KeyRole::Admin, &path).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first);

        let key = first.trim();
        assert!(opens(&*store, &KeyRole::Admin, key).await.unwrap());
        assert!(!opens(&*store, &KeyRole::Fleet, key).await.unwrap());
        let forged = format!("{}0", &key[..key.len() - 1]);
        for wrong in ["", "epsilon_admin_", &forged, &key.replace("admin", "fleet")] {
            assert!(wrong == key || !opens(&*store, &KeyRole::Admin, wrong).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_lost_or_foreign_file_is_replaced_and_the_old_key_dies() {
        let dir = tempfile::tempdir().unwrap();
        let gateway = GatewayId::random();
        let path = dir.path().join("fleet.token");
        let store = epsilon_store::open(dir.path().join("db").to_str().unwrap()).await.unwrap();
        ensure(&*store, &gateway, &KeyRole::Fleet, &path).await.unwrap();
        let old = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        ensure(&*store, &gateway, &KeyRole::Fleet, &path).await.unwrap();
        assert!(!opens(&*store, &KeyRole::Fleet, old.trim()).await.unwrap());
        fs::write(&path, &old).unwrap();
        ensure(&*store, &gateway, &KeyRole::Fleet, &path).await.unwrap();
        let new = fs::read_to_string(&path).unwrap();
        assert!(new != old && opens(&*store, &KeyRole::Fleet, new.trim()).await.unwrap());
    }
}
