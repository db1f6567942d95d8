//! After the lookup, for functions whose calls are split: which version a call goes to.
//! Pure, except for the counter that assigns callers without a slot of their own.
//!
//! The slot of a caller, one of a hundred, comes from its cookie, from a header's hash, or from the
//! counter; `slots` of the API maps a slot to a version. The cookie contains the slot's number and
//! nothing else about the caller.

use crate::routes::Route;
use crate::routes::split::Split;
use epsilon_api::traffic::{
    Sticky,
    slots::{COUNT, Slots},
};
use epsilon_placement::hash;
use http::{HeaderMap, HeaderValue, header::COOKIE};
use std::sync::Arc;

/// Prefix of the cookie's name, before the function's name.
const COOKIE_PREFIX: &str = "epsilon-version-";
/// Attributes of the cookie. Valid for a week: long enough for visitors who return during a split.
const COOKIE_ATTRIBUTES: &str = "; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax";

/// The version for a call.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// The version.
    pub(crate) route: Arc<Route>,
    /// The cookie to set, if the caller has none.
    pub(crate) cookie: Option<HeaderValue>,
}

/// Chooses the version for a call with these headers.
pub(crate) fn choose(split: &Split, headers: &HeaderMap) -> Chosen {
    let terms = &split.terms;
    let next_slot = || Slots::of(split.draw());
    let mut cookie = None;
    let slot = match &terms.split.sticky {
        None => next_slot(),
        Some(Sticky::Header(name)) => match headers.get(name) {
            Some(value) => Slots::of(hash::of_bytes(value.as_bytes())),
            None => next_slot(),
        },
        Some(Sticky::Cookie) => {
            let function = terms.function.as_str();
            slot_in_cookie(function, headers).unwrap_or_else(|| {
                let slot = next_slot();
                cookie = make_cookie(function, slot);
                slot
            })
        }
    };
    Chosen { route: Arc::clone(split.at(slot)), cookie }
}

/// The slot in the caller's cookie. An invalid cookie counts as none.
fn slot_in_cookie(function: &str, headers: &HeaderMap) -> Option<usize> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut ours = cookies.flat_map(|value| value.split(';')).filter_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name.strip_prefix(COOKIE_PREFIX)? == function).then_some(value)
    });
    let is_number = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
    let slot = ours.next().filter(is_number)?.parse().ok()?;
    (slot < COUNT).then_some(slot)
}

fn make_cookie(function: &str, slot: usize) -> Option<HeaderValue> {
    // A function's name and a number are valid in a cookie.
    HeaderValue::try_from(format!("{COOKIE_PREFIX}{function}={slot}{COOKIE_ATTRIBUTES}")).ok()
}

#[cfg(test)]
mod tests;
