//! Fragments: only the first of a datagram has the ports.

use lb_lab::packets::{FixtureService, PacketOutcome, PacketSpec, Part};

use crate::{
    addresses::{BOTH, V4},
    enter,
};

#[test]
fn later_fragments_follow_the_first() {
    for net in BOTH {
        for backends in [&[net.local][..], &[net.remote]] {
            let mut fixture = enter();
            fixture.serve(FixtureService::udp().node_port(net.any).backends(backends));
            let first = PacketSpec::udp(net.client, net.node_port).part(Part::First, 77);
            let later = first.clone().part(Part::Later, 77);
            // Ahead of the first fragment the flow is unknown: this datagram is lost.
            fixture.ingress("uplink", &later).passes_unchanged();
            let sent = fixture.ingress("uplink", &first);
            let node = sent.ends().0;
            let on =
                |packet: &PacketSpec| if backends[0] == net.local { packet.clone() } else { packet.clone().routed() };
            let is = |outcome: PacketOutcome, packet: &PacketSpec| {
                if backends[0] == net.local { outcome.passes_as(packet) } else { outcome.is_redirected_as(packet) }
            };
            is(sent, &on(&first.becomes(&node, backends[0])));
            is(fixture.ingress("uplink", &later), &on(&later.becomes(&node, backends[0])));
            is(fixture.ingress("uplink", &later), &on(&later.becomes(&node, backends[0])));
            // A fragment of another datagram, and of another protocol with the same identification.
            fixture.ingress("uplink", &later.clone().part(Part::Later, 78)).passes_unchanged();
            fixture
                .ingress("uplink", &PacketSpec::tcp(net.client, net.node_port).part(Part::Later, 77))
                .passes_unchanged();
            // Answers in fragments.
            let first = PacketSpec::udp(backends[0], &node).part(Part::First, 79);
            let later = first.clone().part(Part::Later, 79);
            let (back, rest) =
                (on(&first.becomes(net.node_port, net.client)), on(&later.becomes(net.node_port, net.client)));
            if backends[0] == net.local {
                fixture.egress("uplink", &first).passes_as(&back);
                fixture.egress("uplink", &later).passes_as(&rest);
            } else {
                fixture.ingress("uplink", &first).is_redirected_as(&back);
                fixture.ingress("uplink", &later).is_redirected_as(&rest);
            }
        }
    }
}

#[test]
fn fragments_with_options_or_extension_headers_are_served() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let first = PacketSpec::udp(net.client, net.node_port).part(Part::First, 77).with_extras();
        fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
        let later = first.part(Part::Later, 77);
        fixture.ingress("uplink", &later).passes_as(&later.becomes(net.client, net.local));
    }
}

#[test]
fn fragments_of_tcp_are_served() {
    let mut fixture = enter();
    fixture.serve(FixtureService::tcp().node_port(V4.any).backends(&[V4.local]));
    let syn = PacketSpec::syn(V4.client, V4.node_port);
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V4.client, V4.local));
    let first = PacketSpec::tcp(V4.client, V4.node_port).part(Part::First, 77);
    fixture.ingress("uplink", &first).passes_as(&first.becomes(V4.client, V4.local));
    let later = first.part(Part::Later, 77);
    fixture.ingress("uplink", &later).passes_as(&later.becomes(V4.client, V4.local));
}

#[test]
fn a_first_fragment_of_sctp_is_dropped_as_its_checksum_covers_the_rest() {
    let mut fixture = enter();
    fixture.serve(FixtureService::sctp().node_port(V4.any).backends(&[V4.local]));
    let first = PacketSpec::sctp_init(V4.client, V4.node_port).part(Part::First, 77);
    fixture.ingress("uplink", &first).is_dropped();
}
