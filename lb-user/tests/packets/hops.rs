//! Next hops of redirected packets: looked up in the routes, and cached in the flow for a while.

use lb_common::{DeviceFlags, Hook};
use lb_lab::packets::{FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, V4, V6, each},
    enter,
};

/// Last octets of the link addresses of the next hop to remote backends, and of the gateway.
const NODE2: u8 = 2;
const GATEWAY: u8 = 0xfe;

#[test]
fn each_direction_looks_up_its_next_hop_once_and_again_after_it_expires() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter();
            fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            let first = fixture.ingress("uplink", &packet);
            let (node, _) = first.ends();
            let seen = packet.becomes(&node, net.remote).routed();
            let answer = packet.becomes(net.remote, &node);
            let answered = answer.becomes(net.node_port, net.client).routed();
            first.is_redirected_to_neighbour_as(&seen);
            fixture.ingress("uplink", &answer).is_redirected_to_neighbour_as(&answered);
            let hop = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("its flow").hop;
            assert_eq!((hop.ifindex, hop.ends), (node::index("uplink"), [2, 0, 0, 0, 0, NODE2, 2, 0, 0, 0, 0, 1]));
            fixture.keep_hops();
            for _ in 0..2 {
                fixture.ingress("uplink", &packet).is_redirected_as(&seen.clone().out_to(NODE2));
                fixture.ingress("uplink", &answer).is_redirected_as(&answered.clone().out_to(GATEWAY));
            }
            fixture.forget_hops();
            fixture.ingress("uplink", &packet).is_redirected_to_neighbour_as(&seen);
            fixture.ingress("uplink", &answer).is_redirected_to_neighbour_as(&answered);
            let hop = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("its flow").hop;
            assert!(hop.is_known() && hop.until != u64::MAX, "{hop:?}");
        }
    }
}

/// A policy rule for this client selects the route, as it would with netfilter.
#[test]
fn routes_are_looked_up_with_the_clients_source_address() {
    for net in BOTH {
        let mut fixture = enter();
        let (flag, client, gateway) =
            if net.is_v4() { ("-4", "198.51.100.9", "192.0.2.254") } else { ("-6", "2001:db8:9::9", "2001:db8::fe") };
        let rule = format!("rule add from {client} table 77");
        let route = format!("route add default via {gateway} dev uplink table 77");
        node::ip_with(&[flag], &format!("{rule}\n{route}\n"));
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        for _ in 0..2 {
            assert!(fixture.ingress("uplink", &packet).is_redirected());
            let hop = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("its flow").hop;
            assert_eq!((hop.ifindex, hop.ends[5]), (node::index("uplink"), GATEWAY));
            fixture.forget_hops();
        }
    }
}

#[test]
fn a_new_link_address_of_a_neighbour_counts_after_the_hop_expires() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        let (node, _) = fixture.ingress("uplink", &packet).ends();
        let seen = packet.becomes(&node, net.remote).routed();
        let node2 = if net.is_v4() { "192.0.2.2" } else { "2001:db8::2" };
        node::ip(&format!("neighbour replace {node2} lladdr 02:00:00:00:00:22 dev uplink\n"));
        fixture.keep_hops();
        fixture.ingress("uplink", &packet).is_redirected_as(&seen.clone().out_to(NODE2));
        fixture.forget_hops();
        fixture.ingress("uplink", &packet).is_redirected_to_neighbour_as(&seen);
        fixture.keep_hops();
        fixture.ingress("uplink", &packet).is_redirected_as(&seen.out_to(0x22));
    }
}

#[test]
fn the_kernel_resolves_an_unknown_neighbour() {
    for net in BOTH {
        let mut fixture = enter();
        let node2 = if net.is_v4() { "192.0.2.2" } else { "2001:db8::2" };
        node::ip(&format!("neighbour del {node2} dev uplink\n"));
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        for _ in 0..2 {
            let sent = fixture.ingress("uplink", &syn);
            sent.is_redirected_to_neighbour_as(&syn.becomes(&sent.ends().0, net.remote).routed());
            assert_eq!(fixture.flow(Hook::Ingress, net.client, net.node_port).expect("its flow").hop.until, 0);
        }
    }
}

/// For the addresses of the clients see `outside::a_device_without_ethernet_is_served`.
#[test]
fn a_packet_without_ethernet_header_of_a_redirected_flow_is_left_to_the_kernel() {
    for (net, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        let syn = PacketSpec::syn(client, net.node_port);
        let (node, _) = fixture.ingress("uplink", &syn).ends();
        fixture.keep_hops();
        // The same flow arrives at the device without Ethernet.
        let ack = PacketSpec::tcp(client, net.node_port);
        // bpf_redirect_neigh drops packets without a link header.
        fixture.ingress("bare", &ack.clone().bare()).passes_as(&ack.becomes(client, net.remote).bare());
        let routed = ack.becomes(client, net.remote);
        fixture.egress("uplink", &routed).passes_as(&ack.becomes(&node, net.remote));
    }
}

#[test]
fn ttl_and_mtu_are_checked_with_a_cached_hop() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.remote_thin]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        assert!(fixture.ingress("uplink", &packet).is_redirected());
        fixture.keep_hops();
        let last = packet.clone().ttl(1);
        fixture.ingress("uplink", &last).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TimeExceeded, &last));
        let large = packet.clone().sized(node::THIN as usize + 1);
        fixture
            .ingress("uplink", &large)
            .is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TooBig(node::THIN as u16), &large));
    }
}

#[test]
fn a_cached_hop_into_a_pod_serves_until_it_expires_after_host_routing_is_switched_off() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::HOST_ROUTING);
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        let seen = syn.becomes(net.client, net.local).routed().out_to(0x11);
        fixture.ingress("uplink", &syn).is_redirected_as(&seen);
        fixture.set_flags("pod1", DeviceFlags::POD);
        fixture.keep_hops();
        fixture.ingress("uplink", &syn).is_redirected_as(&seen);
        fixture.forget_hops();
        fixture.ingress("uplink", &syn).is_redirected_to_neighbour_as(&syn.becomes(net.client, net.local).routed());
    }
}
