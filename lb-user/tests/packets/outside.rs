//! Packets of clients outside to a backend, and its answers.

use lb_common::{DeviceFlags, FlowFlags, Hook};
use lb_lab::packets::{Fixture, FixtureService, PacketSpec, node};

use crate::{
    addresses::{BOTH, Net, V4, V6, each, ip},
    enter,
};

/// Last octet of the link address of the gateway.
const GATEWAY: u8 = 0xfe;

/// Asserts that the local backend gets `packet` with its source kept, and that its answers come from the NodePort.
fn local_backend_serves(fixture: &Fixture, net: Net, packet: &PacketSpec) {
    fixture.ingress("uplink", packet).passes_as(&packet.becomes(net.client, net.local));
    let answer = packet.becomes(net.local, net.client);
    fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
}

/// Asserts that the remote backend gets `packet` from the node, and that its answers reach the client by the node.
/// Returns the node's address and masquerade port.
fn remote_backend_serves(fixture: &Fixture, net: Net, packet: &PacketSpec) -> String {
    let sent = fixture.ingress("uplink", packet);
    let (node, _) = sent.ends();
    assert_eq!(ip(&node), net.node);
    sent.is_redirected_as(&packet.becomes(&node, net.remote).routed());
    let answer = packet.becomes(net.remote, &node);
    fixture.ingress("uplink", &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
    node
}

#[test]
fn a_backend_on_this_node_sees_the_client() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            local_backend_serves(&fixture, net, &packet);
            // The kernel routes the packet afterwards, and decrements its TTL itself.
            local_backend_serves(&fixture, net, &packet.ttl(1));
        }
    }
}

/// The kernel routes the reply by the backend's address, to `thin`; the address that was dialled is `uplink`'s.
#[test]
fn a_reply_leaves_by_the_device_that_rules_choose_for_the_dialled_address() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
            let answer = packet.becomes(net.local, net.client);
            let seen = answer.becomes(net.node_port, net.client);
            fixture.egress("thin", &answer).passes_as(&seen);
            fixture.set_flags("thin", DeviceFlags::SOURCE_RULES);
            fixture.set_flags("uplink", DeviceFlags::SOURCE_RULES);
            fixture.egress("uplink", &answer).passes_as(&seen);
            // The kernel has counted the hop already. A next hop is looked up once, and then kept for a while.
            fixture.forget_hops();
            fixture.egress("thin", &answer).is_redirected_to_neighbour_as(&seen);
            fixture.keep_hops();
            fixture.egress("thin", &answer).is_redirected_as(&seen.clone().out_to(GATEWAY));
            // A mark may have chosen the route.
            fixture.set_flags("uplink", DeviceFlags::SOURCE_RULES | DeviceFlags::MARKS);
            fixture.egress("thin", &answer).passes_as(&seen);
            fixture.set_flags("uplink", DeviceFlags::SOURCE_RULES);
            let (flag, table) = if net.is_v4() { ("-4", "172.16.0.2") } else { ("-6", "fd16::2") };
            node::ip_with(&[flag], &format!("rule add from {} table 77\n", net.node));
            node::ip_with(&[flag], &format!("route add default via {table} dev thin table 77\n"));
            fixture.forget_hops();
            fixture.egress("thin", &answer).passes_as(&seen);
        }
    }
}

/// br_netfilter has shown the packet to netfilter before it was translated.
#[test]
fn a_translated_packet_that_enters_by_a_bridge_is_received_anew() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            let seen = packet.becomes(net.client, net.local);
            fixture.ingress("bridge", &packet).passes_as(&seen);
            fixture.set_flags("bridge", DeviceFlags::BRIDGE);
            fixture.ingress("bridge", &packet).is_redirected_as(&seen);
            let answer = packet.becomes(net.local, net.client);
            fixture.egress("bridge", &answer).passes_as(&answer.becomes(net.node_port, net.client));
        }
    }
}

#[test]
fn a_remote_backend_sees_the_node_and_answers_through_it() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            let node = remote_backend_serves(&fixture, net, &packet);
            // Later packets of the flow keep backend and port.
            assert_eq!(remote_backend_serves(&fixture, net, &packet), node);
        }
    }
}

