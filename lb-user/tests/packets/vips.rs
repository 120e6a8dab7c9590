//! Packets to a VIP that no frontend serves: refused where no other host can have the address, and pings answered.

use std::{
    hint,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use etherparse::{IpNumber, PacketBuilder};
use lb_common::{Counter, DeviceFlags, GETS_NO_PROGRAMS};
use lb_kernel::clock::monotonic_ns;
use lb_lab::packets::{
    Fixture, FixtureService, IcmpReason, PacketOutcome, PacketSpec, Part, node, packet::IcmpErrorSpec,
};

use crate::{
    addresses::{BOTH, Net, V4, ip},
    enter,
};

/// Link addresses of the gateway and of the node.
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A load balancer's address and port, and another port there.
fn load_balancer(net: Net) -> (&'static str, &'static str) {
    if net.is_v4() { ("203.0.113.7:443", "203.0.113.7:444") } else { ("[2001:db8:7::7]:443", "[2001:db8:7::7]:444") }
}

/// A cluster IP with another port.
fn other_port(net: Net) -> &'static str {
    if net.is_v4() { "10.96.0.1:81" } else { "[fd96::1]:81" }
}

/// A fixture with a Service of each protocol at a cluster IP and a load balancer's address.
fn serve(net: Net) -> Fixture {
    let mut fixture = enter();
    for service in [FixtureService::tcp(), FixtureService::udp(), FixtureService::sctp()] {
        let at = service.cluster_ip(net.cluster_ip).load_balancer(load_balancer(net).0);
        fixture.serve(at.backends(&[net.local]));
    }
    fixture
}

#[test]
fn packets_to_other_ports_of_an_external_address_are_refused_where_they_would_circle() {
    for net in BOTH {
        let mut fixture = serve(net);
        let (_, other) = load_balancer(net);
        let syn = PacketSpec::syn(net.client, other);
        fixture.ingress("uplink", &syn).is_redirected_as(&syn.reset());
        let later = PacketSpec::tcp(net.client, other);
        fixture.ingress("uplink", &later).is_redirected_as(&later.reset());
        for packet in [PacketSpec::udp(net.client, other), PacketSpec::sctp_init(net.client, other)] {
            let error = IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &packet);
            fixture.ingress("uplink", &packet).is_redirected_as(&error);
        }
        fixture.ingress("uplink", &PacketSpec::udp(net.client, other).part(Part::Later, 5)).is_dropped();
        fixture.ingress("uplink", &later.clone().flags("R")).is_dropped();
        // By a device that leads neither to the client nor back.
        fixture.ingress("thin", &syn).is_redirected_as(&syn.reset());
        assert_eq!((fixture.count(Counter::UnknownPort), fixture.flows().len()), (6, 0));
    }
}

/// The address may be that of a host: an external IP that is another node's address, for one.
#[test]
fn packets_to_an_external_address_go_where_the_routes_lead_them() {
    for net in BOTH {
        let mut fixture = serve(net);
        let (_, other) = load_balancer(net);
        let packets = [PacketSpec::syn(net.client, other), PacketSpec::udp(net.client, other)];
        // From a pod to a host beyond the uplink, and the node's own.
        for packet in [PacketSpec::syn(net.pod, other), PacketSpec::udp(net.pod, other)] {
            fixture.ingress("pod1", &packet).passes_unchanged();
            fixture.egress("uplink", &packet).passes_unchanged();
        }
        let (bits, via, pod) =
            if net.is_v4() { (32, "172.16.0.2", "10.0.1.1") } else { (128, "fd16::2", "fd00:0:0:1::1") };
        let host = ip(other);
        node::ip(&format!("route add {host}/{bits} via {via}"));
        packets.iter().for_each(|packet| fixture.ingress("uplink", packet).passes_unchanged());
        node::ip(&format!("route replace {host}/{bits} via {pod} dev pod1 onlink"));
        packets.iter().for_each(|packet| fixture.ingress("uplink", packet).passes_unchanged());
        node::ip(&format!("route del {host}/{bits}\naddress add {host}/{bits} dev lo"));
        packets.iter().for_each(|packet| fixture.ingress("uplink", packet).passes_unchanged());
        assert_eq!((fixture.count(Counter::UnknownPort), fixture.flows().len()), (0, 0));
    }
}

