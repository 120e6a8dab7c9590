//! A full `FLOWS` map: flows that were not answered give way to new ones.

use lb_common::{Counter, Flow, FlowKey, Hook};
use lb_lab::packets::{Fixture, FixtureService, FixtureSizes, PacketSpec};

use crate::{
    addresses::{BOTH, Net, V4, V6, each},
    enter_with,
};

#[test]
fn a_full_map_drops_new_flows_and_keeps_old_ones() {
    for net in BOTH {
        for backend in [net.local, net.remote] {
            let mut fixture = enter_with(FixtureSizes { flows: Some(5), ..FixtureSizes::default() });
            fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[backend]));
            let client = |n: usize| net.client.replace(":4000", &format!(":{}", 4000 + n));
            let syns: Vec<PacketSpec> = (0..3).map(|n| PacketSpec::syn(&client(n), net.node_port)).collect();
            let ends: Vec<_> = syns[..2].iter().map(|syn| fixture.ingress("uplink", syn).ends()).collect();
            // The map has room for one entry; a flow needs two.
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
    let reset = syn.aborted();
    for packet in [&syn, &reset, &syn, &reset, &syn] {
        fixture.ingress("uplink", packet).passes_as(&packet.becomes(net.client, net.local));
    }
    assert_eq!(fixture.count(Counter::FlowsFull), 0);
}

/// Keeps this thread on one CPU: each has a queue of its own.
fn stay_on_one_cpu() {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &cpus).expect("a CPU of this machine");
}

/// Returns another client by its number.
fn client(net: Net, n: usize) -> String {
    net.client.replace(":4000", &format!(":{}", 5000 + n))
}

/// Begins flows of many clients, which the backend answers if `answered`; none is dropped.
fn flood(fixture: &Fixture, net: Net, first: &PacketSpec, backend: &str, is_answered: bool) {
    for n in 0..50 {
        let client = client(net, n);
        let (from, to) = fixture.ingress("uplink", &first.becomes(&client, net.node_port)).ends();
        assert_eq!(to, backend, "client {n}");
        if is_answered {
            let answer = first.becomes(backend, &from).flags("SA").chunk(2);
            if backend == net.remote {
                assert!(fixture.ingress("uplink", &answer).is_redirected());
            } else {
                fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, &client));
            }
        }
    }
}

#[test]
fn flows_whose_client_has_not_answered_give_way_to_new_ones() {
    stay_on_one_cpu();
    let [tcp, udp, sctp] = [0, 1, 2];
    // Half-open connections give way too.
    for (net, proto, is_remote, is_answered) in
        [(V4, tcp, false, true), (V6, tcp, true, false), (V4, udp, true, false), (V6, sctp, false, true)]
    {
        let (first, service) = each(net).into_iter().nth(proto).expect("one of three");
        let backend = if is_remote { net.remote } else { net.local };
        for (flows, opening) in [(12, 100), (100, 5)] {
            let mut fixture = enter_with(FixtureSizes { flows: Some(flows), opening: Some(opening), ports: None });
            fixture.serve(service.clone().node_port(net.any).backends(&[backend]));
            let (from, _) = fixture.ingress("uplink", &first).ends();
            let answer = first.becomes(backend, &from).flags("SA").chunk(2);
            if is_remote {
                assert!(fixture.ingress("uplink", &answer).is_redirected());
            } else {
                fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
            }
            let third = first.clone().flags("A").chunk(10);
            assert_eq!(fixture.ingress("uplink", &third).ends().0, from);
            flood(&fixture, net, &first, backend, is_answered);
            assert_eq!(fixture.count(Counter::FlowsFull), 0);
            assert!(fixture.count(Counter::FlowsEarlyDrop) >= 40);
            assert!(fixture.flows().len() <= 12, "{:?}", fixture.flows());
            assert!(fixture.flow(Hook::Ingress, net.client, net.node_port).is_some(), "the assured flow stays");
            assert_eq!(fixture.ingress("uplink", &third).ends().0, from);
        }
    }
}

#[test]
fn assured_flows_never_give_way() {
    stay_on_one_cpu();
    let net = BOTH[0];
    let mut fixture = enter_with(FixtureSizes { flows: Some(8), opening: Some(100), ports: None });
    fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
    for n in 0..4 {
        let client = client(net, n);
        fixture.ingress("uplink", &PacketSpec::syn(&client, net.node_port));
        fixture.egress("uplink", &PacketSpec::tcp(net.local, &client).flags("SA"));
        fixture.ingress("uplink", &PacketSpec::tcp(&client, net.node_port).flags("A"));
    }
    fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).is_dropped();
    assert_eq!((fixture.count(Counter::FlowsFull), fixture.count(Counter::FlowsEarlyDrop)), (1, 0));
}

#[test]
fn without_a_free_port_a_flow_whose_client_has_not_answered_gives_way() {
    for net in BOTH {
        let mut fixture = enter_with(FixtureSizes { ports: Some(2), opening: Some(100), flows: None });
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let syn = |n: usize| PacketSpec::syn(&client(net, n), net.node_port);
        // Both ports, and one of them again.
        let [_, _, (node, _)] = [0, 1, 2].map(|n| fixture.ingress("uplink", &syn(n)).ends());
        assert_eq!((fixture.flows().len(), fixture.count(Counter::FlowsEarlyDrop)), (4, 1));
        let answer = PacketSpec::tcp(net.remote, &node).flags("SA");
        let back = answer.becomes(net.node_port, &client(net, 2)).routed();
        fixture.ingress("uplink", &answer).is_redirected_as(&back);
        // The clients of both flows that are left answer.
        for n in (0..3)
            .filter(|n| fixture.flow(Hook::Ingress, &client(net, *n), net.node_port).is_some())
            .collect::<Vec<_>>()
        {
            let (from, _) = fixture.ingress("uplink", &syn(n)).ends();
            fixture.ingress("uplink", &PacketSpec::tcp(net.remote, &from).flags("SA"));
            fixture.ingress("uplink", &PacketSpec::tcp(&client(net, n), net.node_port).flags("A"));
        }
        fixture.ingress("uplink", &syn(4)).is_dropped();
        assert_eq!(fixture.count(Counter::SnatExhausted), 1);
    }
}
