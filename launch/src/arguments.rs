//! What a program was called with. Read first, by every program.

use clap::{Arg, Command, Parser};
use std::env;

/// The arguments of this process; ends it on `--help` and on wrong usage. A variable that stands for a flag and is empty counts as
/// not set: that is what a CI makes of a secret that is not there, and nobody wrote the flag that clap would name.
pub fn parse<T: Parser>() -> T {
    let command = without_empty(T::command());
    T::from_arg_matches(&command.get_matches()).unwrap_or_else(|err| err.exit())
}

fn without_empty(command: Command) -> Command {
    let names: Vec<_> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None) } else { arg });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

fn is_empty(arg: &Arg) -> bool {
    arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty())
}
