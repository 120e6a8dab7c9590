//! Structured logs: text for people, JSON for collectors, both to stderr.

use std::{env, fs, os::unix::fs::MetadataExt as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// A line for people; without the time where systemd's journal takes it, which has its own.
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts the log. `level` is a level or a filter as `tracing` knows it.
pub(super) fn start(format: Format, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)?;
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        Format::Text if is_journal() => log.with_ansi(false).with_target(false).without_time().try_init(),
        Format::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).try_init()
        }
        Format::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}

/// Whether stderr is the journal: systemd says which file that is, systemd.exec(5).
fn is_journal() -> bool {
    let stderr = || fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stderr().is_ok_and(|stderr| stderr == stream))
}
