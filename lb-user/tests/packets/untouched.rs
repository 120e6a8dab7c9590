//! What is of no Service passes octet by octet.

use etherparse::{IpNumber, PacketBuilder};
use lb_lab::packets::{Packet, Part, ServicePort};

use crate::{
    enter,
    family::{BOTH, V4},
};

/// Packets of which no Service knows.
fn strangers() -> Vec<Vec<u8>> {
    let ethernet = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]);
    let v4 = || ethernet().ipv4([198, 51, 100, 9], [192, 0, 2, 1], 64);
    let v6 = || ethernet().ipv6([0xfd; 16], [0xfe; 16], 64);
    let write = |number: u8| {
        [v4(), v6()].map(|step| {
            let mut bytes = Vec::new();
            step.write(&mut bytes, IpNumber(number), &[number; 40]).expect("a packet");
            bytes
        })
    };
    // GRE, ESP, AH, OSPF, IP in IP, IPv6 in IP, and numbers that nobody has.
    let mut packets: Vec<Vec<u8>> = [47, 50, 51, 89, 4, 41, 253, 255].into_iter().flat_map(write).collect();
    let mut bytes = Vec::new();
    v4().icmpv4_echo_request(1, 2).write(&mut bytes, b"ping").expect("a packet");
    packets.push(std::mem::take(&mut bytes));
    v6().icmpv6_echo_request(1, 2).write(&mut bytes, b"ping").expect("a packet");
    packets.push(std::mem::take(&mut bytes));
    // A neighbour is sought.
    v6().icmpv6_raw(135, 0, [0; 4]).write(&mut bytes, &[0; 16]).expect("a packet");
    packets.push(bytes);
    // ARP, LLDP, and what is no packet at all.
    packets.push([&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 30]].concat());
    packets.push([&[2; 12][..], &[0x88, 0xcc], &[7; 60]].concat());
    for kind in [[8, 0], [0x86, 0xdd]] {
        packets.push([&[2; 12][..], &kind, &[0x45; 40]].concat());
        packets.push([&[2; 12][..], &kind, &[0x60; 60]].concat());
    }
    packets
}

#[test]
fn other_packets_pass_as_they_are() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port(V4.any).cluster_ip(V4.cluster_ip).backends(&[V4.here]));
    for packet in strangers() {
        for device in ["uplink", "pod1", "thin"] {
            fixture.comes_in(device, &packet).is_untouched();
            fixture.goes_out(device, &packet).is_untouched();
        }
    }
    assert_eq!(fixture.flows().len(), 0);
}

#[test]
fn connections_of_no_service_pass_as_they_are() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[of.here]));
        let elsewhere = if of.header == 20 { "203.0.113.50:443" } else { "[2001:db8:5::5]:443" };
        for (from, to) in [(of.client, of.here), (of.pod, elsewhere), (elsewhere, of.pod), (of.here, of.client)] {
            for packet in [
                Packet::syn(from, to),
                Packet::tcp(from, to).flags("SA"),
                Packet::tcp(from, to).flags("FA"),
                Packet::udp(from, to),
                Packet::udp(from, to).without_sum(),
                Packet::sctp_init(from, to),
                Packet::udp(from, to).with_extras(),
                Packet::udp(from, to).part(Part::First, 5),
                Packet::udp(from, to).part(Part::Later, 5),
                Packet::tcp(from, to).ttl(1),
            ] {
                for device in ["uplink", "pod1"] {
                    fixture.comes_in(device, &packet).is_untouched();
                    fixture.goes_out(device, &packet).is_untouched();
                }
            }
        }
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn a_device_that_is_not_served_passes_everything() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
    fixture.comes_in("uplink-end", &Packet::syn(V4.client, V4.node_port)).is_untouched();
    fixture.goes_out("uplink-end", &Packet::syn(V4.client, V4.cluster_ip)).is_untouched();
}
