//! Connections that the node began: their packets are of no Service, also at the port of a frontend.

use std::{
    net::{SocketAddr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use lb_common::{Hook, flow::expires_at};
use lb_lab::packets::{Fixture, FixtureService, FixtureSizes, IcmpReason, PacketSpec, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, Net, ip},
    enter, enter_with,
};

const SECOND: u64 = 1_000_000_000;

/// A VIP that is no address of the node, and its port.
fn vip(net: Net) -> &'static str {
    if net.is_v4() { "203.0.113.7:443" } else { "[2001:db8:7::7]:443" }
}

/// An address that the node has, and that serves no NodePort.
fn other_address(net: Net) -> &'static str {
    if net.is_v4() { "172.16.0.1:443" } else { "[fd16::1]:443" }
}

/// Waits until the kernel has the local route of an address, which for IPv6 comes a moment after the address.
fn wait_for_route(to: &str) {
    let addr = to.parse::<SocketAddr>().expect("an address and port").ip();
    let deadline = Instant::now() + Duration::from_secs(5);
    while UdpSocket::bind((addr, 0)).is_err() {
        assert!(Instant::now() < deadline, "{addr} is not usable");
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(10));
}

/// Serves each protocol at the NodePort, at a VIP, and at an external IP that is an address of the node.
fn serve(fixture: &mut Fixture, net: Net, backends: &[&str]) {
    for port in [FixtureService::tcp(), FixtureService::udp(), FixtureService::sctp()] {
        let port = port.node_port(net.any).load_balancer(vip(net)).load_balancer(other_address(net));
        fixture.serve(port.backends(backends));
    }
}

#[test]
fn a_packet_in_the_middle_of_a_connection_to_the_node_is_of_no_service() {
    for net in BOTH {
        for backends in [&[net.local][..], &[net.remote], &[]] {
            let mut fixture = enter();
            serve(&mut fixture, net, backends);
            wait_for_route(other_address(net));
            for (device, from) in [("uplink", net.client), ("thin", net.client), ("pod1", net.pod)] {
                for to in [net.node_port, other_address(net)] {
                    for flags in ["SA", "A", "FA", "R", "RA"] {
                        fixture.ingress(device, &PacketSpec::tcp(from, to).flags(flags)).passes_unchanged();
                    }
                    // INIT ACK, DATA, ABORT, SHUTDOWN, COOKIE ACK (RFC 9260, 3.2).
                    for chunk in [2, 0, 6, 7, 11] {
                        fixture.ingress(device, &PacketSpec::sctp_init(from, to).chunk(chunk)).passes_unchanged();
                    }
                }
            }
            assert_eq!(fixture.flows().len(), 0);
        }
    }
}

#[test]
fn a_packet_that_begins_a_connection_to_the_node_reaches_the_service() {
    for net in BOTH {
        for to in [net.node_port, other_address(net)] {
            for first in [
                PacketSpec::syn(net.client, to),
                PacketSpec::udp(net.client, to),
                PacketSpec::sctp_init(net.client, to),
            ] {
                let mut fixture = enter();
                serve(&mut fixture, net, &[net.local]);
                fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
                let next = PacketSpec::tcp(net.client, to);
                if first.proto == next.proto {
                    fixture.ingress("uplink", &next).passes_as(&next.becomes(net.client, net.local));
                }
            }
        }
    }
}

#[test]
fn a_connection_to_a_vip_continues_after_its_flow_is_lost() {
    for net in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, net, &[net.local]);
        let data = PacketSpec::tcp(net.client, vip(net));
        fixture.ingress("uplink", &data).passes_as(&data.becomes(net.client, net.local));
    }
}

#[test]
fn replies_to_a_datagram_that_left_from_the_port_of_a_frontend_pass() {
    for net in BOTH {
        for (device, own) in [("uplink", net.node_port), ("thin", other_address(net))] {
            let mut fixture = enter();
            serve(&mut fixture, net, &[net.local]);
            let (query, reply) = (PacketSpec::udp(own, net.client), PacketSpec::udp(net.client, own));
            fixture.egress(device, &query).passes_unchanged();
            for _ in 0..2 {
                fixture.ingress(device, &reply).passes_unchanged();
                fixture.egress(device, &query).passes_unchanged();
            }
            assert_eq!(fixture.flows().len(), 2);
            // An error about the datagram is for the node too.
            fixture
                .ingress(device, &IcmpErrorSpec::new(&ip(net.client), IcmpReason::PortUnreachable, &query, 1000))
                .passes_unchanged();
            // Another sender is a client.
            let client = net.client.replace(":4000", ":4001");
            let request = PacketSpec::udp(&client, own);
            fixture.ingress(device, &request).passes_as(&request.becomes(&client, net.local));
        }
    }
}

#[test]
fn replies_pass_as_long_as_netfilter_would_keep_the_connection() {
    for net in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, net, &[net.local]);
        let (query, reply) = (PacketSpec::udp(net.node_port, net.client), PacketSpec::udp(net.client, net.node_port));
        let lasts = |fixture: &mut Fixture| {
            let sent = fixture.flow(Hook::Egress, net.node_port, net.client).expect("an entry");
            let back = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("an entry");
            let used = sent.used.max(back.used);
            assert_eq!(expires_at(&sent, Some(&back), 17), expires_at(&back, Some(&sent), 17));
            (expires_at(&sent, Some(&back), 17) - used) / SECOND
        };
        fixture.egress("uplink", &query).passes_unchanged();
        assert_eq!(lasts(&mut fixture), 30);
        fixture.ingress("uplink", &reply).passes_unchanged();
        assert_eq!(lasts(&mut fixture), 30);
        fixture.egress("uplink", &query).passes_unchanged();
        assert_eq!(lasts(&mut fixture), 120);
    }
}

#[test]
fn datagrams_from_other_ports_and_addresses_leave_no_entry() {
    for net in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, net, &[net.local]);
        // A port of no frontend, a pod, and an address that is not the node's.
        let other = net.node_port.replace(":30080", ":30081");
        let pod = net.pod.replace(":5000", ":30080");
        for from in [other.as_str(), pod.as_str(), vip(net)] {
            fixture.egress("uplink", &PacketSpec::udp(from, net.client)).passes_unchanged();
        }
        // Only datagrams need an entry: their replies look like requests.
        fixture.egress("uplink", &PacketSpec::syn(net.node_port, net.client)).passes_unchanged();
        fixture.egress("uplink", &PacketSpec::sctp_init(net.node_port, net.client)).passes_unchanged();
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn a_full_table_lets_the_nodes_own_datagrams_pass() {
    for net in BOTH {
        for flows in [1, 2, 3] {
            let mut fixture = enter_with(FixtureSizes { flows: Some(flows), ..FixtureSizes::default() });
            serve(&mut fixture, net, &[net.local]);
            for n in 0..3 {
                let to = net.client.replace(":4000", &format!(":{}", 4000 + n));
                fixture.egress("uplink", &PacketSpec::udp(net.node_port, &to)).passes_unchanged();
            }
            assert_eq!(fixture.flows().len(), flows as usize / 2 * 2);
        }
    }
}
