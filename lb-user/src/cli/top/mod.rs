//! `beeline top`: the counts of this node, live in a terminal or printed for scripts. It reads the pins alone.

mod draw;
mod report;
mod sample;
mod terminal;
mod view;

#[cfg(test)]
mod tests;

use std::{io::IsTerminal as _, thread, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::table::{self, Column};
use lb_dataplane::pins::Pins;
use report::Report;
use sample::Reader;

/// Arguments of `beeline top`.
#[derive(Args)]
#[command(
    after_help = "Keys: q quit, arrows and PgUp/PgDn select, Enter backends, r refusals by cause, o order, / filter, \
    Esc back, h help.\n\nExamples:\n  beeline top\n  beeline top -b                       one table, with rates over a \
    second\n  beeline top -b -d 0.2 -n 5 -o json   five JSON objects, one per line"
)]
pub(super) struct TopArgs {
    /// Print for scripts, and end; needs no terminal.
    #[arg(short, long)]
    batch: bool,
    /// Time between two samples, over which rates are measured.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_delay)]
    delay: Duration,
    /// Number of prints.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, requires = "batch",
        value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Form of the output.
    #[arg(short, long, value_name = "FORM", default_value = "table", requires = "batch")]
    output: TopFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopFormat {
    /// Columns of text.
    Table,
    /// One JSON object per line.
    Json,
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let allowed = Duration::from_millis(10)..=Duration::from_hours(24);
    seconds.filter(|seconds| allowed.contains(seconds)).ok_or_else(|| "want seconds, from 0.01 to a day".to_owned())
}

pub(super) fn run(pins: Pins, arguments: &TopArgs) -> Result<()> {
    let mut reader = Reader::new(pins);
    if arguments.batch {
        return batch(&mut reader, arguments);
    }
    ensure!(
        std::io::stdout().is_terminal(),
        "stdout is not a terminal: use `beeline top -b`, which prints once (-n N: N times)"
    );
    terminal::run(reader, arguments.delay)
}

fn batch(reader: &mut Reader, arguments: &TopArgs) -> Result<()> {
    let mut before = reader.read()?;
    for iteration in 0..arguments.iterations {
        thread::sleep(arguments.delay);
        let now = reader.read()?;
        let report = report::report(Some(&before), &now);
        let text = match arguments.output {
            TopFormat::Json => serde_json::to_string(&report)? + "\n",
            TopFormat::Table => (if iteration == 0 { "" } else { "\n" }).to_owned() + &plain(&report),
        };
        if !super::print_text(&text)? {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Formats a report as text: totals, then all service ports.
fn plain(report: &Report) -> String {
    let mut rows: Vec<_> = report.ports.iter().collect();
    rows.sort_by(|a, b| view::Sort::Rate.compare_ports(a, b));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.cells().into()).collect();
    format!("{}\n{}\n", draw::agent(report), draw::totals(report)) + &table::text(&PORTS, &rows)
}

/// Columns of service ports.
const PORTS: [Column; 10] = [
    Column::left("SERVICE"),
    Column::left("PORT"),
    Column::right("CONN/s"),
    Column::right("CONNECTIONS"),
    Column::right("OPEN"),
    Column::right("REFUSED/s"),
    Column::right("REFUSED"),
    Column::right("MOVED"),
    Column::right("KILLED"),
    Column::right("BACKENDS"),
];
