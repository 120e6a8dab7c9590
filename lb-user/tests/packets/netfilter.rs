//! Flows that netfilter translates: connections from before Beeline's start, and after its removal.

use std::net::SocketAddr;

use lb_common::{Device, DeviceFlags, Flow, FlowFlags, FlowKey, Hook, Hop, Proto, Tuple, flow::Seen};
use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, Net},
    enter,
};

fn tuple(from: &str, to: &str) -> Tuple {
    let [from, to] = [from, to].map(|text| text.parse::<SocketAddr>().expect("an address and port"));
    Tuple { src: from.ip().into(), src_port: from.port(), dst: to.ip().into(), dst_port: to.port() }
}

/// Adds entries for a flow that netfilter masquerades to the remote backend. Returns the node's address and port.
fn add_netfilter_flow(fixture: &mut Fixture, net: Net, proto: Proto, reverse: u8, used: u64) -> String {
    let source = SocketAddr::new(net.node.parse().expect("an address"), 4000).to_string();
    let (dialled, becomes) = (tuple(net.client, net.node_port), tuple(&source, net.remote));
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
    for (tuple, flow) in [(dialled, flow), (becomes.reversed(), back)] {
        fixture.maps().put_flow(FlowKey::new(tuple, proto as u8, Hook::Ingress), flow);
    }
    source
}

#[test]
fn netfilters_flows_pass_unchanged_until_a_new_connection_begins() {
    for net in BOTH {
        for (proto, service) in [(Proto::Tcp, FixtureService::tcp()), (Proto::Udp, FixtureService::udp())] {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            let packet = |from: &str, to: &str| match proto {
                Proto::Udp => PacketSpec::udp(from, to),
                _ => PacketSpec::tcp(from, to),
            };
            // A time in the future, as another CPU's clock may write.
            let ahead = lb_kernel::clock::monotonic_ns() + 60_000_000_000;
            let source = add_netfilter_flow(&mut fixture, net, proto, Seen::ANY, ahead);
            for _ in 0..2 {
                fixture.ingress("uplink", &packet(net.client, net.node_port)).passes_unchanged();
                fixture.ingress("uplink", &packet(net.remote, &source)).passes_unchanged();
                fixture.egress("uplink", &packet(&source, net.remote)).passes_unchanged();
                fixture.egress("uplink", &packet(net.node_port, net.client)).passes_unchanged();
            }
            let anew = match proto {
                Proto::Udp => {
                    // Idle for so long that netfilter's entry may have expired.
                    add_netfilter_flow(&mut fixture, net, proto, Seen::ANY, 0);
                    PacketSpec::udp(net.client, net.node_port)
                }
                _ => PacketSpec::syn(net.client, net.node_port),
            };
            fixture.ingress("uplink", &anew).passes_as(&anew.becomes(net.client, net.local));
        }
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        add_netfilter_flow(&mut fixture, net, Proto::Tcp, 0, lb_kernel::clock::monotonic_ns());
        let syn = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &syn).passes_unchanged();
        fixture.ingress("uplink", &PacketSpec::tcp(net.client, net.node_port)).passes_unchanged();
        fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
    }
}

#[test]
fn a_new_flow_does_not_share_the_tuple_of_a_flow_of_netfilter() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[net.local]));
        // By netfilter, the client has reached the same backend from the same port, at the NodePort.
        let (dialled, becomes) = (tuple(net.client, net.node_port), tuple(net.client, net.local));
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
        fixture.maps().put_flow(key, back);
        for to in [net.cluster_ip, net.node_port] {
            let syn = PacketSpec::syn(net.client, to);
            let sent = fixture.ingress("uplink", &syn);
            let (source, backend) = sent.ends();
            sent.passes_as(&syn.becomes(&source, net.local));
            let [own, from] = [net.client, &source].map(|end| end.parse::<SocketAddr>().expect("an address and port"));
            assert!(
                from.ip() == own.ip() && from.port() != own.port() && backend == net.local,
                "{source} to {backend}"
            );
            let answer = PacketSpec::tcp(net.local, &source).flags("SA");
            fixture.egress("uplink", &answer).passes_as(&answer.becomes(to, net.client));
        }
    }
}

#[test]
fn answers_are_translated_while_netfilter_has_the_clients_direction() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let (syn, answer) =
            (PacketSpec::syn(net.client, net.node_port), PacketSpec::tcp(net.local, net.client).flags("SA"));
        fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
        hand_over(&mut fixture);
        fixture.ingress("uplink", &PacketSpec::tcp(net.client, net.node_port)).passes_unchanged();
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
    }
}

#[test]
fn settling_devices_begin_no_flow_midway_and_leaving_devices_begin_none() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[net.local]));
        let (syn, later) = (PacketSpec::syn(net.client, net.node_port), PacketSpec::tcp(net.client, net.node_port));
        set_device_flag(&mut fixture, DeviceFlags::SETTLING);
        fixture.ingress("uplink", &later).passes_unchanged();
        fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
        set_device_flag(&mut fixture, DeviceFlags::LEAVING);
        fixture.ingress("uplink", &later).passes_as(&later.becomes(net.client, net.local));
        let other = net.client.replace("4000", "4001");
        for to in [net.node_port, net.cluster_ip, &net.cluster_ip.replace(":80", ":81")] {
            fixture.ingress("uplink", &PacketSpec::syn(&other, to)).passes_unchanged();
            fixture.egress("uplink", &PacketSpec::syn(&other, to)).passes_unchanged();
        }
    }
}

/// Marks the client's direction of all flows as netfilter's.
fn hand_over(fixture: &mut Fixture) {
    let entries = fixture.maps().entries::<FlowKey, Flow>("FLOWS");
    let mut flows = fixture.maps().map::<FlowKey, Flow>("FLOWS");
    for (key, flow) in entries.into_iter().filter(|(_, flow)| flow.flags & FlowFlags::REVERSE == 0) {
        flows.insert(key, Flow { flags: flow.flags | FlowFlags::NETFILTER, ..flow }, 0).expect("room in the map");
    }
}

fn set_device_flag(fixture: &mut Fixture, flag: u32) {
    let devices = fixture.maps().entries::<u32, Device>("DEVICES");
    let mut map = fixture.maps().map::<u32, Device>("DEVICES");
    for (index, device) in devices {
        let own = device.flags & !(DeviceFlags::SETTLING | DeviceFlags::LEAVING);
        map.insert(index, Device { flags: own | flag, ..device }, 0).expect("room in the map");
    }
}
