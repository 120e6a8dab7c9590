//! Frames for other hosts, which a promiscuous device or a port of a bridge gets too.

use lb_lab::packets::{FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, each},
    enter,
};

/// Last octet of the link address of another host.
const ANOTHER: u8 = 7;

#[test]
fn frames_for_other_hosts_are_left_alone() {
    for net in BOTH {
        for (packet, service) in each(net) {
            for backends in [&[net.local][..], &[net.remote], &[]] {
                let mut fixture = enter();
                fixture.serve(service.clone().node_port(net.any).backends(backends));
                fixture.ingress("uplink", &packet.clone().out_to(ANOTHER)).passes_unchanged();
                assert_eq!(fixture.flows().len(), 0);
            }
            // Such packets are not packets of a known flow either.
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
            fixture.ingress("uplink", &packet.clone().out_to(ANOTHER)).passes_unchanged();
        }
    }
}

#[test]
fn frames_to_other_hosts_are_translated_at_egress() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
        let answer = PacketSpec::udp(net.local, net.client).out_to(0xfe);
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
    }
}
