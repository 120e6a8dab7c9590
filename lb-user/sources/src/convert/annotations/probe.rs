//! The grammar of `beeline.io/probe`.

use std::num::{NonZeroU8, NonZeroU32};

use lb_core::objects::{MAX_PROBE_PERIOD, Probe, ProbeQuestion};

use super::{PROBE, seconds};

/// The kubelet's defaults (pkg/apis/core/v1/defaults.go).
const DEFAULT: Probe = Probe {
    question: ProbeQuestion::Tcp,
    every: NonZeroU32::new(10).expect("not 0"),
    timeout: NonZeroU32::new(1).expect("not 0"),
    fail: NonZeroU8::new(3).expect("not 0"),
    pass: NonZeroU8::new(1).expect("not 0"),
};

/// Longest path of a request.
const MAX_PATH: usize = 1024;

/// Parses the text of the annotation; none with a problem.
pub(super) fn parse(text: &str, problems: &mut Vec<String>) -> Option<Probe> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let probe = probe(&words);
    if probe.is_none() {
        problems.push(format!(
            "annotation {PROBE} {text:?}: not a probe, endpoints are not probed; write it as in tcp every 5s, or http \
             GET /healthz every 5s timeout 2s fail 3 pass 2"
        ));
    }
    probe
}

fn probe(words: &[&str]) -> Option<Probe> {
    let (question, settings) = match words {
        ["tcp", settings @ ..] => (ProbeQuestion::Tcp, settings),
        ["http", "GET", path, settings @ ..] if is_path(path) => (ProbeQuestion::HttpGet((*path).into()), settings),
        _ => return None,
    };
    let mut probe = Probe { question, ..DEFAULT };
    let mut known = Vec::new();
    for pair in settings.chunks(2) {
        let &[name, value] = pair else { return None };
        if known.contains(&name) {
            return None;
        }
        known.push(name);
        let time = || seconds(value).filter(|&seconds| seconds <= MAX_PROBE_PERIOD).and_then(NonZeroU32::new);
        match name {
            "every" => probe.every = time()?,
            "timeout" => probe.timeout = time()?,
            "fail" => probe.fail = value.parse().ok()?,
            "pass" => probe.pass = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(probe)
}

/// True for a path that can stand in a request as it is.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= MAX_PATH && text.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_a_question_and_settings_in_any_order() {
        let check = |text: &str, expected: Option<(&str, [u32; 4])>| {
            let mut problems = Vec::new();
            let parsed = parse(text, &mut problems).map(|probe| {
                let question = match &probe.question {
                    ProbeQuestion::Tcp => "tcp".to_owned(),
                    ProbeQuestion::HttpGet(path) => path.to_string(),
                };
                let Probe { every, timeout, fail, pass, .. } = probe;
                (question, [every.get(), timeout.get(), fail.get().into(), pass.get().into()])
            });
            let problem = expected.is_none().then(|| {
                format!(
                    "annotation beeline.io/probe {text:?}: not a probe, endpoints are not probed; write it as in tcp \
                     every 5s, or http GET /healthz every 5s timeout 2s fail 3 pass 2"
                )
            });
            let expected = expected.map(|(question, numbers)| (question.to_owned(), numbers));
            assert_eq!((parsed, problems.pop()), (expected, problem), "{text}");
        };
        check("tcp", Some(("tcp", [10, 1, 3, 1])));
        check("tcp every 5s\n", Some(("tcp", [5, 1, 3, 1])));
        check("http GET /healthz?a=b pass 2 fail 5 timeout 3s every 1m", Some(("/healthz?a=b", [60, 3, 5, 2])));
        for text in [
            "",
            "TCP",
            "udp",
            "http",
            "http GET",
            "http /healthz",
            "http POST /",
            "http GET healthz",
            "http GET /\u{e4}",
            "tcp every",
            "tcp every 0s",
            "tcp every 5",
            "tcp every 2h",
            "tcp fail 0",
            "tcp fail 256",
            "tcp fail -1",
            "tcp every 5s every 6s",
            "tcp port 80",
            "tcp, every 5s",
        ] {
            check(text, None);
        }
        check(&format!("http GET /{}", "a".repeat(1024)), None);
    }
}
