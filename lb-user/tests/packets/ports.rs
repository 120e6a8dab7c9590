//! Masquerade ports: no two flows to one backend may have equal tuples, nor may a flow and a connection of the node.

use std::{
    collections::BTreeSet,
    net::{TcpListener, UdpSocket},
};

use lb_common::{Counter, DeviceFlags, Flow, FlowKey};
use lb_lab::packets::{Fixture, FixtureService, FixtureSizes, PacketSpec, node};

use crate::{
    addresses::{BOTH, Net, V4, V6, ip},
    enter_with,
};

fn enter_with_ports(ports: u32) -> Fixture {
    enter_with(FixtureSizes { ports: Some(ports), ..FixtureSizes::default() })
}

fn client(net: Net, n: usize) -> String {
    net.client.replace(":4000", &format!(":{}", 4000 + n))
}

/// Sends a packet of a client, asserts that it is masqueraded, and returns the node's address and port.
fn masquerade(fixture: &Fixture, packet: &PacketSpec) -> String {
    let sent = fixture.ingress("uplink", packet);
    let (node, backend) = sent.ends();
    sent.is_redirected_as(&packet.becomes(&node, &backend).routed());
    node
}

/// Returns the node's address with a port.
fn node_end(net: Net, port: usize) -> String {
    if net.is_v4() { format!("{}:{port}", net.node) } else { format!("[{}]:{port}", net.node) }
}

#[test]
fn each_flow_has_its_own_port_until_none_is_free() {
    for net in BOTH {
        let mut fixture = enter_with_ports(16);
        let mut web = fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let ports: BTreeSet<_> =
            (0..16).map(|n| masquerade(&fixture, &PacketSpec::syn(&client(net, n), net.node_port))).collect();
        let want: BTreeSet<_> = (1024..1040).map(|port| node_end(net, port)).collect();
        assert_eq!(ports, want);
        let one_more = PacketSpec::syn(&client(net, 16), net.node_port);
        fixture.ingress("uplink", &one_more).is_dropped();
        assert_eq!((fixture.count(Counter::SnatExhausted), fixture.count(Counter::FlowsFull)), (1, 0));
        assert_eq!(fixture.flows().len(), 32);
        // Flows to another backend may use the same ports.
        web.change(fixture.maps(), &[net.remote_thin]);
        masquerade(&fixture, &one_more);
    }
}

#[test]
fn the_port_of_a_closed_flow_is_used_again() {
    let net = V4;
    let mut fixture = enter_with_ports(1);
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
    let syn = PacketSpec::syn(net.client, net.node_port);
    let node = masquerade(&fixture, &syn);
    let other = PacketSpec::syn(&client(net, 1), net.node_port);
    fixture.ingress("uplink", &other).is_dropped();
    masquerade(&fixture, &syn.aborted());
    assert_eq!(masquerade(&fixture, &other), node);
    // Answers reach the new client.
    let answer = PacketSpec::tcp(net.remote, &node).flags("SA");
    let want = answer.becomes(net.node_port, &client(net, 1)).routed();
    fixture.ingress("uplink", &answer).is_redirected_as(&want);
}

#[test]
fn the_port_of_a_flow_in_time_wait_is_not_used_again() {
    let net = V4;
    let mut fixture = enter_with_ports(1);
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
    let node = masquerade(&fixture, &PacketSpec::syn(net.client, net.node_port));
    for flags in ["SA", "FA"] {
        let answer = PacketSpec::tcp(net.remote, &node).flags(flags);
        let want = answer.becomes(net.node_port, net.client).routed();
        fixture.ingress("uplink", &answer).is_redirected_as(&want);
    }
    masquerade(&fixture, &PacketSpec::tcp(net.client, net.node_port).flags("FA"));
    fixture.ingress("uplink", &PacketSpec::syn(&client(net, 1), net.node_port)).is_dropped();
    assert_eq!(fixture.count(Counter::SnatExhausted), 1);
    // The same client may use it again: it knows the sequence numbers of the old connection.
    assert_eq!(masquerade(&fixture, &PacketSpec::syn(net.client, net.node_port)), node);
}

#[test]
fn ports_of_the_nodes_sockets_are_not_used() {
    for net in BOTH {
        for port in [1024, 1025] {
            let free = node_end(net, 2049 - port);
            let mut fixture = enter_with_ports(2);
            fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
            let _listener = TcpListener::bind(node_end(net, port)).expect("a free port");
            assert_eq!(masquerade(&fixture, &PacketSpec::syn(net.client, net.node_port)), free);
            let mut fixture = enter_with_ports(2);
            fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
            let _socket = UdpSocket::bind(node_end(net, port)).expect("a free port");
            assert_eq!(masquerade(&fixture, &PacketSpec::udp(net.client, net.node_port)), free);
        }
    }
}

#[test]
fn a_first_packet_is_dropped_if_sockets_hold_all_ports() {
    let net = V4;
    let mut fixture = enter_with_ports(2);
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
    let _listeners = [1024, 1025].map(|port| TcpListener::bind(node_end(net, port)).expect("a free port"));
    fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).is_dropped();
    assert_eq!((fixture.count(Counter::SnatExhausted), fixture.count(Counter::FlowsFull)), (1, 0));
}

