//! The limit of resets and ICMP errors on each CPU.

use std::{thread::sleep, time::Duration};

use lb_common::Counter;
use lb_lab::packets::{Fixture, FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, Net},
    enter,
};

/// Packets of a flood: far more than all CPUs together may answer at once.
const FLOOD: u32 = 3_000;

/// Sends a flood of packets, and returns the numbers of answers and of suppressed answers.
fn flood(fixture: &mut Fixture, packet: &PacketSpec) -> (u32, u32) {
    let before = fixture.count(Counter::ErrorsLimited);
    let answered = (0..FLOOD).filter(|_| fixture.ingress("uplink", packet).is_redirected()).count();
    let limited = fixture.count(Counter::ErrorsLimited) - before;
    (u32::try_from(answered).expect("few"), u32::try_from(limited).expect("few"))
}

/// Returns packets that a Service without endpoints refuses, and a service port for each.
fn refused(net: Net) -> [(PacketSpec, FixtureService); 2] {
    [
        (PacketSpec::syn(net.client, net.node_port), FixtureService::tcp()),
        (PacketSpec::udp(net.client, net.node_port), FixtureService::udp()),
    ]
}

#[test]
fn a_flood_of_refused_packets_is_answered_in_part() {
    for net in BOTH {
        for (packet, service) in refused(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any));
            let (answered, limited) = flood(&mut fixture, &packet);
            assert!(answered >= 1 && limited >= 1, "{answered} answers, {limited} suppressed");
            assert_eq!(answered + limited, FLOOD);
            assert_eq!(fixture.count(Counter::NoEndpoints), u64::from(FLOOD), "counted all the same");
            sleep(Duration::from_millis(100));
            assert!(fixture.ingress("uplink", &packet).is_redirected(), "after a pause");
        }
    }
}

/// As in the kernel: without the error, a sender never learns the smaller MTU.
#[test]
fn the_discovery_of_a_paths_mtu_is_not_limited() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote_thin]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        assert!(fixture.ingress("uplink", &packet).is_redirected());
        let large = packet.sized(node::THIN as usize + 1);
        assert_eq!(flood(&mut fixture, &large), (FLOOD, 0));
        fixture
            .ingress("uplink", &large)
            .is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TooBig(node::THIN as u16), &large));
    }
}
