//! A table of flows without room.

use lb_common::{Counter, Flow, FlowKey};
use lb_lab::packets::{Packet, ServicePort, Sizes};

use crate::{enter_with, family::BOTH};

#[test]
fn a_full_table_takes_no_new_flow_and_gives_up_no_old_one() {
    for of in BOTH {
        for backend in [of.here, of.there] {
            let mut fixture = enter_with(Sizes { flows: Some(5), ..Sizes::default() });
            fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[backend]));
            let client = |n: usize| of.client.replace(":4000", &format!(":{}", 4000 + n));
            let syns: Vec<Packet> = (0..3).map(|n| Packet::syn(&client(n), of.node_port)).collect();
            let ends: Vec<_> = syns[..2].iter().map(|syn| fixture.comes_in("uplink", syn).ends()).collect();
            // There is room for one entry of it, and not for both.
            fixture.comes_in("uplink", &syns[2]).is_dropped();
            assert_eq!(fixture.count(Counter::FlowsFull), 1);
            assert_eq!(fixture.flows().len(), 4);
            let again: Vec<_> = syns[..2].iter().map(|syn| fixture.comes_in("uplink", syn).ends()).collect();
            assert_eq!(again, ends);
            assert!(ends.iter().all(|(_, to)| to == backend));
            // As soon as another ends there is room again.
            let keys: Vec<_> =
                fixture.maps().entries::<FlowKey, Flow>("FLOWS").into_iter().map(|(key, _)| key).collect();
            keys.iter().for_each(|key| fixture.maps().map::<FlowKey, Flow>("FLOWS").remove(key).expect("an entry"));
            assert_eq!(fixture.comes_in("uplink", &syns[2]).ends().1, backend);
            assert_eq!((fixture.count(Counter::FlowsFull), fixture.flows().len()), (1, 2));
        }
    }
}

#[test]
fn a_client_whose_flow_is_over_needs_no_room_to_begin_again() {
    let of = BOTH[0];
    let mut fixture = enter_with(Sizes { flows: Some(2), ..Sizes::default() });
    fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
    let syn = Packet::syn(of.client, of.node_port);
    let reset = Packet::tcp(of.client, of.node_port).flags("R");
    for packet in [&syn, &reset, &syn, &reset, &syn] {
        fixture.comes_in("uplink", packet).goes_on_as(&packet.becomes(of.client, of.here));
    }
    assert_eq!(fixture.count(Counter::FlowsFull), 0);
}
