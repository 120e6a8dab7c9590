//! Packets whose TTL ends, that exceed the MTU of the next hop, or that have no route.

use lb_common::{Counter, Proto};
use lb_lab::packets::{FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, V4, ip},
    enter,
};

const THIN: usize = node::THIN as usize;

#[test]
fn a_packet_whose_ttl_ends_is_answered_by_time_exceeded() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.client, net.node_port).ttl(1);
        fixture.ingress("uplink", &packet).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TimeExceeded, &packet));
        let packet = packet.ttl(2);
        let sent = fixture.ingress("uplink", &packet);
        sent.is_redirected_as(&packet.becomes(&sent.ends().0, net.remote).routed());
        // The same for an answer, to the backend.
        let answer = PacketSpec::udp(net.remote, &sent.ends().0).ttl(1);
        fixture.ingress("uplink", &answer).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TimeExceeded, &answer));
    }
}

#[test]
fn a_packet_above_the_mtu_towards_the_backend_is_answered_by_too_big() {
    for net in BOTH {
        for (packet, service) in [
            (PacketSpec::tcp(net.client, net.node_port), FixtureService::tcp()),
            (PacketSpec::udp(net.client, net.node_port), FixtureService::udp()),
        ] {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote_thin]));
            let syn = PacketSpec::syn(net.client, net.node_port);
            assert!(packet.proto == Proto::Udp || fixture.ingress("uplink", &syn).is_redirected());
            let fits = packet.clone().sized(THIN);
            let sent = fixture.ingress("uplink", &fits);
            let node = sent.ends().0;
            assert_eq!(ip(&node), if net.is_v4() { "172.16.0.1" } else { "fd16::1" });
            sent.is_redirected_as(&fits.becomes(&node, net.remote_thin).routed());
            let large = packet.sized(THIN + 1);
            let error = IcmpErrorSpec::answer(IcmpReason::TooBig(THIN as u16), &large);
            fixture.ingress("uplink", &large).is_redirected_as(&error);
        }
    }
}

#[test]
fn an_answer_above_the_mtu_towards_the_client_is_answered_by_too_big() {
    for net in BOTH {
        let client = if net.is_v4() { "172.16.0.2:4000" } else { "[fd16::2]:4000" };
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let node = fixture.ingress("thin", &PacketSpec::syn(client, net.node_port)).ends().0;
        let answer = PacketSpec::tcp(net.remote, &node).sized(THIN);
        let want = answer.becomes(net.node_port, client).routed();
        fixture.ingress("uplink", &answer).is_redirected_as(&want);
        // The error comes from the address that the backend knows, and quotes the packet that it sent.
        let large = answer.sized(THIN + 1);
        let error = IcmpErrorSpec::answer(IcmpReason::TooBig(THIN as u16), &large);
        fixture.ingress("uplink", &large).is_redirected_as(&error);
    }
}

#[test]
fn the_mtu_binds_the_segments_of_a_gso_packet() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote_thin]));
        assert!(fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).is_redirected());
        let large = PacketSpec::tcp(net.client, net.node_port).sized(3000);
        let segment = u32::try_from(THIN - net.header - 20).expect("small");
        let sent = fixture.ingress_large("uplink", &large, segment);
        sent.is_redirected_as(&large.becomes(&sent.ends().0, net.remote_thin).routed());
        let error = IcmpErrorSpec::answer(IcmpReason::TooBig(THIN as u16), &large);
        fixture.ingress_large("uplink", &large, segment + 1).is_redirected_as(&error);
    }
}

#[test]
fn an_sctp_gso_packet_of_small_chunks_is_forwarded() {
    // The kernel marks GSO of SCTP by the segment size 0xffff (GSO_BY_FRAGS).
    let mut fixture = enter();
    fixture.serve(FixtureService::sctp().node_port(V4.any).backends(&[V4.remote]));
    let packet = PacketSpec::sctp_init(V4.client, V4.node_port);
    let sent = fixture.ingress_large("uplink", &packet, 0xffff);
    sent.is_redirected_as(&packet.becomes(&sent.ends().0, V4.remote).routed());
}

#[test]
fn packets_to_a_backend_without_route_are_dropped_and_counted() {
    for net in BOTH {
        let nowhere = if net.is_v4() { "10.0.4.1:8080" } else { "[fd00:0:0:4::1]:8080" };
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[nowhere]));
        fixture.ingress("uplink", &PacketSpec::udp(net.client, net.node_port)).is_dropped();
        assert_eq!((fixture.count(Counter::NoRoute), fixture.flows().len()), (1, 0));
    }
}

#[test]
fn a_flow_that_loses_its_route_is_answered_by_no_route() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        let sent = fixture.ingress("uplink", &packet);
        sent.is_redirected_as(&packet.becomes(&sent.ends().0, net.remote).routed());
        node::ip("route replace unreachable 10.0.2.1/32\nroute replace unreachable fd00:0:0:2::1/128\n");
        fixture.forget_hops();
        fixture.ingress("uplink", &packet).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::NoRoute, &packet));
    }
}
