//! The backend of a flow, and the events that change it.

use std::collections::BTreeSet;

use lb_common::{Addr, Counter, MAGLEV_LEN, Proto, Scheduler, Tuple, hash, packet::flow_hash};
use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, V4, V6},
    enter,
};

/// Returns the client with another port.
fn client_port(client: &str, n: u16) -> String {
    client.replace(":4000", &format!(":{}", 4000 + n))
}

/// Sends a packet, and returns the backend that it goes to.
fn backend(fixture: &Fixture, packet: &PacketSpec) -> String {
    fixture.ingress("uplink", packet).ends().1
}

#[test]
fn flows_spread_over_all_backends() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[
            net.local,
            net.local2,
            net.remote,
            net.remote_thin,
        ]));
        let chosen: BTreeSet<_> =
            (0..100).map(|n| backend(&fixture, &PacketSpec::syn(&client_port(net.client, n), net.node_port))).collect();
        assert_eq!(chosen.len(), 4, "{chosen:?}");
    }
}

#[test]
fn affinity_keeps_a_client_at_its_backend_while_that_is_listed() {
    for net in BOTH {
        let mut fixture = enter();
        let service = FixtureService::tcp().node_port(net.any).affinity(60);
        let mut web = fixture.serve(service.backends(&[net.local, net.local2, net.remote]));
        let ask =
            |fixture: &Fixture, n: u16| backend(fixture, &PacketSpec::syn(&client_port(net.client, n), net.node_port));
        let first = ask(&fixture, 0);
        assert!((1..20).all(|n| ask(&fixture, n) == first));
        let others: Vec<&str> =
            [net.local, net.local2, net.remote].into_iter().filter(|&other| other != first).collect();
        web.change(fixture.maps(), &others);
        let second = ask(&fixture, 20);
        assert_ne!(first, second);
        assert!((21..40).all(|n| ask(&fixture, n) == second));
        // Other clients reach both backends.
        let other_client =
            |n: u8| if net.is_v4() { format!("198.51.100.{n}:4000") } else { format!("[2001:db8:9::{n}]:4000") };
        let chosen: BTreeSet<_> =
            (10..40).map(|n| backend(&fixture, &PacketSpec::syn(&other_client(n), net.node_port))).collect();
        assert_eq!(chosen.len(), 2);
    }
}

#[test]
fn the_maglev_table_decides_and_not_the_order_of_the_list() {
    for net in BOTH {
        let mut fixture = enter();
        let service = FixtureService::tcp().node_port(net.any).scheduler(Scheduler::Mh);
        let web = fixture.serve(service.backends(&[net.local, net.remote]));
        web.maglev(fixture.maps(), |place| if place.is_multiple_of(3) { net.local } else { net.remote });
        let mut here = 0;
        for n in 0..200 {
            let client = client_port(net.client, n);
            let end = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address and port");
            let (src, dst) = (end(&client), end(net.node_port));
            let tuple = Tuple {
                src: Addr::from(src.ip()),
                dst: Addr::from(dst.ip()),
                src_port: src.port(),
                dst_port: dst.port(),
            };
            let place = hash::scale(flow_hash(&tuple, Proto::Tcp as u8), MAGLEV_LEN as u32);
            let want = if place.is_multiple_of(3) { net.local } else { net.remote };
            assert_eq!(backend(&fixture, &PacketSpec::syn(&client, net.node_port)), want);
            here += u32::from(want == net.local);
        }
        assert!((30..110).contains(&here), "{here} of 200");
    }
}

#[test]
fn a_udp_flow_whose_backend_is_gone_moves() {
    for net in BOTH {
        let mut fixture = enter();
        let mut dns = fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
        dns.change(fixture.maps(), &[net.local2]);
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local2));
        fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local2));
        assert_eq!(fixture.count(Counter::FlowMoved), 1);
        // To a remote backend it moves masqueraded.
        dns.change(fixture.maps(), &[net.remote]);
        let sent = fixture.ingress("uplink", &packet);
        sent.is_redirected_as(&packet.becomes(&sent.ends().0, net.remote).routed());
        assert_eq!(fixture.count(Counter::FlowMoved), 2);
        // A late answer of the first backend still comes from the NodePort.
        let late = PacketSpec::udp(net.local, net.client);
        fixture.egress("uplink", &late).passes_as(&late.becomes(net.node_port, net.client));
    }
}

#[test]
fn a_serving_terminating_backend_keeps_its_flows_and_gets_no_new_ones() {
    for net in BOTH {
        let udp = PacketSpec::udp(net.client, net.node_port);
        for (first, packet, service) in [
            (udp.clone(), udp, FixtureService::udp()),
            (
                PacketSpec::syn(net.client, net.node_port),
                PacketSpec::tcp(net.client, net.node_port),
                FixtureService::tcp(),
            ),
        ] {
            let mut fixture = enter();
            let mut web = fixture.serve(service.node_port(net.any).backends(&[net.local]));
            fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
            web.change(fixture.maps(), &[net.local, net.local2]);
            web.drain(fixture.maps(), net.local);
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, net.local));
            let client = client_port(net.client, 1);
            let new = first.becomes(&client, net.node_port);
            fixture.ingress("uplink", &new).passes_as(&new.becomes(&client, net.local2));
        }
    }
}

#[test]
fn a_connection_keeps_its_backend_when_endpoints_change() {
    for net in BOTH {
        let mut fixture = enter();
        let mut web = fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
        web.change(fixture.maps(), &[net.local2]);
        let data = PacketSpec::tcp(net.client, net.node_port);
        fixture.ingress("uplink", &data).passes_as(&data.becomes(net.client, net.local));
        let answer = PacketSpec::tcp(net.local, net.client);
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
        web.change(fixture.maps(), &[]);
        fixture.ingress("uplink", &data).passes_as(&data.becomes(net.client, net.local));
        assert_eq!(fixture.count(Counter::FlowMoved), 0);
    }
}

#[test]
fn a_repeated_syn_without_an_answer_chooses_again() {
    let mut fixture = enter();
    let mut web = fixture.serve(FixtureService::tcp().node_port(V6.any).backends(&[V6.local]));
    let syn = PacketSpec::syn(V6.client, V6.node_port);
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V6.client, V6.local));
    web.change(fixture.maps(), &[V6.local2]);
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V6.client, V6.local2));
}

#[test]
fn connections_by_two_services_to_one_backend_have_different_ports() {
    // One client port, two VIPs, one backend: with equal ports the backend could not tell the connections apart.
    let mut fixture = enter();
    for vip in ["203.0.113.7:443", "203.0.113.8:443"] {
        fixture.serve(FixtureService::tcp().load_balancer(vip).backends(&[V4.local]));
    }
    let syn = PacketSpec::syn(V4.client, "203.0.113.7:443");
    fixture.ingress("uplink", &syn).passes_as(&syn.becomes(V4.client, V4.local));
    let syn = PacketSpec::syn(V4.client, "203.0.113.8:443");
    let second = fixture.ingress("uplink", &syn);
    let (client, _) = second.ends();
    assert_ne!(client, V4.client);
    second.passes_as(&syn.becomes(&client, V4.local));
    for (seen, vip) in [(V4.client, "203.0.113.7:443"), (client.as_str(), "203.0.113.8:443")] {
        let answer = PacketSpec::tcp(V4.local, seen).flags("SA");
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(vip, V4.client));
    }
}
