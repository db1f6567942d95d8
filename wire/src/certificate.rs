//! From when until when the certificates hold that a part has loaded ([`tls`](crate::tls)). A connection that is open goes on
//! when one ends, and the next one is refused: so somebody has to look ahead. Read once, when the part starts.

use crate::tls::{Files, TlsError};
use jiff::{SignedDuration, Timestamp};
use prometheus::{IntGaugeVec, Opts, Registry};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use x509_parser::parse_x509_certificate;

/// From so long before its end on a certificate is spoken of …
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// … so often.
const EACH: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked at. Short, for the wall clock may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// Whose certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The part's own: `tls_certificate`. Of a chain, the one that ends first.
    Own,
    /// Of whom it trusts: `tls_authority`. Of several, the one that ends last: a new one comes before the old one goes.
    Authority,
}

impl Owner {
    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Authority => "authority",
        }
    }
}

/// A certificate that was loaded, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose.
    pub owner: Owner,
    /// Its file.
    pub path: PathBuf,
    /// Holds from then …
    pub not_before: Timestamp,
    /// … until then.
    pub not_after: Timestamp,
}

/// How a certificate stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// It holds.
    Valid,
    /// Its time has not begun; or the machine's clock is behind.
    NotYet,
    /// Its time is over.
    Ended,
}

impl Certificate {
    /// How it stands then.
    pub fn validity(&self, now: Timestamp) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Ended
        } else {
            Validity::Valid
        }
    }
}

/// The certificates of these files: our own, then the authority's.
///
/// # Errors
/// [`TlsError`], when a file cannot be read or holds something else.
pub fn loaded(files: &Files) -> Result<[Certificate; 2], TlsError> {
    let own = read(Owner::Own, &files.certificate)?;
    let authority = read(Owner::Authority, &files.authority)?;
    Ok([own, authority])
}

/// Tells collectors when they end.
///
/// # Errors
/// When the registry has such a metric already.
pub fn register(
    certificates: &[Certificate],
    registry: &Registry,
) -> Result<(), prometheus::Error> {
    if certificates.is_empty() {
        return Ok(());
    }
    let ends = IntGaugeVec::new(
        Opts::new(
            "epsilon_tls_certificate_not_after_seconds",
            "When a certificate that was loaded at the start ends, in seconds since 1970: the own one, and the authority's.",
        ),
        &["certificate"],
    )?;
    for one in certificates {
        ends.with_label_values(&[one.owner.as_str()]).set(one.not_after.as_second());
    }
    registry.register(Box::new(ends))
}

/// Says each day in the log that one of them ends soon, or has ended. Runs until it is dropped.
pub async fn remind(certificates: Vec<Certificate>) {
    let mut reminders: Vec<_> = certificates.into_iter().map(Reminder::new).collect();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for reminder in &mut reminders {
            reminder.look(Timestamp::now(), Instant::now());
        }
    }
}

/// One certificate, and when it was told of last.
#[derive(Debug)]
struct Reminder {
    certificate: Certificate,
    told: Option<Instant>,
}

impl Reminder {
    fn new(certificate: Certificate) -> Self {
        Self { certificate, told: None }
    }

    /// Whether it was told of.
    fn look(&mut self, time: Timestamp, now: Instant) -> bool {
        let left = time.duration_until(self.certificate.not_after);
        let is_soon = left <= SOON;
        if !is_soon || self.told.is_some_and(|told| now.duration_since(told) < EACH) {
            return false;
        }
        self.told = Some(now);
        let Certificate { owner, path, not_after, .. } = &self.certificate;
        let (owner, path, days) = (owner.as_str(), path.display(), left.as_hours() / 24);
        if left.is_negative() {
            tracing::error!(
                certificate = owner, %path, %not_after,
                "A certificate has ended: new connections are refused. Replace the file and restart."
            );
        } else {
            tracing::warn!(
                certificate = owner, %path, %not_after, days,
                "A certificate ends soon; then new connections are refused. Replace the file and restart."
            );
        }
        true
    }
}

