//! Between an uplink and a pod of this node, past the kernel's own routing (`--host-routing`).

use lb_common::{Counter, DeviceFlags, FlowFlags, Hook};
use lb_lab::packets::{Fixture, Packet, Reason, ServicePort, node, packet::Error};

use crate::{
    enter,
    family::{BOTH, V4, V6, each, ip},
};

const ENTERED: u32 = DeviceFlags::POD | DeviceFlags::HOST_ROUTING;
/// How the link address of `pod1` ends, and that of `pod2`.
const POD1: u8 = 0x11;
const POD2: u8 = 0x12;

fn enter_host_routing() -> Fixture {
    let mut fixture = enter();
    for (device, flags) in [("uplink", DeviceFlags::HOST_ROUTING), ("pod1", ENTERED), ("pod2", ENTERED)] {
        fixture.set_flags(device, flags);
    }
    fixture
}

#[test]
fn a_pod_is_entered_and_its_answers_leave_at_once() {
    for of in BOTH {
        for (packet, wanted) in each(of) {
            let mut fixture = enter_host_routing();
            fixture.serve(wanted.node_port(of.any).backends(&[of.here]));
            for _ in 0..2 {
                let sent = fixture.comes_in("uplink", &packet);
                sent.is_sent_as(&packet.becomes(of.client, of.here).one_hop_on().out_to(POD1));
                let answer = packet.becomes(of.here, of.client);
                fixture.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
            }
            let flow = fixture.flow(Hook::Ingress, of.client, of.node_port).expect("its flow");
            assert_eq!((flow.flags, fixture.flows().len()), (FlowFlags::REDIRECT, 2));
        }
    }
}

#[test]
fn one_pod_enters_another() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[of.beside]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        fixture.comes_in("pod1", &syn).is_sent_as(&syn.becomes(of.pod, of.beside).one_hop_on().out_to(POD2));
        let answer = Packet::tcp(of.beside, of.pod).flags("SA");
        let seen = answer.becomes(of.cluster_ip, of.pod).one_hop_on().out_to(POD1);
        fixture.comes_in("pod2", &answer).is_sent_as(&seen);
    }
}

#[test]
fn both_ends_must_be_of_host_routing() {
    for of in BOTH {
        for (uplink, pod) in
            [(0, ENTERED), (DeviceFlags::HOST_ROUTING, DeviceFlags::POD), (DeviceFlags::HOST_ROUTING, 0)]
        {
            let mut fixture = enter_host_routing();
            fixture.set_flags("uplink", uplink);
            fixture.set_flags("pod1", pod);
            fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
            let syn = Packet::syn(of.client, of.node_port);
            fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
            let answer = syn.becomes(of.here, of.client);
            fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
        }
    }
}

#[test]
fn a_pod_elsewhere_is_reached_from_a_pod_as_without_it() {
    // What the network plugin does with packets between nodes is its own business.
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::tcp().cluster_ip(of.cluster_ip).backends(&[of.there]));
        let syn = Packet::syn(of.pod, of.cluster_ip);
        fixture.comes_in("pod1", &syn).goes_on_as(&syn.becomes(of.pod, of.there));
    }
}

#[test]
fn a_pod_whose_link_address_is_not_known_is_asked_by_the_kernel() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        node::ip(&format!("neighbour del {} dev pod1\n", ip(of.here)));
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &syn).is_sent_as(&syn.becomes(of.client, of.here).one_hop_on());
    }
}

/// As in `outside`: these clients look like packets of IP to the kernel's test of programs.
#[test]
fn what_has_no_ethernet_header_gets_one_on_its_way() {
    for (of, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(client, of.node_port);
        fixture.comes_in("uplink", &syn).is_sent();
        // The same flow by another way in.
        let ack = Packet::tcp(client, of.node_port).bare();
        fixture.comes_in("bare", &ack).is_sent_as(&ack.becomes(client, of.here).one_hop_on());
    }
}

#[test]
fn a_flow_whose_answers_look_like_those_of_another_stays_with_the_kernel() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.set_flags("uplink", 0);
        fixture.serve(ServicePort::tcp().node_port(of.any).cluster_ip(of.cluster_ip).backends(&[of.here]));
        let first = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &first).goes_on_as(&first.becomes(of.client, of.here));
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        // From the same port: to the backend it would be the same connection.
        let second = Packet::syn(of.client, of.cluster_ip);
        let sent = fixture.comes_in("uplink", &second);
        assert!(sent.goes_on() && sent.ends().0 != of.client, "{sent:?}");
    }
}

#[test]
fn hops_and_sizes_are_looked_at_as_a_router_does() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let last = Packet::udp(of.client, of.node_port).ttl(1);
        fixture.comes_in("uplink", &last).is_sent_as(&Error::answer(Reason::TimeExceeded, &last));
        let answer = Packet::udp(of.here, of.client).ttl(1);
        fixture.comes_in("pod1", &answer).is_sent_as(&Error::answer(Reason::TimeExceeded, &answer));
        let large = Packet::udp(of.client, of.node_port).sized(node::MTU as usize + 1);
        fixture.comes_in("uplink", &large).is_sent_as(&Error::answer(Reason::TooBig(node::MTU as u16), &large));
    }
}

#[test]
fn errors_of_the_pod_and_of_the_client_go_the_same_ways() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::udp().node_port(of.any).backends(&[of.here]));
        let packet = Packet::udp(of.client, of.node_port);
        let seen = packet.becomes(of.client, of.here);
        fixture.comes_in("uplink", &packet).is_sent();
        let error = Error::new(&ip(of.here), Reason::PortUnreachable, &seen, 1000);
        let want = error.becomes(of.node, &ip(of.client), &packet).one_hop_on();
        fixture.comes_in("pod1", &error).is_sent_as(&want);
        let (answer, seen) = (packet.becomes(of.here, of.client), packet.becomes(of.node_port, of.client));
        let error = Error::new(of.router, Reason::PortUnreachable, &seen, 1000);
        let want = error.becomes(of.router, &ip(of.here), &answer).one_hop_on();
        fixture.comes_in("uplink", &error).is_sent_as(&want);
    }
}

#[test]
fn flows_go_on_when_it_is_switched_off() {
    for of in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        fixture.comes_in("uplink", &Packet::syn(of.client, of.node_port)).is_sent();
        fixture.set_flags("uplink", 0);
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::CHOSEN);
        let ack = Packet::tcp(of.client, of.node_port);
        fixture.comes_in("uplink", &ack).is_sent_as(&ack.becomes(of.client, of.here).one_hop_on());
        let answer = Packet::tcp(of.here, of.client);
        fixture.comes_in("pod1", &answer).is_sent_as(&answer.becomes(of.node_port, of.client).one_hop_on());
        assert_eq!(fixture.count(Counter::NoRoute), 0);
    }
}

#[test]
fn flows_go_on_when_it_is_switched_on() {
    for of in BOTH {
        let mut fixture = enter();
        fixture.serve(ServicePort::tcp().node_port(of.any).backends(&[of.here]));
        let syn = Packet::syn(of.client, of.node_port);
        fixture.comes_in("uplink", &syn).goes_on_as(&syn.becomes(of.client, of.here));
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        fixture.set_flags("pod1", ENTERED);
        let ack = Packet::tcp(of.client, of.node_port);
        fixture.comes_in("uplink", &ack).goes_on_as(&ack.becomes(of.client, of.here));
        let answer = Packet::tcp(of.here, of.client);
        fixture.comes_in("pod1", &answer).is_untouched();
        fixture.goes_out("uplink", &answer).goes_on_as(&answer.becomes(of.node_port, of.client));
    }
}
