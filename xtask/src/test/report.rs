//! The report of a run: one row for each check, and their sum, which is the last line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::run;
use crate::tally::Tally;

/// The rows so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// The outcome of one check.
pub(crate) struct Row {
    /// Name of the check, for people.
    pub(crate) name: String,
    /// Tests of the check, or the check itself as one.
    pub(crate) tally: Tally,
    /// Time from the start to the end of the check.
    pub(crate) took: Duration,
}

impl Row {
    /// Does a check and counts it.
    pub(crate) fn of(name: &str, work: impl FnOnce() -> Result<()>) -> Self {
        Self::where_possible(name, || work().map(|()| None))
    }

    /// Does a check that needs something that not every machine has or reaches. The reason why it could not be done is
    /// told, and the check counts as not run.
    pub(crate) fn where_possible(name: &str, work: impl FnOnce() -> Result<Option<String>>) -> Self {
        let start = Instant::now();
        let tally = match run::step(name, work) {
            Ok(None) => Tally::PASS,
            Ok(Some(reason)) => {
                run::note(&format!("    {name}: NOT CHECKED: {reason}"));
                Tally { ignored: 1, ..Tally::default() }
            }
            Err(error) => {
                run::note(&format!("    {error:#}"));
                Tally::FAIL
            }
        };
        Self { name: name.to_owned(), tally, took: start.elapsed() }
    }
}

impl Report {
    /// Adds an outcome.
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Does a check, counts it, and fails if it does: for checks that later ones are built on.
    pub(crate) fn must<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut result = None;
        let row = Row::of(name, || {
            result = Some(work()?);
            Ok(())
        });
        self.add(row);
        result.with_context(|| format!("{name} failed"))
    }

    /// Counts something only if it failed.
    pub(crate) fn needed<T>(&mut self, name: &str, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.add(Row { name: name.to_owned(), tally: Tally::FAIL, took: Duration::ZERO });
        }
        result
    }

    /// Prints the rows and the count.
    pub(crate) fn close(&self) -> ExitCode {
        let mut sum = Tally::default();
        eprintln!();
        for Row { name, tally, took } in &self.rows {
            sum += *tally;
            let Tally { passed, failed, ignored } = *tally;
            let mark = if failed == 0 { "ok    " } else { "FAILED" };
            let ignored = if ignored == 0 { String::new() } else { format!(", {ignored} not run") };
            let took = took.as_secs_f64();
            eprintln!("  {mark} {name:<32} {took:>7.1} s   {passed} passed, {failed} failed{ignored}");
        }
        run::print(&sum.closing_line());
        if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_check_is_one_thing_that_passed_or_failed() {
        let ((good, bad, not), _) = run::in_block(|| {
            let not = Row::where_possible("c", || Ok(Some("no network".to_owned())));
            (Row::of("a", || Ok(())), Row::of("b", || bail!("no")), not)
        });
        assert_eq!([good.tally, bad.tally], [Tally::PASS, Tally::FAIL]);
        assert_eq!(not.tally, Tally { ignored: 1, ..Tally::default() });
    }

    #[test]
    fn later_checks_need_those_before() {
        let mut report = Report::default();
        let (result, _) = run::in_block(|| report.must("a", || -> Result<u8> { bail!("no") }));
        assert_eq!(result.unwrap_err().to_string(), "a failed");
        assert_eq!(run::in_block(|| report.must("b", || Ok(7))).0.unwrap(), 7);
        assert_eq!(report.rows.len(), 2);
    }
}