fn read(owner: Owner, path: &Path) -> Result<Certificate, TlsError> {
    let unusable = || TlsError::Unusable {
        path: path.to_owned(),
        source: rustls::CertificateError::BadEncoding.into(),
    };
    let mut found: Option<Certificate> = None;
    for der in crate::tls::certificates(path)? {
        let (_, parsed) = parse_x509_certificate(&der).map_err(|_| unusable())?;
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| unusable());
        let (begins, ends) = (parsed.validity().not_before, parsed.validity().not_after);
        let next = Certificate {
            owner,
            path: path.to_owned(),
            not_before: time(begins.timestamp())?,
            // Some that are for ever end in the year 9999.
            not_after: time(ends.timestamp()).unwrap_or(Timestamp::MAX),
        };
        found = Some(match (found, owner) {
            (None, _) => next,
            (Some(before), Owner::Own) => Certificate {
                not_before: before.not_before.max(next.not_before),
                not_after: before.not_after.min(next.not_after),
                ..next
            },
            (Some(before), Owner::Authority) if before.not_after >= next.not_after => before,
            (Some(_), Owner::Authority) => next,
        });
    }
    found.ok_or_else(unusable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::Authority;
    use jiff::ToSpan;

    #[test]
    fn a_certificate_holds_for_its_time() {
        let now = Timestamp::now();
        let fleet = Authority::new();
        let [own, authority] = loaded(&fleet.files_until("127.0.0.1", now + 48.hours())).unwrap();
        assert_eq!(own.not_after.as_second(), (now + 48.hours()).as_second());
        assert_eq!(own.validity(now), Validity::Valid);
        assert_eq!(own.validity(now + 49.hours()), Validity::Ended);
        assert_eq!(own.validity(Timestamp::UNIX_EPOCH), Validity::NotYet);
        assert_eq!((own.owner, authority.owner), (Owner::Own, Owner::Authority));
    }

    #[test]
    fn one_that_ends_soon_is_spoken_of_once_a_day() {
        let (time, now) = (Timestamp::now(), Instant::now());
        let certificate = |hours: i64| Certificate {
            owner: Owner::Own,
            path: "tls.pem".into(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: time + hours.hours(),
        };
        assert!(!Reminder::new(certificate(14 * 24 + 1)).look(time, now));
        for hours in [14 * 24, 1, -1] {
            let mut reminder = Reminder::new(certificate(hours));
            let later = |hours: u64| now + Duration::from_secs(hours * 3600);
            let told = [0, 1, 23, 24, 25, 48].map(|hours| reminder.look(time, later(hours)));
            assert_eq!(told, [true, false, false, true, false, true]);
        }
    }

    #[test]
    fn their_ends_are_told_to_collectors() {
        let (registry, end) = (Registry::new(), Timestamp::from_second(4_000_000_000).unwrap());
        let fleet = Authority::new();
        let certificates = loaded(&fleet.files_until("a", end)).unwrap();
        register(&certificates, &registry).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let line = r#"epsilon_tls_certificate_not_after_seconds{certificate="own"} 4000000000"#;
        assert!(text.contains(line) && text.contains(r#"certificate="authority""#), "{text}");
        register(&[], &registry).unwrap();
    }

    #[test]
    fn of_a_chain_the_first_end_counts_and_of_authorities_the_last() {
        let now = Timestamp::now();
        let fleet = Authority::new();
        let (early, late) = (now + 24.hours(), now + 240.hours());
        let (first, second) = (fleet.files_until("a", late), fleet.files_until("b", early));
        let both = ["a", "b"].map(|name| {
            let file = if name == "a" { &first.certificate } else { &second.certificate };
            std::fs::read_to_string(file).unwrap()
        });
        std::fs::write(&first.certificate, both.concat()).unwrap();
        std::fs::write(&second.certificate, both.concat()).unwrap();
        let files = Files { authority: second.certificate, ..first };
        let [own, authority] = loaded(&files).unwrap();
        assert_eq!(own.not_after.as_second(), early.as_second());
        assert_eq!(authority.not_after.as_second(), late.as_second());
    }
}
