//! Which backend a flow gets, and when it gets another one.

use std::collections::BTreeSet;

use lb_common::{Addr, Counter, MAGLEV_LEN, Proto, Scheduler, Tuple, hash, packet::flow_hash};
use lb_lab::packets::{Fixture, Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, V4, V6},
};

/// A client's port, by number.
fn from(client: &str, n: u16) -> String {
    client.replace(":4000", &format!(":{}", 4000 + n))
}

/// The backend that a packet goes to.
fn backend(fixture: &Fixture, packet: &Packet) -> String {
    fixture.comes_in("uplink", packet).ends().1
}

#[test]
fn flows_spread_over_all_backends() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here, of.beside, of.there, of.beyond]));
        let chosen: BTreeSet<_> =
            (0..100).map(|n| backend(&fixture, &Packet::syn(&from(of.client, n), of.node_port))).collect();
        assert_eq!(chosen.len(), 4, "{chosen:?}");
    }
}

#[test]
fn a_client_sticks_to_its_backend_while_that_serves() {
    for of in BOTH {
        let mut fixture = enter();
        let wanted = ServicePort::tcp().node_port(of.any).affinity(60);
        let mut web = fixture.serve(wanted.backends(&[of.here, of.beside, of.there]));
        let ask = |fixture: &Fixture, n: u16| backend(fixture, &Packet::syn(&from(of.client, n), of.node_port));
        let first = ask(&fixture, 0);
        assert!((1..20).all(|n| ask(&fixture, n) == first));
        let others: Vec<&str> = [of.here, of.beside, of.there].into_iter().filter(|&other| other != first).collect();
        web.change(fixture.maps(), &others);
        let second = ask(&fixture, 20);
        assert_ne!(first, second);
        assert!((21..40).all(|n| ask(&fixture, n) == second));
        // Another client has another.
        let stranger =
            |n: u8| if of.header == 20 { format!("198.51.100.{n}:4000") } else { format!("[2001:db8:9::{n}]:4000") };
        let chosen: BTreeSet<_> =
            (10..40).map(|n| backend(&fixture, &Packet::syn(&stranger(n), of.node_port))).collect();
        assert_eq!(chosen.len(), 2);
    }
}

#[test]
fn a_maglev_table_says_which_backend_whatever_the_list() {
    for of in BOTH {
        let mut fixture = enter();
        let wanted = ServicePort::tcp().node_port(of.any).scheduler(Scheduler::Mh);
        let web = fixture.serve(wanted.backends(&[of.here, of.there]));
        web.maglev(fixture.maps(), |place| if place.is_multiple_of(3) { of.here } else { of.there });
        let mut here = 0;
        for n in 0..200 {
            let client = from(of.client, n);
            let end = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address and port");
            let (src, dst) = (end(&client), end(of.node_port));
            let tuple = Tuple {
                src: Addr::from(src.ip()),
                dst: Addr::from(dst.ip()),
                src_port: src.port(),
                dst_port: dst.port(),
            };
            let place = hash::scale(flow_hash(&tuple, Proto::Tcp as u8), MAGLEV_LEN as u32);
            let want = if place.is_multiple_of(3) { of.here } else { of.there };
            assert_eq!(backend(&fixture, &Packet::syn(&client, of.node_port)), want);
            here += u32::from(want == of.here);
        }
        assert!((30..110).contains(&here), "{here} of 200");
    }
}

#[test]
fn a_datagram_whose_backend_has_gone_moves() {
    for of in BOTH {
        let mut fixture = enter();
        let mut dns = fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
        dns.change(fixture.maps(), &[of.beside]);
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.beside));
        fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.beside));
        assert_eq!(fixture.count(Counter::FlowMoved), 1);
        // And to one that is elsewhere, by the node.
        dns.change(fixture.maps(), &[of.there]);
        let sent = fixture.comes_in("uplink", &packet);
        sent.is_sent_as(&packet.becomes(&sent.ends().0, of.there).one_hop_on());
        assert_eq!(fixture.count(Counter::FlowMoved), 2);
        // A late answer of the first one still comes from where the client asked.
        let late = Packet::udp(of.here, of.client);
        fixture.goes_out("uplink", &late).goes_on_as(&late.becomes(of.node_port, of.client));
    }
}

#[test]
fn a_backend_that_drains_keeps_its_flows_and_gets_no_more() {
    for of in BOTH {
        let udp = Packet::udp(of.client, of.node_port);
        for (first, packet, wanted) in [
            (udp.clone(), udp, ServicePort::udp()),
            (Packet::syn(of.client, of.node_port), Packet::tcp(of.client, of.node_port), ServicePort::tcp()),
        ] {
            let mut fixture = enter();
            let mut web = fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
            web.change(fixture.maps(), &[of.here, of.beside]);
            web.drain(fixture.maps(), of.here);
            fixture.comes_in("uplink", &packet).goes_on_as(&packet.becomes(of.client, of.here));
            let client = from(of.client, 1);
            let new = first.becomes(&client, of.node_port);
            fixture.comes_in("uplink", &new).goes_on_as(&new.becomes(&client, of.beside));
        }
    }
}

#[test]
fn a_connection_keeps_its_backend_when_endpoints_change() {
    for of in BOTH {
        let mut fixture = enter();
        let mut web = fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        web.change(fixture.maps(), &[of.beside]);
        let data = Packet::tcp(of.client, of.node_port);
        fixture.comes_in("uplink", &data).goes_on_as(&data.becomes(of.client, of.here));
        let answer = Packet::tcp(of.here, of.client);
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
        web.change(fixture.maps(), &[]);
        fixture.comes_in("uplink", &data).goes_on_as(&data.becomes(of.client, of.here));
        assert_eq!(fixture.count(Counter::FlowMoved), 0);
    }
}

#[test]
fn a_first_packet_that_nobody_answered_tries_another_backend() {
    let mut fixture = enter();
    let mut web = fixture.serve(ServicePort::tcp().node_port(V6.any).backends(&[V6.here]));
    let syn = Packet::syn(V6.client, V6.node_port);
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V6.client, V6.here));
    web.change(fixture.maps(), &[V6.beside]);
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V6.client, V6.beside));
}

#[test]
fn two_services_with_one_backend_are_kept_apart() {
    // One client's port, two addresses dialled, one backend: without another port the answers would look alike.
    let mut fixture = enter();
    for vip in ["203.0.113.7:443", "203.0.113.8:443"] {
        fixture.serve(ServicePort::tcp().load_balancer(vip).backends(&[V4.here]));
    }
    let syn = Packet::syn(V4.client, "203.0.113.7:443");
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V4.client, V4.here));
    let syn = Packet::syn(V4.client, "203.0.113.8:443");
    let second = fixture.comes_in("uplink", &syn);
    let (client, _) = second.ends();
    assert_ne!(client, V4.client);
    second.goes_on_as(&syn.becomes(&client, V4.here));
    for (seen, vip) in [(V4.client, "203.0.113.7:443"), (client.as_str(), "203.0.113.8:443")] {
        let answer = Packet::tcp(V4.here, seen).flags("SA");
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(vip, V4.client));
    }
}
