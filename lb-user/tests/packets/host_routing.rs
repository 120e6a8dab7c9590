//! Host routing (`--host-routing`): packets between an uplink and a local pod bypass the kernel's routing.

use lb_common::{Counter, DeviceFlags, FlowFlags, Hook};
use lb_lab::packets::{Fixture, FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec};

use crate::{
    addresses::{BOTH, V4, V6, each, ip},
    enter,
};

const POD_WITH_HOST_ROUTING: u32 = DeviceFlags::POD | DeviceFlags::HOST_ROUTING;
/// Last octets of the link addresses of `pod1` and `pod2`.
const POD1: u8 = 0x11;
const POD2: u8 = 0x12;

fn enter_host_routing() -> Fixture {
    let mut fixture = enter();
    for (device, flags) in
        [("uplink", DeviceFlags::HOST_ROUTING), ("pod1", POD_WITH_HOST_ROUTING), ("pod2", POD_WITH_HOST_ROUTING)]
    {
        fixture.set_flags(device, flags);
    }
    fixture
}

#[test]
fn packets_are_redirected_into_a_pod_and_answers_out_of_it() {
    for net in BOTH {
        for (packet, service) in each(net) {
            let mut fixture = enter_host_routing();
            fixture.serve(service.node_port(net.any).backends(&[net.local]));
            for _ in 0..2 {
                let sent = fixture.ingress("uplink", &packet);
                sent.is_redirected_as(&packet.becomes(net.client, net.local).routed().out_to(POD1));
                let answer = packet.becomes(net.local, net.client);
                fixture.ingress("pod1", &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
            }
            let flow = fixture.flow(Hook::Ingress, net.client, net.node_port).expect("its flow");
            assert_eq!((flow.flags, fixture.flows().len()), (FlowFlags::REDIRECT, 2));
        }
    }
}

#[test]
fn packets_between_two_local_pods_are_redirected() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[net.local2]));
        let syn = PacketSpec::syn(net.pod, net.cluster_ip);
        fixture.ingress("pod1", &syn).is_redirected_as(&syn.becomes(net.pod, net.local2).routed().out_to(POD2));
        let answer = PacketSpec::tcp(net.local2, net.pod).flags("SA");
        let seen = answer.becomes(net.cluster_ip, net.pod).routed().out_to(POD1);
        fixture.ingress("pod2", &answer).is_redirected_as(&seen);
    }
}

#[test]
fn host_routing_needs_the_flag_on_both_devices() {
    for net in BOTH {
        for (uplink, pod) in [
            (0, POD_WITH_HOST_ROUTING),
            (DeviceFlags::HOST_ROUTING, DeviceFlags::POD),
            (DeviceFlags::HOST_ROUTING, DeviceFlags::BRIDGE),
        ] {
            let mut fixture = enter_host_routing();
            fixture.set_flags("uplink", uplink);
            fixture.set_flags("pod1", pod);
            fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
            let syn = PacketSpec::syn(net.client, net.node_port);
            fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
            let answer = syn.becomes(net.local, net.client);
            fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
        }
    }
}

#[test]
fn packets_of_a_pod_to_a_remote_backend_take_the_kernels_routes() {
    // Packets between nodes are the network plugin's: it may encapsulate them.
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[net.remote]));
        let syn = PacketSpec::syn(net.pod, net.cluster_ip);
        fixture.ingress("pod1", &syn).passes_as(&syn.becomes(net.pod, net.remote));
    }
}

#[test]
fn the_kernel_resolves_the_unknown_link_address_of_a_pod() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        node::ip(&format!("neighbour del {} dev pod1\n", ip(net.local)));
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &syn).is_redirected_as(&syn.becomes(net.client, net.local).routed());
    }
}

