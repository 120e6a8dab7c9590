//! Frames for other hosts, which a promiscuous device or a port of a bridge gets too.

use lb_lab::packets::{Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, each},
};

/// Last octet of the link address of another host.
const ANOTHER: u8 = 7;

#[test]
fn frames_for_other_hosts_are_left_alone() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            for backends in [&[of.here][..], &[of.there], &[]] {
                let mut fixture = enter();
                fixture.serve(wanted.clone().node_port(of.any).backends(backends));
                fixture.comes_in("uplink", &packet.clone().out_to(ANOTHER)).is_untouched();
                assert_eq!(fixture.flows().len(), 0);
            }
            // Nor are they packets of a known flow.
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
            fixture.comes_in("uplink", &packet.clone().out_to(ANOTHER)).is_untouched();
        }
    }
}

#[test]
fn frames_to_other_hosts_are_translated_where_they_leave() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
        let answer = Packet::udp(of.here, of.client).out_to(0xfe);
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
    }
}
