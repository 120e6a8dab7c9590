//! ICMP errors about packets of a flow, back to who sent those.

use crate::{
    family::{BOTH, Family, ip},
    support::{Packet, Trouble, Wanted, World, packet::Error},
};

const TROUBLES: [Trouble; 4] =
    [Trouble::PortUnreachable, Trouble::NoRoute, Trouble::TimeExceeded, Trouble::TooBig(1280)];

/// Each kind of error, about each protocol, with eight octets of the packet and with all.
fn each(of: Family) -> impl Iterator<Item = (Trouble, Packet, Wanted, usize)> {
    TROUBLES.into_iter().flat_map(move |trouble| {
        let (client, dialled) = (of.client, of.node_port);
        [
            (Packet::tcp(client, dialled), Wanted::tcp()),
            (Packet::udp(client, dialled), Wanted::udp()),
            (Packet::udp(client, dialled).without_sum(), Wanted::udp()),
        ]
        .into_iter()
        .flat_map(move |(packet, wanted)| {
            [of.header + 8, 1000].map(|keep| (trouble, packet.clone(), wanted.clone(), keep))
        })
    })
}

#[test]
fn errors_about_a_flow_whose_source_is_kept() {
    for of in BOTH {
        for (trouble, packet, wanted, keep) in each(of) {
            let mut world = World::enter();
            world.serve(wanted.node_port(of.any).backends(&[of.here]));
            let seen = packet.becomes(of.client, of.here);
            world.comes_in("uplink", &packet).goes_on_as(&seen);
            // The backend itself is the Service, for the client; a router is itself.
            for (from, shown) in [(ip(of.here), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, trouble, &seen, keep);
                let want = error.becomes(&shown, &ip(of.client), &packet);
                world.goes_out("uplink", &error).goes_on_as(&want);
            }
            // About an answer, to the backend.
            let (answer, seen) = (packet.becomes(of.here, of.client), packet.becomes(of.node_port, of.client));
            for from in [ip(of.client), of.router.to_owned()] {
                let error = Error::new(&from, trouble, &seen, keep);
                world.comes_in("uplink", &error).goes_on_as(&error.becomes(&from, &ip(of.here), &answer));
            }
        }
    }
}

#[test]
fn errors_about_a_flow_by_the_node() {
    for of in BOTH {
        for (trouble, packet, wanted, keep) in each(of) {
            let mut world = World::enter();
            world.serve(wanted.node_port(of.any).backends(&[of.there]));
            let node = world.comes_in("uplink", &packet).ends().0;
            let seen = packet.becomes(&node, of.there);
            for (from, shown) in [(ip(of.there), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, trouble, &seen, keep);
                let want = error.becomes(&shown, &ip(of.client), &packet).one_hop_on();
                world.comes_in("uplink", &error).is_sent_as(&want);
            }
            let (answer, seen) = (packet.becomes(of.there, &node), packet.becomes(of.node_port, of.client));
            for (from, shown) in [(ip(of.client), of.node.to_owned()), (of.router.to_owned(), of.router.to_owned())] {
                let error = Error::new(&from, trouble, &seen, keep);
                let want = error.becomes(&shown, &ip(of.there), &answer).one_hop_on();
                world.comes_in("uplink", &error).is_sent_as(&want);
            }
        }
    }
}

#[test]
fn errors_about_a_pods_flow() {
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::udp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let packet = Packet::udp(of.pod, of.cluster_ip);
        let seen = packet.becomes(of.pod, of.there);
        world.comes_in("pod1", &packet).goes_on_as(&seen);
        let error = Error::new(&ip(of.there), Trouble::PortUnreachable, &seen, 1000);
        let want = error.becomes(&ip(of.cluster_ip), &ip(of.pod), &packet);
        world.goes_out("pod1", &error).goes_on_as(&want);
    }
}

#[test]
fn an_error_about_sctp_keeps_its_checksum() {
    // It is about octets that the error has not, and is checked by nobody.
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::sctp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::sctp_init(of.client, of.node_port);
        let seen = packet.becomes(of.client, of.here);
        world.comes_in("uplink", &packet).goes_on_as(&seen);
        let error = Error::new(&ip(of.here), Trouble::PortUnreachable, &seen, of.header + 8);
        let want = error.becomes(of.node, &ip(of.client), &packet);
        world.goes_out("uplink", &error).goes_on_as(&want);
    }
}

#[test]
fn an_error_that_has_made_too_many_hops_is_answered_by_nobody() {
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port);
        let node = world.comes_in("uplink", &packet).ends().0;
        let mut error = Error::new(of.router, Trouble::TimeExceeded, &packet.becomes(&node, of.there), 1000);
        error.ttl = 1;
        world.comes_in("uplink", &error).is_dropped();
    }
}

#[test]
fn errors_about_anything_else_are_left_alone() {
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        world.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
        let other = Packet::udp(&of.client.replace(":4000", ":4001"), of.here);
        for trouble in TROUBLES {
            world.goes_out("uplink", &Error::new(of.router, trouble, &other, 1000)).is_untouched();
            world.comes_in("uplink", &Error::new(of.router, trouble, &other, 1000)).is_untouched();
        }
    }
}
