//! Counts over a time: the busiest clients, each service port, and each backend with the times of its handshakes.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use super::{Handshake, WatchEvent, duration_text, quoted};
use lb_dataplane::watch::Lost;

/// Upper bounds of the columns of a histogram, in microseconds; a last column has all above.
const BOUNDS: [(u64, &str); 8] = [
    (100, "0.1ms"),
    (300, "0.3ms"),
    (1_000, "1ms"),
    (3_000, "3ms"),
    (10_000, "10ms"),
    (100_000, "100ms"),
    (1_000_000, "1s"),
    (3_000_000, "3s"),
];

/// Clients shown.
const TOP: usize = 20;

/// Counts of calls.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Calls {
    calls: u64,
    refused: u64,
    /// Handshakes that failed.
    failed: u64,
    /// Handshakes without a result.
    pending: u64,
}

impl Calls {
    fn add(&mut self, event: &WatchEvent) {
        // A call whose first event is not counted here counts with its result.
        let was_pending = !event.is_first && self.pending > 0;
        if !was_pending {
            self.calls += 1;
            self.refused += u64::from(event.refused.is_some());
        }
        match event.handshake {
            Some((Handshake::Pending, ..)) => self.pending += 1,
            Some((state, ..)) => {
                self.failed += u64::from(state.is_failed());
                self.pending -= u64::from(was_pending);
            }
            None => {}
        }
    }

    fn json(&self) -> Value {
        let Self { calls, refused, failed, pending } = self;
        json!({"calls": calls, "refused": refused, "failed": failed, "pending": pending})
    }
}

/// Times of handshakes.
#[derive(Clone, Default, Debug)]
struct Times {
    columns: [u64; BOUNDS.len() + 1],
    longest: Duration,
}

impl Times {
    fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let column = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.columns.get_mut(column) {
            *count += 1;
        }
        self.longest = self.longest.max(time);
    }
}

/// Counts of the events so far.
#[derive(Default, Debug)]
pub struct WatchSummary {
    all: Calls,
    clients: BTreeMap<String, Calls>,
    ports: BTreeMap<String, Calls>,
    /// By service port and backend.
    backends: BTreeMap<(String, String), (Calls, Times)>,
}

impl WatchSummary {
    /// Counts an event.
    pub fn add(&mut self, event: &WatchEvent) {
        self.all.add(event);
        let process = event.process.as_ref().map_or_else(String::new, |(name, _)| format!(" {}", quoted(name)));
        // The ports of a client outside differ from flow to flow.
        let client = event.from.map_or_else(|| event.client.to_string(), |address| address.to_string());
        self.clients.entry(client + &process).or_default().add(event);
        let port = format!("{}/{}", event.service(), event.protocol);
        self.ports.entry(port.clone()).or_default().add(event);
        if let Some(backend) = event.backend {
            let (calls, times) = self.backends.entry((port, backend.to_string())).or_default();
            calls.add(event);
            if let Some((Handshake::Established, after, _)) = event.handshake {
                times.add(after);
            }
        }
    }

