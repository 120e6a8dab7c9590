//! Datagrams in fragments: the first has the ports, and the others none.

use lb_lab::packets::{Outcome, Packet, Part, ServicePort};

use crate::{
    enter,
    family::{BOTH, V4},
};

#[test]
fn later_fragments_go_where_the_first_went() {
    for of in BOTH {
        for backends in [&[of.here][..], &[of.there]] {
            let mut fixture = enter();
            fixture.serve(ServicePort::udp().node_port(of.any).backends(backends));
            let first = Packet::udp(of.client, of.node_port).part(Part::First, 77);
            let later = first.clone().part(Part::Later, 77);
            // Ahead of the first: its datagram is lost.
            fixture.comes_in("uplink", &later).is_untouched();
            let sent = fixture.comes_in("uplink", &first);
            let node = sent.ends().0;
            let on =
                |packet: &Packet| if backends[0] == of.here { packet.clone() } else { packet.clone().one_hop_on() };
            let is = |outcome: Outcome, packet: &Packet| {
                if backends[0] == of.here { outcome.goes_on_as(packet) } else { outcome.is_sent_as(packet) }
            };
            is(sent, &on(&first.becomes(&node, backends[0])));
            is(fixture.comes_in("uplink", &later), &on(&later.becomes(&node, backends[0])));
            is(fixture.comes_in("uplink", &later), &on(&later.becomes(&node, backends[0])));
            // Another datagram's, and one of another protocol with the same number.
            fixture.comes_in("uplink", &later.clone().part(Part::Later, 78)).is_untouched();
            fixture.comes_in("uplink", &Packet::tcp(of.client, of.node_port).part(Part::Later, 77)).is_untouched();
            // The answers, in fragments too.
            let first = Packet::udp(backends[0], &node).part(Part::First, 79);
            let later = first.clone().part(Part::Later, 79);
            let (back, rest) =
                (on(&first.becomes(of.node_port, of.client)), on(&later.becomes(of.node_port, of.client)));
            if backends[0] == of.here {
                fixture.goes_out("uplink", &first).goes_on_as(&back);
                fixture.goes_out("uplink", &later).goes_on_as(&rest);
            } else {
                fixture.comes_in("uplink", &first).is_sent_as(&back);
                fixture.comes_in("uplink", &later).is_sent_as(&rest);
            }
        }
    }
}

#[test]
fn fragments_behind_what_routers_read() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let first = Packet::udp(of.client, of.node_port).part(Part::First, 77).with_extras();
        fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
        let later = first.part(Part::Later, 77);
        fixture.comes_in("uplink", &later).goes_on_as(&later.becomes(of.client, of.here));
    }
}

#[test]
fn a_fragmented_connection_passes_too() {
    let mut fixture = enter();
    fixture.serve(ServicePort::tcp().node_port(V4.any).backends(&[V4.here]));
    let syn = Packet::syn(V4.client, V4.node_port);
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V4.client, V4.here));
    let first = Packet::tcp(V4.client, V4.node_port).part(Part::First, 77);
    fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(V4.client, V4.here));
    let later = first.part(Part::Later, 77);
    fixture.comes_in("uplink", &later).goes_on_as(&later.becomes(V4.client, V4.here));
}

#[test]
fn the_checksum_of_sctp_in_fragments_cannot_be_told() {
    let mut fixture = enter();
    fixture.serve(ServicePort::sctp().node_port(V4.any).backends(&[V4.here]));
    let first = Packet::sctp_init(V4.client, V4.node_port).part(Part::First, 77);
    fixture.comes_in("uplink", &first).is_dropped();
}
