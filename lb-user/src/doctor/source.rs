//! Whether the source of the objects answers.

use std::time::Duration;

use lb_sources::kubernetes::ServerReport;

use super::Finding;

const CHECK: &str = "source";

/// An answer that takes longer is worth a word.
const SLOW: Duration = Duration::from_secs(1);

/// Where the objects are, as it answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory: what of it is unusable, a sentence each; or why it cannot be read at all.
    Directory(Result<Vec<String>, String>),
    /// API servers, each asked once; or why none could be.
    Servers(Result<Vec<ServerReport>, String>),
}

impl Source {
    /// Whether objects can be had from it.
    #[must_use]
    pub fn answers(&self) -> bool {
        match self {
            Self::Directory(problems) => problems.is_ok(),
            Self::Servers(answers) => answers.as_ref().is_ok_and(|all| all.iter().any(|answer| answer.result.is_ok())),
        }
    }

    /// What it means; `text` is where it is, in words.
    pub(super) fn evaluate(&self, text: &str) -> Finding {
        match self {
            Self::Directory(problems) => directory(text, problems),
            Self::Servers(answers) => servers(text, answers),
        }
    }
}

/// There is nothing to ask.
pub(super) fn missing(error: &anyhow::Error) -> Finding {
    Finding::note(
        CHECK,
        format!("the maps are not compared with any objects: {error:#}"),
        "name a directory with -f, or a cluster with --kubeconfig or --api-server",
    )
}

fn directory(text: &str, problems: &Result<Vec<String>, String>) -> Finding {
    match problems {
        Err(error) => {
            Finding::error(CHECK, format!("{text}: {error}"), "make it readable; until then the maps stay as they are")
        }
        Ok(problems) => match problems.first() {
            None => Finding::ok(CHECK, format!("read whole: {text}")),
            Some(first) => {
                let more =
                    if problems.len() > 1 { format!(", and {} more", problems.len() - 1) } else { String::new() };
                let what = format!("not everything can be used: {first}{more} (in {text})");
                Finding::warning(CHECK, what, "correct it; until then what it said last goes on")
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
    let silent: Vec<_> = answers
        .iter()
        .filter_map(|answer| Some(format!("{} ({})", answer.url, answer.result.as_ref().err()?)))
        .collect();
    let said: Vec<_> = answers.iter().filter_map(|answer| Some((&answer.url, answer.result.as_ref().ok()?))).collect();
    let Some((url, first)) = said.first() else {
        return Finding::error(
            CHECK,
            format!("no API server answers: {}", silent.join(", ")),
            "see that the way there is no Service itself (--api-server), that the certificate is for its name, and that the \
             account may read; the maps stay as they are meanwhile",
        );
    };
    if !silent.is_empty() {
        let what = format!("{} of {} API servers do not answer: {}", silent.len(), answers.len(), silent.join(", "));
        return Finding::warning(CHECK, what, "bring them up, or take them out of --api-server");
    }
    let what = format!("{url} answers in {} ms, and is Kubernetes {}", first.latency.as_millis(), first.version);
    if said.iter().any(|(_, said)| said.latency > SLOW) {
        return Finding::note(CHECK, format!("{what}; that is slow"), "see what keeps it busy, or the network");
    }
    Finding::ok(CHECK, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_sources::kubernetes::ServerInfo;

    use crate::doctor::finding::brief;

    fn check(source: &Source, expected: &str) {
        let told = brief(&[source.evaluate("the source")]);
        assert!(told.iter().all(|told| told.starts_with(expected)), "{told:?}");
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
    fn servers_answer_or_not() {
        let servers = |list: &[(&str, Option<u64>)]| {
            Source::Servers(Ok(list.iter().map(|(url, took)| answer(url, *took)).collect()))
        };
        check(&servers(&[("https://a/", Some(5))]), "ok: https://a/ answers in 5 ms, and is Kubernetes v1.37.2");
        check(&servers(&[("https://a/", Some(2000))]), "note: https://a/ answers in 2000 ms");
        check(&servers(&[("a", None), ("b", Some(1))]), "warning: 1 of 2 API servers do not answer: a (no answer)");
        check(&servers(&[("a", None)]), "error: no API server answers: a (no answer)");
        check(&Source::Servers(Err("x".to_owned())), "error: the source cannot be asked: x");
        assert!(servers(&[("a", None), ("b", Some(1))]).answers());
        assert!(!servers(&[("a", None)]).answers());
    }

    #[test]
    fn a_directory_is_read_whole_or_not() {
        let problems = |list: &[&str]| Source::Directory(Ok(list.iter().map(|text| (*text).to_owned()).collect()));
        check(&problems(&[]), "ok: read whole: the source");
        check(
            &problems(&["a.yaml: x", "y"]),
            "warning: not everything can be used: a.yaml: x, and 1 more (in the source)",
        );
        let none = Source::Directory(Err("gone".to_owned()));
        check(&none, "error: the source: gone");
        assert!(!none.answers() && problems(&["x"]).answers());
    }
}
