//! Packets that are refused or dropped, and the answers to them.

use lb_common::Counter;
use lb_lab::packets::{FixtureService, IcmpReason, PacketSpec, Part, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, V4, V6},
    enter,
};

#[test]
fn tcp_to_a_service_without_endpoints_is_reset() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip));
        for (device, from, to) in [("uplink", net.client, net.node_port), ("pod1", net.pod, net.cluster_ip)] {
            for packet in [
                PacketSpec::syn(from, to),
                PacketSpec::tcp(from, to).flags("S"),
                PacketSpec::syn(from, to).with_extras(),
            ] {
                fixture.ingress(device, &packet).is_redirected_as(&packet.reset());
            }
        }
        for flags in ["A", "FA"] {
            let packet = PacketSpec::tcp(net.pod, net.cluster_ip).flags(flags);
            fixture.ingress("pod1", &packet).is_redirected_as(&packet.reset());
        }
        fixture.ingress("pod1", &PacketSpec::tcp(net.pod, net.cluster_ip).flags("R")).is_dropped();
        assert_eq!(fixture.count(Counter::NoEndpoints), 9);
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn udp_and_sctp_to_a_service_without_endpoints_get_port_unreachable() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any));
        fixture.serve(FixtureService::sctp().node_port(net.any));
        let (udp, sctp) =
            (PacketSpec::udp(net.client, net.node_port), PacketSpec::sctp_init(net.client, net.node_port));
        let mut short = udp.clone();
        short.payload.clear();
        for packet in [udp, short, sctp] {
            let answer = IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &packet);
            fixture.ingress("uplink", &packet).is_redirected_as(&answer);
        }
        assert_eq!(fixture.count(Counter::NoEndpoints), 3);
    }
}

#[test]
fn a_datagram_with_options_is_dropped_as_an_error_would_not_quote_its_ports() {
    let mut fixture = enter();
    fixture.serve(FixtureService::udp().node_port(V4.any));
    fixture.ingress("uplink", &PacketSpec::udp(V4.client, V4.node_port).with_extras()).is_dropped();
}

#[test]
fn policy_local_without_local_endpoints_drops() {
    for net in BOTH {
        let mut fixture = enter();
        let mut web = fixture.serve(FixtureService::tcp().node_port(net.any).external_local().backends(&[net.remote]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &syn).is_dropped();
        assert_eq!((fixture.count(Counter::NoLocalEndpoints), fixture.flows().len()), (1, 0));
        web.change(fixture.maps(), &[net.remote, net.local]);
        for _ in 0..8 {
            fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
        }
    }
}

#[test]
fn packets_to_other_ports_of_a_cluster_ip_are_rejected() {
    for net in BOTH {
        let other = net.cluster_ip.replace(":80", ":81").replace("]:80", "]:81");
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[net.local]));
        let (syn, udp) = (PacketSpec::syn(net.client, &other), PacketSpec::udp(net.client, &other));
        fixture.ingress("uplink", &syn).is_redirected_as(&syn.reset());
        fixture.ingress("uplink", &udp).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &udp));
        // The same for the node's own packets, which leave by the uplink.
        let own = format!("{}:6000", if net.is_v4() { net.node.to_owned() } else { format!("[{}]", net.node) });
        let (syn, udp) = (PacketSpec::syn(&own, &other), PacketSpec::udp(&own, &other));
        fixture.egress("uplink", &syn).is_redirected_as(&syn.reset());
        fixture.egress("uplink", &udp).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &udp));
        assert_eq!(fixture.count(Counter::UnknownPort), 4);
        // Later packets of a connection may belong to another proxy, unless they would circle.
        fixture.ingress("pod1", &PacketSpec::tcp(net.pod, &other)).passes_unchanged();
        let later = PacketSpec::tcp(net.client, &other);
        fixture.ingress("uplink", &later).is_redirected_as(&later.reset());
        fixture.egress("uplink", &PacketSpec::tcp(&own, &other)).passes_unchanged();
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn source_ranges_admit_the_sources_in_them() {
    let cases = [
        (V4, "203.0.113.7:443", ["198.51.100.0/24", "10.9.0.0/16"], "198.51.101.9:4000"),
        (V6, "[2001:db8:7::7]:443", ["2001:db8:9::/48", "fd09::/16"], "[2001:db8:a::9]:4000"),
    ];
    for (net, vip, ranges, other_client) in cases {
        let mut fixture = enter();
        let service = FixtureService::tcp().load_balancer(vip).node_port(net.any).source_ranges(&ranges);
        fixture.serve(service.backends(&[net.local]));
        let inside = PacketSpec::syn(net.client, vip);
        fixture.ingress("uplink", &inside).passes_as(&inside.becomes(net.client, net.local));
        fixture.ingress("uplink", &PacketSpec::syn(other_client, vip)).is_dropped();
        assert_eq!(fixture.count(Counter::SourceRange), 1);
        // Source ranges do not bind the NodePort.
        let other = PacketSpec::syn(other_client, net.node_port);
        fixture.ingress("uplink", &other).passes_as(&other.becomes(other_client, net.local));
    }
}

#[test]
fn source_ranges_bind_their_own_service_only() {
    let mut fixture = enter();
    fixture.serve(
        FixtureService::tcp().load_balancer("203.0.113.7:443").source_ranges(&["0.0.0.0/0"]).backends(&[V4.local]),
    );
    fixture.serve(
        FixtureService::tcp().load_balancer("203.0.113.8:443").source_ranges(&["192.0.2.0/24"]).backends(&[V4.local]),
    );
    let syn = PacketSpec::syn(V4.client, "203.0.113.7:443");
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V4.client, V4.local));
    fixture.ingress("uplink", &PacketSpec::syn(V4.client, "203.0.113.8:443")).is_dropped();
}

#[test]
fn later_fragments_are_dropped_without_an_answer() {
    for net in BOTH {
        let mut fixture = enter();
        let mut dns = fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let first = PacketSpec::udp(net.client, net.node_port).part(Part::First, 7);
        fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
        dns.change(fixture.maps(), &[]);
        fixture.ingress("uplink", &first.part(Part::Later, 7)).is_dropped();
    }
}
