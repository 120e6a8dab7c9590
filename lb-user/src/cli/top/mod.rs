//! `beeline top`: the counters of this node live, in a terminal or line by line for scripts. It reads the pins alone.

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

/// How to show it.
#[derive(Args)]
#[command(
    after_help = "Keys: q quit, arrows and PgUp/PgDn select, Enter backends, r refusals by cause, o sort, / filter, \
    Esc back, h help.\n\nExamples:\n  beeline top\n  beeline top -b                    one table, with rates of a second\n  \
    beeline top -b -d 0.2 -n 5 -o json   five JSON objects, a line each"
)]
pub(super) struct Arguments {
    /// Print for scripts, and end; no terminal is needed.
    #[arg(short, long)]
    batch: bool,
    /// Time between two looks, over which rates are measured.
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_delay)]
    delay: Duration,
    /// How often to print.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, requires = "batch",
        value_parser = clap::value_parser!(u32).range(1..))]
    iterations: u32,
    /// Form of what is printed.
    #[arg(short, long, value_name = "FORM", default_value = "table", requires = "batch")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns for people.
    Table,
    /// A JSON object a line.
    Json,
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let sound = Duration::from_millis(10)..=Duration::from_hours(24);
    seconds.filter(|seconds| sound.contains(seconds)).ok_or_else(|| "want seconds, from 0.01 to a day".to_owned())
}

pub(super) fn run(pins: Pins, arguments: &Arguments) -> Result<()> {
    let mut reader = Reader::new(pins);
    if arguments.batch {
        return batch(&mut reader, arguments);
    }
    ensure!(
        std::io::stdout().is_terminal(),
        "stdout is no terminal: `beeline top -b` prints once, for scripts and files (-n N prints N times)"
    );
    terminal::run(reader, arguments.delay)
}

fn batch(reader: &mut Reader, arguments: &Arguments) -> Result<()> {
    let mut before = reader.read()?;
    for turn in 0..arguments.iterations {
        thread::sleep(arguments.delay);
        let now = reader.read()?;
        let report = report::report(Some(&before), &now);
        let text = match arguments.output {
            Output::Json => serde_json::to_string(&report)? + "\n",
            Output::Table => (if turn == 0 { "" } else { "\n" }).to_owned() + &plain(&report),
        };
        if !super::say(&text)? {
            break;
        }
        before = now;
    }
    Ok(())
}

/// The report as text: the totals, and all service ports.
fn plain(report: &Report) -> String {
    let mut rows: Vec<_> = report.ports.iter().collect();
    rows.sort_by(|a, b| view::Sort::Rate.compare_ports(a, b));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.cells().into()).collect();
    format!("{}\n{}\n", draw::agent(report), draw::totals(report)) + &table::text(&PORTS, &rows)
}

/// The columns of service ports.
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
