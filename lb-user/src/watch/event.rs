//! An event with names, as a line of text or as JSON.

use std::{
    borrow::Cow,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{COMM_LEN, Counter, Proto, Reason, WatchKind, WatchRecord, errno};
use serde_json::{Value, json};

use super::{Handshake, Outcome, WatchClient};

/// Name of a service port, and its scheduler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port; empty if it has none.
    pub port: String,
    /// Name of the scheduler.
    pub scheduler: &'static str,
}

/// An event with names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchEvent {
    /// Time of the call, in UTC (RFC 3339, with microseconds).
    pub time: String,
    /// The client.
    pub client: WatchClient,
    /// Source address of a client outside.
    pub from: Option<IpAddr>,
    /// Name and pid of the process: what it calls itself. `None` of a packet.
    pub process: Option<(String, u32)>,
    /// Path of the cgroup of the process, if it is known.
    pub cgroup: Option<String>,
    /// Address and port dialled.
    pub dialled: SocketAddr,
    /// The protocol, in lower case.
    pub protocol: String,
    /// The service port; `None` if no Service has the address or port.
    pub port: Option<PortName>,
    /// The backend; `None` if refused.
    pub backend: Option<SocketAddr>,
    /// The reason for this backend; `None` if refused.
    pub reason: Option<Reason>,
    /// Counter of a refusal.
    pub refused: Option<Counter>,
    /// Error of the refused call; 0 without one.
    pub errno: u32,
    /// State of the handshake, time since the call, and number of SYN segments.
    pub handshake: Option<(Handshake, Duration, u8)>,
    /// False if the call was shown before, without the result of its handshake.
    pub is_first: bool,
}

impl WatchEvent {
    /// Gives names to an outcome.
    #[must_use]
    pub fn new(
        outcome: &Outcome,
        time: String,
        client: WatchClient,
        cgroup: Option<String>,
        port: Option<PortName>,
    ) -> Self {
        let record = &outcome.record;
        let is_call = record.kind != WatchKind::Packet as u8;
        Self {
            time,
            client,
            from: (!is_call).then(|| record.client.to_ip()),
            process: is_call.then(|| (process_name(&record.comm), record.pid)),
            cgroup,
            dialled: SocketAddr::new(record.dialled.to_ip(), record.dialled_port),
            protocol: Proto::from_number(record.proto.into()).map_or("?", Proto::name).to_lowercase(),
            port,
            backend: backend(record),
            reason: Reason::from_number(record.reason),
            refused: record.refused_by(),
            errno: record.errno,
            handshake: outcome.handshake,
            is_first: outcome.is_first,
        }
    }