#[test]
fn a_connection_of_the_node_with_the_tuple_of_a_flow_gets_another_port() {
    for net in BOTH {
        for (packet, service) in [
            (PacketSpec::syn(net.client, net.node_port), FixtureService::tcp()),
            (PacketSpec::udp(net.client, net.node_port), FixtureService::udp()),
        ] {
            let mut fixture = enter_with_ports(4);
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            let taken = masquerade(&fixture, &packet);
            // The node dials the same backend from the port of the flow.
            let dial = packet.becomes(&taken, net.remote);
            let sent = fixture.egress("uplink", &dial);
            let (other, _) = sent.ends();
            assert_ne!(other, taken);
            sent.passes_as(&dial.becomes(&other, net.remote));
            let answer = packet.becomes(net.remote, &other).flags("SA");
            fixture.ingress("uplink", &answer).passes_as(&answer.becomes(net.remote, &taken));
            let more = dial.clone().flags("A");
            fixture.egress("uplink", &more).passes_as(&more.becomes(&other, net.remote));
            // Answers of the flow still reach its client.
            let answer = packet.becomes(net.remote, &taken).flags("SA");
            fixture.ingress("uplink", &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
        }
    }
}

/// As the test above, with the address that the kernel chooses for the route.
#[test]
fn a_device_with_several_sources_masquerades_as_the_route_says_and_keeps_ports_apart() {
    // By a gateway of the first network: its address, and a unique local one for such a destination (RFC 6724, rule 6).
    for (net, own, backend, by_gateway) in
        [(V4, "203.0.113.1", "203.0.113.9:8080", "192.0.2.1"), (V6, "fd13::1", "[fd13::9]:8080", "fd13::1")]
    {
        let mut fixture = enter_with_ports(4);
        let prefix = if net.is_v4() { "/24 dev uplink" } else { "/64 dev uplink nodad" };
        node::ip(&format!("address add {own}{prefix}\n"));
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[backend]));
        let first = PacketSpec::syn(net.client, net.node_port);
        assert_eq!(ip(&fixture.ingress("uplink", &first).ends().0), net.node, "the address of the device's entry");
        fixture.set_flags("uplink", DeviceFlags::SEVERAL_SOURCES);
        let packet = PacketSpec::syn(&client(net, 1), net.node_port);
        let (taken, _) = fixture.ingress("uplink", &packet).ends();
        assert_eq!(ip(&taken), own, "the address of the network of the backend");
        let dial = packet.becomes(&taken, backend);
        assert_ne!(fixture.egress("uplink", &dial).ends().0, taken, "the node dials from the port of the flow");
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::syn(&client(net, 2), net.node_port);
        assert_eq!(ip(&fixture.ingress("uplink", &packet).ends().0), by_gateway);
    }
}

#[test]
fn other_connections_of_the_node_pass_unchanged() {
    for net in BOTH {
        let mut fixture = enter_with_ports(4);
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let taken = masquerade(&fixture, &PacketSpec::syn(net.client, net.node_port));
        // To another port of the backend; from a port outside the masquerade range; of a pod.
        fixture.egress("uplink", &PacketSpec::syn(&taken, &net.remote.replace(":8080", ":8081"))).passes_unchanged();
        fixture.egress("uplink", &PacketSpec::syn(&node_end(net, 40000), net.remote)).passes_unchanged();
        fixture.egress("uplink", &PacketSpec::syn(net.pod, net.remote)).passes_unchanged();
        // A connection that began before the flow.
        fixture.egress("uplink", &PacketSpec::tcp(&taken, net.remote)).passes_unchanged();
        assert_eq!(fixture.flows().len(), 2);
    }
}

#[test]
fn a_connection_keeps_its_other_port_until_it_ends() {
    let net = V4;
    let mut fixture = enter_with_ports(4);
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
    let taken = masquerade(&fixture, &PacketSpec::syn(net.client, net.node_port));
    let dial = PacketSpec::syn(&taken, net.remote);
    let other = fixture.egress("uplink", &dial).ends().0;
    assert_ne!(other, taken);
    let reset = dial.aborted();
    fixture.egress("uplink", &reset).passes_as(&reset.becomes(&other, net.remote));
    // The flow expires, and the node dials once more from the same port.
    let flows: Vec<_> = fixture.maps().entries::<FlowKey, Flow>("FLOWS");
    for (key, flow) in flows {
        if flow.service != 0 {
            fixture.maps().map::<FlowKey, Flow>("FLOWS").remove(&key).expect("an entry");
        }
    }
    let (now, _) = fixture.egress("uplink", &dial).ends();
    // All packets of the new connection have one port.
    let ack = PacketSpec::tcp(&taken, net.remote);
    assert_eq!(fixture.egress("uplink", &ack).ends().0, now);
    let answer = PacketSpec::tcp(net.remote, &now).flags("SA");
    assert_eq!(fixture.ingress("uplink", &answer).ends().1, taken);
}

#[test]
fn the_node_gets_the_port_of_a_closed_flow() {
    for net in BOTH {
        let mut fixture = enter_with_ports(4);
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        let taken = masquerade(&fixture, &syn);
        assert_eq!(masquerade(&fixture, &syn.aborted()), taken);
        let dial = PacketSpec::syn(&taken, net.remote);
        fixture.egress("uplink", &dial).passes_unchanged();
        fixture.ingress("uplink", &PacketSpec::tcp(net.remote, &taken).flags("SA")).passes_unchanged();
    }
}
