//! Packets above the MTU of the next hop that routers may fragment.

use lb_common::{Hook, Proto};
use lb_lab::packets::{
    FarEnd, Fixture, FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec, packet::RawFrame,
};

use crate::{
    addresses::{BOTH, Net, V4, ip},
    enter,
};

const THIN: usize = node::THIN as usize;
/// Octets of the headers of Ethernet and IPv4.
const LINK: usize = 14;
const IP: usize = 20;

/// Returns an IPv4 packet without DF, or a fragment of it, with this identification and fragment field.
fn with_fragment_field(mut octets: Vec<u8>, id: u8, field: u16) -> Vec<u8> {
    octets[LINK + 4..LINK + 6].copy_from_slice(&[0, id]);
    octets[LINK + 6..LINK + 8].copy_from_slice(&field.to_be_bytes());
    octets[LINK + 10..LINK + 12].fill(0);
    let sum: u32 = octets[LINK..LINK + IP].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
    octets[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
    octets
}

/// Returns the packet without DF.
fn whole(packet: &PacketSpec) -> Vec<u8> {
    with_fragment_field(packet.octets(), 7, 0)
}

/// Returns the fragments of a packet for an MTU.
fn fragments(packet: &PacketSpec, mtu: usize) -> Vec<Vec<u8>> {
    const MORE: u16 = 0x2000;
    let octets = packet.octets();
    let (headers, payload) = octets.split_at(LINK + IP);
    let len = (mtu - IP) / 8 * 8;
    let parts = payload.chunks(len).enumerate();
    let last = payload.len().div_ceil(len) - 1;
    let part = |(n, part): (usize, &[u8])| {
        let mut octets = [headers, part].concat();
        let total = u16::try_from(IP + part.len()).expect("short");
        octets[LINK + 2..LINK + 4].copy_from_slice(&total.to_be_bytes());
        let field = u16::try_from(n * len / 8).expect("small") | if n == last { 0 } else { MORE };
        with_fragment_field(octets, 7, field)
    };
    parts.map(part).collect()
}

/// Begins a flow, and returns the node's end of it.
fn begin(fixture: &Fixture, net: Net, proto: Proto, device: &str) -> String {
    let first = match proto {
        Proto::Udp => PacketSpec::udp(net.client, net.node_port),
        _ => PacketSpec::syn(net.client, net.node_port),
    };
    fixture.ingress(device, &first).ends().0
}

/// Returns a packet of an open flow of each protocol, and a service port without frontends for it.
fn each() -> [(Proto, PacketSpec, FixtureService); 2] {
    [
        (Proto::Udp, PacketSpec::udp(V4.client, V4.node_port), FixtureService::udp()),
        (Proto::Tcp, PacketSpec::tcp(V4.client, V4.node_port), FixtureService::tcp()),
    ]
}

#[test]
fn a_large_packet_without_df_is_left_to_the_kernel_which_fragments_it() {
    let net = V4;
    for (proto, packet, service) in each() {
        let mut fixture = enter();
        fixture.serve(service.node_port(net.any).backends(&[net.remote_thin]));
        let node = begin(&fixture, net, proto, "uplink");
        assert_eq!(ip(&node), "172.16.0.1");
        let large = packet.sized(THIN + 100);
        for _ in 0..2 {
            // The kernel accepts no packet from outside with its own address: the egress program replaces the source.
            let routed = large.becomes(net.client, net.remote_thin);
            fixture.ingress("uplink", &whole(&large)).passes_as(&whole(&routed));
            let sent = large.becomes(&node, net.remote_thin);
            for (before, after) in fragments(&routed, THIN).iter().zip(fragments(&sent, THIN)) {
                fixture.egress("thin", before).passes_as(&after);
            }
        }
        // Netfilter may have masqueraded the packet, and translates the answer back.
        let answer = large.becomes(net.remote_thin, net.client).sized(100);
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
        // Answers to the node's end are answers of the flow.
        let answer = large.becomes(net.remote_thin, &node).sized(100);
        fixture.ingress("thin", &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
        // With DF the sender gets an error with the MTU.
        fixture
            .ingress("uplink", &large)
            .is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TooBig(THIN as u16), &large));
        // A packet that fits is redirected.
        let fits = large.sized(THIN);
        fixture.ingress("uplink", &fits).is_redirected_as(&fits.becomes(&node, net.remote_thin).routed());
    }
}

