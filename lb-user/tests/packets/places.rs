//! Packets of clients outside to backends without `nodeName`: the routes say where the backend is.

use std::net::{TcpListener, UdpSocket};

use lb_common::{Counter, DeviceFlags};
use lb_lab::packets::{Fixture, FixtureService, PacketSpec};

use crate::{
    addresses::{BOTH, Net, each, ip},
    enter,
};

/// Asserts that the backend gets `packet` with its source kept, and that its answers are translated where they leave.
fn backend_sees_the_client(fixture: &mut Fixture, net: Net, packet: &PacketSpec, backend: &str) {
    fixture.ingress("uplink", packet).passes_as(&packet.becomes(net.client, backend));
    let answer = packet.becomes(backend, net.client);
    fixture.egress("uplink", &answer).passes_as(&answer.becomes(net.node_port, net.client));
    assert_eq!(fixture.count(Counter::NoRoute), 0);
}

/// Asserts that the backend gets `packet` from the address `own` of a device, and that its answers by that device reach
/// the client.
fn backend_sees_the_device(fixture: &mut Fixture, net: Net, packet: &PacketSpec, backend: &str, device: (&str, &str)) {
    let (device, own) = device;
    let sent = fixture.ingress("uplink", packet);
    let (node, _) = sent.ends();
    assert_eq!(ip(&node), own);
    sent.is_redirected_as(&packet.becomes(&node, backend).routed());
    let answer = packet.becomes(backend, &node);
    fixture.ingress(device, &answer).is_redirected_as(&answer.becomes(net.node_port, net.client).routed());
}

fn serve(net: Net, service: FixtureService, backend: &str) -> Fixture {
    let mut fixture = enter();
    fixture.serve(service.node_port(net.any).backends(&[backend]));
    fixture
}

#[test]
fn an_endpoint_that_is_the_nodes_own_address_is_delivered_to_the_node() {
    for (net, own) in BOTH.into_iter().zip(["192.0.2.1:9376", "[2001:db8::1]:9376"]) {
        for (packet, service) in each(net) {
            backend_sees_the_client(&mut serve(net, service, own), net, &packet, own);
        }
    }
}

#[test]
fn the_nodes_own_address_needs_no_forwarding() {
    for (net, own) in BOTH.into_iter().zip(["192.0.2.1:9376", "[2001:db8::1]:9376"]) {
        let mut fixture = serve(net, FixtureService::tcp(), own);
        for family in ["ipv4", "ipv6"] {
            lb_lab::LabNamespace::current().set(&format!("{family}/conf/all/forwarding"), "0");
        }
        backend_sees_the_client(&mut fixture, net, &PacketSpec::syn(net.client, net.node_port), own);
    }
}

#[test]
fn an_own_address_that_serves_no_node_ports_is_known_by_the_socket_that_listens() {
    for (net, own) in BOTH.into_iter().zip(["172.16.0.1:9376", "[fd16::1]:9376"]) {
        for (packet, service) in each(net).into_iter().take(2) {
            let mut fixture = serve(net, service, own);
            fixture.ingress("uplink", &packet).is_dropped();
            assert_eq!((fixture.count(Counter::NoRoute), fixture.flows().len()), (1, 0));
            let _sockets = (TcpListener::bind(own).expect("a free port"), UdpSocket::bind(own).expect("a free port"));
            fixture.ingress("uplink", &packet).passes_as(&packet.becomes(net.client, own));
        }
    }
}

#[test]
fn an_endpoint_without_any_route_is_not_taken_for_an_own_address() {
    for (net, far) in BOTH.into_iter().zip(["203.0.113.50:8080", "[2001:db8:50::1]:8080"]) {
        let mut fixture = serve(net, FixtureService::udp(), far);
        let packet = PacketSpec::udp(net.client, net.node_port);
        let word = if net.is_v4() { "" } else { "-6 " };
        lb_lab::LabNamespace::current().run(&format!("ip {word}route del default").split(' ').collect::<Vec<_>>());
        fixture.ingress("uplink", &packet).is_dropped();
        assert_eq!((fixture.count(Counter::NoRoute), fixture.flows().len()), (1, 0));
    }
}