    /// Returns tables of text: `table` formats head and rows.
    #[must_use]
    pub fn text(
        &self,
        time: Duration,
        lost: Lost,
        table: impl Fn(&[&'static str], &[Vec<String>]) -> String,
    ) -> String {
        let Calls { calls, refused, failed, pending } = self.all;
        let mut text = format!(
            "{calls} calls in {}: {refused} refused, {failed} handshakes failed, {pending} without an answer yet\n\
             lost: {} calls, {} results of handshakes\n",
            duration_text(time),
            lost.calls,
            lost.results
        );
        let row = |name: &String, calls: &Calls| {
            let counts = [calls.calls, calls.refused, calls.failed, calls.pending];
            [name.clone()].into_iter().chain(counts.map(|count| count.to_string())).collect::<Vec<_>>()
        };
        let mut clients: Vec<_> = self.clients.iter().collect();
        clients.sort_by_key(|(_, calls)| std::cmp::Reverse(calls.calls));
        let rows: Vec<_> = clients.iter().take(TOP).map(|(name, calls)| row(name, calls)).collect();
        let _infallible = write!(text, "\n{}", table(&["CLIENT", "CALLS", "REFUSED", "FAILED", "PENDING"], &rows));
        if clients.len() > TOP {
            let _infallible = writeln!(text, "and {} more clients", clients.len() - TOP);
        }
        let rows: Vec<_> = self.ports.iter().map(|(name, calls)| row(name, calls)).collect();
        let _infallible = write!(text, "\n{}", table(&["SERVICE", "CALLS", "REFUSED", "FAILED", "PENDING"], &rows));
        if !self.backends.is_empty() {
            let rows: Vec<_> = self.backends.iter().map(|(name, of)| backend_row(name, of)).collect();
            let bounds = BOUNDS.map(|(_, name)| name);
            let head: Vec<_> = ["SERVICE", "BACKEND", "CALLS", "FAILED"]
                .into_iter()
                .chain(bounds)
                .chain(["MORE", "LONGEST"])
                .collect();
            let _infallible = write!(text, "\n{}", table(&head, &rows));
            text += "Columns of times: handshakes that took as long at most, and longer than the column before.\n";
        }
        text
    }

    /// Returns a JSON object.
    #[must_use]
    pub fn json(&self, time: Duration, lost: Lost) -> Value {
        let with = |calls: &Calls, more: Value| {
            let mut value = calls.json();
            if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
                value.extend(more);
            }
            value
        };
        let clients = self.clients.iter().map(|(name, calls)| with(calls, json!({"client": name})));
        let services = self.ports.iter().map(|(name, calls)| with(calls, json!({"service": name})));
        let backends = self.backends.iter().map(|((port, backend), (calls, times))| {
            let bounds = BOUNDS.iter().map(|(_, name)| *name).chain(["more"]);
            let histogram: BTreeMap<_, _> = bounds.zip(times.columns).collect();
            let longest = times.longest.as_secs_f64() * 1e3;
            with(calls, json!({"service": port, "backend": backend, "handshakes": histogram, "longestMs": longest}))
        });
        json!({
            "seconds": time.as_secs_f64(),
            "lostCalls": lost.calls,
            "lostResults": lost.results,
            "total": self.all.json(),
            "clients": clients.collect::<Vec<_>>(),
            "services": services.collect::<Vec<_>>(),
            "backends": backends.collect::<Vec<_>>(),
        })
    }
}

fn backend_row((port, backend): &(String, String), (calls, times): &(Calls, Times)) -> Vec<String> {
    let count = |count: u64| if count == 0 { "-".to_owned() } else { count.to_string() };
    let mut row = vec![port.clone(), backend.clone(), calls.calls.to_string(), calls.failed.to_string()];
    row.extend(times.columns.map(count));
    row.push(if times.longest.is_zero() { "-".to_owned() } else { duration_text(times.longest) });
    row
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use lb_common::Counter;

    use super::*;
    use crate::watch::{PortName, WatchClient};

    fn event(process: &str, handshake: Option<(Handshake, u64)>) -> WatchEvent {
        WatchEvent {
            time: String::new(),
            client: WatchClient::Node,
            from: None,
            process: Some((process.to_owned(), 1)),
            cgroup: None,
            dialled: "10.96.0.1:80".parse().expect("an address"),
            protocol: "tcp".to_owned(),
            port: Some(PortName {
                namespace: "default".to_owned(),
                service: "web".to_owned(),
                port: "http".to_owned(),
                scheduler: "rr",
            }),
            backend: "10.0.0.1:8080".parse().ok(),
            reason: None,
            refused: None,
            errno: 0,
            handshake: handshake.map(|(state, micros)| (state, Duration::from_micros(micros), 1)),
            is_first: true,
        }
    }

    #[test]
    fn a_summary_counts_each_call_once() {
        let mut summary = WatchSummary::default();
        for micros in [50, 100, 101, 2_000, 5_000_000] {
            summary.add(&event("curl", Some((Handshake::Established, micros))));
        }
        summary.add(&event("wget", Some((Handshake::Refused, 10))));
        summary.add(&event("wget", Some((Handshake::Pending, 1_000_000))));
        summary.add(&event("curl", Some((Handshake::Pending, 1_000_000))));
        // The result of a call that was pending.
        let result = event("curl", Some((Handshake::Unanswered, 3_000_000)));
        summary.add(&WatchEvent { is_first: false, ..result });
        summary.add(&WatchEvent { backend: None, refused: Some(Counter::NoEndpoints), ..event("wget", None) });
        let table = |head: &[&'static str], rows: &[Vec<String>]| {
            let rows: String = rows.iter().map(|row| row.join(" ") + "\n").collect();
            format!("{}\n{rows}", head.join(" "))
        };
        let lost = Lost { calls: 3, results: 0 };
        expect![[r"
            9 calls in 10.0 s: 1 refused, 2 handshakes failed, 1 without an answer yet
            lost: 3 calls, 0 results of handshakes

            CLIENT CALLS REFUSED FAILED PENDING
            node curl 6 0 1 0
            node wget 3 1 1 1

            SERVICE CALLS REFUSED FAILED PENDING
            default/web:http/tcp 9 1 2 1

            SERVICE BACKEND CALLS FAILED 0.1ms 0.3ms 1ms 3ms 10ms 100ms 1s 3s MORE LONGEST
            default/web:http/tcp 10.0.0.1:8080 8 2 2 1 - 1 - - - - 1 5.00 s
            Columns of times: handshakes that took as long at most, and longer than the column before.
        "]]
        .assert_eq(&summary.text(Duration::from_secs(10), lost, table));
        let json = summary.json(Duration::from_secs(10), lost);
        let total: u64 = json["backends"][0]["handshakes"]
            .as_object()
            .expect("an object")
            .values()
            .map(|count| count.as_u64().expect("a number"))
            .sum();
        assert_eq!((json["total"]["calls"].as_u64(), total, json["lostCalls"].as_u64()), (Some(9), 5, Some(3)));
    }

    #[test]
    fn a_result_whose_first_event_was_not_counted_is_a_call() {
        let mut summary = WatchSummary::default();
        let result = event("curl", Some((Handshake::Unanswered, 3_000_000)));
        summary.add(&WatchEvent { is_first: false, ..result });
        let json = summary.json(Duration::from_secs(10), Lost::default());
        for counts in [&json["total"], &json["clients"][0], &json["services"][0], &json["backends"][0]] {
            let count = |key: &str| counts[key].as_u64();
            assert_eq!((count("calls"), count("failed"), count("pending")), (Some(1), Some(1), Some(0)), "{counts}");
        }
    }
}
