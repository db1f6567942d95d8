//! The gateway's own API keys: created at the first start, stored in a file that only the operator
//! can read, recognised by a hash. If the file is missing or holds no valid key, a new key is
//! created and the old one becomes invalid. Each gateway of a store creates its own; every gateway
//! accepts all of them, until the gateway that has a key in its file is lost (`lost.rs`). Members
//! of the fleet get theirs when they join.
//!
//! Text form: `epsilon_<role>_<id>_<secret>`. The id finds the hash; the secret has 256 bits, so a
//! plain SHA-256 is enough.

pub(crate) mod lost;

use crate::store_health::StoreHealth;
use epsilon_api::{ids::GatewayId, redacted::Secret};
use epsilon_store::{Key, KeyRole, KeyStore, StoreError};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::RngExt;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use subtle::ConstantTimeEq;

/// Lengths of a key's parts: 48 bits to find it, 256 bits that cannot be guessed.
const ID_DIGITS: usize = 12;
const SECRET_DIGITS: usize = 64;
/// Keys that are cached: far more than the gateways and members of one fleet have.
const MAX_CACHED: usize = 4096;

/// Why a key could not be created.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// Path of the key's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The hash could not be stored.
    #[error("the hash of the key in `{}` cannot be stored", path.display())]
    Store {
        /// The file of the key.
        path: PathBuf,
        /// The cause.
        #[source]
        source: StoreError,
    },
}

const fn role_name(role: &KeyRole) -> &'static str {
    match role {
        KeyRole::Admin => "admin",
        KeyRole::Fleet => "fleet",
        KeyRole::Builder => "builder",
        KeyRole::Member(_) => "member",
    }
}

/// Ensures that the file contains a valid key of this role, and returns it. A key that the operator
/// has put there is accepted if it is well formed: so all gateways of a fleet can share one.
pub(crate) async fn ensure(
    store: &dyn KeyStore,
    gateway: &GatewayId,
    role: &KeyRole,
    path: &Path,
) -> Result<Key, KeyError> {
    let file = |source| KeyError::File { path: path.to_owned(), source };
    let store_error = |source| KeyError::Store { path: path.to_owned(), source };
    let silent_before = lost::silent_before(Timestamp::now(), lost::OWNED_FOR);
    match fs::read_to_string(path) {
        Ok(text) => match read(role, text.trim()) {
            Some(key) => match store.replace_key(gateway, &key, silent_before).await {
                Ok(false) => return Ok(key),
                Ok(true) => {
                    tracing::info!(path = %path.display(), "Key in this file is valid from now on.");
                    return Ok(key);
                }
                // Its id is that of another key.
                Err(StoreError::Database(_)) => {
                    tracing::warn!(path = %path.display(), "Key in this file cannot be used; creating a new one.");
                }
                Err(err) => return Err(store_error(err)),
            },
            None => {
                tracing::warn!(path = %path.display(), "File does not contain a key; creating a new one.");
            }
        },
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(file(err)),
    }
    let (key, text) = make(role);
    // The hash first: a crash in between leaves no file, or an old one, and the next start
    // creates a key again.
    store.replace_key(gateway, &key, silent_before).await.map_err(store_error)?;
    write_private(path, text.reveal()).map_err(file)?;
    tracing::info!(path = %path.display(), "New key was written to this file.");
    Ok(key)
}

/// Parses a key of this role that is long enough not to be guessed.
fn read(role: &KeyRole, text: &str) -> Option<Key> {
    let (name, id, secret) = parse(text)?;
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let good = name == role_name(role)
        && (id.len(), secret.len()) == (ID_DIGITS, SECRET_DIGITS)
        && is_hex(id)
        && is_hex(secret);
    let created_at = Timestamp::now();
    good.then(|| Key { id: id.to_owned(), role: role.clone(), hash: hash(secret), created_at })
}

/// Why it is unknown now whether a key is valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyCheckError {
    /// The store is known not to answer.
    #[error("the store does not answer")]
    StoreUnavailable,
    /// The store's answer was an error.
    #[error("the store cannot be queried")]
    Store(#[source] StoreError),
}

