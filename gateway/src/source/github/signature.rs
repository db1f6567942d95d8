//! Authenticates a delivery: HMAC-SHA-256 over its raw body with the secret that GitHub and the
//! operator share. Nothing of a body is parsed before this check.

use aws_lc_rs::hmac;
use epsilon_api::redacted::Secret;
use http::HeaderMap;

/// GitHub's header with the signature.
const HEADER: &str = "x-hub-signature-256";

/// The signature that a sender claims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signature([u8; 32]);

impl Signature {
    /// The signature of a request; none if it is missing, repeated, or malformed. The SHA-1
    /// signature that GitHub still sends is ignored.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(HEADER).iter();
        let (Some(value), None) = (all.next(), all.next()) else { return None };
        let digits = value.as_bytes().strip_prefix(b"sha256=")?;
        let digits: &[u8; 64] = digits.try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// Whether it was made of this body with this secret. Constant time.
    pub(crate) fn is_of(&self, body: &[u8], secret: &Secret<String>) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes());
        hmac::verify(&key, body, &self.0).is_ok()
    }
}

fn digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GitHub's own example, from its documentation.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNED: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn holds(headers: &[&str], body: &[u8], secret: &str) -> bool {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(HEADER, value.parse().unwrap());
        }
        let secret = Secret::new(secret.to_owned());
        Signature::of(&map).is_some_and(|signature| signature.is_of(body, &secret))
    }

    macro_rules! signatures {
        ($($name:ident: $headers:expr, $body:expr, $secret:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(holds(&$headers, $body, $secret), $want);
            }
        )*};
    }

    signatures! {
        the_example_of_github: [SIGNED], BODY, SECRET => true;
        upper_case_digits: [&SIGNED.to_uppercase().replace("SHA256", "sha256")], BODY, SECRET => true;
        another_body: [SIGNED], b"Hello, World?", SECRET => false;
        a_longer_body: [SIGNED], b"Hello, World!\n", SECRET => false;
        another_secret: [SIGNED], BODY, "It's a Secret to Nobody" => false;
        none: [], BODY, SECRET => false;
        empty: [""], BODY, SECRET => false;
        truncated: [&SIGNED[..SIGNED.len() - 1]], BODY, SECRET => false;
        truncated_to_half: [&SIGNED[..SIGNED.len() / 2]], BODY, SECRET => false;
        only_the_name: ["sha256="], BODY, SECRET => false;
        too_long: [&format!("{SIGNED}00")], BODY, SECRET => false;
        no_digits: [&SIGNED.replace('7', "g")], BODY, SECRET => false;
        without_its_name: [&SIGNED[7..]], BODY, SECRET => false;
        named_sha1: [&SIGNED.replace("sha256", "sha1")], BODY, SECRET => false;
        two_of_them: [SIGNED, SIGNED], BODY, SECRET => false;
        last_digit_off: [&format!("{}8", &SIGNED[..SIGNED.len() - 1])], BODY, SECRET => false;
    }
}
