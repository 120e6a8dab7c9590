//! Answer of the source of the objects: a directory or API servers.

use std::time::Duration;

use lb_sources::kubernetes::ServerReport;

use super::Finding;

const CHECK: &str = "source";

/// Response time of an API server that is worth a note.
const SLOW: Duration = Duration::from_secs(1);

/// Answer of a source of objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceAnswer {
    /// A directory: a sentence for each unusable part; or why it cannot be read.
    Directory(Result<Vec<String>, String>),
    /// API servers, each asked once; or why none can be asked.
    Servers(Result<Vec<ServerReport>, String>),
}

impl SourceAnswer {
    /// True if objects can be read from it.
    pub(super) fn answers(&self) -> bool {
        match self {
            Self::Directory(problems) => problems.is_ok(),
            Self::Servers(answers) => answers.as_ref().is_ok_and(|all| all.iter().any(|answer| answer.result.is_ok())),
        }
    }

    /// Reports the answer. `text` describes the source.
    pub(super) fn evaluate(&self, text: &str) -> Finding {
        match self {
            Self::Directory(problems) => directory(text, problems),
            Self::Servers(answers) => servers(text, answers),
        }
    }
}

/// Reports that there is no source.
pub(super) fn missing(error: &anyhow::Error) -> Finding {
    Finding::note(
        CHECK,
        format!("the maps are not compared with any objects: {error:#}"),
        "name a directory with -f, or a cluster with --kubeconfig or --api-server",
    )
}

fn directory(text: &str, problems: &Result<Vec<String>, String>) -> Finding {
    match problems {
        Err(error) => Finding::error(
            CHECK,
            format!("{text}: {error}"),
            "make the directory readable; until then the maps stay as they are",
        ),
        Ok(problems) => match problems.first() {
            None => Finding::ok(CHECK, format!("{text} has no errors")),
            Some(first) => {
                let more =
                    if problems.len() > 1 { format!(", and {} more", problems.len() - 1) } else { String::new() };
                let what = format!("objects with errors: {first}{more} (in {text})");
                Finding::warning(CHECK, what, "correct the file; until then its last good version is served")
            }
        },
    }
}

fn servers(text: &str, answers: &Result<Vec<ServerReport>, String>) -> Finding {
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => {
            return Finding::error(CHECK, format!("{text} cannot be asked: {error}"), "correct the credentials");
        }
    };
    let failed: Vec<_> = answers
        .iter()
        .filter_map(|answer| Some(format!("{} ({})", answer.url, answer.result.as_ref().err()?)))
        .collect();
    let said: Vec<_> = answers.iter().filter_map(|answer| Some((&answer.url, answer.result.as_ref().ok()?))).collect();
    let Some((url, first)) = said.first() else {
        return Finding::error(
            CHECK,
            format!("no API server answers: {}", failed.join(", ")),
            "set --api-server to an address that is not a VIP; check that the certificate has its name, and that the \
             account may read; until then the maps stay as they are",
        );
    };
    if !failed.is_empty() {
        let what = format!("{} of {} API servers do not answer: {}", failed.len(), answers.len(), failed.join(", "));
        return Finding::warning(CHECK, what, "start them, or remove them from --api-server");
    }
    let what = format!("{url} (Kubernetes {}) answers in {} ms", first.version, first.latency.as_millis());
    if said.iter().any(|(_, said)| said.latency > SLOW) {
        return Finding::note(
            CHECK,
            format!("{what}, which is slow"),
            "check the load of the API server, and the network",
        );
    }
    Finding::ok(CHECK, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_sources::kubernetes::ServerInfo;

    use crate::doctor::finding::brief;

    fn check(source: &SourceAnswer, expected: &str) {
        let found = brief(&[source.evaluate("the source")]);
        assert!(found.iter().all(|found| found.starts_with(expected)), "{found:?}");
    }

    fn answer(url: &str, took: Option<u64>) -> ServerReport {
        let said = |took| ServerInfo {
            version: "v1.37.2".to_owned(),
            latency: Duration::from_millis(took),
            clock_ahead: Some(0),
        };
        ServerReport { url: url.to_owned(), result: took.map(said).ok_or_else(|| "no answer".to_owned()) }
    }

    #[test]
    fn failed_and_slow_servers_are_reported() {
        let servers = |list: &[(&str, Option<u64>)]| {
            SourceAnswer::Servers(Ok(list.iter().map(|(url, took)| answer(url, *took)).collect()))
        };
        check(&servers(&[("https://a/", Some(5))]), "ok: https://a/ (Kubernetes v1.37.2) answers in 5 ms");
        check(&servers(&[("https://a/", Some(2000))]), "note: https://a/ (Kubernetes v1.37.2) answers in 2000 ms");
        check(&servers(&[("a", None), ("b", Some(1))]), "warning: 1 of 2 API servers do not answer: a (no answer)");
        check(&servers(&[("a", None)]), "error: no API server answers: a (no answer)");
        check(&SourceAnswer::Servers(Err("x".to_owned())), "error: the source cannot be asked: x");
        assert!(servers(&[("a", None), ("b", Some(1))]).answers());
        assert!(!servers(&[("a", None)]).answers());
    }

    #[test]
    fn errors_in_a_directory_are_reported() {
        let problems =
            |list: &[&str]| SourceAnswer::Directory(Ok(list.iter().map(|text| (*text).to_owned()).collect()));
        check(&problems(&[]), "ok: the source has no errors");
        check(&problems(&["a.yaml: x", "y"]), "warning: objects with errors: a.yaml: x, and 1 more (in the source)");
        let none = SourceAnswer::Directory(Err("gone".to_owned()));
        check(&none, "error: the source: gone");
        assert!(!none.answers() && problems(&["x"]).answers());
    }
}
