//! Packets of a neighbour to loopback addresses of the node (CVE-2020-8558).

use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, Net},
    enter,
};

/// Returns loopback addresses, and the unspecified address, which connect(2) takes for loopback.
fn loopback(net: Net) -> &'static [&'static str] {
    if net.is_v4() {
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
    for net in BOTH {
        for backend in [net.local, net.remote] {
            let mut fixture = with_loopback();
            fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[backend]));
            fixture.serve(FixtureService::udp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[backend]));
            for ip in loopback(net) {
                for to in [end(ip, 30080), end(ip, 80), end(ip, 8080)] {
                    for (device, from) in [("uplink", net.client), ("pod1", net.pod)] {
                        fixture.ingress(device, &PacketSpec::syn(from, &to)).passes_unchanged();
                        fixture.ingress(device, &PacketSpec::tcp(from, &to)).passes_unchanged();
                        fixture.ingress(device, &PacketSpec::udp(from, &to)).passes_unchanged();
                    }
                }
            }
            assert_eq!(fixture.flows().len(), 0);
            // Control: the same ports at the node's own address are served.
            assert!(fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).ends().1 == backend);
        }
    }
}

/// The kernel drops packets to loopback that arrive at a device, so a forged source gets no answer.
#[test]
fn answers_to_a_forged_loopback_source_stay_with_the_kernel() {
    for (net, forged) in BOTH.into_iter().zip(["127.0.0.1:4000", "[::1]:4000"]) {
        let mut fixture = with_loopback();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(forged, net.node_port);
        let sent = fixture.ingress("uplink", &packet);
        if sent.is_redirected() {
            let (node, _) = sent.ends();
            let answer = PacketSpec::udp(net.remote, &node);
            assert!(!fixture.ingress("uplink", &answer).is_redirected(), "to {forged}");
        }
    }
}