/// An IP packet of a protocol that Services do not have.
fn gre(net: Net, to: &str) -> Vec<u8> {
    let payload = [7; 40];
    let mut bytes = Vec::new();
    let ethernet = PacketBuilder::ethernet2(GATEWAY, NODE);
    let step = match (ip(net.client).parse().expect("an address"), ip(to).parse().expect("an address")) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 60),
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 60),
        _ => panic!("two families"),
    };
    step.write(&mut bytes, IpNumber::GRE, &payload).expect("a packet");
    bytes
}

#[test]
fn packets_of_other_protocols_to_a_vip_are_refused_too() {
    for net in BOTH {
        let mut fixture = serve(net);
        for to in [net.cluster_ip, load_balancer(net).0] {
            assert!(fixture.ingress("uplink", &gre(net, to)).is_redirected());
        }
        fixture.ingress("uplink", &gre(net, net.node_port)).passes_unchanged();
        assert_eq!(fixture.count(Counter::UnknownPort), 2);
    }
}

#[test]
fn packets_to_a_cluster_ip_that_no_service_has_are_refused() {
    for net in BOTH {
        let mut fixture = serve(net);
        let unknown = if net.is_v4() { "10.96.9.9:80" } else { "[fd96::9]:80" };
        let (syn, udp) = (PacketSpec::syn(net.client, unknown), PacketSpec::udp(net.client, unknown));
        fixture.ingress("uplink", &syn).passes_unchanged();
        fixture.set_cluster_ranges(&[("10.96.0.0", 16), ("fd96::", 108)]);
        for packet in [syn, udp] {
            let error = IcmpErrorSpec::answer(IcmpReason::HostUnreachable, &packet);
            fixture.ingress("uplink", &packet).is_redirected_as(&error);
            fixture.egress("uplink", &packet).is_redirected_as(&error);
        }
        fixture.ingress("uplink", &request(net.client, unknown)).is_dropped();
        assert_eq!(fixture.count(Counter::UnknownClusterIp), 5);
        let known = PacketSpec::syn(net.client, net.cluster_ip);
        fixture.ingress("uplink", &known).passes_as(&known.becomes(net.client, net.local));
    }
}

/// A pod whose link has no programs sends packets without a socket: it forwards, or is a sandbox.
#[test]
fn packets_of_a_pod_without_sockets_wait_for_the_programs_of_its_link() {
    for net in BOTH {
        let mut fixture = serve(net);
        let from = if net.is_v4() { "10.0.5.1:5000" } else { "[fd00:0:0:5::1]:5000" };
        for to in [net.cluster_ip, load_balancer(net).0] {
            fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, to)).is_dropped();
            fixture.forwarded("plain", "uplink", &PacketSpec::udp(from, to)).is_dropped();
        }
        assert_eq!(fixture.count(Counter::AwaitsPrograms), 4);
        let links = fixture.packet_links();
        assert_eq!(links, [fixture.index("plain")]);
        // The agent writes the device before it attaches the programs.
        fixture.set_flags("plain", DeviceFlags::POD | DeviceFlags::CHOSEN);
        fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, net.cluster_ip)).is_dropped();
        assert_eq!(fixture.count(Counter::AwaitsPrograms), 5);
        fixture.set_flags("plain", DeviceFlags::POD | DeviceFlags::NO_PROGRAMS);
        // A busy agent takes longer than TCP waits before it sends the third segment.
        fixture.set_packet_links(monotonic_ns() - 3_000_000_000);
        fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, net.cluster_ip)).is_dropped();
        assert_eq!(fixture.count(Counter::AwaitsPrograms), 6);
        // No agent has answered for a long time, or it has answered that the link gets none.
        for value in [1, GETS_NO_PROGRAMS] {
            fixture.set_packet_links(value);
            let syn = PacketSpec::syn(from, net.cluster_ip);
            fixture.forwarded("plain", "uplink", &syn).is_redirected_as(&syn.reset());
            fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, load_balancer(net).0)).passes_unchanged();
        }
        assert_eq!(fixture.count(Counter::AwaitsPrograms), 6);
    }
}

/// As a resolver asks for the addresses of both families at once.
#[test]
fn first_packets_of_a_pod_without_sockets_may_come_at_once() {
    let mut fixture = serve(V4);
    for _ in 0..3000 {
        fixture.forget_packet_links();
        let (fixture, ready) = (&fixture, &AtomicU32::new(0));
        let outcomes = thread::scope(|scope| {
            let send = |port: u16| {
                scope.spawn(move || {
                    let packet = PacketSpec::udp(&format!("10.0.5.1:{port}"), V4.cluster_ip);
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < 2 {
                        hint::spin_loop();
                    }
                    fixture.forwarded("plain", "uplink", &packet)
                })
            };
            [5000, 5001].map(send).map(|sender| sender.join().expect("an outcome"))
        });
        outcomes.iter().for_each(PacketOutcome::is_dropped);
    }
}

