//! The entries of `FLOWS` as text.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{Addr, Flow, FlowFlags, FlowKey, Hook, Proto, Tuple, flow};

/// One line for each entry, sorted, as in
/// `in TCP 198.51.100.9:4000 > 192.0.2.1:30080 becomes 192.0.2.1:1024 > 10.0.2.1:8080 at once, SYN_SENT`.
pub fn text(entries: &[(FlowKey, Flow)]) -> Vec<String> {
    let entries: BTreeMap<FlowKey, Flow> = entries.iter().copied().collect();
    entries.iter().map(|(key, flow)| line(key, flow, &entries)).collect()
}

fn line(key: &FlowKey, flow: &Flow, entries: &BTreeMap<FlowKey, Flow>) -> String {
    let partner = entries.get(&flow::partner_key(key, flow));
    let hook = if key.hook == Hook::Ingress as u8 { "in" } else { "out" };
    let proto = Proto::from_number(key.proto.into()).expect("one of three").name();
    let redirect = if flow.flags & FlowFlags::REDIRECT != 0 { " at once" } else { "" };
    let reverse = if flow.flags & FlowFlags::REVERSE != 0 { " back" } else { "" };
    let state = flow::state(flow, partner).name(key.proto);
    let alone = if partner.is_none() { ", alone" } else { "" };
    format!("{hook} {proto} {} becomes {}{redirect}{reverse}, {state}{alone}", ends(&key.tuple), ends(&flow.to))
}

fn ends(tuple: &Tuple) -> String {
    let end = |addr: Addr, port| SocketAddr::new(addr.to_ip(), port);
    format!("{} > {}", end(tuple.src, tuple.src_port), end(tuple.dst, tuple.dst_port))
}
