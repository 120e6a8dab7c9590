//! The limit of resets and ICMP errors, for each CPU.

use std::{thread::sleep, time::Duration};

use lb_common::Counter;
use lb_lab::packets::{Fixture, Packet, Reason, ServicePort, node, packet::Error};

use crate::{
    enter,
    family::{BOTH, Family},
};

/// Far more than any number of CPUs may answer at once.
const FLOOD: u32 = 3_000;

/// The number of answers to a flood of packets, and of suppressed answers.
fn flood(fixture: &mut Fixture, packet: &Packet) -> (u32, u32) {
    let before = fixture.count(Counter::ErrorsLimited);
    let answered = (0..FLOOD).filter(|_| fixture.comes_in("uplink", packet).is_sent()).count();
    let limited = fixture.count(Counter::ErrorsLimited) - before;
    (u32::try_from(answered).expect("few"), u32::try_from(limited).expect("few"))
}

fn refused(of: Family) -> [(Packet, ServicePort); 2] {
    [
        (Packet::syn(of.client, of.node_port), ServicePort::tcp()),
        (Packet::udp(of.client, of.node_port), ServicePort::udp()),
    ]
}

#[test]
fn a_flood_of_refused_packets_is_answered_in_part() {
    for of in BOTH {
        for (packet, wanted) in refused(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any));
            let (answered, limited) = flood(&mut fixture, &packet);
            assert!(answered >= 1 && limited >= 1, "{answered} answers, {limited} suppressed");
            assert_eq!(answered + limited, FLOOD);
            assert_eq!(fixture.count(Counter::NoEndpoints), u64::from(FLOOD), "counted all the same");
            sleep(Duration::from_millis(100));
            assert!(fixture.comes_in("uplink", &packet).is_sent(), "after a pause");
        }
    }
}

/// As in the kernel: a sender that does not hear of a smaller MTU sends in vain for ever.
#[test]
fn the_discovery_of_a_paths_mtu_is_not_limited() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.beyond]));
        let packet = Packet::udp(of.client, of.node_port);
        assert!(fixture.comes_in("uplink", &packet).is_sent());
        let large = packet.sized(node::THIN as usize + 1);
        assert_eq!(flood(&mut fixture, &large), (FLOOD, 0));
        fixture.comes_in("uplink", &large).is_sent_as(&Error::answer(Reason::TooBig(node::THIN as u16), &large));
    }
}