/// For the addresses of the clients see `outside::a_device_without_ethernet_is_served`.
#[test]
fn a_packet_without_ethernet_header_is_left_to_the_kernel() {
    for (net, client) in [(V4, "8.0.3.4:4000"), (V6, "[fd08:0:86dd::9]:4000")] {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(client, net.node_port);
        fixture.ingress("uplink", &syn).is_redirected();
        // The same flow arrives at the device without Ethernet.
        let ack = PacketSpec::tcp(client, net.node_port).bare();
        fixture.ingress("bare", &ack).passes_as(&ack.becomes(client, net.local));
    }
}

#[test]
fn a_flow_that_needs_another_client_port_is_not_redirected() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.set_flags("uplink", 0);
        fixture.serve(FixtureService::tcp().node_port(net.any).cluster_ip(net.cluster_ip).backends(&[net.local]));
        let first = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &first).passes_as(&first.becomes(net.client, net.local));
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        // From the same port, which makes it the same connection to the backend.
        let second = PacketSpec::syn(net.client, net.cluster_ip);
        let sent = fixture.ingress("uplink", &second);
        assert!(sent.passes() && sent.ends().0 != net.client, "{sent:?}");
    }
}

#[test]
fn ttl_and_mtu_are_checked_as_a_router_does() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let last = PacketSpec::udp(net.client, net.node_port).ttl(1);
        fixture.ingress("uplink", &last).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TimeExceeded, &last));
        let answer = PacketSpec::udp(net.local, net.client).ttl(1);
        fixture.ingress("pod1", &answer).is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TimeExceeded, &answer));
        let large = PacketSpec::udp(net.client, net.node_port).sized(node::MTU as usize + 1);
        fixture
            .ingress("uplink", &large)
            .is_redirected_as(&IcmpErrorSpec::answer(IcmpReason::TooBig(node::MTU as u16), &large));
    }
}

#[test]
fn icmp_errors_of_pod_and_router_are_redirected() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        let packet = PacketSpec::udp(net.client, net.node_port);
        let seen = packet.becomes(net.client, net.local);
        fixture.ingress("uplink", &packet).is_redirected();
        let error = IcmpErrorSpec::new(&ip(net.local), IcmpReason::PortUnreachable, &seen, 1000);
        let want = error.becomes(net.node, &ip(net.client), &packet).routed();
        fixture.ingress("pod1", &error).is_redirected_as(&want);
        let (answer, seen) = (packet.becomes(net.local, net.client), packet.becomes(net.node_port, net.client));
        let error = IcmpErrorSpec::new(net.router, IcmpReason::PortUnreachable, &seen, 1000);
        let want = error.becomes(net.router, &ip(net.local), &answer).routed();
        fixture.ingress("uplink", &error).is_redirected_as(&want);
    }
}

#[test]
fn flows_continue_when_host_routing_is_switched_off() {
    for net in BOTH {
        let mut fixture = enter_host_routing();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).is_redirected();
        fixture.set_flags("uplink", 0);
        fixture.set_flags("pod1", DeviceFlags::POD | DeviceFlags::CHOSEN);
        let ack = PacketSpec::tcp(net.client, net.node_port);
        fixture.ingress("uplink", &ack).is_redirected_as(&ack.becomes(net.client, net.local).routed());
        let answer = PacketSpec::tcp(net.local, net.client);
        fixture.ingress("pod1", &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
        assert_eq!(fixture.count(Counter::NoRoute), 0);
    }
}

#[test]
fn flows_continue_when_host_routing_is_switched_on() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.local]));
        let syn = PacketSpec::syn(net.client, net.node_port);
        fixture.ingress("uplink", &syn).passes_as(&syn.becomes(net.client, net.local));
        fixture.set_flags("uplink", DeviceFlags::HOST_ROUTING);
        fixture.set_flags("pod1", POD_WITH_HOST_ROUTING);
        let ack = PacketSpec::tcp(net.client, net.node_port);
        fixture.ingress("uplink", &ack).passes_as(&ack.becomes(net.client, net.local));
        let answer = PacketSpec::tcp(net.local, net.client);
        fixture.ingress("pod1", &answer).passes_unchanged();
        fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
    }
}