    /// True if the call was refused, or its handshake failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.refused.is_some() || self.handshake.is_some_and(|(state, ..)| state.is_failed())
    }

    /// Returns the Service and its port, as in `default/web:http`; `-` if there is none.
    #[must_use]
    pub fn service(&self) -> String {
        self.port.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
    }

    /// Returns a line of text.
    #[must_use]
    pub fn line(&self) -> String {
        // The time of day is enough for people.
        let time = self.time.get(11..26).unwrap_or(&self.time);
        let mut line = format!("{time} {}", self.client);
        if let Some((name, pid)) = &self.process {
            let _infallible = write!(line, " {}[{pid}]", quoted(name));
        }
        let _infallible = write!(line, " {} {} {}", self.protocol, self.dialled, self.service());
        if let Some(backend) = self.backend {
            let _infallible = write!(line, " -> {backend}");
            if let (Some(port), true) = (&self.port, self.is_scheduled()) {
                let _infallible = write!(line, " by {}", port.scheduler);
            }
            match self.reason.map(Reason::words).unwrap_or_default() {
                "" => {}
                words if self.is_scheduled() => line = line + ", " + words,
                words => line = line + " " + words,
            }
        }
        if let Some(counter) = self.refused {
            let _infallible = write!(line, " refused: {}", refusal_text(counter));
            if self.errno != 0 {
                let _infallible = write!(line, " ({})", errno_name(self.errno));
            }
        }
        if let Some((state, after, syns)) = self.handshake {
            let after = duration_text(after);
            let syns = if syns == 1 { "1 SYN".to_owned() } else { format!("{syns} SYNs") };
            let _infallible = match state {
                Handshake::Established => write!(line, ": established in {after}"),
                Handshake::Refused => write!(line, ": reset by the backend after {after} (ECONNREFUSED)"),
                Handshake::Unanswered => write!(line, ": no answer to {syns} in {after}"),
                Handshake::GivenUp => write!(line, ": closed by the client after {after}, no answer to {syns}"),
                Handshake::Pending => write!(line, ": no answer yet after {after}"),
            };
        }
        line.push('\n');
        line
    }

    /// True if the scheduler chose the backend.
    fn is_scheduled(&self) -> bool {
        self.backend.is_some() && self.reason != Some(Reason::Affinity)
    }

    /// Returns a JSON object. Keys without a value are left out.
    #[must_use]
    pub fn json(&self) -> Value {
        let (pod, uid) = match &self.client {
            WatchClient::Pod(namespace, name) => (Some(format!("{namespace}/{name}")), None),
            WatchClient::UnknownPod(uid) => (None, Some(uid.clone())),
            WatchClient::Node | WatchClient::Unknown | WatchClient::Address(_) => (None, None),
        };
        let mut value = json!({
            "time": self.time,
            "pod": pod,
            "podUid": uid,
            "client": match &self.client { WatchClient::Address(address) => Some(address.to_string()), _ => None },
            "process": self.process.as_ref().map(|(name, _)| name),
            "pid": self.process.as_ref().map(|(_, pid)| pid),
            "cgroup": self.cgroup,
            "protocol": self.protocol,
            "dialled": self.dialled.to_string(),
            "service": self.port.as_ref().map(|port| format!("{}/{}", port.namespace, port.service)),
            "port": self.port.as_ref().map(|port| port.port.clone()).filter(|port| !port.is_empty()),
            "scheduler": self.port.as_ref().filter(|_| self.is_scheduled()).map(|port| port.scheduler),
            "reason": self.reason.map(reason_key),
            "backend": self.backend.map(|backend| backend.to_string()),
            "refused": self.refused.map(refusal_key),
            "errno": (self.errno != 0).then(|| errno_name(self.errno)),
            "handshake": self.handshake.map(|(state, ..)| state_key(state)),
            "handshakeMs": self.handshake.map(|(_, after, _)| after.as_secs_f64() * 1e3),
            "syns": self.handshake.map(|(_, _, syns)| syns).filter(|syns| *syns > 0),
            "again": (!self.is_first).then_some(true),
        });
        if let Value::Object(object) = &mut value {
            object.retain(|_, value| !value.is_null());
        }
        value
    }
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

fn backend(record: &WatchRecord) -> Option<SocketAddr> {
    (record.backend != 0).then(|| SocketAddr::new(record.backend_addr.to_ip(), record.backend_port))
}

