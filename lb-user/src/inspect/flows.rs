//! Rows of flows, with the states of conntrack.

use std::net::{IpAddr, SocketAddr};

use foldhash::HashMap;
use ipnet::IpNet;
use lb_common::{
    Flow, FlowFlags, FlowKey, Proto,
    flow::{expires_at, last_used, partner_key, state},
};
use serde::Serialize;

use super::name_of;
use lb_core::store::Dump;

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// A flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
    /// Address and port of the client.
    pub client: SocketAddr,
    /// Address and port that the client dials.
    pub vip: SocketAddr,
    /// Address and port of the backend.
    pub backend: SocketAddr,
    /// Masquerade source that the backend sees. `None` if it sees the client.
    pub source: Option<SocketAddr>,
    /// State as conntrack names it: SYN_SENT, ESTABLISHED, UNREPLIED, ASSURED and so on.
    pub state: &'static str,
    /// Seconds since the last packet of either direction.
    pub idle_seconds: u64,
    /// Seconds until the flow expires without a further packet.
    pub expires_seconds: u64,
    /// Name of the service port.
    pub service: String,
    /// Id of the service port.
    pub service_id: u32,
    /// Id of the backend.
    pub backend_id: u32,
}

/// Conditions on flows, all of which must hold. `None` is no condition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FlowFilter {
    /// Namespace and name of a Service.
    pub service: Option<(String, String)>,
    /// Protocol.
    pub proto: Option<Proto>,
    /// Network of the client.
    pub client: Option<IpNet>,
    /// Address of the backend.
    pub backend: Option<IpAddr>,
}

impl FlowFilter {
    fn matches(&self, key: &FlowKey, flow: &Flow, dump: &Dump) -> bool {
        let is_of = |(namespace, name): &(String, String)| {
            let service = dump.names.get(&flow.service).map(|port| &port.service);
            service.is_some_and(|service| service.namespace() == namespace && service.name() == name)
        };
        self.proto.is_none_or(|proto| proto as u8 == key.proto)
            && self.client.is_none_or(|network| network.contains(&key.tuple.src.to_ip()))
            && self.backend.is_none_or(|ip| flow.to.dst.to_ip() == ip)
            && self.service.as_ref().is_none_or(is_of)
    }
}

/// Lists the flows at `now` (CLOCK_MONOTONIC, ns), a row for both entries of a flow, by protocol and client. `dump` has
/// the names of service ports.
#[must_use]
pub fn flows(entries: &[(FlowKey, Flow)], filter: &FlowFilter, dump: &Dump, now: u64) -> Vec<FlowRow> {
    let by_key: HashMap<FlowKey, Flow> = entries.iter().copied().collect();
    let of_clients = entries.iter().filter(|(_, flow)| flow.flags & FlowFlags::REVERSE == 0);
    let row = |(key, flow): &(FlowKey, Flow)| {
        let partner = by_key.get(&partner_key(key, flow));
        let used = [Some(flow), partner].into_iter().flatten().map(|flow| last_used(flow, key.proto)).max();
        let [client, vip] = [(key.tuple.src, key.tuple.src_port), (key.tuple.dst, key.tuple.dst_port)].map(socket);
        let [source, backend] = [(flow.to.src, flow.to.src_port), (flow.to.dst, flow.to.dst_port)].map(socket);
        FlowRow {
            protocol: Proto::from_number(key.proto.into()).map_or("?", Proto::name),
            client,
            vip,
            backend,
            source: (source != client).then_some(source),
            state: state(flow, partner).name(key.proto),
            idle_seconds: now.saturating_sub(used.unwrap_or_default()) / SECOND,
            expires_seconds: expires_at(flow, partner, key.proto).saturating_sub(now).div_ceil(SECOND),
            service: if flow.flags & FlowFlags::NETFILTER != 0 {
                "(netfilter)".to_owned()
            } else if flow.service == 0 {
                "(node)".to_owned()
            } else {
                name_of(dump, flow.service)
            },
            service_id: flow.service,
            backend_id: flow.backend,
        }
    };
    let mut rows: Vec<FlowRow> = of_clients.filter(|(key, flow)| filter.matches(key, flow, dump)).map(row).collect();
    rows.sort_unstable();
    rows
}

