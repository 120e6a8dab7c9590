//! From outside the node to a backend, and back.

use lb_common::{FlowFlags, Hook};
use lb_lab::packets::{Fixture, Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, Family, V4, V6, each, ip},
};

/// A backend on this node gets `packet` with its source kept, and its answers come from the NodePort.
fn is_served_here(fixture: &Fixture, of: Family, packet: &Packet) {
    fixture.comes_in("uplink", packet).goes_on_as(&packet.becomes(of.client, of.here));
    let answer = packet.becomes(of.here, of.client);
    fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
}

/// A backend elsewhere gets it from the node, to which it answers, and which answers the client. The node's end.
fn is_served_there(fixture: &Fixture, of: Family, packet: &Packet) -> String {
    let sent = fixture.comes_in("uplink", packet);
    let (node, _) = sent.ends();
    assert_eq!(ip(&node), of.node);
    sent.is_sent_as(&packet.becomes(&node, of.there).one_hop_on());
    let answer = packet.becomes(of.there, &node);
    fixture.comes_in("uplink", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
    node
}

#[test]
fn a_backend_on_this_node_sees_the_client() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            is_served_here(&fixture, of, &packet);
            // The kernel routes it on, and counts the hop itself.
            is_served_here(&fixture, of, &packet.ttl(1));
        }
    }
}

#[test]
fn a_backend_elsewhere_sees_the_node_and_answers_by_it() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            let node = is_served_there(&fixture, of, &packet);
            // Of all that follows nothing is chosen again.
            assert_eq!(is_served_there(&fixture, of, &packet), node);
        }
    }
}

#[test]
fn a_flow_has_an_entry_for_each_direction() {
    let mut fixture = enter();
    let web = fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
    is_served_here(&fixture, V4, &Packet::syn(V4.client, V4.node_port));
    assert_eq!(
        fixture.flows(),
        [
            "out TCP 10.0.1.1:8080 > 198.51.100.9:4000 becomes 192.0.2.1:30080 > 198.51.100.9:4000 back, ESTABLISHED",
            "in TCP 198.51.100.9:4000 > 192.0.2.1:30080 becomes 198.51.100.9:4000 > 10.0.1.1:8080, ESTABLISHED",
        ]
    );
    let flow = fixture.flow(Hook::Ingress, V4.client, V4.node_port).expect("an entry");
    assert_eq!((flow.service, flow.backend), (web.id, web.backend_id(V4.here)));
    assert_eq!(flow.flags, FlowFlags::PARTNER_EGRESS);
    let back = fixture.flow(Hook::Egress, V4.here, V4.client).expect("an entry");
    assert_eq!((back.service, back.backend), (web.id, web.backend_id(V4.here)));
    assert_eq!(back.flags, FlowFlags::REVERSE);
}

#[test]
fn a_flow_by_the_node_has_both_entries_where_packets_come_in() {
    let mut fixture = enter();
    fixture.serve(ServicePort::udp().node_port(V6.any).backends(&[V6.there]));
    let node = is_served_there(&fixture, V6, &Packet::udp(V6.client, V6.node_port));
    let (client, there, node_port) = (V6.client, V6.there, V6.node_port);
    let mut want = [
        format!("in UDP {client} > {node_port} becomes {node} > {there} at once, ASSURED"),
        format!("in UDP {there} > {node} becomes {node_port} > {client} at once back, ASSURED"),
    ];
    let mut flows = fixture.flows();
    want.sort();
    flows.sort();
    assert_eq!(flows, want);
}

#[test]
fn load_balancers_and_routed_cluster_ips_are_served_alike() {
    for of in BOTH {
        let vip = if of.header == 20 { "203.0.113.7:443" } else { "[2001:db8:7::7]:443" };
        let mut fixture = enter();
        let wanted = ServicePort::tcp().load_balancer(vip).cluster_ip(of.cluster_ip);
        fixture.serve(wanted.backends(&[of.here]));
        is_served_here(&fixture, Family { node_port: vip, ..of }, &Packet::syn(of.client, vip));
        // From another port, which is what keeps the two apart.
        let client = if of.header == 20 { "198.51.100.9:4001" } else { "[2001:db8:9::9]:4001" };
        let of = Family { node_port: of.cluster_ip, client, ..of };
        is_served_here(&fixture, of, &Packet::syn(client, of.cluster_ip));
    }
}

#[test]
fn a_node_port_answers_at_the_nodes_own_addresses_only() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port("0.0.0.0:30080").backends(&[V4.here]));
    fixture.comes_in("uplink", &Packet::syn(V4.client, "192.0.2.2:30080")).is_untouched();
    fixture.comes_in("uplink", &Packet::syn(V4.client, "192.0.2.1:30081")).is_untouched();
    fixture.comes_in("uplink", &Packet::udp(V4.client, "192.0.2.1:30080")).is_untouched();
}

#[test]
fn options_and_extension_headers_are_no_hindrance() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            is_served_there(&fixture, of, &packet.with_extras());
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_so() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        is_served_there(&fixture, of, &Packet::udp(of.client, of.node_port).without_sum());
    }
}

#[test]
fn the_checksum_of_sctp_is_left_to_the_device_that_writes_it() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::sctp().node_port(of.any).backends(&[of.there]));
        is_served_there(&fixture, of, &Packet::sctp_init(of.client, of.node_port).without_sum());
    }
}

#[test]
fn a_checksum_that_comes_out_as_0_has_its_other_form() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let mut packet = Packet::udp(of.client, of.node_port);
        packet.payload[..2].fill(0);
        // What is missing to 0.
        let missing = packet.becomes(of.client, of.here).sum();
        packet.payload[..2].copy_from_slice(&missing.to_be_bytes());
        assert_eq!(packet.becomes(of.client, of.here).sum(), 0xffff);
        is_served_here(&fixture, of, &packet);
    }
}

/// A device without Ethernet, where the kernel's test of programs reads the octets 12 and 13 as the type of the packet:
/// those are the first two of an IPv4 source, and the fifth and sixth of an IPv6 one.
#[test]
fn a_device_may_have_no_ethernet() {
    let (v4, v6) = ("8.0.3.4:4000", "[fd08:0:86dd::9]:4000");
    for (of, client) in [(V4, v4), (V6, v6)] {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(client, of.node_port).bare();
        fixture.comes_in("bare", &syn).goes_on_as(&syn.becomes(client, of.here));
        assert_eq!(fixture.flows().len(), 2);
        let answer = Packet::tcp(of.here, client).flags("SA");
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, client));
    }
}

#[test]
fn tagged_packets_belong_to_the_device_of_their_vlan() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
    fixture.comes_in("uplink", &Packet::syn(V4.client, V4.node_port).vlan(5)).is_untouched();
    assert_eq!(fixture.flows().len(), 0);
}
