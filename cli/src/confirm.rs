//! Asks a person at a terminal before something goes that does not come back. A script has said what it wants.

use crate::failure::Failure;
use console::Term;
use std::io::IsTerminal as _;

/// Whether somebody is there to be asked.
pub(crate) fn asks() -> bool {
    std::io::stdin().is_terminal() && Term::stderr().is_term()
}

/// Says what will happen, and goes on only when this name is typed; where nobody is there, at once.
pub(crate) fn typed(what: &str, name: &str) -> Result<(), Failure> {
    if !asks() {
        return Ok(());
    }
    eprintln!("{what}");
    eprint!("Type its name to go on: ");
    let mut typed = String::new();
    let read = std::io::stdin().read_line(&mut typed);
    match read.is_ok() && typed.trim() == name {
        true => Ok(()),
        false => Err(Failure::new("NOT_CONFIRMED", "nothing was changed")
            .hint("type the name as it is, or pass `--yes`")),
    }
}
