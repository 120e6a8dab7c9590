//! What is not served, and who hears of it.

use lb_common::Counter;
use lb_lab::packets::{Packet, Part, Reason, ServicePort, packet::Error};

use crate::{
    enter,
    family::{BOTH, V4, V6},
};

#[test]
fn without_endpoints_tcp_is_reset() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip));
        for (device, from, to) in [("uplink", of.client, of.node_port), ("pod1", of.pod, of.cluster_ip)] {
            for packet in [Packet::syn(from, to), Packet::tcp(from, to).flags("S"), Packet::syn(from, to).with_extras()]
            {
                fixture.comes_in(device, &packet).is_sent_as(&packet.reset());
            }
        }
        for flags in ["A", "FA"] {
            let packet = Packet::tcp(of.pod, of.cluster_ip).flags(flags);
            fixture.comes_in("pod1", &packet).is_sent_as(&packet.reset());
        }
        fixture.comes_in("pod1", &Packet::tcp(of.pod, of.cluster_ip).flags("R")).is_dropped();
        assert_eq!(fixture.count(Counter::NoEndpoints), 9);
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn without_endpoints_the_rest_hears_that_the_port_is_unreachable() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any));
        fixture.serve(ServicePort::sctp().node_port(of.any));
        let (udp, sctp) = (Packet::udp(of.client, of.node_port), Packet::sctp_init(of.client, of.node_port));
        let mut short = udp.clone();
        short.payload.clear();
        for packet in [udp, short, sctp] {
            let answer = Error::answer(Reason::PortUnreachable, &packet);
            fixture.comes_in("uplink", &packet).is_sent_as(&answer);
        }
        assert_eq!(fixture.count(Counter::NoEndpoints), 3);
    }
}

#[test]
fn what_has_options_is_not_answered_by_an_error_that_shows_no_ports() {
    let mut fixture = enter();
    fixture.serve(ServicePort::udp().node_port(V4.any));
    fixture.comes_in("uplink", &Packet::udp(V4.client, V4.node_port).with_extras()).is_dropped();
}

#[test]
fn policy_local_without_local_endpoints_drops() {
    for of in BOTH {
        let mut fixture = enter();
        let mut web = fixture.serve(ServicePort::tcp().node_port(of.any).external_local().backends(&[of.there]));
        let syn = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &syn).is_dropped();
        assert_eq!((fixture.count(Counter::NoLocalEndpoints), fixture.flows().len()), (1, 0));
        web.change(fixture.maps(), &[of.there, of.here]);
        for _ in 0..8 {
            fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        }
    }
}

#[test]
fn a_cluster_ip_rejects_what_comes_for_another_port() {
    for of in BOTH {
        let other = of.cluster_ip.replace(":80", ":81").replace("]:80", "]:81");
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[of.here]));
        let (syn, udp) = (Packet::syn(of.client, &other), Packet::udp(of.client, &other));
        fixture.comes_in("uplink", &syn).is_sent_as(&syn.reset());
        fixture.comes_in("uplink", &udp).is_sent_as(&Error::answer(Reason::PortUnreachable, &udp));
        // And on its way out from this node, back into it.
        let own = format!("{}:6000", if of.header == 20 { of.node.to_owned() } else { format!("[{}]", of.node) });
        let (syn, udp) = (Packet::syn(&own, &other), Packet::udp(&own, &other));
        fixture.goes_out("uplink", &syn).is_sent_as(&syn.reset());
        fixture.goes_out("uplink", &udp).is_sent_as(&Error::answer(Reason::PortUnreachable, &udp));
        assert_eq!(fixture.count(Counter::UnknownPort), 4);
        // What goes on is of somebody else's making.
        fixture.comes_in("uplink", &Packet::tcp(of.client, &other)).is_untouched();
        fixture.goes_out("uplink", &Packet::tcp(&own, &other)).is_untouched();
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn source_ranges_let_in_whom_they_name() {
    let cases = [
        (V4, "203.0.113.7:443", ["198.51.100.0/24", "10.9.0.0/16"], "198.51.101.9:4000"),
        (V6, "[2001:db8:7::7]:443", ["2001:db8:9::/48", "fd09::/16"], "[2001:db8:a::9]:4000"),
    ];
    for (of, vip, ranges, stranger) in cases {
        let mut fixture = enter();
        let wanted = ServicePort::tcp().load_balancer(vip).node_port(of.any).source_ranges(&ranges);
        fixture.serve(wanted.backends(&[of.here]));
        let inside = Packet::syn(of.client, vip);
        fixture.comes_in("uplink", &inside).goes_on_as(&inside.becomes(of.client, of.here));
        fixture.comes_in("uplink", &Packet::syn(stranger, vip)).is_dropped();
        assert_eq!(fixture.count(Counter::SourceRange), 1);
        // They are for the load balancer's addresses.
        let other = Packet::syn(stranger, of.node_port);
        fixture.comes_in("uplink", &other).goes_on_as(&other.becomes(stranger, of.here));
    }
}

#[test]
fn source_ranges_are_of_their_own_service() {
    let mut fixture = enter();
    fixture
        .serve(ServicePort::tcp().load_balancer("203.0.113.7:443").source_ranges(&["0.0.0.0/0"]).backends(&[V4.here]));
    fixture.serve(
        ServicePort::tcp().load_balancer("203.0.113.8:443").source_ranges(&["192.0.2.0/24"]).backends(&[V4.here]),
    );
    let syn = Packet::syn(V4.client, "203.0.113.7:443");
    fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(V4.client, V4.here));
    fixture.comes_in("uplink", &Packet::syn(V4.client, "203.0.113.8:443")).is_dropped();
}

#[test]
fn fragments_are_not_answered() {
    for of in BOTH {
        let mut fixture = enter();
        let mut dns = fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let first = Packet::udp(of.client, of.node_port).part(Part::First, 7);
        fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
        dns.change(fixture.maps(), &[]);
        fixture.comes_in("uplink", &first.part(Part::Later, 7)).is_dropped();
    }
}
