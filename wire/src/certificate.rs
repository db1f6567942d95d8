//! From when until when the certificates hold that a part has loaded ([`tls`](crate::tls)). A connection that is open goes on
//! when one ends, and the next one is refused: so somebody has to look ahead. Read once, when the part starts.

use crate::tls::{Files, TlsError};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use x509_parser::parse_x509_certificate;

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
