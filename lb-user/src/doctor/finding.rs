//! Finding of a check, as data.

use serde::Serialize;

/// Severity of a finding, in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// No problem.
    Ok,
    /// Information: no action is needed.
    Note,
    /// Some clients are not served, or soon will not be.
    Warning,
    /// Services do not work.
    Error,
}

impl Severity {
    /// Returns the name, as in the output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Observation of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    pub severity: Severity,
    /// Observation and its effect.
    pub what: String,
    /// Remedy. `None` for [`Severity::Ok`].
    pub cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, what: what.into(), cure: None }
    }

    pub(super) fn note(check: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, severity: Severity::Note, what: what.into(), cure: Some(cure.into()) }
    }

    pub(super) fn warning(check: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, what: what.into(), cure: Some(cure.into()) }
    }

    pub(super) fn error(check: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, severity: Severity::Error, what: what.into(), cure: Some(cure.into()) }
    }
}

/// Returns the highest severity; [`Severity::Ok`] without findings.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// Formats findings as `severity: observation`, for tables of tests.
#[cfg(test)]
pub(super) fn brief(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}: {}", finding.severity.name(), finding.what)).collect()
}

/// Asserts that there is one finding for each expected beginning, in order.
#[cfg(test)]
pub(super) fn assert_findings(findings: &[Finding], expected: &[&str]) {
    let found = brief(findings);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}
