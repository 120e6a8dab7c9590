//! Flows that netfilter translates, before Beeline came and after it leaves.

use std::net::SocketAddr;

use lb_common::{Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple, flow::Seen};
use lb_lab::packets::{Fixture, Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, Family},
};

fn tuple(from: &str, to: &str) -> Tuple {
    let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().expect("an address and port"));
    Tuple { src: from.ip().into(), src_port: from.port(), dst: to.ip().into(), dst_port: to.port() }
}

/// Netfilter has given a client a backend elsewhere, by an address of the node.
fn netfilters(fixture: &mut Fixture, of: Family, proto: Proto, reverse: u8, used: u64) -> String {
    let source = SocketAddr::new(of.node.parse().expect("an address"), 4000).to_string();
    let (dialled, becomes) = (tuple(of.client, of.node_port), tuple(&source, of.there));
    let flow = Flow {
        to: becomes,
        service: 0,
        backend: 0,
        flags: FlowFlags::NETFILTER,
        forward: Seen::ANY,
        reverse,
        used,
        hop: Hop::UNKNOWN,
    };
    let back = Flow { to: dialled.reversed(), flags: FlowFlags::NETFILTER | FlowFlags::REVERSE, ..flow };
    let mut flows = fixture.maps().map::<FlowKey, Flow>("FLOWS");
    for (tuple, flow) in [(dialled, flow), (becomes.reversed(), back)] {
        flows.insert(FlowKey::new(tuple, proto as u8, Hook::Ingress), flow, 0).expect("there is room");
    }
    source
}

#[test]
fn netfilters_flows_are_left_to_it_until_they_begin_anew() {
    for of in BOTH {
        for (proto, wanted) in [(Proto::Tcp, ServicePort::tcp()), (Proto::Udp, ServicePort::udp())] {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            let packet = |from: &str, to: &str| match proto {
                Proto::Udp => Packet::udp(from, to),
                _ => Packet::tcp(from, to),
            };
            // Ahead of what the CPU at hand takes for now, as what another one writes may be.
            let ahead = lb_kernel::clock::monotonic_ns() + 60_000_000_000;
            let source = netfilters(&mut fixture, of, proto, Seen::ANY, ahead);
            for _ in 0..2 {
                fixture.comes_in("uplink", &packet(of.client, of.node_port)).is_untouched();
                fixture.comes_in("uplink", &packet(of.there, &source)).is_untouched();
                fixture.goes_out("uplink", &packet(&source, of.there)).is_untouched();
                fixture.goes_out("uplink", &packet(of.node_port, of.client)).is_untouched();
            }
            let anew = match proto {
                Proto::Udp => {
                    // So long ago that netfilter may have forgotten it.
                    netfilters(&mut fixture, of, proto, Seen::ANY, 0);
                    Packet::udp(of.client, of.node_port)
                }
                _ => Packet::syn(of.client, of.node_port),
            };
            fixture.comes_in("uplink", &anew).goes_on_as(&anew.becomes(of.client, of.here));
        }
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        netfilters(&mut fixture, of, Proto::Tcp, 0, lb_kernel::clock::monotonic_ns());
        let syn = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &syn).is_untouched();
        fixture.comes_in("uplink", &Packet::tcp(of.client, of.node_port)).is_untouched();
        fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
    }
}

#[test]
fn a_flow_does_not_look_like_one_of_netfilters() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[of.here]));
        // The client reaches the same backend by the other address, from the same port.
        let (dialled, becomes) = (tuple(of.client, of.node_port), tuple(of.client, of.here));
        let flags = FlowFlags::NETFILTER | FlowFlags::REVERSE;
        let (forward, reverse) = (Seen::ANY | Seen::FIN, Seen::ANY | Seen::FIN);
        let back = Flow {
            to: dialled.reversed(),
            service: 0,
            backend: 0,
            flags,
            forward,
            reverse,
            used: 0,
            hop: Hop::UNKNOWN,
        };
        let key = FlowKey::new(becomes.reversed(), Proto::Tcp as u8, Hook::Egress);
        fixture.maps().map::<FlowKey, Flow>("FLOWS").insert(key, back, 0).expect("there is room");
        for to in [of.cluster_ip, of.node_port] {
            let syn = Packet::syn(of.client, to);
            let sent = fixture.comes_in("uplink", &syn);
            let (source, backend) = sent.ends();
            sent.goes_on_as(&syn.becomes(&source, of.here));
            let [own, from] = [of.client, &source].map(|end| end.parse::<SocketAddr>().expect("an address and port"));
            assert!(from.ip() == own.ip() && from.port() != own.port() && backend == of.here, "{source} to {backend}");
            let answer = Packet::tcp(of.here, &source).flags("SA");
            fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(to, of.client));
        }
    }
}

#[test]
fn what_a_client_sends_can_be_netfilters_while_answers_are_ours() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let (syn, answer) = (Packet::syn(of.client, of.node_port), Packet::tcp(of.here, of.client).flags("SA"));
        fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        leave(&mut fixture);
        fixture.comes_in("uplink", &Packet::tcp(of.client, of.node_port)).is_untouched();
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
    }
}

#[test]
fn devices_that_settle_or_are_left_take_less() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[of.here]));
        let (syn, later) = (Packet::syn(of.client, of.node_port), Packet::tcp(of.client, of.node_port));
        flag(&mut fixture, DeviceFlags::SETTLING);
        fixture.comes_in("uplink", &later).is_untouched();
        fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        flag(&mut fixture, DeviceFlags::LEAVING);
        fixture.comes_in("uplink", &later).goes_on_as(&later.becomes(of.client, of.here));
        let other = of.client.replace("4000", "4001");
        for to in [of.node_port, of.cluster_ip, &of.cluster_ip.replace(":80", ":81")] {
            fixture.comes_in("uplink", &Packet::syn(&other, to)).is_untouched();
            fixture.goes_out("uplink", &Packet::syn(&other, to)).is_untouched();
        }
    }
}

/// The client's packets of all flows are netfilter's from here on.
fn leave(fixture: &mut Fixture) {
    let entries = fixture.maps().entries::<FlowKey, Flow>("FLOWS");
    let mut flows = fixture.maps().map::<FlowKey, Flow>("FLOWS");
    for (key, flow) in entries.into_iter().filter(|(_, flow)| flow.flags & FlowFlags::REVERSE == 0) {
        flows.insert(key, Flow { flags: flow.flags | FlowFlags::NETFILTER, ..flow }, 0).expect("there is room");
    }
}

fn flag(fixture: &mut Fixture, flag: u32) {
    let devices = fixture.maps().entries::<u32, Device>("DEVICES");
    let mut map = fixture.maps().map::<u32, Device>("DEVICES");
    for (index, device) in devices {
        let own = device.flags & !(DeviceFlags::SETTLING | DeviceFlags::LEAVING);
        map.insert(index, Device { flags: own | flag, ..device }, 0).expect("there is room");
    }
}