/// Checks keys. Caches the keys that were valid, for the time that the store is unavailable:
/// operators need access then more than ever.
#[derive(Debug)]
pub(crate) struct ApiKeys {
    store: Arc<dyn KeyStore>,
    watch: Arc<StoreHealth>,
    known: Mutex<HashMap<String, Key>>,
}

impl ApiKeys {
    pub(crate) fn new(store: Arc<dyn KeyStore>, watch: Arc<StoreHealth>) -> Self {
        Self { store, watch, known: Mutex::default() }
    }

    /// The role of this key; `None` if it is not valid.
    pub(crate) async fn role(&self, text: &str) -> Result<Option<KeyRole>, KeyCheckError> {
        let Some((role, id, secret)) = parse(text) else { return Ok(None) };
        let key = self.key(id).await?;
        let key = key.filter(|key| role_name(&key.role) == role && matches(key, secret));
        Ok(key.map(|key| key.role))
    }

    async fn key(&self, id: &str) -> Result<Option<Key>, KeyCheckError> {
        let known = self.known.lock().get(id).cloned();
        if self.watch.unavailable_since().is_some() {
            return known.map(Some).ok_or(KeyCheckError::StoreUnavailable);
        }
        match self.store.key(id).await {
            Ok(key) => {
                self.watch.mark_answered();
                match &key {
                    Some(key) => self.cache(key),
                    None => drop(self.known.lock().remove(id)),
                }
                Ok(key)
            }
            Err(err @ StoreError::Unavailable(_)) => {
                self.watch.mark_unavailable();
                known.map(Some).ok_or(KeyCheckError::Store(err))
            }
            Err(err) => Err(KeyCheckError::Store(err)),
        }
    }

    /// Caches a valid key.
    pub(crate) fn cache(&self, key: &Key) {
        let mut known = self.known.lock();
        if known.len() < MAX_CACHED || known.contains_key(&key.id) {
            known.insert(key.id.clone(), key.clone());
        }
    }

    /// Removes a key that is no longer valid from the cache.
    pub(crate) fn forget(&self, id: &str) {
        self.known.lock().remove(id);
    }
}

/// The id of a text that has the form of our keys; nothing of other texts, which may be another
/// system's secret.
pub(crate) fn id_of(text: &str) -> Option<&str> {
    let (role, id, secret) = parse(text)?;
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    let ours = matches!(role, "admin" | "fleet" | "builder" | "member")
        && (id.len(), secret.len()) == (ID_DIGITS, SECRET_DIGITS)
        && is_hex(id)
        && is_hex(secret);
    ours.then_some(id)
}

/// Role, id and secret of a text in the form of a key.
fn parse(text: &str) -> Option<(&str, &str, &str)> {
    let (role, rest) = text.strip_prefix("epsilon_")?.split_once('_')?;
    let (id, secret) = rest.split_once('_')?;
    Some((role, id, secret))
}

fn matches(key: &Key, secret: &str) -> bool {
    hash(secret).as_bytes().ct_eq(key.hash.as_bytes()).into()
}

