//! `--config FILE`: flags of `beeline run` in a YAML file, turned into arguments. The names and types of the flags come
//! from clap: this file names no flag but `--config`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, parser::ValueSource};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::Cli;

/// The flag that names the file: not a key of the file.
const CONFIG: &str = "config";

/// Appends the flags of the file in `--config`, if any, to a parsed command line. `resolve` maps a path of the command
/// line to the path to open.
///
/// # Errors
/// If the file cannot be read, or has an unknown key or a wrong value.
pub(super) fn complete(
    line: Vec<OsString>,
    matches: ArgMatches,
    resolve: impl Fn(&Path) -> PathBuf,
) -> Result<(Vec<OsString>, ArgMatches)> {
    let typed = matches.subcommand_matches("run");
    let file = typed.and_then(|typed| Some((typed, typed.get_one::<PathBuf>(CONFIG)?)));
    let Some((typed, file)) = file else { return Ok((line, matches)) };
    let named = || format!("--config {}", file.display());
    let text = std::fs::read_to_string(resolve(file)).with_context(named)?;
    let flags = arguments(&text, &run_command(), typed).with_context(named)?;
    let line: Vec<_> = line.into_iter().chain(flags.into_iter().map(OsString::from)).collect();
    // The command line alone was valid: any error now is an error of the file.
    let matches = Cli::command().try_get_matches_from(&line).map_err(|error| anyhow::anyhow!(one_line(&error)));
    Ok((line, matches.with_context(named)?))
}

/// Returns the command `beeline run`, with its flags.
fn run_command() -> Command {
    let mut command = Cli::command();
    // Adds the global flags to the subcommands.
    command.build();
    command.find_subcommand("run").expect("a command of that name").clone()
}

/// Turns the keys of a file into arguments, without keys that the command line overrides or excludes.
fn arguments(text: &str, run: &Command, typed: &ArgMatches) -> Result<Vec<String>> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let keys: Option<BTreeMap<String, Spanned<Value>>> = serde_saphyr::from_str_with_options(text, options)?;
    // Errors are reported in the order of the file.
    let mut keys: Vec<_> = keys.unwrap_or_default().into_iter().collect();
    keys.sort_by_key(|(_, value)| value.referenced.line());
    let is_typed = |arg: &Arg| typed.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let mut arguments = Vec::new();
    for (key, value) in keys {
        let place = || format!("line {}: {key}", value.referenced.line());
        let arg = find(run, &key).with_context(place)?;
        let flags = flags_of(arg, &key, &value.value).with_context(place)?;
        let excludes = |one: &Arg, other: &Arg| run.get_arg_conflicts_with(one).contains(&other);
        let overrides = |other: &Arg| is_typed(other) && (other == arg || excludes(arg, other) || excludes(other, arg));
        if !run.get_arguments().any(overrides) {
            arguments.extend(flags);
        }
    }
    Ok(arguments)
}

/// Lists the flags that may be keys of a file.
fn known(run: &Command) -> impl Iterator<Item = &Arg> {
    let is_help = |arg: &Arg| matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong);
    run.get_arguments().filter(move |arg| !is_help(arg) && arg.get_id() != CONFIG)
}

fn find<'a>(run: &'a Command, key: &str) -> Result<&'a Arg> {
    let is_it =
        |arg: &&Arg| arg.get_long() == Some(key) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&key));
    known(run).find(is_it).with_context(|| {
        let names: Vec<_> = known(run).filter_map(Arg::get_long).collect();
        format!("unknown key: want the name of a flag of `beeline run`: {}", names.join(", "))
    })
}

/// Turns a key and its value into arguments.
fn flags_of(arg: &Arg, key: &str, value: &Value) -> Result<Vec<String>> {
    let values = arg.get_num_args().unwrap_or_else(|| 1.into());
    let one = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{key}={text}")),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(format!("--{key}={number}")),
        // YAML reads 1.10 as 1.1.
        Value::Number(_) => bail!("put a number with a point into quotes"),
        Value::Null => bail!("has no value: write \"\" for an empty one, or leave the key out"),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => bail!("want a text or a number"),
    };
    match value {
        Value::Bool(true) if values.min_values() == 0 => Ok(vec![format!("--{key}")]),
        Value::Bool(false) if values.min_values() == 0 => Ok(Vec::new()),
        _ if values.max_values() == 0 => bail!("want true or false"),
        Value::Array(items) => {
            ensure!(matches!(arg.get_action(), ArgAction::Append), "want one value, not a list");
            items.iter().map(one).collect()
        }
        value => Ok(vec![one(value)?]),
    }
}

/// Returns clap's message in one line, without the usage.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.trim_start_matches("error: ").lines().take_while(|line| !line.is_empty()).map(str::trim);
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
