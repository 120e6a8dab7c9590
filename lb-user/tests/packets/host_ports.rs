//! Packets to hostPorts of this node's pods.

use lb_common::DeviceFlags;
use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, Net},
    enter,
};

/// The port of the NodePort frontends at another address.
fn at(addr: &str, port: u16) -> String {
    if addr.contains(':') { format!("[{addr}]:{port}") } else { format!("{addr}:{port}") }
}

/// An address of an interface of the node, at which NodePorts do not answer.
fn left_out(net: Net) -> &'static str {
    if net.is_v4() { "172.16.0.1" } else { "fd16::1" }
}

/// An address of another host.
fn elsewhere(net: Net) -> &'static str {
    if net.is_v4() { "203.0.113.7" } else { "2001:db8:7::7" }
}

fn loopback(net: Net) -> &'static str {
    if net.is_v4() { "127.0.0.1" } else { "::1" }
}

/// Serves each protocol at this hostPort.
fn serve(fixture: &mut Fixture, frontend: &str, backend: &str) {
    for port in [FixtureService::tcp(), FixtureService::udp(), FixtureService::sctp()] {
        fixture.serve(port.host_port(frontend).backends(&[backend]));
    }
}

fn firsts(from: &str, to: &str) -> [PacketSpec; 3] {
    [PacketSpec::syn(from, to), PacketSpec::udp(from, to), PacketSpec::sctp_init(from, to)]
}

#[test]
fn a_host_port_leads_to_the_pod_which_sees_the_client_whatever_is_masqueraded() {
    for net in BOTH {
        for flags in [0, DeviceFlags::MASQUERADE] {
            for own in [net.node_port.to_owned(), at(left_out(net), 30080)] {
                let mut fixture = enter();
                fixture.set_flags("uplink", flags);
                fixture.own_without_node_ports(left_out(net));
                serve(&mut fixture, net.any, net.local);
                for first in firsts(net.client, &own) {
                    fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
                }
                let answer = PacketSpec::tcp(net.local, net.client).flags("SA");
                fixture.egress("uplink", &answer).passes_as(&answer.becomes(&own, net.client));
            }
        }
    }
}

#[test]
fn a_node_port_does_not_answer_where_it_is_left_out_and_a_host_port_does() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.own_without_node_ports(left_out(net));
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let first = PacketSpec::syn(net.client, &at(left_out(net), 30080));
        fixture.ingress("uplink", &first).passes_unchanged();
        let first = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
    }
}

#[test]
fn a_host_port_with_a_host_ip_answers_at_that_address_if_it_is_the_nodes() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.own_without_node_ports(left_out(net));
        serve(&mut fixture, &at(left_out(net), 8081), net.local);
        serve(&mut fixture, &at(elsewhere(net), 8082), net.local);
        for first in firsts(net.client, &at(left_out(net), 8081)) {
            fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
        }
        for to in [at(net.node, 8081), at(elsewhere(net), 8082), at(net.node, 8082)] {
            for first in firsts(net.client, &to) {
                fixture.ingress("uplink", &first).passes_unchanged();
            }
        }
    }
}

#[test]
fn packets_to_host_ports_at_loopback_from_outside_or_from_a_pod_are_not_translated() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.own_loopback(loopback(net));
        serve(&mut fixture, net.any, net.local);
        serve(&mut fixture, &at(loopback(net), 8082), net.local);
        for (device, from) in [("uplink", net.client), ("pod1", net.pod)] {
            for port in [30080, 8082] {
                for first in firsts(from, &at(loopback(net), port)) {
                    fixture.ingress(device, &first).passes_unchanged();
                }
            }
        }
    }
}

#[test]
fn a_pod_without_sockets_reaches_a_host_port_of_its_node_with_its_own_address() {
    for net in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, net.any, net.local2);
        for first in firsts(net.pod, net.node_port) {
            fixture.ingress("pod1", &first).passes_as(&first.becomes(net.pod, net.local2));
        }
    }
}

#[test]
fn a_connection_of_the_node_from_the_port_of_a_host_port_is_left_alone() {
    for net in BOTH {
        for frontend in [net.any, net.node_port] {
            let mut fixture = enter();
            serve(&mut fixture, frontend, net.local);
            // A SYN-ACK to a masqueraded pod (cilium#34041), and an answer to a query.
            fixture.ingress("uplink", &PacketSpec::tcp(net.client, net.node_port).flags("SA")).passes_unchanged();
            fixture.egress("uplink", &PacketSpec::udp(net.node_port, net.client)).passes_unchanged();
            fixture.ingress("uplink", &PacketSpec::udp(net.client, net.node_port)).passes_unchanged();
        }
    }
}