#[test]
fn a_pod_behind_a_link_without_programs_sees_the_client() {
    for (net, pod) in BOTH.into_iter().zip(["10.0.5.1:8080", "[fd00:0:0:5::1]:8080"]) {
        for (packet, service) in each(net) {
            backend_sees_the_client(&mut serve(net, service, pod), net, &packet, pod);
        }
    }
}

#[test]
fn a_container_behind_a_bridge_and_a_host_on_a_connected_network_see_the_nodes_address_there() {
    for (net, [container, host]) in
        BOTH.into_iter().zip([["10.0.6.2:8080", "172.16.0.2:8080"], ["[fd00:0:0:6::2]:8080", "[fd16::2]:8080"]])
    {
        let own = if net.is_v4() { ["10.0.6.254", "172.16.0.1"] } else { ["fd00:0:0:6::fe", "fd16::1"] };
        for (backend, device) in [(container, ("bridge", own[0])), (host, ("thin", own[1]))] {
            for (packet, service) in each(net) {
                backend_sees_the_device(&mut serve(net, service, backend), net, &packet, backend, device);
            }
        }
    }
}

/// As SR-IOV gives a pod one: its answers to clients would go by another router, or by none.
#[test]
fn a_pods_interface_on_another_network_sees_the_client_with_the_local_policy_alone() {
    for (net, [pod, own]) in
        BOTH.into_iter().zip([["10.0.6.1:8080", "10.0.6.254"], ["[fd00:0:0:6::1]:8080", "fd00:0:0:6::fe"]])
    {
        let syn = PacketSpec::syn(net.client, net.node_port);
        backend_sees_the_device(&mut serve(net, FixtureService::tcp(), pod), net, &syn, pod, ("bridge", own));
        backend_sees_the_client(&mut serve(net, FixtureService::tcp().external_local(), pod), net, &syn, pod);
    }
}

#[test]
fn a_pod_behind_a_bridge_sees_clients_outside_but_not_its_neighbours_on_the_bridge() {
    for (net, [pod, neighbour, own]) in BOTH.into_iter().zip([
        ["10.0.6.1:8080", "10.0.6.2:4000", "10.0.6.254"],
        ["[fd00:0:0:6::1]:8080", "[fd00:0:0:6::2]:4000", "fd00:0:0:6::fe"],
    ]) {
        let mut fixture = serve(net, FixtureService::tcp(), pod);
        fixture.set_flags("bridge", DeviceFlags::BRIDGE);
        backend_sees_the_client(&mut fixture, net, &PacketSpec::syn(net.client, net.node_port), pod);
        let packet = PacketSpec::syn(neighbour, net.node_port);
        let sent = fixture.ingress("bridge", &packet);
        let (node, _) = sent.ends();
        assert_eq!(ip(&node), own, "the answer to the neighbour itself would not pass the node");
        sent.is_redirected_as(&packet.becomes(&node, pod).routed());
        let answer = packet.becomes(pod, &node);
        fixture.ingress("bridge", &answer).is_redirected_as(&answer.becomes(net.node_port, neighbour).routed());
    }
}

#[test]
fn a_device_that_the_flags_leave_without_programs_gets_no_masqueraded_packets() {
    for (net, host) in BOTH.into_iter().zip(["172.16.0.2:8080", "[fd16::2]:8080"]) {
        let mut fixture = serve(net, FixtureService::udp(), host);
        fixture.set_flags("thin", DeviceFlags::NO_PROGRAMS);
        backend_sees_the_client(&mut fixture, net, &PacketSpec::udp(net.client, net.node_port), host);
    }
}
