//! Structured logs: text for people, JSON for collectors, both to stderr.

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

/// Form of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts the log. `level` is a level or a filter as `tracing` knows it.
pub(super) fn start(format: Format, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)?;
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        Format::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).try_init()
        }
        Format::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}
