//! ICMP errors about packets of a flow, back to who sent those.

use lb_lab::packets::{Packet, Reason, ServicePort, packet::Error};

use crate::{
    enter,
    family::{BOTH, Family, ip},
};

const TROUBLES: [Reason; 4] = [Reason::PortUnreachable, Reason::NoRoute, Reason::TimeExceeded, Reason::TooBig(1280)];

/// Each kind of error, about each protocol, with eight octets of the packet and with all.
fn each(of: Family) -> impl Iterator<Item = (Reason, Packet, ServicePort, usize)> {
    TROUBLES.into_iter().flat_map(move |reason| {
        let (client, dialled) = (of.client, of.node_port);
        [
            (Packet::syn(client, dialled), ServicePort::tcp()),
            (Packet::udp(client, dialled), ServicePort::udp()),
            (Packet::udp(client, dialled).without_sum(), ServicePort::udp()),
        ]
        .into_iter()
        .flat_map(move |(packet, wanted)| {
            [of.header + 8, 1000].map(|keep| (reason, packet.clone(), wanted.clone(), keep))
        })
    })
}

#[test]
fn errors_about_a_flow_whose_source_is_kept() {
    for of in BOTH {
        for (reason, packet, wanted, keep) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            let seen = packet.becomes(of.client, of.here);
            fixture.comes_in("uplink", &packet).goes_on_as(&seen);
            // The backend itself is the Service, for the client; a router is itself.
            for (from, shown) in [(ip(of.here), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(of.client), &packet);
                fixture.goes_out("uplink", &error).goes_on_as(&want);
            }
            // About an answer, to the backend.
            let (answer, seen) = (packet.becomes(of.here, of.client), packet.becomes(of.node_port, of.client));
            for from in [ip(of.client), of.router.to_owned()] {
                let error = Error::new(&from, reason, &seen, keep);
                fixture.comes_in("uplink", &error).goes_on_as(&error.becomes(&from, &ip(of.here), &answer));
            }
        }
    }
}

#[test]
fn errors_about_a_flow_by_the_node() {
    for of in BOTH {
        for (reason, packet, wanted, keep) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            let node = fixture.comes_in("uplink", &packet).ends().0;
            let seen = packet.becomes(&node, of.there);
            for (from, shown) in [(ip(of.there), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(of.client), &packet).one_hop_on();
                fixture.comes_in("uplink", &error).is_sent_as(&want);
            }
            let (answer, seen) = (packet.becomes(of.there, &node), packet.becomes(of.node_port, of.client));
            for (from, shown) in [(ip(of.client), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, reason, &seen, keep);
                let want = error.becomes(&shown, &ip(of.there), &answer).one_hop_on();
                fixture.comes_in("uplink", &error).is_sent_as(&want);
            }
        }
    }
}

#[test]
fn errors_about_a_pods_flow() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let packet = Packet::udp(of.pod, of.cluster_ip);
        let seen = packet.becomes(of.pod, of.there);
        fixture.comes_in("pod1", &packet).goes_on_as(&seen);
        let error = Error::new(&ip(of.there), Reason::PortUnreachable, &seen, 1000);
        let want = error.becomes(&ip(of.cluster_ip), &ip(of.pod), &packet);
        fixture.goes_out("pod1", &error).goes_on_as(&want);
    }
}

#[test]
fn an_error_about_sctp_keeps_its_checksum() {
    // It is about octets that the error has not, and is checked by nobody.
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::sctp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::sctp_init(of.client, of.node_port);
        let seen = packet.becomes(of.client, of.here);
        fixture.comes_in("uplink", &packet).goes_on_as(&seen);
        let error = Error::new(&ip(of.here), Reason::PortUnreachable, &seen, of.header + 8);
        let want = error.becomes(of.node, &ip(of.client), &packet);
        fixture.goes_out("uplink", &error).goes_on_as(&want);
    }
}

#[test]
fn an_error_that_has_made_too_many_hops_is_answered_by_nobody() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port);
        let node = fixture.comes_in("uplink", &packet).ends().0;
        let mut error = Error::new(of.router, Reason::TimeExceeded, &packet.becomes(&node, of.there), 1000);
        error.ttl = 1;
        fixture.comes_in("uplink", &error).is_dropped();
    }
}

#[test]
fn errors_about_anything_else_are_left_alone() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
        let other = Packet::udp(&of.client.replace(":4000", ":4001"), of.here);
        for reason in TROUBLES {
            fixture.goes_out("uplink", &Error::new(of.router, reason, &other, 1000)).is_untouched();
            fixture.comes_in("uplink", &Error::new(of.router, reason, &other, 1000)).is_untouched();
        }
    }
}
