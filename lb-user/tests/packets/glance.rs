//! Packets that a glance tells from those of flows and Services: marks of the ends of flows.

use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{addresses::BOTH, enter};

#[test]
fn a_packet_of_a_flow_is_known_by_its_mark_or_while_marks_are_not_complete() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).passes();
        let data = PacketSpec::tcp(net.client, net.node_port);
        let answer = PacketSpec::tcp(net.local, net.client);
        let follow = |fixture: &Fixture| {
            fixture.ingress("uplink", &data).passes_as(&data.becomes(net.client, net.local));
            fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
        };
        follow(&fixture);
        // As after a version that sets no marks.
        fixture.maps().clear_flow_ends(false);
        follow(&fixture);
        fixture.maps().clear_flow_ends(true);
        fixture.ingress("uplink", &data).passes_unchanged();
        fixture.egress("uplink", &answer).passes_unchanged();
    }
}
