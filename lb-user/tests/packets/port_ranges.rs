//! Port ranges: packets to each port of a range keep the port, or have it shifted; the answers come from the port
//! dialled.

use lb_common::Counter;
use lb_lab::packets::{FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, Net, ip},
    enter,
};

/// The address of `end` with another port.
fn with_port(end: &str, port: u16) -> String {
    let addr = ip(end);
    if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") }
}

/// A first packet of each protocol to a port of the cluster IP, and a service port of that protocol.
fn each(net: Net, port: u16) -> [(PacketSpec, FixtureService); 3] {
    let vip = with_port(net.cluster_ip, port);
    [
        (PacketSpec::syn(net.client, &vip), FixtureService::tcp()),
        (PacketSpec::udp(net.client, &vip), FixtureService::udp()),
        (PacketSpec::sctp_init(net.client, &vip), FixtureService::sctp()),
    ]
}

#[test]
fn a_packet_to_a_port_of_a_range_keeps_or_shifts_its_port() {
    for net in BOTH {
        for (offset, port) in [(0, 5060), (0, 5063), (1000, 5061)] {
            for (packet, service) in each(net, port) {
                let mut fixture = enter();
                let first = with_port(net.cluster_ip, 5060);
                fixture.serve(service.port_block(&first, 3).backends(&[&with_port(net.local, offset)]));
                let (vip, backend) = (with_port(net.cluster_ip, port), with_port(net.local, port + offset));
                // The second packet follows the flow of the first.
                for _ in 0..2 {
                    fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, &backend));
                }
                let answer = packet.becomes(&backend, net.client);
                fixture.egress("uplink", &answer).passes_as(&answer.becomes(&vip, net.client));
            }
        }
    }
}

#[test]
fn a_remote_backend_gets_the_port_and_answers_through_the_node() {
    for net in BOTH {
        for (packet, service) in each(net, 5062) {
            let mut fixture = enter();
            let first = with_port(net.cluster_ip, 5060);
            fixture.serve(service.port_block(&first, 3).backends(&[&with_port(net.remote, 0)]));
            let backend = with_port(net.remote, 5062);
            let sent = fixture.ingress("uplink", &packet);
            let (node, _) = sent.ends();
            sent.is_redirected_as(&packet.becomes(&node, &backend).routed());
            let answer = packet.becomes(&backend, &node);
            let seen = answer.becomes(&with_port(net.cluster_ip, 5062), net.client).routed();
            fixture.ingress("uplink", &answer).is_redirected_as(&seen);
        }
    }
}

#[test]
fn a_port_beyond_the_range_is_rejected() {
    for net in BOTH {
        for (packet, service) in each(net, 5064) {
            let mut fixture = enter();
            let first = with_port(net.cluster_ip, 5060);
            fixture.serve(service.port_block(&first, 3).backends(&[&with_port(net.local, 0)]));
            let before = fixture.count(Counter::UnknownPort);
            let _reset_or_error = fixture.ingress("uplink", &packet);
            assert_eq!(fixture.count(Counter::UnknownPort), before + 1, "{net:?}");
        }
    }
}
