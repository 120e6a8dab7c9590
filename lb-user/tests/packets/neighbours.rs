//! What a neighbour on the network gets who sends to addresses that are the node's own business (CVE-2020-8558).

use lb_lab::packets::{Fixture, Packet, ServicePort};

use crate::{
    enter,
    family::{BOTH, Family},
};

/// Loopback addresses, and the one that means them to `connect()`.
fn inward(of: Family) -> &'static [&'static str] {
    if of.header == 20 {
        &["127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0"]
    } else {
        &["::1", "::", "::ffff:127.0.0.1"]
    }
}

fn end(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn with_loopback() -> Fixture {
    let mut fixture = enter();
    ["127.0.0.1", "127.0.0.2", "::1"].into_iter().for_each(|own| fixture.own_loopback(own));
    fixture
}

#[test]
fn packets_to_loopback_from_outside_or_from_a_pod_are_not_translated() {
    for of in BOTH {
        for backend in [of.here, of.there] {
            let mut fixture = with_loopback();
            fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[backend]));
            fixture.serve(ServicePort::udp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[backend]));
            for ip in inward(of) {
                for to in [end(ip, 30080), end(ip, 80), end(ip, 8080)] {
                    for (device, from) in [("uplink", of.client), ("pod1", of.pod)] {
                        fixture.comes_in(device, &Packet::syn(from, &to)).is_untouched();
                        fixture.comes_in(device, &Packet::tcp(from, &to)).is_untouched();
                        fixture.comes_in(device, &Packet::udp(from, &to)).is_untouched();
                    }
                }
            }
            assert_eq!(fixture.flows().len(), 0);
            // The same ports at an address for everybody, so that the above is no accident.
            assert!(fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).ends().1 == backend);
        }
    }
}

/// Who pretends to come from loopback hears nothing: the kernel takes no packet to loopback from a device.
#[test]
fn answers_to_a_forged_loopback_source_stay_with_the_kernel() {
    for (of, forged) in BOTH.into_iter().zip(["127.0.0.1:4000", "[::1]:4000"]) {
        let mut fixture = with_loopback();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(forged, of.node_port);
        let sent = fixture.comes_in("uplink", &packet);
        if sent.is_sent() {
            let (node, _) = sent.ends();
            let answer = Packet::udp(of.there, &node);
            assert!(!fixture.comes_in("uplink", &answer).is_sent(), "to {forged}");
        }
    }
}
