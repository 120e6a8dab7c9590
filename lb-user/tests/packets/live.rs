//! Attached programs: the links that packets leave by, and the errors that sockets get.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use lb_lab::{
    netns::LabNamespace,
    packets::{FarEnd, FixtureService, IcmpReason, PacketSpec, node, packet::IcmpErrorSpec},
};

use crate::{addresses::BOTH, enter};

/// Neighbours, by the last octet of their link addresses.
const GATEWAY: u8 = 0xfe;
const NODE2: u8 = 2;
const POD1: u8 = 0x11;

#[test]
fn a_masqueraded_flow_goes_to_the_next_hop_in_both_directions() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        fixture.attach();
        let uplink = FarEnd::of("uplink");
        let syn = PacketSpec::syn(net.client, net.node_port);
        // A test run makes the flow, and shows its masquerade port.
        let node = fixture.ingress("uplink", &syn).ends().0;
        uplink.send(&syn);
        uplink.receives(&syn.becomes(&node, net.remote).routed().out_to(NODE2));
        let answer = PacketSpec::tcp(net.remote, &node).flags("SA");
        uplink.send(&answer);
        uplink.receives(&answer.becomes(net.node_port, net.client).routed().out_to(GATEWAY));
    }
}

#[test]
fn packets_to_a_local_backend_take_the_kernels_routes() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().node_port(net.any).backends(&[net.local]));
        fixture.attach();
        let (uplink, pod) = (FarEnd::of("uplink"), FarEnd::of("pod1"));
        let packet = PacketSpec::udp(net.client, net.node_port);
        uplink.send(&packet);
        pod.receives(&packet.becomes(net.client, net.local).routed().out_to(POD1));
        let answer = PacketSpec::udp(net.local, net.client);
        pod.send(&answer);
        uplink.receives(&answer.becomes(net.node_port, net.client).routed().out_to(GATEWAY));
    }
}

/// Behind Cisco's virtual network cards, for one, frames have a tag with a priority and no VLAN.
#[test]
fn packets_with_a_priority_tag_are_served_and_leave_without_it() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[net.remote]));
        fixture.serve(FixtureService::udp().node_port(net.any));
        fixture.attach();
        let nft = |words: &str| LabNamespace::current().run(&["nft", words]);
        nft(
            "table netdev tags { counter tagged {}; chain in { type filter hook ingress device uplink-end priority 0; \
             vlan id 0-4094 counter name tagged; }; }",
        );
        let uplink = FarEnd::of("uplink");
        let syn = PacketSpec::syn(net.client, net.node_port);
        uplink.send(&syn.clone().vlan(5));
        let refused = PacketSpec::udp(net.client, net.node_port);
        uplink.send(&refused.clone().vlan(0));
        uplink.receives(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &refused));
        assert_eq!(fixture.flows(), Vec::<String>::new(), "VLAN 5 is none of the device's");
        let node = fixture.ingress("uplink", &syn).ends().0;
        let becomes = syn.becomes(&node, net.remote).routed().out_to(NODE2);
        // Twice, since a packet socket hears a frame before it is counted.
        for _ in 0..2 {
            uplink.send(&syn.clone().vlan(0));
            uplink.receives(&becomes);
        }
        assert!(nft("list counters").contains("packets 0 "), "{}", nft("list counters"));
    }
}

#[test]
fn a_pod_reaches_itself() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::udp().cluster_ip(net.cluster_ip).backends(&[net.local]));
        fixture.attach();
        let pod = FarEnd::of("pod1");
        let packet = PacketSpec::udp(net.pod, net.cluster_ip);
        let node = fixture.ingress("pod1", &packet).ends().0;
        pod.send(&packet);
        pod.receives(&packet.becomes(&node, net.local).routed().out_to(POD1));
        let answer = PacketSpec::udp(net.local, &node);
        pod.send(&answer);
        pod.receives(&answer.becomes(net.cluster_ip, net.pod).routed().out_to(POD1));
    }
}

