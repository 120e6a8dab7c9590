//! Datagrams that are larger than the next link, and that routers may fragment.

use lb_common::{Hook, Proto};
use lb_lab::packets::{FarEnd, Fixture, Packet, Reason, ServicePort, node, packet::Error, packet::Frame};

use crate::{
    enter,
    family::{BOTH, Family, V4, ip},
};

const THIN: usize = node::THIN as usize;
/// Octets of the headers of Ethernet and IPv4.
const LINK: usize = 14;
const IP: usize = 20;

/// An IPv4 packet without DF, or a fragment of one.
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

/// The packet without DF.
fn whole(packet: &Packet) -> Vec<u8> {
    with_fragment_field(packet.octets(), 7, 0)
}

/// The fragments of a packet for an MTU.
fn fragments(packet: &Packet, mtu: usize) -> Vec<Vec<u8>> {
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

/// Sends one packet through, and returns the node's end of the flow.
fn begin(fixture: &Fixture, of: Family, proto: Proto, device: &str) -> String {
    let first = match proto {
        Proto::Udp => Packet::udp(of.client, of.node_port),
        _ => Packet::syn(of.client, of.node_port),
    };
    fixture.comes_in(device, &first).ends().0
}

fn each() -> [(Proto, Packet, ServicePort); 2] {
    [
        (Proto::Udp, Packet::udp(V4.client, V4.node_port), ServicePort::udp()),
        (Proto::Tcp, Packet::tcp(V4.client, V4.node_port), ServicePort::tcp()),
    ]
}

#[test]
fn a_large_packet_without_df_is_left_to_the_kernel_which_fragments_it() {
    let of = V4;
    for (proto, packet, wanted) in each() {
        let mut fixture = enter();
        fixture.serve(wanted.node_port(of.any).backends(&[of.beyond]));
        let node = begin(&fixture, of, proto, "uplink");
        assert_eq!(ip(&node), "172.16.0.1");
        let large = packet.sized(THIN + 100);
        for _ in 0..2 {
            // The kernel takes no packet with its own address from outside: the source is replaced behind it.
            let routed = large.becomes(of.client, of.beyond);
            fixture.comes_in("uplink", &whole(&large)).goes_on_as(&whole(&routed));
            let sent = large.becomes(&node, of.beyond);
            for (before, after) in fragments(&routed, THIN).iter().zip(fragments(&sent, THIN)) {
                fixture.goes_out("thin", before).goes_on_as(&after);
            }
        }
        // Netfilter may have masqueraded the packet, and translates the answer back.
        let answer = large.becomes(of.beyond, of.client).sized(100);
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
        // The answers are those of the flow.
        let answer = large.becomes(of.beyond, &node).sized(100);
        fixture.comes_in("thin", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
        // With DF the sender hears the MTU.
        fixture.comes_in("uplink", &large).is_sent_as(&Error::answer(Reason::TooBig(THIN as u16), &large));
        // A packet that fits is redirected.
        let fits = large.sized(THIN);
        fixture.comes_in("uplink", &fits).is_sent_as(&fits.becomes(&node, of.beyond).one_hop_on());
    }
}

#[test]
fn a_large_answer_without_df_is_left_to_the_kernel_too() {
    let of = Family { client: "172.16.0.2:4000", ..V4 };
    let mut fixture = enter();
    fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
    let node = begin(&fixture, of, Proto::Udp, "thin");
    let answer = Packet::udp(of.there, &node).sized(THIN + 8);
    let routed = answer.becomes(of.there, of.client);
    fixture.comes_in("uplink", &whole(&answer)).goes_on_as(&whole(&routed));
    let sent = answer.becomes(of.node_port, of.client);
    for (before, after) in fragments(&routed, THIN).iter().zip(fragments(&sent, THIN)) {
        fixture.goes_out("thin", before).goes_on_as(&after);
    }
}

#[test]
fn fragments_that_are_too_large_are_fragmented_again() {
    let of = V4;
    let mut fixture = enter();
    fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.beyond]));
    begin(&fixture, of, Proto::Udp, "uplink");
    let large = Packet::udp(of.client, of.node_port).sized(1800);
    let routed = large.becomes(of.client, of.beyond);
    // The last one fits, and conntrack waits for it where the others are.
    for (before, after) in fragments(&large, 1500).iter().zip(fragments(&routed, 1500)) {
        fixture.comes_in("uplink", before).goes_on_as(&after);
    }
}

#[test]
fn a_large_datagram_arrives_in_fragments() {
    let of = V4;
    for (proto, packet, wanted) in each() {
        let mut fixture = enter();
        fixture.serve(wanted.node_port(of.any).backends(&[of.beyond]));
        fixture.attach();
        let (uplink, thin) = (FarEnd::of("uplink"), FarEnd::of("thin"));
        let node = begin(&fixture, of, proto, "uplink");
        let large = packet.sized(1500);
        let sent = large.becomes(&node, of.beyond).one_hop_on().out_to(3);
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
    for of in BOTH {
        let mtu = 1400;
        let mut fixture = enter();
        let route = if of.header == 20 { "10.0.2.0/24 via 192.0.2.2" } else { "fd00:0:0:2::/64 via 2001:db8::2" };
        node::ip(&format!("route replace {route} mtu lock {mtu}\n"));
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let fits = Packet::udp(of.client, of.node_port).sized(mtu.into());
        let large = fits.clone().sized(usize::from(mtu) + 1);
        // The first packet, and later ones.
        for _ in 0..2 {
            let error = Error::answer(Reason::TooBig(mtu), &large);
            fixture.comes_in("uplink", &large).is_sent_as(&error);
            let sent = fixture.comes_in("uplink", &fits);
            sent.is_sent_as(&fits.becomes(&sent.ends().0, of.there).one_hop_on());
        }
        // No next hop is kept, which has no MTU.
        let flow = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("an entry");
        assert!(!flow.hop.is_known());
    }
}

#[test]
fn the_first_packet_of_a_flow_may_be_too_large() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.beyond]));
        let large = Packet::udp(of.client, of.node_port).sized(1500);
        fixture.comes_in("uplink", &large).is_sent_as(&Error::answer(Reason::TooBig(THIN as u16), &large));
    }
}