/// A new key and its text, which is never shown again.
pub(crate) fn make(role: &KeyRole) -> (Key, Secret<String>) {
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

/// Writes a temporary file, syncs and renames it: a reader sees the old key or the new one, never
/// half of it.
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
    use epsilon_store::Store;
    use prometheus::IntGauge;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    struct Lab {
        dir: TempDir,
        store: Arc<dyn Store>,
        gateway: GatewayId,
    }

    impl Lab {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = epsilon_store::open(dir.path().join("db").to_str().unwrap()).await.unwrap();
            Self { dir, store, gateway: GatewayId::random() }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("key")
        }

        /// The content of the file after a start.
        async fn start(&self, role: &KeyRole) -> String {
            ensure(&*self.store, &self.gateway, role, &self.path()).await.unwrap();
            fs::read_to_string(self.path()).unwrap()
        }

        fn api_keys(&self) -> ApiKeys {
            let watch = Arc::new(StoreHealth::new(IntGauge::new("up", "up").unwrap()));
            ApiKeys::new(self.store.clone(), watch)
        }

        async fn opens(&self, text: &str) -> Option<KeyRole> {
            self.api_keys().role(text.trim()).await.unwrap()
        }
    }

    #[tokio::test]
    async fn the_first_start_creates_a_key_that_stays() {
        let lab = Lab::new().await;
        let first = lab.start(&KeyRole::Admin).await;
        assert_eq!(fs::metadata(lab.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(lab.start(&KeyRole::Admin).await, first);

        assert_eq!(lab.opens(&first).await, Some(KeyRole::Admin));
        let key = first.trim();
        let last = if key.ends_with('0') { "1" } else { "0" };
        let forged = format!("{}{last}", &key[..key.len() - 1]);
        for wrong in ["", "epsilon_admin_", "epsilon__", &forged, &key.replace("admin", "fleet")] {
            assert_eq!(lab.opens(wrong).await, None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_lost_file_replaces_the_key() {
        let lab = Lab::new().await;
        let old = lab.start(&KeyRole::Fleet).await;
        fs::remove_file(lab.path()).unwrap();
        let new = lab.start(&KeyRole::Fleet).await;
        assert_eq!(lab.opens(&old).await, None);
        assert_eq!(lab.opens(&new).await, Some(KeyRole::Fleet));
    }

    #[tokio::test]
    async fn what_is_no_key_of_the_role_is_replaced() {
        let lab = Lab::new().await;
        let fleet = make(&KeyRole::Fleet).1.reveal().clone();
        let short = &fleet[..fleet.len() - 1];
        let admin = fleet.replace("fleet", "admin");
        for wrong in ["secret", short, admin.as_str(), &fleet.to_uppercase()] {
            fs::write(lab.path(), wrong).unwrap();
            let made = lab.start(&KeyRole::Fleet).await;
            assert_ne!(made.trim(), wrong);
            assert_eq!(lab.opens(&made).await, Some(KeyRole::Fleet));
            assert_eq!(lab.opens(wrong).await, None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn two_gateways_can_share_a_given_key() {
        let mut lab = Lab::new().await;
        let given = make(&KeyRole::Fleet).1.reveal().clone();
        fs::write(lab.path(), &given).unwrap();
        assert_eq!(lab.start(&KeyRole::Fleet).await, given);
        lab.gateway = GatewayId::random();
        assert_eq!(lab.start(&KeyRole::Fleet).await, given);
        assert_eq!(lab.opens(&given).await, Some(KeyRole::Fleet));
    }

    #[tokio::test]
    async fn a_key_of_another_gateway_takes_the_place_of_the_own_one() {
        let mut lab = Lab::new().await;
        let shared = lab.start(&KeyRole::Admin).await;
        lab.gateway = GatewayId::random();
        fs::remove_file(lab.path()).unwrap();
        let own = lab.start(&KeyRole::Admin).await;
        fs::write(lab.path(), &shared).unwrap();
        assert_eq!(lab.start(&KeyRole::Admin).await, shared);
        assert_eq!(lab.opens(&shared).await, Some(KeyRole::Admin));
        assert_eq!(lab.opens(&own).await, None, "it was replaced");
    }

    #[tokio::test]
    async fn cached_keys_are_valid_while_the_store_is_unavailable() {
        let lab = Lab::new().await;
        let (used, unused) = (make(&KeyRole::Admin), make(&KeyRole::Admin));
        let (one, other) = (GatewayId::random(), GatewayId::random());
        for (gateway, key) in [(&one, &used.0), (&other, &unused.0)] {
            lab.store.replace_key(gateway, key, Timestamp::MIN).await.unwrap();
        }
        let api_keys = lab.api_keys();
        assert_eq!(api_keys.role(used.1.reveal()).await.unwrap(), Some(KeyRole::Admin));
        api_keys.watch.mark_unavailable();
        assert_eq!(api_keys.role(used.1.reveal()).await.unwrap(), Some(KeyRole::Admin));
        assert!(api_keys.role(unused.1.reveal()).await.is_err(), "it cannot be checked");
        assert_eq!(api_keys.role(&format!("{}0", used.1.reveal())).await.unwrap(), None);
        api_keys.watch.mark_answered();
        assert_eq!(api_keys.role(unused.1.reveal()).await.unwrap(), Some(KeyRole::Admin));
    }
}