#[test]
fn a_flow_has_an_entry_for_each_direction() {
    let mut fixture = enter();
    let web = fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    local_backend_serves(&fixture, V4, &PacketSpec::syn(V4.client, V4.node_port));
    assert_eq!(
        fixture.flows(),
        [
            "out TCP 10.0.1.1:8080 > 198.51.100.9:4000 becomes 192.0.2.1:30080 > 198.51.100.9:4000 back, SYN_RECV",
            "in TCP 198.51.100.9:4000 > 192.0.2.1:30080 becomes 198.51.100.9:4000 > 10.0.1.1:8080, SYN_RECV",
        ]
    );
    let flow = fixture.flow(Hook::Ingress, V4.client, V4.node_port).expect("an entry");
    assert_eq!((flow.service, flow.backend), (web.id, web.backend_id(V4.local)));
    assert_eq!(flow.flags, FlowFlags::PARTNER_EGRESS);
    let back = fixture.flow(Hook::Egress, V4.local, V4.client).expect("an entry");
    assert_eq!((back.service, back.backend), (web.id, web.backend_id(V4.local)));
    assert_eq!(back.flags, FlowFlags::REVERSE);
}

#[test]
fn a_masqueraded_flow_has_both_entries_at_ingress() {
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(V6.any).backends(&[V6.remote]));
    let node = remote_backend_serves(&fixture, V6, &PacketSpec::udp(V6.client, V6.node_port));
    let (client, there, node_port) = (V6.client, V6.remote, V6.node_port);
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
    for net in BOTH {
        let vip = if net.is_v4() { "203.0.113.7:443" } else { "[2001:db8:7::7]:443" };
        let mut fixture = enter();
        let service = FixtureService::tcp().load_balancer(vip).cluster_ip(net.cluster_ip);
        fixture.serve(service.backends(&[net.local]));
        local_backend_serves(&fixture, Net { node_port: vip, ..net }, &PacketSpec::syn(net.client, vip));
        // From another port: the backend could not tell the two connections apart otherwise.
        let client = if net.is_v4() { "198.51.100.9:4001" } else { "[2001:db8:9::9]:4001" };
        let net = Net { node_port: net.cluster_ip, client, ..net };
        local_backend_serves(&fixture, net, &PacketSpec::syn(client, net.cluster_ip));
    }
}

#[test]
fn a_node_port_answers_at_the_nodes_own_addresses_only() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port("0.0.0.0:30080").backends(&[V4.local]));
    fixture.ingress("uplink", &PacketSpec::syn(V4.client, "192.0.2.2:30080")).passes_unchanged();
    fixture.ingress("uplink", &PacketSpec::syn(V4.client, "192.0.2.1:30081")).passes_unchanged();
    fixture.ingress("uplink", &PacketSpec::udp(V4.client, "192.0.2.1:30080")).passes_unchanged();
}

#[test]
fn packets_with_options_or_extension_headers_are_served() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            remote_backend_serves(&fixture, net, &packet.with_extras());
        }
    }
}

#[test]
fn a_datagram_without_checksum_gets_none() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        remote_backend_serves(&fixture, net, &PacketSpec::udp(net.client, net.node_port).without_sum());
    }
}

#[test]
fn an_sctp_checksum_left_to_the_device_stays_unwritten() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::sctp().node_port(net.any).backends(&[net.remote]));
        remote_backend_serves(&fixture, net, &PacketSpec::sctp_init(net.client, net.node_port).without_sum());
    }
}

#[test]
fn a_udp_checksum_of_0_is_written_as_ffff() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let mut packet = PacketSpec::udp(net.client, net.node_port);
        packet.payload[..2].fill(0);
        // This payload makes the sum 0.
        let missing = packet.becomes(net.client, net.local).sum();
        packet.payload[..2].copy_from_slice(&missing.to_be_bytes());
        assert_eq!(packet.becomes(net.client, net.local).sum(), 0xffff);
        local_backend_serves(&fixture, net, &packet);
    }
}

/// BPF_PROG_TEST_RUN reads octets 12 and 13 as the EtherType. On a device without Ethernet these belong to the source:
/// octets 1 and 2 of an IPv4 address, 5 and 6 of an IPv6 address. So the clients have addresses that spell 0x0800 and
/// 0x86dd there.
#[test]
fn a_device_without_ethernet_is_served() {
    let (v4, v6) = ("8.0.3.4:4000", "[fd08:0:86dd::9]:4000");
    for (net, client) in [(V4, v4), (V6, v6)] {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(client, net.node_port).bare();
        fixture.ingress("bare", &syn).passes_as(&syn.becomes(client, net.local));
        assert_eq!(fixture.flows().len(), 2);
        let answer = PacketSpec::tcp(net.local, client).flags("SA");
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, client));
    }
}

#[test]
fn tagged_packets_are_left_to_the_device_of_their_vlan() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    fixture.ingress("uplink", &PacketSpec::syn(V4.client, V4.node_port).vlan(5)).passes_unchanged();
    assert_eq!(fixture.flows().len(), 0);
}