fn socket((addr, port): (lb_common::Addr, u16)) -> SocketAddr {
    SocketAddr::new(addr.to_ip(), port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::Family;
    use lb_common::{Hook, Hop, Tuple, flow::Seen};
    use lb_core::{objects::Key, spec::PortKey};

    fn tuple(from: &str, to: &str) -> Tuple {
        let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().expect("an address and port"));
        Tuple { src: from.ip().into(), dst: to.ip().into(), src_port: from.port(), dst_port: to.port() }
    }

    /// Returns both entries of a flow.
    fn pair(proto: u8, dialled: Tuple, to: Tuple, seen: (u8, u8), used: (u64, u64)) -> [(FlowKey, Flow); 2] {
        let flow = |to, flags, used| Flow {
            to,
            service: 1,
            backend: 7,
            flags,
            forward: 0,
            reverse: 0,
            used,
            hop: Hop::UNKNOWN,
        };
        let key = FlowKey::new(dialled, proto, Hook::Ingress);
        let forward = Flow { forward: seen.0, ..flow(to, FlowFlags::PARTNER_EGRESS, used.0 * SECOND) };
        let reverse = Flow { reverse: seen.1, ..flow(dialled.reversed(), FlowFlags::REVERSE, used.1 * SECOND) };
        [(key, forward), (partner_key(&key, &forward), reverse)]
    }

    fn entries() -> (Vec<(FlowKey, Flow)>, Dump) {
        let web = tuple("192.0.2.9:4000", "198.51.100.1:80");
        let dns = tuple("[2001:db8::9]:5000", "[fd00::a]:53");
        let entries = [
            pair(6, web, tuple("10.0.0.5:31000", "10.0.0.1:8080"), (Seen::ANY, Seen::ANY), (90, 95)),
            pair(17, dns, tuple("[2001:db8::9]:5000", "[fd00::1]:5353"), (Seen::ANY, 0), (95, 0)),
        ]
        .concat();
        let name =
            PortKey { service: Key::new("default", "web"), name: "http".into(), proto: Proto::Tcp, family: Family::V4 };
        (entries, Dump { names: [(1, name)].into(), ..Dump::default() })
    }

    #[test]
    fn both_entries_of_a_flow_are_one_row() {
        let (entries, dump) = entries();
        let rows = flows(&entries, &FlowFilter::default(), &dump, 100 * SECOND);
        let [web, dns] = rows.as_slice() else { panic!("{rows:?}") };
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
        assert_eq!((web.client, web.vip), (at("192.0.2.9:4000"), at("198.51.100.1:80")));
        assert_eq!((web.backend, web.source), (at("10.0.0.1:8080"), Some(at("10.0.0.5:31000"))));
        // The time of a connection's last packet may be 4.3 s late.
        assert_eq!((web.state, web.idle_seconds, web.expires_seconds), ("ESTABLISHED", 1, 24 * 3600 - 1));
        assert_eq!((web.service.as_str(), web.backend_id), ("default/web:http/TCP", 7));
        assert_eq!((dns.protocol, dns.source, dns.state, dns.expires_seconds), ("UDP", None, "UNREPLIED", 25));
    }

    #[test]
    fn all_conditions_of_a_filter_must_hold() {
        let (entries, dump) = entries();
        let check = |filter: FlowFilter, expected: &[&str]| {
            let rows = flows(&entries, &filter, &dump, 0);
            assert_eq!(rows.iter().map(|row| row.protocol).collect::<Vec<_>>(), expected, "{filter:?}");
        };
        let any = FlowFilter::default;
        let net = |text: &str| Some(text.parse().expect("a prefix"));
        let ip = |text: &str| Some(text.parse().expect("an address"));
        let service = |name: &str| Some(("default".to_owned(), name.to_owned()));
        check(FlowFilter { proto: Some(Proto::Udp), ..any() }, &["UDP"]);
        check(FlowFilter { client: net("192.0.2.0/24"), ..any() }, &["TCP"]);
        check(FlowFilter { client: net("192.0.2.8/32"), ..any() }, &[]);
        check(FlowFilter { client: net("2001:db8::/32"), proto: Some(Proto::Tcp), ..any() }, &[]);
        check(FlowFilter { backend: ip("fd00::1"), ..any() }, &["UDP"]);
        check(FlowFilter { service: service("web"), ..any() }, &["TCP", "UDP"]);
        check(FlowFilter { service: service("we"), ..any() }, &[]);
    }
}
