//! Packets that have made too many hops, that are too large for the next link, or that have no way.

use lb_common::{Counter, Proto};
use lb_lab::packets::{Packet, Reason, ServicePort, node, packet::Error};

use crate::{
    enter,
    family::{BOTH, V4, ip},
};

const THIN: usize = node::THIN as usize;

#[test]
fn the_last_hop_is_told_to_the_client() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port).ttl(1);
        fixture.comes_in("uplink", &packet).is_sent_as(&Error::answer(Reason::TimeExceeded, &packet));
        let packet = packet.ttl(2);
        let sent = fixture.comes_in("uplink", &packet);
        sent.is_sent_as(&packet.becomes(&sent.ends().0, of.there).one_hop_on());
        // And to the backend, about its answer.
        let answer = Packet::udp(of.there, &sent.ends().0).ttl(1);
        fixture.comes_in("uplink", &answer).is_sent_as(&Error::answer(Reason::TimeExceeded, &answer));
    }
}

#[test]
fn a_packet_that_is_too_large_for_the_way_to_its_backend() {
    for of in BOTH {
        for (packet, wanted) in [
            (Packet::tcp(of.client, of.node_port), ServicePort::tcp()),
            (Packet::udp(of.client, of.node_port), ServicePort::udp()),
        ] {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.beyond]));
            let syn = Packet::syn(of.client, of.node_port);
            assert!(packet.proto == Proto::Udp || fixture.comes_in("uplink", &syn).is_sent());
            let fits = packet.clone().sized(THIN);
            let sent = fixture.comes_in("uplink", &fits);
            let node = sent.ends().0;
            assert_eq!(ip(&node), if of.header == 20 { "172.16.0.1" } else { "fd16::1" });
            sent.is_sent_as(&fits.becomes(&node, of.beyond).one_hop_on());
            let large = packet.sized(THIN + 1);
            let error = Error::answer(Reason::TooBig(THIN as u16), &large);
            fixture.comes_in("uplink", &large).is_sent_as(&error);
        }
    }
}

#[test]
fn an_answer_that_is_too_large_for_the_way_to_the_client() {
    for of in BOTH {
        let client = if of.header == 20 { "172.16.0.2:4000" } else { "[fd16::2]:4000" };
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let node = fixture.comes_in("thin", &Packet::syn(client, of.node_port)).ends().0;
        let answer = Packet::tcp(of.there, &node).sized(THIN);
        let want = answer.becomes(of.node_port, client).one_hop_on();
        fixture.comes_in("uplink", &answer).is_sent_as(&want);
        // The backend hears it from the address that it knows, about what it sent.
        let large = answer.sized(THIN + 1);
        let error = Error::answer(Reason::TooBig(THIN as u16), &large);
        fixture.comes_in("uplink", &large).is_sent_as(&error);
    }
}

#[test]
fn a_packet_that_will_be_cut_is_as_large_as_its_segments() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.beyond]));
        assert!(fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_sent());
        let large = Packet::tcp(of.client, of.node_port).sized(3000);
        let segment = u32::try_from(THIN - of.header - 20).expect("small");
        let sent = fixture.comes_in_large("uplink", &large, segment);
        sent.is_sent_as(&large.becomes(&sent.ends().0, of.beyond).one_hop_on());
        let error = Error::answer(Reason::TooBig(THIN as u16), &large);
        fixture.comes_in_large("uplink", &large, segment + 1).is_sent_as(&error);
    }
}

#[test]
fn a_packet_that_is_a_list_of_packets_is_as_large_as_those() {
    // SCTP's: the kernel writes the largest number for the size of a segment (GSO_BY_FRAGS).
    let mut fixture = enter();
    fixture.serve(ServicePort::sctp().node_port(V4.any).backends(&[V4.there]));
    let packet = Packet::sctp_init(V4.client, V4.node_port);
    let sent = fixture.comes_in_large("uplink", &packet, 0xffff);
    sent.is_sent_as(&packet.becomes(&sent.ends().0, V4.there).one_hop_on());
}

#[test]
fn a_backend_without_a_way_to_it() {
    for of in BOTH {
        let nowhere = if of.header == 20 { "10.0.4.1:8080" } else { "[fd00:0:0:4::1]:8080" };
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[nowhere]));
        fixture.comes_in("uplink", &Packet::udp(of.client, of.node_port)).is_dropped();
        assert_eq!((fixture.count(Counter::NoRoute), fixture.flows().len()), (1, 0));
    }
}

#[test]
fn a_way_that_has_gone_is_told_to_the_client() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port);
        let sent = fixture.comes_in("uplink", &packet);
        sent.is_sent_as(&packet.becomes(&sent.ends().0, of.there).one_hop_on());
        node::ip("route replace unreachable 10.0.2.1/32\nroute replace unreachable fd00:0:0:2::1/128\n");
        fixture.forget_hops();
        fixture.comes_in("uplink", &packet).is_sent_as(&Error::answer(Reason::NoRoute, &packet));
    }
}
