//! Gateway tokens: how a gateway authenticates to a member of its fleet. A token is one line that
//! the gateway signs for one member and for a minute; the member knows the public keys of all
//! gateways and checks it offline.
//!
//! ```text
//! eps1.<gateway id>.<member id>.<expiry, unix time>.<Ed25519 signature of all before this dot, hex>
//! ```
//!
//! [`Signer`] is the gateway's half, [`Checker`] the member's. Neither knows HTTP or the current
//! time: the caller passes `now`. Not done here: keeping a token secret in transit (that is
//! `tls.rs`), and authorization of single requests.

use crate::clock::Clock;
use crate::secret_file;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use epsilon_api::{
    fleet::GatewayKey,
    ids::{GatewayId, VmId},
};
use jiff::Timestamp;
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a token is valid. A stolen one is useless a minute later.
pub const LIFE: Duration = Duration::from_secs(60);
/// How often a gateway makes a new token: two may get lost, and none is ever used in its last
/// moments.
pub const RENEW: Duration = Duration::from_secs(20);
/// Largest clock difference between gateway and member. Machines with time synchronisation are
/// within a second.
pub const SKEW: Duration = Duration::from_secs(30);

/// A reported time that differs from ours by less is ignored.
const COARSE: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// Format prefix of tokens and key files; another format gets another prefix.
const FORM: &str = "eps1";
/// Longer than any token; longer texts are rejected unread.
const LONGEST: usize = 320;
/// Verified tokens that are remembered: three minutes of far more gateways than a fleet has.
const REMEMBERED: usize = 4096;

const SEED_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// Why a gateway's key cannot be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// The key file.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// The file holds something other than a key.
    #[error("`{}` does not hold a gateway's key; remove it to get a new one", path.display())]
    Damaged {
        /// The key file.
        path: PathBuf,
    },
    /// No randomness, or the crypto library refuses to work.
    #[error("no key can be made on this machine")]
    Unable,
}

/// A gateway's key pair: signs its tokens.
pub struct Signer {
    id: GatewayId,
    public_key: String,
    pair: Ed25519KeyPair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key from its file; makes both at the first start. The file is readable by its
    /// owner only.
    ///
    /// # Errors
    /// [`KeyError`], for the operator.
    pub fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(text) => {
                let seed = text.trim().strip_prefix(FORM).and_then(|rest| rest.strip_prefix('.'));
                let seed: [u8; SEED_BYTES] = seed
                    .and_then(unhex)
                    .ok_or_else(|| KeyError::Damaged { path: path.to_owned() })?;
                Self::from_seed(&seed)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let mut seed = [0; SEED_BYTES];
                aws_lc_rs::rand::fill(&mut seed).map_err(|_| KeyError::Unable)?;
                let signer = Self::from_seed(&seed)?;
                secret_file::write(path, &format!("{FORM}.{}\n", hex(&seed))).map_err(file)?;
                Ok(signer)
            }
            Err(err) => Err(file(err)),
        }
    }

    fn from_seed(seed: &[u8; SEED_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Unable)?;
        let public_key = hex(pair.public_key().as_ref());
        // The id is derived from the key, so that no two keys share one.
        let id = GatewayId::parse(&format!("g-{}", &public_key[..12]));
        Ok(Self { id: id.map_err(|_| KeyError::Unable)?, public_key, pair })
    }

    /// The gateway's id: as long-lived as its key.
    pub fn id(&self) -> &GatewayId {
        &self.id
    }

    /// What members verify the tokens with: 64 hexadecimal digits.
    pub fn public_key_hex(&self) -> &str {
        &self.public_key
    }

    /// Id and public key, as sent to members.
    pub fn key(&self) -> GatewayKey {
        GatewayKey { id: self.id.clone(), public_key: self.public_key.clone() }
    }

    /// A token for this member, valid for [`LIFE`]. Usable as a header value.
    pub fn pass(&self, member: &VmId, now: Timestamp) -> String {
        let end = now.as_second().saturating_add(LIFE.as_secs() as i64);
        let mut text = format!("{FORM}.{}.{member}.{end}", self.id);
        let signature = self.pair.sign(text.as_bytes());
        text.push('.');
        text.push_str(&hex(signature.as_ref()));
        text
    }
}

/// A member's half: knows the gateways' keys and verifies tokens.
///
/// A signature is verified once; the token's text is remembered until it expires, so that a call
/// costs one look into a small map. Tokens of a gateway that is no longer trusted are rejected from
/// then on.
#[derive(Debug)]
pub struct Checker {
    member: VmId,
    known: RwLock<Known>,
    /// Follows the gateways' clocks, so that a jump of this machine's clock does not reject tokens.
    clock: Clock,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<GatewayId, [u8; KEY_BYTES]>,
    /// Verified tokens, and the unix time at which each expires.
    passes: HashMap<Box<str>, i64>,
}

