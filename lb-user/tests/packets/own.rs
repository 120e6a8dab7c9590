//! Connections that the node began: their packets are of no Service, whatever port they have.

use std::{
    net::{SocketAddr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use lb_common::{Hook, flow::expires_at};
use lb_lab::packets::{Fixture, Packet, Reason, ServicePort, Sizes, packet::Error};

use crate::{
    enter, enter_with,
    family::{BOTH, Family, ip},
};

const SECOND: u64 = 1_000_000_000;

/// A VIP that is no address of the node, and its port.
fn vip(of: Family) -> &'static str {
    if of.header == 20 { "203.0.113.7:443" } else { "[2001:db8:7::7]:443" }
}

/// An address of the node by which the node is reached, and which serves no NodePort.
fn other_address(of: Family) -> &'static str {
    if of.header == 20 { "172.16.0.1:443" } else { "[fd16::1]:443" }
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
fn serve(fixture: &mut Fixture, of: Family, backends: &[&str]) {
    for port in [ServicePort::tcp(), ServicePort::udp(), ServicePort::sctp()] {
        let port = port.node_port(of.any).load_balancer(vip(of)).load_balancer(other_address(of));
        fixture.serve(port.backends(backends));
    }
}

#[test]
fn a_packet_in_the_middle_of_a_connection_to_the_node_is_of_no_service() {
    for of in BOTH {
        for backends in [&[of.here][..], &[of.there], &[]] {
            let mut fixture = enter();
            serve(&mut fixture, of, backends);
            wait_for_route(other_address(of));
            for (device, from) in [("uplink", of.client), ("thin", of.client), ("pod1", of.pod)] {
                for to in [of.node_port, other_address(of)] {
                    for flags in ["SA", "A", "FA", "R", "RA"] {
                        fixture.comes_in(device, &Packet::tcp(from, to).flags(flags)).is_untouched();
                    }
                    // INIT ACK, DATA, ABORT, SHUTDOWN, COOKIE ACK (RFC 9260, 3.2).
                    for chunk in [2, 0, 6, 7, 11] {
                        fixture.comes_in(device, &Packet::sctp_init(from, to).chunk(chunk)).is_untouched();
                    }
                }
            }
            assert_eq!(fixture.flows().len(), 0);
        }
    }
}

#[test]
fn a_packet_that_begins_a_connection_to_the_node_is_still_the_services() {
    for of in BOTH {
        for to in [of.node_port, other_address(of)] {
            for first in [Packet::syn(of.client, to), Packet::udp(of.client, to), Packet::sctp_init(of.client, to)] {
                let mut fixture = enter();
                serve(&mut fixture, of, &[of.here]);
                fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
                let next = Packet::tcp(of.client, to);
                if first.proto == next.proto {
                    fixture.comes_in("uplink", &next).goes_on_as(&next.becomes(of.client, of.here));
                }
            }
        }
    }
}

#[test]
fn a_client_of_another_address_goes_on_after_its_flow_is_lost() {
    for of in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, of, &[of.here]);
        let data = Packet::tcp(of.client, vip(of));
        fixture.comes_in("uplink", &data).goes_on_as(&data.becomes(of.client, of.here));
    }
}

#[test]
fn replies_to_a_datagram_that_left_from_the_port_of_a_frontend_pass() {
    for of in BOTH {
        for (device, own) in [("uplink", of.node_port), ("thin", other_address(of))] {
            let mut fixture = enter();
            serve(&mut fixture, of, &[of.here]);
            let (query, reply) = (Packet::udp(own, of.client), Packet::udp(of.client, own));
            fixture.goes_out(device, &query).is_untouched();
            for _ in 0..2 {
                fixture.comes_in(device, &reply).is_untouched();
                fixture.goes_out(device, &query).is_untouched();
            }
            assert_eq!(fixture.flows().len(), 2);
            // An error about it is the node's too.
            fixture.comes_in(device, &Error::new(&ip(of.client), Reason::PortUnreachable, &query, 1000)).is_untouched();
            // Another sender is a client.
            let client = of.client.replace(":4000", ":4001");
            let request = Packet::udp(&client, own);
            fixture.comes_in(device, &request).goes_on_as(&request.becomes(&client, of.here));
        }
    }
}

#[test]
fn replies_pass_as_long_as_netfilter_would_keep_the_connection() {
    for of in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, of, &[of.here]);
        let (query, reply) = (Packet::udp(of.node_port, of.client), Packet::udp(of.client, of.node_port));
        let lasts = |fixture: &mut Fixture| {
            let sent = fixture.flow(Hook::Egress, of.node_port, of.client).expect("an entry");
            let back = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("an entry");
            let used = sent.used.max(back.used);
            assert_eq!(expires_at(&sent, Some(&back), 17), expires_at(&back, Some(&sent), 17));
            (expires_at(&sent, Some(&back), 17) - used) / SECOND
        };
        fixture.goes_out("uplink", &query).is_untouched();
        assert_eq!(lasts(&mut fixture), 30);
        fixture.comes_in("uplink", &reply).is_untouched();
        assert_eq!(lasts(&mut fixture), 30);
        fixture.goes_out("uplink", &query).is_untouched();
        assert_eq!(lasts(&mut fixture), 120);
    }
}

#[test]
fn datagrams_from_other_ports_and_addresses_leave_no_entry() {
    for of in BOTH {
        let mut fixture = enter();
        serve(&mut fixture, of, &[of.here]);
        // A port of no frontend, a pod, and an address that is not the node's.
        let other = of.node_port.replace(":30080", ":30081");
        let pod = of.pod.replace(":5000", ":30080");
        for from in [other.as_str(), pod.as_str(), vip(of)] {
            fixture.goes_out("uplink", &Packet::udp(from, of.client)).is_untouched();
        }
        // Only datagrams need an entry: their replies look like requests.
        fixture.goes_out("uplink", &Packet::syn(of.node_port, of.client)).is_untouched();
        fixture.goes_out("uplink", &Packet::sctp_init(of.node_port, of.client)).is_untouched();
        assert_eq!(fixture.flows().len(), 0);
    }
}

#[test]
fn a_full_table_lets_the_nodes_own_datagrams_pass() {
    for of in BOTH {
        for flows in [1, 2, 3] {
            let mut fixture = enter_with(Sizes { flows: Some(flows), ..Sizes::default() });
            serve(&mut fixture, of, &[of.here]);
            for n in 0..3 {
                let to = of.client.replace(":4000", &format!(":{}", 4000 + n));
                fixture.goes_out("uplink", &Packet::udp(of.node_port, &to)).is_untouched();
            }
            assert_eq!(fixture.flows().len(), flows as usize / 2 * 2);
        }
    }
}
