//! Gateway tokens: how a gateway authenticates to a member of its fleet. A token is one line that
//! the gateway signs for one member and for a minute; the member knows the public keys of all
//! gateways and checks it offline.
//!
//! ```text
//! eps1.<gateway id>.<member id>.<expiry, unix time>.<Ed25519 signature of all before this dot, hex>
//! ```
//!
//! [`Signer`] is the gateway's half, [`Verifier`] the member's. Neither knows HTTP or the current
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
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// How often a gateway makes a new token: two may get lost, and none is ever used in its last
/// moments.
pub const RENEW_EVERY: Duration = Duration::from_secs(20);
/// Largest clock difference between gateway and member. Machines with time synchronisation are
/// within a second.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);

/// A reported time that differs from ours by less is ignored.
const TIME_RESOLUTION: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// Format prefix of tokens and key files; another format gets another prefix.
const FORMAT: &str = "eps1";
/// Longer than any token; longer texts are rejected unread.
const MAX_TOKEN_LEN: usize = 320;
/// Verified tokens that are remembered: three minutes of far more gateways than a fleet has.
const MAX_VERIFIED: usize = 4096;

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
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(text) => {
                let seed = text.trim().strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix('.'));
                let seed: [u8; SEED_BYTES] = seed
                    .and_then(unhex)
                    .ok_or_else(|| KeyError::Damaged { path: path.to_owned() })?;
                Self::from_seed(&seed)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let mut seed = [0; SEED_BYTES];
                aws_lc_rs::rand::fill(&mut seed).map_err(|_| KeyError::Unable)?;
                let signer = Self::from_seed(&seed)?;
                secret_file::write(path, &format!("{FORMAT}.{}\n", hex(&seed))).map_err(file)?;
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

    /// A token for this member, valid for [`TOKEN_LIFETIME`]. Usable as a header value.
    pub fn token(&self, member: &VmId, now: Timestamp) -> String {
        let end = now.as_second().saturating_add(TOKEN_LIFETIME.as_secs() as i64);
        let mut text = format!("{FORMAT}.{}.{member}.{end}", self.id);
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
pub struct Verifier {
    member: VmId,
    known: RwLock<Known>,
    /// Follows the gateways' clocks, so that a jump of this machine's clock does not reject tokens.
    clock: Clock,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<GatewayId, [u8; KEY_BYTES]>,
    /// Verified tokens, and the unix time at which each expires.
    verified: HashMap<Box<str>, i64>,
}

impl Verifier {
    /// Trusts no gateway yet.
    pub fn new(member: VmId) -> Self {
        let clock = Clock::start(Timestamp::now());
        Self { member, known: RwLock::default(), clock }
    }

    /// Takes over the time that a trusted gateway reported. Differences below [`TIME_RESOLUTION`]
    /// are ignored: reports are in seconds.
    pub fn note_time(&self, now: Timestamp) {
        if self.clock.lag_to(now).abs() > TIME_RESOLUTION {
            self.clock.set(now);
        }
    }

    /// [`Verifier::verify`], by the gateways' clocks.
    pub fn verify_now(&self, text: &str) -> bool {
        self.verify(text, self.clock.now())
    }

    /// Sets the complete list of gateways. Entries with an invalid key are left out.
    pub fn trust(&self, gateways: &[GatewayKey]) {
        let keys: HashMap<_, _> = gateways
            .iter()
            .filter_map(|gateway| Some((gateway.id.clone(), unhex(&gateway.public_key)?)))
            .collect();
        let mut known = self.known.write();
        if known.keys != keys {
            *known = Known { keys, verified: HashMap::new() };
        }
    }

    /// Whether this text is a valid token of a trusted gateway for this member at `now`.
    pub fn verify(&self, text: &str, now: Timestamp) -> bool {
        let now = now.as_second();
        let remembered = self.known.read().verified.get(text).copied();
        match remembered {
            Some(end) => is_current(end, now),
            None => self.check(text, now),
        }
    }

    fn check(&self, text: &str, now: i64) -> bool {
        let Some(token) = GatewayToken::parse(text) else { return false };
        if token.member != self.member.as_str() || !is_current(token.end, now) {
            return false;
        }
        let Some(key) = self.known.read().keys.get(token.gateway).copied() else { return false };
        let good = UnparsedPublicKey::new(&ED25519, key)
            .verify(token.signed.as_bytes(), &token.signature)
            .is_ok();
        if good {
            self.store_verified(token.gateway, &key, text, token.end, now);
        }
        good
    }

    fn store_verified(&self, gateway: &str, key: &[u8], text: &str, end: i64, now: i64) {
        let mut known = self.known.write();
        // Trust may have been withdrawn while the signature was verified.
        if known.keys.get(gateway).is_none_or(|still| still != key) {
            return;
        }
        known.verified.retain(|_, end| is_current(*end, now));
        if known.verified.len() < MAX_VERIFIED {
            known.verified.insert(text.into(), end);
        }
    }
}

/// Not expired, and not longer than a gateway's tokens are.
fn is_current(end: i64, now: i64) -> bool {
    let life = TOKEN_LIFETIME.as_secs() as i64;
    let skew = MAX_CLOCK_SKEW.as_secs() as i64;
    let left = end.saturating_sub(now);
    -skew < left && left <= life + skew
}

/// A parsed token, not verified yet.
struct GatewayToken<'a> {
    gateway: &'a str,
    member: &'a str,
    end: i64,
    signed: &'a str,
    signature: [u8; SIGNATURE_BYTES],
}

