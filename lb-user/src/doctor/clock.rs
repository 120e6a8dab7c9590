//! Whether the clock is right: certificates and tokens are valid by it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Finding, Source};

const CHECK: &str = "clock";

/// 2025-01-01: no node of today has an earlier date.
const EARLIEST: u64 = 1_735_689_600;

/// So many seconds from the API server's clock are worth a warning: tokens and leases are that exact.
const FAR: i64 = 30;

/// What is known of it.
#[derive(Clone, Default, Debug)]
pub(super) struct Facts {
    /// Seconds since 1970.
    now: u64,
    /// Whether the kernel is told that it is kept right.
    is_kept: Option<bool>,
    /// How many seconds it is ahead of the clocks of API servers.
    ahead: Vec<(String, i64)>,
}

/// Reads it. What API servers say, they have said before.
pub(super) fn read(source: Option<&Source>) -> Facts {
    let answers = match source {
        Some(Source::Servers(Ok(answers))) => answers.as_slice(),
        _ => &[],
    };
    let ahead =
        answers.iter().filter_map(|answer| Some((answer.url.clone(), answer.result.as_ref().ok()?.clock_ahead?)));
    Facts {
        now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        is_kept: lb_kernel::clock::is_synchronised(),
        ahead: ahead.collect(),
    }
}

/// What it means.
pub(super) fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.now < EARLIEST {
        let what = "the clock stands before 2025: no certificate of an API server is valid yet";
        findings.push(Finding::error(CHECK, what, "set it, and let chrony or systemd-timesyncd keep it"));
    }
    for (url, ahead) in &facts.ahead {
        let seconds = ahead.abs();
        if seconds < FAR {
            findings.push(Finding::ok(CHECK, format!("the clock is within {} s of that of {url}", seconds + 1)));
            continue;
        }
        let way = if *ahead > 0 { "ahead of" } else { "behind" };
        let what = format!("the clock is {seconds} s {way} that of {url}: certificates and tokens may be refused");
        findings.push(Finding::warning(CHECK, what, "let chrony or systemd-timesyncd keep both clocks"));
    }
    if facts.is_kept == Some(false) {
        let what = "nobody has told the kernel that the clock is kept right";
        findings.push(Finding::note(
            CHECK,
            what,
            "let chrony or systemd-timesyncd keep it, unless the host of this machine does",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "the clock is kept right"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::assert_told;

    fn check(facts: &Facts, expected: &[&str]) {
        assert_told(&evaluate(facts), expected);
    }

    #[test]
    fn a_clock_is_right_or_far_from_another() {
        let kept = || Facts { now: EARLIEST, is_kept: Some(true), ahead: Vec::new() };
        let at = |ahead| Facts { ahead: vec![("a".to_owned(), ahead)], ..kept() };
        check(&kept(), &["ok: the clock is kept right"]);
        check(&at(1), &["ok: the clock is within 2 s of that of a"]);
        check(&at(-29), &["ok: the clock is within 30 s of that of a"]);
        check(&at(90), &["warning: the clock is 90 s ahead of that of a"]);
        check(&at(-90), &["warning: the clock is 90 s behind that of a"]);
        check(&Facts { is_kept: Some(false), ..kept() }, &["note: nobody has told the kernel"]);
        check(&Facts { is_kept: None, ..kept() }, &["ok"]);
        check(&Facts { now: 0, ..kept() }, &["error: the clock stands before 2025"]);
    }
}
