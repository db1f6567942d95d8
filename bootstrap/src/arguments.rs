//! Parsing of command-line arguments. First step of every program.

use clap::{
    Arg, Command, Parser,
    error::{ContextKind, ContextValue},
};
use epsilon_api::suggest;
use std::env;

/// The arguments of this process; exits on `--help` and on wrong usage. An empty environment
/// variable that stands for a flag counts as not set: CI systems pass missing secrets that way, and
/// clap would blame a flag that the person never typed.
pub fn parse<T: Parser>() -> T {
    let command = without_empty(T::command());
    let matches = command.try_get_matches().unwrap_or_else(|err| nearest_first(err).exit());
    T::from_arg_matches(&matches).unwrap_or_else(|err| err.exit())
}

fn without_empty(command: Command) -> Command {
    let names: Vec<_> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None) } else { arg });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, without_empty))
}

fn is_empty(arg: &Arg) -> bool {
    arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty())
}

/// Sorts suggestions nearest first (`deply` is `deploy` rather than `delete`); clap names the least
/// likely first.
fn nearest_first(mut err: clap::Error) -> clap::Error {
    let typed = err.get(ContextKind::InvalidSubcommand).cloned();
    let similar = err.get(ContextKind::SuggestedSubcommand).cloned();
    if let (Some(ContextValue::String(typed)), Some(ContextValue::Strings(mut names))) =
        (typed, similar)
    {
        suggest::sort(&typed, &mut names);
        err.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
    }
    err
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_verb_is_named_first() {
        let command = Command::new("x").subcommands(["delete", "deploy"].map(Command::new));
        let err = command.try_get_matches_from(["x", "deply"]).unwrap_err();
        let text = nearest_first(err).to_string();
        let (deploy, delete) = (text.find("'deploy'").unwrap(), text.find("'delete'").unwrap());
        assert!(deploy < delete, "{text}");
    }
}