#[test]
fn a_large_answer_without_df_is_left_to_the_kernel_too() {
    let net = Net { client: "172.16.0.2:4000", ..V4 };
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
    let node = begin(&fixture, net, Proto::Udp, "thin");
    let answer = PacketSpec::udp(net.remote, &node).sized(THIN + 8);
    let routed = answer.becomes(net.remote, net.client);
    fixture.ingress("uplink", &whole(&answer)).passes_as(&whole(&routed));
    let sent = answer.becomes(net.node_port, net.client);
    for (before, after) in fragments(&routed, THIN).iter().zip(fragments(&sent, THIN)) {
        fixture.egress("thin", before).passes_as(&after);
    }
}

#[test]
fn fragments_that_are_too_large_are_fragmented_again() {
    let net = V4;
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote_thin]));
    begin(&fixture, net, Proto::Udp, "uplink");
    let large = PacketSpec::udp(net.client, net.node_port).sized(1800);
    let routed = large.becomes(net.client, net.remote_thin);
    // The last fragment fits, but conntrack waits for it where the others are.
    for (before, after) in fragments(&large, 1500).iter().zip(fragments(&routed, 1500)) {
        fixture.ingress("uplink", before).passes_as(&after);
    }
}

#[test]
fn a_large_datagram_arrives_in_fragments() {
    let net = V4;
    for (proto, packet, service) in each() {
        let mut fixture = enter();
        fixture.serve(service.node_port(net.any).backends(&[net.remote_thin]));
        fixture.attach();
        let (uplink, thin) = (FarEnd::of("uplink"), FarEnd::of("thin"));
        let node = begin(&fixture, net, proto, "uplink");
        let large = packet.sized(1500);
        let sent = large.becomes(&node, net.remote_thin).routed().out_to(3);
        for _ in 0..2 {
            uplink.send(&whole(&large));
            for fragment in fragments(&sent, THIN) {
                thin.receives(&fragment);
            }
        }
    }
}

/// bpf_fib_lookup knows a locked MTU only (`ip_mtu_from_fib_result`, `ip6_mtu_from_fib6`).
#[test]
fn the_locked_mtu_of_a_route_counts() {
    for net in BOTH {
        let mtu = 1400;
        let mut fixture = enter();
        let route = if net.is_v4() { "10.0.2.0/24 via 192.0.2.2" } else { "fd00:0:0:2::/64 via 2001:db8::2" };
        node::ip(&format!("route replace {route} mtu lock {mtu}\n"));
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let fits = PacketSpec::udp(net.client, net.node_port).sized(mtu.into());
        let large = fits.clone().sized(usize::from(mtu) + 1);
        // The first packet, and later ones.
        for _ in 0..2 {
            let error = IcmpErrorSpec::answer(IcmpReason::TooBig(mtu), &large);
            fixture.ingress("uplink", &large).is_redirected_as(&error);
            let sent = fixture.ingress("uplink", &fits);
            sent.is_redirected_as(&fits.becomes(&sent.ends().0, net.remote).routed());
        }
        // The next hop is not stored, as it has no MTU.
        let flow = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("an entry");
        assert!(!flow.hop.is_known());
    }
}

#[test]
fn the_first_packet_of_a_flow_may_be_too_large() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote_thin]));
        let large = PacketSpec::udp(net.client, net.node_port).sized(1500);
        fixture
            .ingress("uplink", &large)
            .is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TooBig(THIN as u16), &large));
    }
}