fn process_name(comm: &[u8; COMM_LEN]) -> String {
    let length = comm.iter().position(|octet| *octet == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(comm.get(..length).unwrap_or_default()).into_owned()
}

/// Quotes and escapes a name of a process if it could be taken for another part of the line, begin a line, or write a
/// sequence to a terminal: a process names itself as it likes.
#[must_use]
pub fn quoted(name: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@+".contains(c);
    if !name.is_empty() && name.chars().all(is_plain) { name.into() } else { format!("{name:?}").into() }
}

/// Formats a time with three digits at most.
#[must_use]
pub fn duration_text(time: Duration) -> String {
    let (value, unit) = match time.as_secs_f64() {
        seconds if seconds < 1.0 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

const fn refusal_text(counter: Counter) -> &'static str {
    match counter {
        Counter::NoEndpoints => "no endpoint is ready",
        Counter::NoLocalEndpoints => "policy Local, and no endpoint on this node",
        Counter::SourceRange => "the client is in no source range",
        Counter::UnknownPort => "no Service has this port of the cluster IP",
        Counter::UnknownClusterIp => "no Service has this cluster IP",
        Counter::NoRoute => "no route to the backend, or no address of this node towards it",
        Counter::FlowsFull => "the map FLOWS is full",
        Counter::SnatExhausted => "no source port of this node is free",
        other => other.name(),
    }
}

const fn refusal_key(counter: Counter) -> &'static str {
    match counter {
        Counter::NoEndpoints => "NoEndpoints",
        Counter::NoLocalEndpoints => "NoLocalEndpoints",
        Counter::SourceRange => "SourceRange",
        Counter::UnknownPort => "UnknownPort",
        Counter::UnknownClusterIp => "UnknownClusterIp",
        Counter::NoRoute => "NoRoute",
        Counter::FlowsFull => "FlowsFull",
        Counter::SnatExhausted => "SnatExhausted",
        other => other.name(),
    }
}

const fn reason_key(reason: Reason) -> &'static str {
    match reason {
        Reason::Random => "random",
        Reason::Turn => "turn",
        Reason::ClientHash => "clientHash",
        Reason::DestinationHash => "destinationHash",
        Reason::MaglevTable => "maglevTable",
        Reason::Affinity => "affinity",
        Reason::Avoided => "avoided",
        Reason::Ejected => "ejected",
        Reason::AllEjected => "allEjected",
    }
}

const fn state_key(state: Handshake) -> &'static str {
    match state {
        Handshake::Established => "established",
        Handshake::Refused => "refused",
        Handshake::Unanswered => "unanswered",
        Handshake::GivenUp => "givenUp",
        Handshake::Pending => "pending",
    }
}

