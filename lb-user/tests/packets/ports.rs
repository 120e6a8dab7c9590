//! Source ports of the node: no two flows to one backend may look alike to it, whoever began them.

use std::{
    collections::BTreeSet,
    net::{TcpListener, UdpSocket},
};

use lb_common::{Counter, Flow, FlowKey};
use lb_lab::packets::{Fixture, Packet, ServicePort, Sizes};

use crate::{
    enter_with,
    family::{BOTH, Family, V4},
};

fn few(ports: u32) -> Fixture {
    enter_with(Sizes { ports: Some(ports), ..Sizes::default() })
}

fn client(of: Family, n: usize) -> String {
    of.client.replace(":4000", &format!(":{}", 4000 + n))
}

/// The node's end of a new flow.
fn begun(fixture: &Fixture, packet: &Packet) -> String {
    let sent = fixture.comes_in("uplink", packet);
    let (node, backend) = sent.ends();
    sent.is_sent_as(&packet.becomes(&node, &backend).one_hop_on());
    node
}

/// An end of the node.
fn own(of: Family, port: usize) -> String {
    if of.header == 20 { format!("{}:{port}", of.node) } else { format!("[{}]:{port}", of.node) }
}

#[test]
fn each_flow_has_a_port_of_its_own_until_none_is_left() {
    for of in BOTH {
        let mut fixture = few(16);
        let mut web = fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let ports: BTreeSet<_> = (0..16).map(|n| begun(&fixture, &Packet::syn(&client(of, n), of.node_port))).collect();
        let want: BTreeSet<_> = (1024..1040).map(|port| own(of, port)).collect();
        assert_eq!(ports, want);
        let one_more = Packet::syn(&client(of, 16), of.node_port);
        fixture.comes_in("uplink", &one_more).is_dropped();
        assert_eq!((fixture.count(Counter::SnatExhausted), fixture.count(Counter::FlowsFull)), (1, 0));
        assert_eq!(fixture.flows().len(), 32);
        // Another backend has ports of its own.
        web.change(fixture.maps(), &[of.beyond]);
        begun(&fixture, &one_more);
    }
}

#[test]
fn a_port_of_a_flow_that_is_over_is_used_again() {
    let of = V4;
    let mut fixture = few(1);
    fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
    let node = begun(&fixture, &Packet::syn(of.client, of.node_port));
    let other = Packet::syn(&client(of, 1), of.node_port);
    fixture.comes_in("uplink", &other).is_dropped();
    begun(&fixture, &Packet::tcp(of.client, of.node_port).flags("R"));
    assert_eq!(begun(&fixture, &other), node);
    // The other's answer is its own.
    let answer = Packet::tcp(of.there, &node).flags("SA");
    let want = answer.becomes(of.node_port, &client(of, 1)).one_hop_on();
    fixture.comes_in("uplink", &answer).is_sent_as(&want);
}

#[test]
fn a_port_whose_backend_waits_is_not_used_again() {
    let of = V4;
    let mut fixture = few(1);
    fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
    let node = begun(&fixture, &Packet::syn(of.client, of.node_port));
    for flags in ["SA", "FA"] {
        let answer = Packet::tcp(of.there, &node).flags(flags);
        let want = answer.becomes(of.node_port, of.client).one_hop_on();
        fixture.comes_in("uplink", &answer).is_sent_as(&want);
    }
    begun(&fixture, &Packet::tcp(of.client, of.node_port).flags("FA"));
    fixture.comes_in("uplink", &Packet::syn(&client(of, 1), of.node_port)).is_dropped();
    assert_eq!(fixture.count(Counter::SnatExhausted), 1);
    // Its own client may, which knows the numbers of the old connection.
    assert_eq!(begun(&fixture, &Packet::syn(of.client, of.node_port)), node);
}

