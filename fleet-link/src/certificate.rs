//! Validity of the certificates that a part has loaded ([`tls`](crate::tls)): a metric, and a daily
//! log line before they expire. Open connections survive an expired certificate, new ones are
//! refused. Files are read once, when the part starts.

use crate::tls::{Files, TlsError};
use jiff::{SignedDuration, Timestamp};
use prometheus::{IntGaugeVec, Opts, Registry};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use x509_parser::parse_x509_certificate;

/// Warn from this long before a certificate expires …
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// … and this often.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often the wall clock is checked. Short, because the clock may be set.
const CHECK_EVERY: Duration = Duration::from_secs(3600);

/// Which of the loaded files a certificate is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The part's own, from `tls_certificate`. Of a chain, the certificate that expires first
    /// counts.
    Own,
    /// The trusted authority, from `tls_authority`. Of several, the one that expires last counts: a
    /// new one is added before the old one is removed.
    Authority,
}

impl Owner {
    /// Label value in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Authority => "authority",
        }
    }
}

/// A loaded certificate and its validity period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Own certificate or authority.
    pub owner: Owner,
    /// The PEM file that it was read from.
    pub path: PathBuf,
    /// Start of the validity period.
    pub not_before: Timestamp,
    /// End of the validity period.
    pub not_after: Timestamp,
}

/// Whether a certificate is valid at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// Within its validity period.
    Valid,
    /// Before its validity period, or the machine's clock is late.
    NotYet,
    /// Expired.
    Ended,
}

impl Certificate {
    /// Validity at the time `now`.
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

/// Reads the certificates of these files: our own, then the authority's.
///
/// # Errors
/// [`TlsError`] when a file cannot be read or does not hold a certificate.
pub fn loaded(files: &Files) -> Result<[Certificate; 2], TlsError> {
    let own = read(Owner::Own, &files.certificate)?;
    let authority = read(Owner::Authority, &files.authority)?;
    Ok([own, authority])
}

/// Registers the metric of expiry times.
///
/// # Errors
/// When the registry already has a metric of this name.
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
            "When a certificate that was loaded at the start expires, in seconds since 1970: the own one, and the authority's.",
        ),
        &["certificate"],
    )?;
    for one in certificates {
        ends.with_label_values(&[one.owner.as_str()]).set(one.not_after.as_second());
    }
    registry.register(Box::new(ends))
}

/// Logs once a day that a certificate expires soon or has expired. Runs until it is dropped.
pub async fn remind(certificates: Vec<Certificate>) {
    let mut reminders: Vec<_> = certificates.into_iter().map(Reminder::new).collect();
    let mut looks = interval(CHECK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for reminder in &mut reminders {
            reminder.log_if_due(Timestamp::now(), Instant::now());
        }
    }
}

/// One certificate, and when it was last logged.
#[derive(Debug)]
struct Reminder {
    certificate: Certificate,
    logged_at: Option<Instant>,
}

impl Reminder {
    fn new(certificate: Certificate) -> Self {
        Self { certificate, logged_at: None }
    }

    /// Logs if due; `true` when it logged.
    fn log_if_due(&mut self, time: Timestamp, now: Instant) -> bool {
        let left = time.duration_until(self.certificate.not_after);
        let is_soon = left <= WARN_BEFORE;
        if !is_soon
            || self.logged_at.is_some_and(|logged_at| now.duration_since(logged_at) < WARN_EVERY)
        {
            return false;
        }
        self.logged_at = Some(now);
        let Certificate { owner, path, not_after, .. } = &self.certificate;
        let owner = owner.as_str();
        let path = path.display();
        let days = left.as_hours() / 24;
        if left.is_negative() {
            tracing::error!(
                certificate = owner, %path, %not_after,
                "Certificate has expired; new connections are refused. Replace the file and restart."
            );
        } else {
            tracing::warn!(
                certificate = owner, %path, %not_after, days,
                "Certificate expires soon; new connections will be refused. Replace the file and restart."
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
        let begins = parsed.validity().not_before;
        let ends = parsed.validity().not_after;
        let next = Certificate {
            owner,
            path: path.to_owned(),
            not_before: time(begins.timestamp())?,
            // Certificates without an end carry the year 9999, which `Timestamp` may not hold.
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
    fn expiring_certificate_is_logged_once_a_day() {
        let (time, now) = (Timestamp::now(), Instant::now());
        let certificate = |hours: i64| Certificate {
            owner: Owner::Own,
            path: "tls.pem".into(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: time + hours.hours(),
        };
        assert!(!Reminder::new(certificate(14 * 24 + 1)).log_if_due(time, now));
        for hours in [14 * 24, 1, -1] {
            let mut reminder = Reminder::new(certificate(hours));
            let later = |hours: u64| now + Duration::from_secs(hours * 3600);
            let logged_at =
                [0, 1, 23, 24, 25, 48].map(|hours| reminder.log_if_due(time, later(hours)));
            assert_eq!(logged_at, [true, false, false, true, false, true]);
        }
    }

    #[test]
    fn their_expiry_is_a_metric() {
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
    fn first_expiry_of_a_chain_and_last_of_authorities() {
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
