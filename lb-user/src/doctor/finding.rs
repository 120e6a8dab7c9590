//! What a check found, as data.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something does not work for somebody, or soon will not.
    Warning,
    /// Services do not work as they should.
    Error,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that a check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The check.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was seen, and what it costs.
    pub what: String,
    /// What to do about it, where something can be done.
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

/// How bad the worst of them is.
#[must_use]
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// Their severities and first words, for tables of tests.
#[cfg(test)]
pub(super) fn brief(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}: {}", finding.severity.name(), finding.what)).collect()
}

/// Each of them begins as expected, and there are no others.
#[cfg(test)]
pub(super) fn assert_told(findings: &[Finding], expected: &[&str]) {
    let told = brief(findings);
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}\n{expected}");
    }
}