impl Checker {
    /// Trusts no gateway yet.
    pub fn new(member: VmId) -> Self {
        let clock = Clock::start(Timestamp::now());
        Self { member, known: RwLock::default(), clock }
    }

    /// Takes over the time that a trusted gateway reported. Differences below [`COARSE`] are
    /// ignored: reports are in seconds.
    pub fn hear_time(&self, now: Timestamp) {
        if self.clock.behind(now).abs() > COARSE {
            self.clock.set(now);
        }
    }

    /// [`Checker::admits`], by the gateways' clocks.
    pub fn admits_now(&self, text: &str) -> bool {
        self.admits(text, self.clock.now())
    }

    /// Sets the complete list of gateways. Entries with an invalid key are left out.
    pub fn trust(&self, gateways: &[GatewayKey]) {
        let keys: HashMap<_, _> = gateways
            .iter()
            .filter_map(|gateway| Some((gateway.id.clone(), unhex(&gateway.public_key)?)))
            .collect();
        let mut known = self.known.write();
        if known.keys != keys {
            *known = Known { keys, passes: HashMap::new() };
        }
    }

    /// Whether this text is a valid token of a trusted gateway for this member at `now`.
    pub fn admits(&self, text: &str, now: Timestamp) -> bool {
        let now = now.as_second();
        let remembered = self.known.read().passes.get(text).copied();
        match remembered {
            Some(end) => is_time(end, now),
            None => self.check(text, now),
        }
    }

    fn check(&self, text: &str, now: i64) -> bool {
        let Some(pass) = Pass::parse(text) else { return false };
        if pass.member != self.member.as_str() || !is_time(pass.end, now) {
            return false;
        }
        let Some(key) = self.known.read().keys.get(pass.gateway).copied() else { return false };
        let good = UnparsedPublicKey::new(&ED25519, key)
            .verify(pass.signed.as_bytes(), &pass.signature)
            .is_ok();
        if good {
            self.remember(pass.gateway, &key, text, pass.end, now);
        }
        good
    }

    fn remember(&self, gateway: &str, key: &[u8], text: &str, end: i64, now: i64) {
        let mut known = self.known.write();
        // Trust may have been withdrawn while the signature was verified.
        if known.keys.get(gateway).is_none_or(|still| still != key) {
            return;
        }
        known.passes.retain(|_, end| is_time(*end, now));
        if known.passes.len() < REMEMBERED {
            known.passes.insert(text.into(), end);
        }
    }
}

/// Not expired, and not longer than a gateway's tokens are.
fn is_time(end: i64, now: i64) -> bool {
    let life = LIFE.as_secs() as i64;
    let skew = SKEW.as_secs() as i64;
    let left = end.saturating_sub(now);
    -skew < left && left <= life + skew
}

/// A parsed token, not verified yet.
struct Pass<'a> {
    gateway: &'a str,
    member: &'a str,
    end: i64,
    signed: &'a str,
    signature: [u8; SIGNATURE_BYTES],
}

