//! Between an uplink and a pod of this node, past the kernel's own routing (`--host-routing`).

use lb_common::{Counter, DeviceFlags, FlowFlags, Hook};

use crate::{
    family::{BOTH, V4, V6, each, ip},
    support::{Packet, Trouble, Wanted, World, packet::Error, site},
};

const ENTERED: u32 = DeviceFlags::POD | DeviceFlags::HOST_ROUTING;
/// How the link address of `pod1` ends, and that of `pod2`.
const POD1: u8 = 0x11;
const POD2: u8 = 0x12;

fn enter() -> World {
    let mut world = World::enter();
    for (device, flags) in [("uplink", DeviceFlags::HOST_ROUTING), ("pod1", ENTERED), ("pod2", ENTERED)] {
        world.set_flags(device, flags);
    }
    world
}

#[test]
fn a_pod_is_entered_and_its_answers_leave_at_once() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut world = enter();
            world.serve(wanted.node_port(of.any).backends(&[of.here]));
            for _ in 0..2 {
                let sent = world.comes_in("uplink", &packet);
                sent.is_sent_as(&packet.becomes(of.client, of.here).one_hop_on().out_to(POD1));
                let answer = packet.becomes(of.here, of.client);
                world.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
            }
            let flow = world.flow(Hook::Ingress, of.client, of.node_port).expect("its flow");
            assert_eq!((flow.flags, world.flows().len()), (FlowFlags::REDIRECT, 2));
        }
    }
}

#[test]
fn one_pod_enters_another() {
    for of in BOTH {
        let mut world = enter();
        world.serve(Wanted::tcp().cluster_ip(of.cluster_ip).backends(&[of.beside]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        world.comes_in("pod1", &syn).is_sent_as(&syn.becomes(of.pod, of.beside).one_hop_on().out_to(POD2));
        let answer = Packet::tcp(of.beside, of.pod).flags("SA");
        let seen = answer.becomes(of.cluster_ip, of.pod).one_hop_on().out_to(POD1);
        world.comes_in("pod2", &answer).is_sent_as(&seen);
    }
}

#[test]
fn both_ends_must_be_of_host_routing() {
    for of in BOTH {
        for (uplink, pod) in
            [(0, ENTERED), (DeviceFlags::HOST_ROUTING, DeviceFlags::POD), (DeviceFlags::HOST_ROUTING, 0)]
        {
            let mut world = enter();
            world.set_flags("uplink", uplink);
            world.set_flags("pod1", pod);
            world.serve(Wanted::tcp().node_port(of.any).backends(&[of.here]));
            let syn = Packet::syn(of.client, of.node_port);
            world.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
            let answer = syn.becomes(of.here, of.client);
            world.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
        }
    }
}

#[test]
fn a_pod_elsewhere_is_reached_from_a_pod_as_without_it() {
    // What the network plugin does with packets between nodes is its own business.
    for of in BOTH {
        let mut world = enter();
        world.serve(Wanted::tcp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        world.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
    }
}

#[test]
fn a_pod_whose_link_address_is_not_known_is_asked_by_the_kernel() {
    for of in BOTH {
        let mut world = enter();
        site::ip(&format!("neighbour del {} dev pod1\n", ip(of.here)));
        world.serve(Wanted::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        world.comes_in("uplink", &syn).is_sent_as(&syn.becomes(of.client, of.here).one_hop_on());
    }
}

/// As in `outside`: these clients look like packets of IP to the kernel's test of programs.
#[test]
fn what_has_no_ethernet_header_gets_one_on_its_way() {
    for (of, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        let mut world = enter();
        world.serve(Wanted::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(client, of.node_port);
        world.comes_in("uplink", &syn).is_sent();
        // The same flow by another way in.
        let ack = Packet::tcp(client, of.node_port).bare();
        world.comes_in("bare", &ack).is_sent_as(&ack.becomes(client, of.here).one_hop_on());
    }
}

#[test]
fn a_flow_whose_answers_look_like_those_of_another_stays_with_the_kernel() {
    for of in BOTH {
        let mut world = enter();
        world.set_flags("uplink", 0);
        world.serve(Wanted::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[of.here]));
        let first = Packet::syn(of.client, of.node_port);
        world.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
        world.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        // From the same port: to the backend it would be the same connection.
        let second = Packet::syn(of.client, of.cluster_ip);
        let sent = world.comes_in("uplink", &second);
        assert!(sent.goes_on() && sent.ends().0 != of.client, "{sent:?}");
    }
}

#[test]
fn hops_and_sizes_are_looked_at_as_a_router_does() {
    for of in BOTH {
        let mut world = enter();
        world.serve(Wanted::udp().node_port(of.any).backends(&[of.here]));
        let last = Packet::udp(of.client, of.node_port).ttl(1);
        world.comes_in("uplink", &last).is_sent_as(&Error::answer(Trouble::TimeExceeded, &last));
        let answer = Packet::udp(of.here, of.client).ttl(1);
        world.comes_in("pod1", &answer).is_sent_as(&Error::answer(Trouble::TimeExceeded, &answer));
        let large = Packet::udp(of.client, of.node_port).sized(site::MTU as usize + 1);
        world.comes_in("uplink", &large).is_sent_as(&Error::answer(Trouble::TooBig(site::MTU as u16), &large));
    }
}

#[test]
fn errors_of_the_pod_and_of_the_client_go_the_same_ways() {
    for of in BOTH {
        let mut world = enter();
        world.serve(Wanted::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        let seen = packet.becomes(of.client, of.here);
        world.comes_in("uplink", &packet).is_sent();
        let error = Error::new(&ip(of.here), Trouble::PortUnreachable, &seen, 1000);
        let want = error.becomes(of.node, &ip(of.client), &packet).one_hop_on();
        world.comes_in("pod1", &error).is_sent_as(&want);
        let (answer, seen) = (packet.becomes(of.here, of.client), packet.becomes(of.node_port, of.client));
        let error = Error::new(of.router, Trouble::PortUnreachable, &seen, 1000);
        let want = error.becomes(of.router, &ip(of.here), &answer).one_hop_on();
        world.comes_in("uplink", &error).is_sent_as(&want);
    }
}

#[test]
fn flows_go_on_when_it_is_switched_off() {
    for of in BOTH {
        let mut world = enter();
        world.serve(Wanted::tcp().node_port(of.any).backends(&[of.here]));
        world.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_sent();
        world.set_flags("uplink", 0);
        world.set_flags("pod1", DeviceFlags::POD | DeviceFlags::CHOSEN);
        let ack = Packet::tcp(of.client, of.node_port);
        world.comes_in("uplink", &ack).is_sent_as(&ack.becomes(of.client, of.here).one_hop_on());
        let answer = Packet::tcp(of.here, of.client);
        world.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
        assert_eq!(world.count(Counter::NoRoute), 0);
    }
}

#[test]
fn flows_go_on_when_it_is_switched_on() {
    for of in BOTH {
        let mut world = World::enter();
        world.serve(Wanted::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        world.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        world.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        world.set_flags("pod1", ENTERED);
        let ack = Packet::tcp(of.client, of.node_port);
        world.comes_in("uplink", &ack).goes_on_as(&ack.becomes(of.client, of.here));
        let answer = Packet::tcp(of.here, of.client);
        world.comes_in("pod1", &answer).is_untouched();
        world.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
    }
}