/// Name of an errno that the programs return.
fn errno_name(errno: u32) -> Cow<'static, str> {
    errno::name_and_text(errno.cast_signed()).map_or_else(|| format!("errno {errno}").into(), |(name, _)| name.into())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use lb_common::{Addr, Cause};

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().expect("an address").into()
    }

    /// A connect of `curl` to 10.96.0.1:80 that got 10.0.0.1:8080.
    fn call() -> WatchRecord {
        let mut comm = [0; COMM_LEN];
        comm[..4].copy_from_slice(b"curl");
        WatchRecord {
            kind: WatchKind::Connect as u8,
            proto: Proto::Tcp as u8,
            dialled: addr("10.96.0.1"),
            dialled_port: 80,
            backend_addr: addr("10.0.0.1"),
            backend_port: 8080,
            service: 3,
            backend: 7,
            reason: Reason::Turn as u8,
            pid: 4711,
            comm,
            ..WatchRecord::EMPTY
        }
    }

    fn refused(cause: Cause) -> WatchRecord {
        let refusal = u8::try_from(cause.counter() as u32 + 1).expect("few counters");
        WatchRecord { refusal, errno: cause.errno().cast_unsigned(), backend: 0, reason: 0, ..call() }
    }

    fn event(record: WatchRecord, handshake: Option<(Handshake, u64, u8)>, client: WatchClient) -> WatchEvent {
        let handshake = handshake.map(|(state, micros, syns)| (state, Duration::from_micros(micros), syns));
        let name = PortName {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port: "http".to_owned(),
            scheduler: "rr",
        };
        let outcome = Outcome { record, handshake, is_first: true };
        let time = "2026-01-02T03:04:05.678901Z".to_owned();
        WatchEvent::new(&outcome, time, client, None, (record.service != 0).then_some(name))
    }

    fn pod() -> WatchClient {
        WatchClient::Pod("shop".to_owned(), "cart".to_owned())
    }

    #[test]
    fn a_line_names_the_client_the_service_the_backend_and_the_cause() {
        let v6 =
            WatchRecord { dialled: addr("fd96::53"), backend_addr: addr("fd00::2"), proto: Proto::Udp as u8, ..call() };
        let unknown = WatchRecord { service: 0, ..refused(Cause::UnknownPort) };
        let packet = WatchRecord {
            kind: WatchKind::Packet as u8,
            client: addr("192.0.2.7"),
            client_port: 5000,
            errno: 0,
            ..call()
        };
        let events = [
            event(call(), Some((Handshake::Established, 212, 1)), pod()),
            event(call(), Some((Handshake::Refused, 98, 1)), WatchClient::Node),
            event(call(), Some((Handshake::Unanswered, 3_050_000, 2)), WatchClient::UnknownPod("0f3c".to_owned())),
            event(call(), Some((Handshake::GivenUp, 1_999_000, 1)), pod()),
            event(call(), Some((Handshake::Pending, 1_000_000, 0)), pod()),
            event(v6, None, pod()),
            event(WatchRecord { reason: Reason::Affinity as u8, ..call() }, None, pod()),
            event(WatchRecord { reason: Reason::Random as u8, ..call() }, None, pod()),
            event(refused(Cause::NoEndpoints), None, pod()),
            event(refused(Cause::NoLocalEndpoints), None, pod()),
            event(unknown, None, pod()),
            event(packet, None, WatchClient::Address("192.0.2.7:5000".parse().expect("an address"))),
        ];
        let lines: String = events.iter().map(WatchEvent::line).collect();
        expect![[r"
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is: established in 0.21 ms
            03:04:05.678901 node curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is: reset by the backend after 0.10 ms (ECONNREFUSED)
            03:04:05.678901 pod:0f3c curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is: no answer to 2 SYNs in 3.05 s
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is: closed by the client after 2.00 s, no answer to 1 SYN
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is: no answer yet after 1.00 s
            03:04:05.678901 shop/cart curl[4711] udp [fd96::53]:80 default/web:http -> [fd00::2]:8080 by rr, whose turn it is
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by affinity
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http refused: no endpoint is ready (ECONNREFUSED)
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 default/web:http refused: policy Local, and no endpoint on this node (EHOSTUNREACH)
            03:04:05.678901 shop/cart curl[4711] tcp 10.96.0.1:80 - refused: no Service has this port of the cluster IP (ECONNREFUSED)
            03:04:05.678901 192.0.2.7:5000 tcp 10.96.0.1:80 default/web:http -> 10.0.0.1:8080 by rr, whose turn it is
        "]]
        .assert_eq(&lines);
    }

    #[test]
    fn json_has_the_same_and_no_empty_keys() {
        let events = [
            event(call(), Some((Handshake::Established, 212, 1)), pod()),
            event(refused(Cause::NoEndpoints), None, pod()),
        ];
        let lines: String = events.iter().map(|event| event.json().to_string() + "\n").collect();
        expect![[r#"
            {"backend":"10.0.0.1:8080","dialled":"10.96.0.1:80","handshake":"established","handshakeMs":0.212,"pid":4711,"pod":"shop/cart","port":"http","process":"curl","protocol":"tcp","reason":"turn","scheduler":"rr","service":"default/web","syns":1,"time":"2026-01-02T03:04:05.678901Z"}
            {"dialled":"10.96.0.1:80","errno":"ECONNREFUSED","pid":4711,"pod":"shop/cart","port":"http","process":"curl","protocol":"tcp","refused":"NoEndpoints","service":"default/web","time":"2026-01-02T03:04:05.678901Z"}
        "#]]
        .assert_eq(&lines);
    }

    #[test]
    fn the_name_of_a_process_writes_no_line_and_no_other_part_of_one() {
        for (comm, expected) in [
            (&b"kube-proxy"[..], "kube-proxy"),
            (b"a b", r#""a b""#),
            (b"a\nb\x1b[2J", r#""a\nb\u{1b}[2J""#),
            (b"node[1] tcp", r#""node[1] tcp""#),
            (b"", r#""""#),
            (b"\xff", "\"\u{fffd}\""),
        ] {
            let mut padded = [0; COMM_LEN];
            padded[..comm.len()].copy_from_slice(comm);
            assert_eq!(quoted(&process_name(&padded)), expected);
        }
    }

    #[test]
    fn a_time_has_three_digits() {
        for (micros, expected) in
            [(1, "0.00 ms"), (212, "0.21 ms"), (12_340, "12.3 ms"), (123_400, "123 ms"), (1_050_000, "1.05 s")]
        {
            assert_eq!(duration_text(Duration::from_micros(micros)), expected);
        }
    }
}
