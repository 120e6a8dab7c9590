//! Where packets that are sent on go next: asked of the routes once in a while, and known in between.

use lb_common::{DeviceFlags, Hook};
use lb_lab::packets::{Packet, Reason, ServicePort, node, packet::Error};

use crate::{
    enter,
    family::{BOTH, V4, V6, each},
};

/// How the link address of the node's neighbour ends that leads to backends elsewhere, and that of its gateway.
const NODE2: u8 = 2;
const GATEWAY: u8 = 0xfe;

#[test]
fn the_routes_are_asked_once_in_each_direction_and_again_when_the_answer_is_old() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut fixture = enter();
            fixture.serve(wanted.node_port(of.any).backends(&[of.there]));
            let first = fixture.comes_in("uplink", &packet);
            let (node, _) = first.ends();
            let seen = packet.becomes(&node, of.there).one_hop_on();
            let answer = packet.becomes(of.there, &node);
            let answered = answer.becomes(of.node_port, of.client).one_hop_on();
            first.is_sent_to_neighbour_as(&seen);
            fixture.comes_in("uplink", &answer).is_sent_to_neighbour_as(&answered);
            let hop = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("its flow").hop;
            assert_eq!((hop.ifindex, hop.ends), (node::index("uplink"), [2, 0, 0, 0, 0, NODE2, 2, 0, 0, 0, 0, 1]));
            fixture.keep_hops();
            for _ in 0..2 {
                fixture.comes_in("uplink", &packet).is_sent_as(&seen.clone().out_to(NODE2));
                fixture.comes_in("uplink", &answer).is_sent_as(&answered.clone().out_to(GATEWAY));
            }
            fixture.forget_hops();
            fixture.comes_in("uplink", &packet).is_sent_to_neighbour_as(&seen);
            fixture.comes_in("uplink", &answer).is_sent_to_neighbour_as(&answered);
            let hop = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("its flow").hop;
            assert!(hop.is_known() && hop.until != u64::MAX, "{hop:?}");
        }
    }
}

/// As netfilter would: by its own rules a node may send what this client sends by another way than the rest.
#[test]
fn the_routes_are_asked_about_the_client_whose_packet_it_is() {
    for of in BOTH {
        let mut fixture = enter();
        let (flag, client, gateway) = if of.header == 20 {
            ("-4", "198.51.100.9", "192.0.2.254")
        } else {
            ("-6", "2001:db8:9::9", "2001:db8::fe")
        };
        let rule = format!("rule add from {client} table 77");
        let route = format!("route add default via {gateway} dev uplink table 77");
        node::ip_with(&[flag], &format!("{rule}\n{route}\n"));
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port);
        for _ in 0..2 {
            assert!(fixture.comes_in("uplink", &packet).is_sent());
            let hop = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("its flow").hop;
            assert_eq!((hop.ifindex, hop.ends[5]), (node::index("uplink"), GATEWAY));
            fixture.forget_hops();
        }
    }
}

#[test]
fn a_neighbour_that_moves_is_found_when_the_answer_is_old() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.there]));
        let packet = Packet::udp(of.client, of.node_port);
        let (node, _) = fixture.comes_in("uplink", &packet).ends();
        let seen = packet.becomes(&node, of.there).one_hop_on();
        let node2 = if of.header == 20 { "192.0.2.2" } else { "2001:db8::2" };
        node::ip(&format!("neighbour replace {node2} lladdr 02:00:00:00:00:22 dev uplink\n"));
        fixture.keep_hops();
        fixture.comes_in("uplink", &packet).is_sent_as(&seen.clone().out_to(NODE2));
        fixture.forget_hops();
        fixture.comes_in("uplink", &packet).is_sent_to_neighbour_as(&seen);
        fixture.keep_hops();
        fixture.comes_in("uplink", &packet).is_sent_as(&seen.out_to(0x22));
    }
}

#[test]
fn a_neighbour_that_is_not_known_is_the_kernels_to_find() {
    for of in BOTH {
        let mut fixture = enter();
        let node2 = if of.header == 20 { "192.0.2.2" } else { "2001:db8::2" };
        node::ip(&format!("neighbour del {node2} dev uplink\n"));
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let syn = Packet::syn(of.client, of.node_port);
        for _ in 0..2 {
            let sent = fixture.comes_in("uplink", &syn);
            sent.is_sent_to_neighbour_as(&syn.becomes(&sent.ends().0, of.there).one_hop_on());
            assert_eq!(fixture.flow(Hook::Ingress, of.client, of.node_port).expect("its flow").hop.until, 0);
        }
    }
}

/// As in `outside`: these clients look like packets of IP to the kernel's test of programs.
#[test]
fn what_has_no_ethernet_header_has_no_place_for_link_addresses() {
    for (of, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.there]));
        let syn = Packet::syn(client, of.node_port);
        let (node, _) = fixture.comes_in("uplink", &syn).ends();
        fixture.keep_hops();
        // The same flow by another way in.
        let ack = Packet::tcp(client, of.node_port).bare();
        fixture.comes_in("bare", &ack).is_sent_to_neighbour_as(&ack.becomes(&node, of.there).one_hop_on());
    }
}

#[test]
fn hops_and_sizes_are_looked_at_on_a_known_way_as_well() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.beyond]));
        let packet = Packet::udp(of.client, of.node_port);
        assert!(fixture.comes_in("uplink", &packet).is_sent());
        fixture.keep_hops();
        let last = packet.clone().ttl(1);
        fixture.comes_in("uplink", &last).is_sent_as(&Error::answer(Reason::TimeExceeded, &last));
        let large = packet.clone().sized(node::THIN as usize + 1);
        fixture.comes_in("uplink", &large).is_sent_as(&Error::answer(Reason::TooBig(node::THIN as u16), &large));
    }
}

#[test]
fn a_way_into_a_pod_leads_to_its_link_when_host_routing_is_switched_off() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::HOST_ROUTING);
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        let seen = syn.becomes(of.client, of.here).one_hop_on().out_to(0x11);
        fixture.comes_in("uplink", &syn).is_sent_as(&seen);
        fixture.set_flags("pod1", DeviceFlags::POD);
        fixture.keep_hops();
        fixture.comes_in("uplink", &syn).is_sent_as(&seen);
        fixture.forget_hops();
        fixture.comes_in("uplink", &syn).is_sent_to_neighbour_as(&syn.becomes(of.client, of.here).one_hop_on());
    }
}
