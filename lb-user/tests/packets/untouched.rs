//! Packets of no Service pass without a changed octet.

use etherparse::{IpNumber, PacketBuilder};
use lb_lab::packets::{FixtureService, PacketSpec, Part};

use crate::{
    addresses::{BOTH, V4},
    enter,
};

/// Returns packets of other protocols, and garbage.
fn other_packets() -> Vec<Vec<u8>> {
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
    // GRE, ESP, AH, OSPF, IP in IP, IPv6 in IP, and protocols without a name.
    let mut packets: Vec<Vec<u8>> = [47, 50, 51, 89, 4, 41, 253, 255].into_iter().flat_map(write).collect();
    let mut bytes = Vec::new();
    v4().icmpv4_echo_request(1, 2).write(&mut bytes, b"ping").expect("a packet");
    packets.push(std::mem::take(&mut bytes));
    v6().icmpv6_echo_request(1, 2).write(&mut bytes, b"ping").expect("a packet");
    packets.push(std::mem::take(&mut bytes));
    // A neighbour solicitation.
    v6().icmpv6_raw(135, 0, [0; 4]).write(&mut bytes, &[0; 16]).expect("a packet");
    packets.push(bytes);
    // ARP, LLDP, and garbage.
    packets.push([&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 30]].concat());
    packets.push([&[2; 12][..], &[0x88, 0xcc], &[7; 60]].concat());
    for kind in [[8, 0], [0x86, 0xdd]] {
        packets.push([&[2; 12][..], &kind, &[0x45; 40]].concat());
        packets.push([&[2; 12][..], &kind, &[0x60; 60]].concat());
    }
    packets
}

#[test]
fn packets_of_other_protocols_pass_unchanged() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).cluster_ip(V4.cluster_ip).backends(&[V4.local]));
    for packet in other_packets() {
        for device in ["uplink", "pod1", "thin"] {
            fixture.ingress(device, &packet).passes_unchanged();
            fixture.egress(device, &packet).passes_unchanged();
        }
    }
    assert_eq!(fixture.flows().len(), 0);
}

#[test]
fn connections_of_no_service_pass_unchanged() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[net.local]));
        let elsewhere = if net.is_v4() { "203.0.113.50:443" } else { "[2001:db8:5::5]:443" };
        for (from, to) in [(net.client, net.local), (net.pod, elsewhere), (elsewhere, net.pod), (net.local, net.client)]
        {
            for packet in [
                PacketSpec::syn(from, to),
                PacketSpec::tcp(from, to).flags("SA"),
                PacketSpec::tcp(from, to).flags("FA"),
                PacketSpec::udp(from, to),
                PacketSpec::udp(from, to).without_sum(),
                PacketSpec::sctp_init(from, to),
                PacketSpec::udp(from, to).with_extras(),
                PacketSpec::udp(from, to).part(Part::First, 5),
                PacketSpec::udp(from, to).part(Part::Later, 5),
                PacketSpec::tcp(from, to).ttl(1),
            ] {
                for device in ["uplink", "pod1"] {
                    fixture.ingress(device, &packet).passes_unchanged();
                    fixture.egress(device, &packet).passes_unchanged();
                }
            }
        }
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn a_device_that_is_not_served_passes_everything() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    fixture.ingress("uplink-end", &PacketSpec::syn(V4.client, V4.node_port)).passes_unchanged();
    fixture.egress("uplink-end", &PacketSpec::syn(V4.client, V4.cluster_ip)).passes_unchanged();
}