#[test]
fn ports_of_the_nodes_sockets_are_left_alone() {
    for of in BOTH {
        for port in [1024, 1025] {
            let free = own(of, 2049 - port);
            let mut fixture = few(2);
            fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
            let _listener = TcpListener::bind(own(of, port)).expect("a free port");
            assert_eq!(begun(&fixture, &Packet::syn(of.client, of.node_port)), free);
            let mut fixture = few(2);
            fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
            let _socket = UdpSocket::bind(own(of, port)).expect("a free port");
            assert_eq!(begun(&fixture, &Packet::udp(of.client, of.node_port)), free);
        }
    }
}

#[test]
fn sockets_on_all_ports_leave_none() {
    let of = V4;
    let mut fixture = few(2);
    fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
    let _listeners = [1024, 1025].map(|port| TcpListener::bind(own(of, port)).expect("a free port"));
    fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_dropped();
    assert_eq!((fixture.count(Counter::SnatExhausted), fixture.count(Counter::FlowsFull)), (1, 0));
}

#[test]
fn the_nodes_own_connection_that_looks_like_a_flow_gets_another_port() {
    for of in BOTH {
        for (packet, wanted) in [
            (Packet::syn(of.client, of.node_port), ServicePort::tcp()),
            (Packet::udp(of.client, of.node_port), ServicePort::udp()),
        ] {
            let mut fixture = few(4);
            fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            let taken = begun(&fixture, &packet);
            // The node dials the same backend from that very port.
            let dial = packet.becomes(&taken, of.there);
            let sent = fixture.goes_out("uplink", &dial);
            let (other, _) = sent.ends();
            assert_ne!(other, taken);
            sent.goes_on_as(&dial.becomes(&other, of.there));
            let answer = packet.becomes(of.there, &other).flags("SA");
            fixture.comes_in("uplink", &answer).goes_on_as(&answer.becomes(of.there, &taken));
            let more = dial.clone().flags("A");
            fixture.goes_out("uplink", &more).goes_on_as(&more.becomes(&other, of.there));
            // The flow has its answers as before.
            let answer = packet.becomes(of.there, &taken).flags("SA");
            fixture.comes_in("uplink", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
        }
    }
}

#[test]
fn the_nodes_own_connections_are_left_alone_otherwise() {
    for of in BOTH {
        let mut fixture = few(4);
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let taken = begun(&fixture, &Packet::syn(of.client, of.node_port));
        // To another port of that backend; from a port that flows never have; of a pod.
        fixture.goes_out("uplink", &Packet::syn(&taken, &of.there.replace(":8080", ":8081"))).is_untouched();
        fixture.goes_out("uplink", &Packet::syn(&own(of, 40000), of.there)).is_untouched();
        fixture.goes_out("uplink", &Packet::syn(of.pod, of.there)).is_untouched();
        // The middle of a connection that began before.
        fixture.goes_out("uplink", &Packet::tcp(&taken, of.there)).is_untouched();
        assert_eq!(fixture.flows().len(), 2);
    }
}

#[test]
fn a_connection_with_another_port_keeps_it_to_the_end_and_not_longer() {
    let of = V4;
    let mut fixture = few(4);
    fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
    let taken = begun(&fixture, &Packet::syn(of.client, of.node_port));
    let dial = Packet::syn(&taken, of.there);
    let other = fixture.goes_out("uplink", &dial).ends().0;
    assert_ne!(other, taken);
    let reset = Packet::tcp(&taken, of.there).flags("R");
    fixture.goes_out("uplink", &reset).goes_on_as(&reset.becomes(&other, of.there));
    // The flow has gone; the node dials once more from the same port.
    let flows: Vec<_> = fixture.maps().entries::<FlowKey, Flow>("FLOWS");
    for (key, flow) in flows {
        if flow.service != 0 {
            fixture.maps().map::<FlowKey, Flow>("FLOWS").remove(&key).expect("an entry");
        }
    }
    let (now, _) = fixture.goes_out("uplink", &dial).ends();
    // Whichever port it has now, all of the connection has it.
    let ack = Packet::tcp(&taken, of.there);
    assert_eq!(fixture.goes_out("uplink", &ack).ends().0, now);
    let answer = Packet::tcp(of.there, &now).flags("SA");
    assert_eq!(fixture.comes_in("uplink", &answer).ends().1, taken);
}
