//! Asks a person at a terminal before something is removed for good. Scripts are not asked.

use crate::failure::Failure;
use console::Term;
use std::io::IsTerminal as _;

/// Whether a person can be asked.
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && Term::stderr().is_term()
}

/// Prints what will happen, and continues only when this name is typed; without a terminal, at
/// once.
pub(crate) fn by_name(what: &str, name: &str) -> Result<(), Failure> {
    if !can_ask() {
        return Ok(());
    }
    eprintln!("{what}");
    eprint!("Type its name to continue: ");
    let mut typed = String::new();
    let read = std::io::stdin().read_line(&mut typed);
    if read.is_ok() && typed.trim() == name {
        Ok(())
    } else {
        Err(Failure::new("NOT_CONFIRMED", "nothing was changed")
            .hint("type the name as it is, or pass `--yes`"))
    }
}
