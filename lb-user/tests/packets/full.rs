//! A full `FLOWS` map.

use lb_common::{Counter, Flow, FlowKey};
use lb_lab::packets::{FixtureService, FixtureSizes, PacketSpec};

use crate::{addresses::BOTH, enter_with};

#[test]
fn a_full_map_drops_new_flows_and_keeps_old_ones() {
    for net in BOTH {
        for backend in [net.local, net.remote] {
            let mut fixture = enter_with(FixtureSizes { flows: Some(5), ..FixtureSizes::default() });
            fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[backend]));
            let client = |n: usize| net.client.replace(":4000", &format!(":{}", 4000 + n));
            let syns: Vec<PacketSpec> = (0..3).map(|n| PacketSpec::syn(&client(n), net.node_port)).collect();
            let ends: Vec<_> = syns[..2].iter().map(|syn| fixture.ingress("uplink", syn).ends()).collect();
            // There is room for one entry; a flow needs two.
            fixture.ingress("uplink", &syns[2]).is_dropped();
            assert_eq!(fixture.count(Counter::FlowsFull), 1);
            assert_eq!(fixture.flows().len(), 4);
            let again: Vec<_> = syns[..2].iter().map(|syn| fixture.ingress("uplink", syn).ends()).collect();
            assert_eq!(again, ends);
            assert!(ends.iter().all(|(_, to)| to == backend));
            // When flows end there is room again.
            let keys: Vec<_> =
                fixture.maps().entries::<FlowKey, Flow>("FLOWS").into_iter().map(|(key, _)| key).collect();
            keys.iter().for_each(|key| fixture.maps().map::<FlowKey, Flow>("FLOWS").remove(key).expect("an entry"));
            assert_eq!(fixture.ingress("uplink", &syns[2]).ends().1, backend);
            assert_eq!((fixture.count(Counter::FlowsFull), fixture.flows().len()), (1, 2));
        }
    }
}

#[test]
fn a_connection_over_a_closed_flow_reuses_its_entries() {
    let net = BOTH[0];
    let mut fixture = enter_with(FixtureSizes { flows: Some(2), ..FixtureSizes::default() });
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
    let syn = PacketSpec::syn(net.client, net.node_port);
    let reset = PacketSpec::tcp(net.client, net.node_port).flags("R");
    for packet in [&syn, &reset, &syn, &reset, &syn] {
        fixture.ingress("uplink", packet).passes_as(&packet.becomes(net.client, net.local));
    }
    assert_eq!(fixture.count(Counter::FlowsFull), 0);
}
