//! Listeners passed by the service manager: `LISTEN_FDS`, as systemd passes the sockets of
//! `.socket` units. They stay open while the program restarts, and new connections wait in the
//! kernel's queue instead of being refused. Used by programs with a gateway.

use crate::failure::Failure;
use listenfd::ListenFd;
use std::net::TcpListener;

/// Names of the descriptors (`FileDescriptorName=` of the units), in the order assumed when they
/// have no names.
const NAMES: [&str; 2] = ["calls", "control"];

/// The listeners that were passed.
#[derive(Debug, Default)]
pub struct Sockets {
    /// The public listener, for callers of functions.
    pub calls: Option<TcpListener>,
    /// The listener of the control API.
    pub control: Option<TcpListener>,
}

impl Sockets {
    /// Takes the listeners passed to this process, once; child processes do not inherit them.
    ///
    /// # Errors
    /// Wrong usage: sockets that are not listeners, or have other names.
    pub fn take() -> Result<Self, Failure> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut passed = ListenFd::from_env();
        let mut sockets = Self::default();
        if passed.len() == 0 {
            return Ok(sockets); // names without LISTEN_FDS are those of the parent process
        }
        for (index, name) in named(&names, passed.len())?.into_iter().enumerate() {
            let wrong = |err| {
                let text = format!(
                    "the socket `{name}` that the service manager passed is not a TCP listener"
                );
                Failure::usage(text).with_cause(&err)
            };
            let listener = passed.take_tcp_listener(index).map_err(wrong)?;
            match name {
                "calls" => sockets.calls = listener,
                _ => sockets.control = listener,
            }
        }
        Ok(sockets)
    }
}

/// The purpose of each of `count` descriptors.
fn named(names: &str, count: usize) -> Result<Vec<&'static str>, Failure> {
    let given: Vec<_> = match names {
        "" => NAMES.into_iter().take(count).collect(),
        names => names.split(':').collect(),
    };
    let known = |name: &&str| NAMES.into_iter().find(|known| known == name);
    let all: Option<Vec<_>> = given.iter().map(known).collect();
    match all {
        Some(all) if all.len() == count && (count < 2 || all[0] != all[1]) => Ok(all),
        _ => Err(Failure::usage(format!(
            "the service manager passed {count} sockets, named `{}`",
            given.join("`, `")
        ))
        .hint(
            "one may be `calls` and one `control`: `FileDescriptorName=` in their `.socket` units",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn sockets_are_known_by_name_or_by_order() {
        for (names, count, wanted) in [
            ("", 0, Some(&[][..])),
            ("", 1, Some(&["calls"])),
            ("", 2, Some(&["calls", "control"])),
            ("control:calls", 2, Some(&["control", "calls"])),
            ("control", 1, Some(&["control"])),
            ("", 3, None),
            ("calls:calls", 2, None),
            ("calls:control", 1, None),
            ("epsilon-gateway.socket", 1, None),
        ] {
            assert_eq!(named(names, count).ok().as_deref(), wanted, "{names} {count}");
        }
    }
}