impl<'a> GatewayToken<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.len() > MAX_TOKEN_LEN {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let mut parts = signed.split('.');
        let (form, gateway, member, end) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if form != FORMAT || parts.next().is_some() {
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
        Signer::load_or_create(&folder.path().join("gateway.key")).unwrap()
    }

    fn member(id: &str) -> VmId {
        VmId::parse(id).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const NOW: i64 = 1_800_000_000;

    fn verifier(trusted: &[&Signer]) -> Verifier {
        let verifier = Verifier::new(member("vm-1"));
        verifier.trust(&trusted.iter().map(|signer| signer.key()).collect::<Vec<_>>());
        verifier
    }

    #[test]
    fn key_is_made_once_and_readable_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.key");
        let first = Signer::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Signer::load_or_create(&path).unwrap();
        assert_eq!(again.key(), first.key());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft stays");

        fs::write(&path, "eps1.beef\n").unwrap();
        assert!(matches!(Signer::load_or_create(&path), Err(KeyError::Damaged { .. })));
        let nowhere = folder.path().join("none/gateway.key");
        assert!(matches!(Signer::load_or_create(&nowhere), Err(KeyError::File { .. })));
    }

    #[test]
    fn token_of_a_trusted_gateway_is_accepted_twice() {
        let (ours, others) = (signer(), signer());
        let verifier = verifier(&[&ours, &others]);
        for signer in [&ours, &others, &ours] {
            let token = signer.token(&member("vm-1"), at(NOW));
            assert!(verifier.verify(&token, at(NOW)));
            assert!(verifier.verify(&token, at(NOW + 30)), "remembered");
        }
    }

    #[test]
    fn tokens_of_strangers_and_for_others_are_refused() {
        let (ours, stranger) = (signer(), signer());
        let verifier = verifier(&[&ours]);
        assert!(
            !verifier.verify(&ours.token(&member("vm-2"), at(NOW)), at(NOW)),
            "another member's"
        );
        assert!(
            !verifier.verify(&stranger.token(&member("vm-1"), at(NOW)), at(NOW)),
            "a stranger's"
        );
        let forged = stranger.token(&member("vm-1"), at(NOW));
        let forged = forged.replace(stranger.id().as_str(), ours.id().as_str());
        assert!(!verifier.verify(&forged, at(NOW)), "a stranger's in our name");
    }

    #[test]
    fn no_part_of_a_token_can_be_changed() {
        let ours = signer();
        let verifier = verifier(&[&ours]);
        let token = ours.token(&member("vm-1"), at(NOW));
        assert!(verifier.verify(&token, at(NOW)));
        for at_byte in 0..token.len() {
            for other in ["0", "a", ".", "-"] {
                let mut forged = token.clone();
                forged.replace_range(at_byte..=at_byte, other);
                assert_eq!(verifier.verify(&forged, at(NOW)), forged == token, "{forged}");
            }
        }
        let later = token.replace(&(NOW + 60).to_string(), &(NOW + 61).to_string());
        assert!(!verifier.verify(&later, at(NOW)));
    }

    #[test]
    fn token_expires_with_tolerance_for_clock_skew() {
        let ours = signer();
        let token = ours.token(&member("vm-1"), at(NOW));
        for (now, good) in
            [(NOW, true), (NOW - 30, true), (NOW - 31, false), (NOW + 89, true), (NOW + 90, false)]
        {
            assert_eq!(verifier(&[&ours]).verify(&token, at(now)), good, "{}", now - NOW);
            let remembers = verifier(&[&ours]);
            assert!(remembers.verify(&token, at(NOW)));
            assert_eq!(remembers.verify(&token, at(now)), good, "remembered, {}", now - NOW);
        }
    }

    #[test]
    fn the_time_is_the_gateways() {
        let ours = signer();
        let verifier = verifier(&[&ours]);
        let hour = jiff::SignedDuration::from_hours(1);
        let now = Timestamp::now();
        let (early, late) = (now - hour, now + hour);
        assert!(verifier.verify_now(&ours.token(&member("vm-1"), now)));
        assert!(!verifier.verify_now(&ours.token(&member("vm-1"), late)));
        verifier.note_time(late);
        assert!(verifier.verify_now(&ours.token(&member("vm-1"), late)));
        verifier.note_time(early);
        assert!(verifier.verify_now(&ours.token(&member("vm-1"), early)));
        assert!(!verifier.verify_now(&ours.token(&member("vm-1"), late)));
    }

    #[test]
    fn untrusted_gateway_loses_its_remembered_tokens() {
        let (ours, other) = (signer(), signer());
        let verifier = verifier(&[&ours, &other]);
        let (token, others) =
            (ours.token(&member("vm-1"), at(NOW)), other.token(&member("vm-1"), at(NOW)));
        assert!(verifier.verify(&token, at(NOW)) && verifier.verify(&others, at(NOW)));
        verifier.trust(&[other.key()]);
        assert!(!verifier.verify(&token, at(NOW)) && verifier.verify(&others, at(NOW)));
    }

    #[test]
    fn garbage_is_refused_and_forgotten() {
        let ours = signer();
        let verifier = verifier(&[&ours]);
        let token = ours.token(&member("vm-1"), at(NOW));
        let long = format!("{token}{}", "0".repeat(1 << 20));
        let upper = token.to_uppercase();
        let signature = &token[token.len() - 128..];
        let far = format!("eps1.{}.vm-1.{}.{signature}", ours.id(), i64::MAX);
        let past = format!("eps1.{}.vm-1.{}.{signature}", ours.id(), i64::MIN);
        for text in
            ["", ".", "....", "eps1", "eps1....", "\u{1f980}.é.é.é.é", &long, &upper, &far, &past]
        {
            assert!(!verifier.verify(text, at(NOW)), "{text:.60}");
        }
        assert!(verifier.known.read().verified.is_empty(), "an invalid token uses no memory");
    }

    #[test]
    fn expired_tokens_are_forgotten() {
        let ours = signer();
        let verifier = verifier(&[&ours]);
        for second in (0..3600).step_by(20) {
            assert!(
                verifier.verify(&ours.token(&member("vm-1"), at(NOW + second)), at(NOW + second))
            );
        }
        assert!(verifier.known.read().verified.len() <= 6);
    }

    #[test]
    fn a_key_that_is_none_is_left_out() {
        let ours = signer();
        let verifier = Verifier::new(member("vm-1"));
        let broken = GatewayKey { id: signer().key().id, public_key: "beef".into() };
        verifier.trust(&[broken, ours.key()]);
        assert!(verifier.verify(&ours.token(&member("vm-1"), at(NOW)), at(NOW)));
    }
}