impl<'a> Pass<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let mut parts = signed.split('.');
        let (form, gateway, member, end) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if form != FORM || parts.next().is_some() {
            return None;
        }
        Some(Self { gateway, member, end: end.parse().ok()?, signed, signature: unhex(signature)? })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// Exactly `N` bytes, in lower-case digits: one value has one text.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn signer() -> Signer {
        let folder = tempfile::tempdir().unwrap();
        Signer::load_or_make(&folder.path().join("gateway.key")).unwrap()
    }

    fn member(id: &str) -> VmId {
        VmId::parse(id).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const NOW: i64 = 1_800_000_000;

    fn checker(trusted: &[&Signer]) -> Checker {
        let checker = Checker::new(member("vm-1"));
        checker.trust(&trusted.iter().map(|signer| signer.key()).collect::<Vec<_>>());
        checker
    }

    #[test]
    fn key_is_made_once_and_readable_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.key");
        let first = Signer::load_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Signer::load_or_make(&path).unwrap();
        assert_eq!(again.key(), first.key());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft stays");

        fs::write(&path, "eps1.beef\n").unwrap();
        assert!(matches!(Signer::load_or_make(&path), Err(KeyError::Damaged { .. })));
        let nowhere = folder.path().join("none/gateway.key");
        assert!(matches!(Signer::load_or_make(&nowhere), Err(KeyError::File { .. })));
    }

    #[test]
    fn token_of_a_trusted_gateway_is_accepted_twice() {
        let (ours, others) = (signer(), signer());
        let checker = checker(&[&ours, &others]);
        for signer in [&ours, &others, &ours] {
            let pass = signer.pass(&member("vm-1"), at(NOW));
            assert!(checker.admits(&pass, at(NOW)));
            assert!(checker.admits(&pass, at(NOW + 30)), "remembered");
        }
    }

    #[test]
    fn whoever_is_not_meant_or_not_trusted_stays_outside() {
        let (ours, stranger) = (signer(), signer());
        let checker = checker(&[&ours]);
        assert!(!checker.admits(&ours.pass(&member("vm-2"), at(NOW)), at(NOW)), "another member's");
        assert!(!checker.admits(&stranger.pass(&member("vm-1"), at(NOW)), at(NOW)), "a stranger's");
        let posing = stranger.pass(&member("vm-1"), at(NOW));
        let posing = posing.replace(stranger.id().as_str(), ours.id().as_str());
        assert!(!checker.admits(&posing, at(NOW)), "a stranger's in our name");
    }

    #[test]
    fn no_part_of_a_pass_can_be_changed() {
        let ours = signer();
        let checker = checker(&[&ours]);
        let pass = ours.pass(&member("vm-1"), at(NOW));
        assert!(checker.admits(&pass, at(NOW)));
        for at_byte in 0..pass.len() {
            for other in ["0", "a", ".", "-"] {
                let mut forged = pass.clone();
                forged.replace_range(at_byte..=at_byte, other);
                assert_eq!(checker.admits(&forged, at(NOW)), forged == pass, "{forged}");
            }
        }
        let later = pass.replace(&(NOW + 60).to_string(), &(NOW + 61).to_string());
        assert!(!checker.admits(&later, at(NOW)));
    }

    #[test]
    fn token_expires_with_tolerance_for_clock_skew() {
        let ours = signer();
        let pass = ours.pass(&member("vm-1"), at(NOW));
        for (now, good) in
            [(NOW, true), (NOW - 30, true), (NOW - 31, false), (NOW + 89, true), (NOW + 90, false)]
        {
            assert_eq!(checker(&[&ours]).admits(&pass, at(now)), good, "{}", now - NOW);
            let remembers = checker(&[&ours]);
            assert!(remembers.admits(&pass, at(NOW)));
            assert_eq!(remembers.admits(&pass, at(now)), good, "remembered, {}", now - NOW);
        }
    }

    #[test]
    fn the_time_is_the_gateways() {
        let ours = signer();
        let checker = checker(&[&ours]);
        let hour = jiff::SignedDuration::from_hours(1);
        let now = Timestamp::now();
        let (early, late) = (now - hour, now + hour);
        assert!(checker.admits_now(&ours.pass(&member("vm-1"), now)));
        assert!(!checker.admits_now(&ours.pass(&member("vm-1"), late)));
        checker.hear_time(late);
        assert!(checker.admits_now(&ours.pass(&member("vm-1"), late)));
        checker.hear_time(early);
        assert!(checker.admits_now(&ours.pass(&member("vm-1"), early)));
        assert!(!checker.admits_now(&ours.pass(&member("vm-1"), late)));
    }

    #[test]
    fn untrusted_gateway_loses_its_remembered_tokens() {
        let (ours, other) = (signer(), signer());
        let checker = checker(&[&ours, &other]);
        let (pass, others) =
            (ours.pass(&member("vm-1"), at(NOW)), other.pass(&member("vm-1"), at(NOW)));
        assert!(checker.admits(&pass, at(NOW)) && checker.admits(&others, at(NOW)));
        checker.trust(&[other.key()]);
        assert!(!checker.admits(&pass, at(NOW)) && checker.admits(&others, at(NOW)));
    }

    #[test]
    fn garbage_is_refused_and_forgotten() {
        let ours = signer();
        let checker = checker(&[&ours]);
        let pass = ours.pass(&member("vm-1"), at(NOW));
        let long = format!("{pass}{}", "0".repeat(1 << 20));
        let upper = pass.to_uppercase();
        let signature = &pass[pass.len() - 128..];
        let far = format!("eps1.{}.vm-1.{}.{signature}", ours.id(), i64::MAX);
        let past = format!("eps1.{}.vm-1.{}.{signature}", ours.id(), i64::MIN);
        for text in
            ["", ".", "....", "eps1", "eps1....", "\u{1f980}.é.é.é.é", &long, &upper, &far, &past]
        {
            assert!(!checker.admits(text, at(NOW)), "{text:.60}");
        }
        assert!(checker.known.read().passes.is_empty(), "an invalid pass uses no memory");
    }

    #[test]
    fn passes_that_are_over_are_forgotten() {
        let ours = signer();
        let checker = checker(&[&ours]);
        for second in (0..3600).step_by(20) {
            assert!(
                checker.admits(&ours.pass(&member("vm-1"), at(NOW + second)), at(NOW + second))
            );
        }
        assert!(checker.known.read().passes.len() <= 6);
    }

    #[test]
    fn a_key_that_is_none_is_left_out() {
        let ours = signer();
        let checker = Checker::new(member("vm-1"));
        let broken = GatewayKey { id: signer().key().id, public_key: "beef".into() };
        checker.trust(&[broken, ours.key()]);
        assert!(checker.admits(&ours.pass(&member("vm-1"), at(NOW)), at(NOW)));
    }
}
