//! The log on stderr: text, or JSON for log collectors.

use std::{env, fs, os::unix::fs::MetadataExt as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt};

/// Format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines of text; without the time if stderr is systemd's journal, which adds its own.
    Text,
    /// One JSON object per line.
    Json,
}

/// The API server's client logs an error for each failed request, without server and cause. The sources log both, once.
const SILENT: &str = "kube_client::client::builder=off";

/// Starts the log. `level` is a level, or a filter of `tracing_subscriber::EnvFilter`.
pub(super) fn start(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(format!("{SILENT},{level}"))?;
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text if is_journal() => log.with_ansi(false).with_target(false).without_time().try_init(),
        LogFormat::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).try_init()
        }
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("starting the log: {error}"))
}

/// True if stderr is the journal, which `$JOURNAL_STREAM` names by device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    let stderr = || fs::metadata("/proc/self/fd/2").map(|file| format!("{}:{}", file.dev(), file.ino()));
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stderr().is_ok_and(|stderr| stderr == stream))
}