#[test]
fn other_packets_wait_for_no_programs() {
    for net in BOTH {
        let mut fixture = serve(net);
        let from = if net.is_v4() { "10.0.5.1:5000" } else { "[fd00:0:0:5::1]:5000" };
        let elsewhere = if net.is_v4() { "198.51.100.7:80" } else { "[2001:db8:9::7]:80" };
        fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, elsewhere)).passes_unchanged();
        fixture.forwarded("plain", "uplink", &PacketSpec::syn(from, load_balancer(net).1)).passes_unchanged();
        let other = PacketSpec::syn(from, other_port(net));
        fixture.forwarded("plain", "uplink", &other).is_redirected_as(&other.reset());
        // A packet of the node itself that comes in by a link with programs.
        let syn = PacketSpec::syn(net.node_port, net.cluster_ip);
        fixture.egress("uplink", &syn).is_redirected_as(&syn.reset());
        let syn = PacketSpec::syn(net.pod, net.cluster_ip);
        fixture.forwarded("pod1", "uplink", &syn).is_redirected_as(&syn.reset());
        assert_eq!((fixture.count(Counter::AwaitsPrograms), fixture.packet_links().len()), (0, 0));
    }
}

/// An echo message between two addresses. `link` are the link addresses of sender and receiver.
fn echo(from: &str, to: &str, is_reply: bool, ttl: u8, link: [[u8; 6]; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ethernet = PacketBuilder::ethernet2(link[0], link[1]);
    let payload = b"abcdefghijk";
    match (ip(from).parse().expect("an address"), ip(to).parse().expect("an address")) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            let step = ethernet.ipv4(from.octets(), to.octets(), ttl);
            let step = if is_reply { step.icmpv4_echo_reply(7, 9) } else { step.icmpv4_echo_request(7, 9) };
            step.write(&mut bytes, payload).expect("a packet");
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            let step = ethernet.ipv6(from.octets(), to.octets(), ttl);
            let step = if is_reply { step.icmpv6_echo_reply(7, 9) } else { step.icmpv6_echo_request(7, 9) };
            step.write(&mut bytes, payload).expect("a packet");
        }
        _ => panic!("two families"),
    }
    bytes
}

fn request(from: &str, to: &str) -> Vec<u8> {
    echo(from, to, false, 60, [GATEWAY, NODE])
}

fn reply(from: &str, to: &str) -> Vec<u8> {
    echo(to, from, true, 64, [NODE, GATEWAY])
}

#[test]
fn pings_of_vips_are_answered() {
    for net in BOTH {
        let fixture = serve(net);
        let external = load_balancer(net).0;
        for (device, from, to) in [
            ("uplink", net.client, net.cluster_ip),
            ("uplink", net.client, external),
            ("pod1", net.pod, net.cluster_ip),
        ] {
            fixture.ingress(device, &request(from, to)).is_redirected_as(&reply(from, to));
        }
        // Packets of the node's own processes and of pods without programs, as they leave.
        fixture.egress("uplink", &request(net.pod, net.cluster_ip)).is_redirected_as(&reply(net.pod, net.cluster_ip));
        // A host may have the address: the network knows.
        fixture.ingress("pod1", &request(net.pod, external)).passes_unchanged();
        fixture.egress("uplink", &request(net.pod, external)).passes_unchanged();
        fixture.ingress("uplink", &request(net.client, net.node_port)).passes_unchanged();
        // No answer to an answer.
        let answer = echo(net.client, net.cluster_ip, true, 60, [GATEWAY, NODE]);
        fixture.ingress("uplink", &answer).is_dropped();
    }
}

#[test]
fn a_flood_of_pings_is_answered_in_part_and_leaves_errors_alone() {
    const FLOOD: u64 = 3_000;
    for net in BOTH {
        let mut fixture = serve(net);
        let ping = request(net.client, net.cluster_ip);
        let answered = (0..FLOOD).filter(|_| fixture.ingress("uplink", &ping).is_redirected()).count() as u64;
        assert!(answered > 0 && answered < FLOOD, "{answered} answers");
        assert_eq!(answered + fixture.count(Counter::ErrorsLimited), FLOOD);
        let syn = PacketSpec::syn(net.client, other_port(net));
        fixture.ingress("uplink", &syn).is_redirected_as(&syn.reset());
    }
}
