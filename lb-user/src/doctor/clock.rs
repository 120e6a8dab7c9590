//! The clock, by which certificates and tokens are valid: compared with those of API servers and with the kernel's
//! flag.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Finding, SourceAnswer};

const CHECK: &str = "clock";

/// 2025-01-01 (Unix time, s): earlier dates are wrong.
const EARLIEST: u64 = 1_735_689_600;

/// Difference from the API server's clock that is worth a warning (s): tokens and leases are that exact.
const MAX_OFFSET: i64 = 30;

/// State of the clock.
#[derive(Clone, Default, Debug)]
pub(super) struct ClockFacts {
    /// Unix time (s).
    now: u64,
    /// True if the kernel's clock is marked as synchronised (adjtimex(2)). `None` if unknown.
    is_synchronised: Option<bool>,
    /// Offsets from the clocks of API servers, by URL (s; positive: this clock is ahead).
    ahead: Vec<(String, i64)>,
}

/// Reads the clock. `source` holds the answers of the API servers, with their dates.
pub(super) fn read(source: Option<&SourceAnswer>) -> ClockFacts {
    let answers = match source {
        Some(SourceAnswer::Servers(Ok(answers))) => answers.as_slice(),
        _ => &[],
    };
    let ahead =
        answers.iter().filter_map(|answer| Some((answer.url.clone(), answer.result.as_ref().ok()?.clock_ahead?)));
    ClockFacts {
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        is_synchronised: lb_kernel::clock::is_synchronised(),
        ahead: ahead.collect(),
    }
}

pub(super) fn evaluate(facts: &ClockFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.now < EARLIEST {
        let what = "the clock is before 2025: no certificate of an API server is valid yet";
        findings.push(Finding::error(CHECK, what, "set the clock, and run chrony or systemd-timesyncd"));
    }
    for (url, ahead) in &facts.ahead {
        let seconds = ahead.abs();
        if seconds < MAX_OFFSET {
            findings.push(Finding::ok(CHECK, format!("the clock is within {} s of the clock of {url}", seconds + 1)));
            continue;
        }
        let direction = if *ahead > 0 { "ahead of" } else { "behind" };
        let what =
            format!("the clock is {seconds} s {direction} the clock of {url}: certificates and tokens may be refused");
        findings.push(Finding::warning(CHECK, what, "run chrony or systemd-timesyncd on both nodes"));
    }
    if facts.is_synchronised == Some(false) {
        let what = "the kernel marks the clock as not synchronised";
        findings.push(Finding::note(
            CHECK,
            what,
            "run chrony or systemd-timesyncd, unless the hypervisor sets the clock",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "the clock is synchronised"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_findings;

    fn check(facts: &ClockFacts, expected: &[&str]) {
        assert_findings(&evaluate(facts), expected);
    }

    #[test]
    fn a_clock_is_synchronised_or_far_from_another() {
        let good = || ClockFacts { now: EARLIEST, is_synchronised: Some(true), ahead: Vec::new() };
        let at = |ahead| ClockFacts { ahead: vec![("a".to_owned(), ahead)], ..good() };
        check(&good(), &["ok: the clock is synchronised"]);
        check(&at(1), &["ok: the clock is within 2 s of the clock of a"]);
        check(&at(-29), &["ok: the clock is within 30 s of the clock of a"]);
        check(&at(90), &["warning: the clock is 90 s ahead of the clock of a"]);
        check(&at(-90), &["warning: the clock is 90 s behind the clock of a"]);
        check(&ClockFacts { is_synchronised: Some(false), ..good() }, &["note: the kernel marks the clock"]);
        check(&ClockFacts { is_synchronised: None, ..good() }, &["ok"]);
        check(&ClockFacts { now: 0, ..good() }, &["error: the clock is before 2025"]);
    }
}