#[test]
fn refusals_leave_by_the_device_of_the_packet() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any));
        fixture.serve(FixtureService::udp().node_port(net.any));
        fixture.attach();
        let uplink = FarEnd::of("uplink");
        let syn = PacketSpec::syn(net.client, net.node_port);
        uplink.send(&syn);
        uplink.receives(&syn.reset());
        for len in [net.header + 8, 1500] {
            let packet = PacketSpec::udp(net.client, net.node_port).sized(len);
            uplink.send(&packet);
            uplink.receives(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &packet));
        }
    }
}

#[test]
fn sockets_of_the_node_are_refused_at_unknown_ports_of_a_vip() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().cluster_ip(net.cluster_ip).backends(&[net.local]));
        fixture.attach();
        let other = net.cluster_ip.replace(":80", ":81");
        let to = other.parse().expect("an address and port");
        let error = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect_err("no Service has the port");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        // Two lengths: the checksum offload of the packet must not apply to the answer.
        for len in [1, 1400] {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a port");
            socket.connect(to).expect("a route");
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            socket.send(&vec![7; len]).expect("sent");
            let error = socket.recv(&mut [0; 8]).expect_err("no Service has the port");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        }
    }
}

#[test]
fn an_offloaded_checksum_is_right_after_translation() {
    for net in BOTH {
        for (packet, service) in [
            (PacketSpec::syn(net.client, net.node_port), FixtureService::tcp()),
            (PacketSpec::udp(net.client, net.node_port), FixtureService::udp()),
        ] {
            let mut fixture = enter();
            let mut web = fixture.serve(service.node_port(net.any).backends(&[net.remote]));
            fixture.attach();
            node::disable_offloads("uplink");
            let uplink = FarEnd::of("uplink");
            let node = fixture.ingress("uplink", &packet).ends().0;
            FarEnd::send_unfinished("uplink", &packet, 0);
            uplink.receives(&packet.becomes(&node, net.remote).routed().out_to(NODE2));
            // The same to a local backend, which the kernel routes.
            node::disable_offloads("pod1");
            web.change(fixture.maps(), &[net.local]);
            let pod = FarEnd::of("pod1");
            FarEnd::send_unfinished("uplink", &packet, 0);
            pod.receives(&packet.becomes(net.client, net.local).routed().out_to(POD1));
        }
    }
}

#[test]
fn an_answer_to_a_packet_with_offloaded_checksum_has_its_own_checksum() {
    for net in BOTH {
        let mut fixture = enter();
        fixture.serve(FixtureService::tcp().node_port(net.any));
        fixture.serve(FixtureService::udp().node_port(net.any));
        fixture.attach();
        node::disable_offloads("uplink");
        let uplink = FarEnd::of("uplink");
        for syn in [
            PacketSpec::syn(net.client, net.node_port),
            PacketSpec::tcp(net.client, net.node_port).flags("S").sized(1500),
        ] {
            FarEnd::send_unfinished("uplink", &syn, 0);
            uplink.receives(&syn.reset());
        }
        for len in [net.header + 8, net.header + 9, 1500] {
            let packet = PacketSpec::udp(net.client, net.node_port).sized(len);
            FarEnd::send_unfinished("uplink", &packet, 0);
            uplink.receives(&IcmpErrorSpec::answer(IcmpReason::PortUnreachable, &packet.unfinished()));
        }
    }
}

#[test]
fn a_gso_packet_is_segmented_right_after_translation() {
    for net in BOTH {
        for backend in [net.remote, net.local] {
            let mut fixture = enter();
            fixture.serve(FixtureService::tcp().node_port(net.any).backends(&[backend]));
            fixture.attach();
            let packet = PacketSpec::tcp(net.client, net.node_port).sized(5000);
            let node = fixture.ingress("uplink", &PacketSpec::syn(net.client, net.node_port)).ends().0;
            let (device, neighbour) = if backend == net.remote { ("uplink", NODE2) } else { ("pod1", POD1) };
            node::disable_offloads(device);
            let far_end = FarEnd::of(device);
            FarEnd::send_unfinished("uplink", &packet, 1400);
            let becomes = packet.becomes(&node, backend).routed().out_to(neighbour);
            for at in (0..packet.payload.len()).step_by(1400) {
                far_end.receives(&becomes.segment(at, 1400));
            }
        }
    }
}
